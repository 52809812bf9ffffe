"""Both links (agent's and host's have the same shape) on real brokers: retained, will, QoS 1 over a restart, bounds, refusals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import BROKERS, LOOPBACK, Mosquitto, free_port, mosquitto, running, until

from jetfleet_agent.supervisor import mqtt as agent_mqtt
from jetfleet_contract.errors import InputError, TransportError
from jetfleet_host import mqtt as host_mqtt
from jetfleet_host.brokers import EmbeddedBroker, write_acl, write_mosquitto_config

Module = Any  # one of the two modules, which share their shape
SIDES = [agent_mqtt, host_mqtt]
SIDE_NAMES = ["agent", "host"]


class Client:
    """A link that keeps what it hears."""

    def __init__(self, side: Module, port: int, name: str, will: tuple[str, bytes] | None = None, **settings: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.ups = 0
        self.downs: list[str] = []
        self.link = side.MqttLink(
            side.BrokerSettings(LOOPBACK, port, keepalive_s=5, **settings), name, lambda topic, data: self.heard.append((topic, data)),
            self.count, self.downs.append, will,
        )

    def count(self) -> None:
        self.ups += 1

    def up(self) -> Client:
        self.link.start()
        until(lambda: self.link.connected, "the link")
        return self


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Mosquitto | EmbeddedBroker]:
    with running(request.param) as one:
        yield one


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(*args: object, **kwargs: object) -> Client:
        made.append(Client(*args, **kwargs))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        if one.link._thread.is_alive():
            one.link.stop()


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_retained_large_and_binary_payloads(side: Module, broker: Mosquitto | EmbeddedBroker, client: Callable[..., Client]) -> None:
    one = client(side, broker.port, "one").up()
    two = client(side, broker.port, "two")
    one.link.subscribe("jf/big", 1)
    payloads = {"jf/kept": b"kept", "jf/big": bytes(range(256)) * 8192}  # 2 MiB
    for topic, payload in payloads.items():
        assert one.link.publish(topic, payload, retain=topic == "jf/kept", expiry_s=60)
    until(lambda: one.heard, "the large message")
    assert one.heard == [("jf/big", payloads["jf/big"])]
    two.link.subscribe("jf/#", 1)
    two.up()
    until(lambda: two.heard, "the retained message")
    assert two.heard == [("jf/kept", b"kept")]
    one.link.publish("jf/kept", b"", retain=True)
    until(lambda: len(two.heard) == 2, "the retained message to be cleared")
    three = client(side, broker.port, "three")
    three.link.subscribe("jf/#", 1)
    three.up()
    one.link.publish("jf/last", b"1")
    until(lambda: three.heard, "the last message")
    assert three.heard == [("jf/last", b"1")]


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_a_will_is_sent_for_a_death_and_not_for_a_goodbye(
    side: Module, broker: Mosquitto | EmbeddedBroker, client: Callable[..., Client]
) -> None:
    watcher = client(side, broker.port, "watcher").up()
    watcher.link.subscribe("jf/state/+", 1)
    leaver = client(side, broker.port, "leaver", ("jf/state/leaver", b"dead")).up()
    leaver.link.publish("jf/state/leaver", b"bye")
    leaver.link.stop()
    dier = client(side, broker.port, "dier", ("jf/state/dier", b"dead")).up()
    dier.link._client.socket().shutdown(socket.SHUT_RDWR)
    until(lambda: ("jf/state/dier", b"dead") in watcher.heard, "the will")
    assert ("jf/state/leaver", b"bye") in watcher.heard
    assert ("jf/state/leaver", b"dead") not in watcher.heard


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_a_broker_that_restarts_finds_everything_again(
    side: Module, broker: Mosquitto | EmbeddedBroker, client: Callable[..., Client]
) -> None:
    one, two = client(side, broker.port, "one").up(), client(side, broker.port, "two").up()
    two.link.subscribe("jf/a", 1)
    broker.stop()
    until(lambda: one.downs and two.downs, "both to notice")
    assert one.link.trouble.code == "broker.down"
    assert not one.link.publish("jf/a", b"qos 0 is worth nothing now", qos=0)
    assert one.link.publish("jf/a", b"waits", qos=1)
    broker.start()
    until(lambda: one.link.connected and two.link.connected, "both links")
    assert one.link.trouble is None
    until(lambda: one.link.publish("jf/a", b"fresh", qos=1) and ("jf/a", b"fresh") in two.heard, "a message after the restart")
    assert one.ups == two.ups == 2


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_no_broker_is_said_once_and_the_outbox_is_bounded(side: Module, client: Callable[..., Client]) -> None:
    lonely = client(side, free_port(), "lonely")
    lonely.link.start()
    until(lambda: lonely.downs, "the first failure")
    assert "cannot connect" in lonely.downs[0]
    assert isinstance(lonely.link.trouble, TransportError)
    taken = sum(lonely.link.publish("jf/a", b"x" * 100_000) for _ in range(200))
    assert 0 < taken * 100_000 <= side.OUTBOX_BYTES
    assert lonely.link.backlog == taken * 100_000
    with mosquitto() as late:
        late.stop()
        late.port = lonely.link._settings.port
        late._config = write_mosquitto_config(late._config, port=late.port)
        late.start()
        until(lambda: lonely.link.connected and not lonely.link.backlog, "what waited to be sent")
    assert len(lonely.downs) <= 3


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_a_wrong_password_is_a_clear_refusal(side: Module, tmp_path: Path, client: Callable[..., Client]) -> None:
    secret = tmp_path / "secret"
    with mosquitto() as broker:
        broker.stop()
        folder = broker._config.parent
        folder.chmod(0o755)  # started as root, mosquitto drops to a user of its own
        subprocess.run(["mosquitto_passwd", "-b", "-c", str(folder / "passwords"), "b0", "right"], check=True)
        (folder / "passwords").chmod(0o644)
        write_mosquitto_config(broker._config, port=broker.port, bind=LOOPBACK, password_file=str(folder / "passwords"),
                               acl_file=str(write_acl(folder / "acl", "host")))
        broker.start()
        secret.write_text("wrong\n")
        wrong = client(side, broker.port, "b0", username="b0", password_file=str(secret))
        wrong.link.start()
        until(lambda: wrong.downs, "the refusal")
        assert "Not authorized" in wrong.downs[0]
        wrong.link.stop()
        secret.write_text("right\n")
        client(side, broker.port, "b0", username="b0", password_file=str(secret)).up()


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_files_that_cannot_be_used_are_named(side: Module, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Client(side, 1, "x", username="u", password_file=str(tmp_path / "none"))
    assert (caught.value.code, caught.value.where) == ("broker.secret", str(tmp_path / "none"))
    (tmp_path / "ca").write_text("no certificate")
    with pytest.raises(InputError) as caught:
        Client(side, 1, "x", ca=str(tmp_path / "ca"))
    assert caught.value.code == "broker.tls"


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_a_fault_in_a_callback_does_not_end_the_link(
    side: Module, broker: Mosquitto | EmbeddedBroker, client: Callable[..., Client]
) -> None:
    one = client(side, broker.port, "one").up()
    one.link.subscribe("jf/a", 1)
    keep, one.link._on_message = one.link._on_message, lambda *_: 1 / 0
    one.link.publish("jf/a", b"1")
    until(lambda: one.link.backlog == 0, "the message to go out")
    one.link._on_message = keep
    one.link.publish("jf/a", b"2")
    until(lambda: ("jf/a", b"2") in one.heard, "the next message")
    assert one.ups == 1


def test_the_embedded_broker_is_loopback_only_and_says_when_its_port_is_taken() -> None:
    with EmbeddedBroker() as first:
        listening = Path("/proc/net/tcp").read_text()
        assert f"0100007F:{first.port:04X}" in listening
        assert f"00000000:{first.port:04X}" not in listening
        with pytest.raises(TransportError) as caught:
            EmbeddedBroker(first.port).start()
        assert caught.value.code == "broker.port"
        port = first.port
    second = EmbeddedBroker(port)
    second.start()
    second.stop()
    second.stop()
    assert not second.running


def test_an_open_broker_beyond_loopback_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransportError) as caught:
        write_mosquitto_config(tmp_path / "m.conf", port=1883, bind="192.0.2.1")
    assert caught.value.code == "broker.open"


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_a_broker_that_falls_silent_without_a_word_is_noticed_and_found_again(side: Module, client: Callable[..., Client]) -> None:
    """No FIN, no RST: only the keepalive (5 s) can tell."""
    with mosquitto() as broker:
        one = client(side, broker.port, "one").up()
        assert broker._child is not None
        os.kill(broker._child.pid, signal.SIGSTOP)
        try:
            until(lambda: one.downs and not one.link.connected, "the silence to be noticed", 60)
        finally:
            os.kill(broker._child.pid, signal.SIGCONT)
        until(lambda: one.link.connected and one.ups >= 2, "the link to be back", 60)
