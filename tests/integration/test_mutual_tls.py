"""A real mosquitto with the fleet's own certificates and ACL: who gets in, and what each may hear and say."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import LOOPBACK, until
from contract_device import ContractDevice
from secured_broker import SecuredBroker, secured_broker
from served_fleet import ServedFleet

from jetfleet_contract import topics
from jetfleet_host.broker_setup import authority_of, settings_text, write_issued
from jetfleet_host.certificates import CertificateAuthority
from jetfleet_host.project import Project

BLOB = "ab" * 32


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    with secured_broker(tmp_path_factory.mktemp("tls")) as running:
        yield running


def test_a_client_without_a_certificate_is_refused(broker: SecuredBroker) -> None:
    with broker.device("board-a", cert="", key="") as naked:
        until(lambda: naked.downs, "the refusal", 30)
        assert not naked.ups


def test_a_certificate_of_another_authority_is_refused(broker: SecuredBroker, tmp_path: Path) -> None:
    strangers = CertificateAuthority.create(tmp_path / "ca", "strangers")
    write_issued(tmp_path, "board-a", strangers.issue_device("board-a"))
    with broker.device("board-a", cert=str(tmp_path / "board-a.pem"), key=str(tmp_path / "board-a.key")) as stranger:
        until(lambda: stranger.downs, "the refusal", 30)
        assert not stranger.ups


def test_a_broker_under_another_name_is_not_believed(broker: SecuredBroker, tmp_path: Path) -> None:
    """The certificate is good and of our authority, but it is not the one of the name that was dialled."""
    write_issued(tmp_path, "server", authority_of(broker.project).issue_server(["elsewhere.example.org"]))
    text = broker.config.read_text()
    folder = broker.project.dir / "broker"
    other = tmp_path / "mosquitto.conf"
    other.write_text(text.replace(str(folder / "server.pem"), str(tmp_path / "server.pem"))
                     .replace(str(folder / "server.key"), str(tmp_path / "server.key")))
    original, broker.config = broker.config, other
    broker.stop()
    broker.start()
    try:
        for link in (broker.device("board-a"), broker.host()):
            with link:
                until(lambda one=link: one.downs, "the refusal", 30)  # type: ignore[misc]
                assert "certificate verify failed" in link.downs[0]
                assert not link.ups
    finally:
        broker.config = original
        broker.stop()
        broker.start()


def test_a_board_cannot_pose_as_the_broker(broker: SecuredBroker) -> None:
    """A device's certificate is good for clients only: even a client that asks for no name refuses it."""
    files = broker.device_files("localhost")
    pretender = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pretender.load_cert_chain(files["cert"], files["key"])
    victim = ssl.create_default_context(cafile=files["ca"])
    victim.check_hostname = False
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client, server = victim.wrap_bio(to_client, to_server), pretender.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        client.do_handshake()


def test_a_board_hears_only_what_is_its_own(broker: SecuredBroker) -> None:
    """It subscribes to everything; the broker lets it, and delivers what the ACL gives it."""
    own = [topics.META, topics.desired("board-a"), topics.command("board-a"), topics.ack("board-a"), topics.chunk(BLOB),
           topics.blob_round(BLOB), topics.unicast(BLOB, "board-a"), topics.upload_want("board-a", BLOB), topics.answer("board-a")]
    others = [topics.desired("board-b"), topics.command("board-b"), topics.ack("board-b"), topics.birth("board-b"),
              topics.state("board-b"), topics.result("board-b"), topics.telemetry("board-b"), topics.unicast(BLOB, "board-b"),
              topics.want(BLOB, "board-b"), topics.upload("board-b", BLOB), topics.upload_want("board-b", BLOB),
              topics.offer("board-b"), topics.response("board-b", 1), topics.crop("board-b"), topics.answer("board-b")]
    with broker.host() as host, broker.device("board-a") as board:
        for wildcard in ("#", "jf/#", "jf/1/d/+/desired", "jf/1/d/board-b/#", *others):
            board.link.subscribe(wildcard, 1)
        board.connected()
        host.connected()
        for topic in (*others, *own):
            host.say(topic, b"x", retain=topic == topics.desired("board-b"))
        for topic in own:
            board.hears(topic)
        assert board.topics() <= set(own)
    with broker.device("board-a") as again:  # what is retained is asked the same question
        again.link.subscribe(topics.desired("board-b"), 1)
        again.link.subscribe(topics.state("board-a"), 1)
        again.link.subscribe(topics.META, 1)
        again.connected()
        with broker.host() as host:
            host.connected().say(topics.META, b"x")
            again.hears(topics.META)
        assert topics.desired("board-b") not in again.topics()


def test_a_board_says_only_what_is_its_own(broker: SecuredBroker) -> None:
    forbidden = [topics.META, topics.desired("board-a"), topics.desired("board-b"), topics.command("board-b"), topics.ack("board-a"),
                 topics.chunk(BLOB), topics.blob_round(BLOB), topics.unicast(BLOB, "board-b"), topics.want(BLOB, "board-b"),
                 topics.report("board-b"), topics.telemetry("board-b"), topics.birth("board-b"), topics.state("board-b"),
                 topics.response("board-b", 3), topics.offer("board-b"), topics.upload("board-b", BLOB),
                 topics.upload_want("board-a", BLOB), topics.answer("board-a"), topics.crop("board-b"),
                 "jf/1/elsewhere", "elsewhere", "$SYS/x"]
    allowed = [topics.birth("board-a"), topics.report("board-a"), topics.telemetry("board-a"), topics.result("board-a"),
               topics.response("board-a", 3), topics.offer("board-a"), topics.upload("board-a", BLOB), topics.want(BLOB, "board-a"),
               topics.state("board-a"), topics.crop("board-a")]
    with broker.host() as host, broker.device("board-a") as board:
        host.link.subscribe("#", 1)
        host.connected()
        board.connected()
        for topic in (*forbidden, *allowed):
            board.say(topic, b"from a board")
        for topic in allowed:
            host.hears(topic)
        assert {topic for topic, payload in host.heard if payload == b"from a board"} == set(allowed)


def test_a_revoked_board_is_silenced_at_once_and_never_gets_in_again(broker: SecuredBroker) -> None:
    with broker.host() as host, broker.device("board-r") as board:
        host.link.subscribe(topics.ALL_STATES, 1)
        host.connected()
        board.connected().say(topics.state("board-r"), b"before")
        host.hears(topics.state("board-r"))
        broker.revoke("board-r")

        def silenced() -> bool:
            host.heard.clear()
            board.say(topics.state("board-r"), b"after")
            with broker.device("board-s") as other:
                other.connected().say(topics.state("board-s"), b"a later word of a good board")
                host.hears(topics.state("board-s"))
            return topics.state("board-r") not in host.topics()

        until(silenced, "the ACL to be read again", 30)
    broker.stop()
    broker.start()
    with broker.device("board-r") as back:
        until(lambda: back.downs, "the refusal", 30)
        assert not back.ups


def test_a_board_cannot_push_another_off_by_its_client_id(broker: SecuredBroker) -> None:
    """Its client id is its certificate's name, whatever it says."""
    with broker.host() as host, broker.device("board-b") as victim:
        host.link.subscribe(topics.ALL_STATES, 1)
        host.connected()
        victim.connected()
        with broker.device("board-a", client_id="board-b") as thief:
            thief.connected().say(topics.state("board-a"), b"x")
            host.hears(topics.state("board-a"))
            victim.say(topics.state("board-b"), b"still here")
            host.hears(topics.state("board-b"))
        assert (len(victim.ups), victim.downs) == (1, [])


def test_the_key_may_be_made_on_the_board(broker: SecuredBroker, tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("openssl is not installed")
    subprocess.run(["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
                    str(tmp_path / "k"), "-out", str(tmp_path / "csr"), "-subj", "/CN=board-c"], check=True, capture_output=True)
    issued = authority_of(broker.project).issue_device("board-c", (tmp_path / "csr").read_bytes())
    assert issued.key == b""
    write_issued(tmp_path, "board-c", issued)
    with broker.device("board-c", cert=str(tmp_path / "board-c.pem"), key=str(tmp_path / "k")) as board:
        board.connected()


def test_two_boards_under_one_name_lose_nothing_and_raise_the_alarm(broker: SecuredBroker) -> None:
    """A cloned board: the broker throws one off for the other, again and again. What each has to say still arrives, once each is heard."""
    with broker.host() as host:
        host.link.subscribe(topics.ALL_REPORTS, 1)
        host.connected()
        with broker.device("board-t") as first, broker.device("board-t") as second:
            until(lambda: len(first.ups) + len(second.ups) > 3, "a takeover or two", 60)
            for number in range(20):
                for name, board in (("first", first), ("second", second)):
                    board.say(topics.report("board-t"), f"{name} {number}".encode())
            everything = {f"{name} {number}".encode() for name in ("first", "second") for number in range(20)}
            until(lambda: everything <= {payload for _, payload in host.heard}, "every word of both", 60)


def test_a_rollout_over_mutual_tls(broker: SecuredBroker, tmp_path: Path) -> None:
    """What `jetfleet broker mosquitto` prints goes into jetfleet.toml; then serve, a board and a clone of the board meet."""
    text = settings_text(broker.project, broker.port).replace("THE BROKER'S NAME", LOOPBACK)
    (broker.project.dir / "jetfleet.toml").write_text(text)
    fleet = ServedFleet(tmp_path, "", Project.load(broker.project.dir))
    fleet.publish("1")
    fleet.start()
    try:
        with ContractDevice(tmp_path / "dock", fleet.root, broker.port, "dock-1", session=2, tls=broker.device_files("dock-1")) as board:
            until(lambda: fleet.knows("dock-1"), "the birth", 60)
            rollout = fleet.begin("toy:1", "--devices", "dock-1")
            until(lambda: fleet.phase(rollout) == "done", "the rollout to end", 60)
            assert board.numbers == [1]
        assert "keys.online-root" in fleet.log.read_text(), "serve says what a thief of this machine would get"
        with ContractDevice(tmp_path / "dock", fleet.root, broker.port, "dock-1", session=1, tls=broker.device_files("dock-1")):
            until(lambda: any("device.cloned" in str(event) for event in fleet.events()), "the alarm", 60)
    finally:
        fleet.stop()
