"""Real mosquittos with limits: what they announce is obeyed, what they do not announce costs one connection, and all of it has a name."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import LOOPBACK, free_port, mosquitto, until
from bundle_maker import make_bundle
from delivery_rig import Board, Host, MemoryBlobs, content, holds
from served_fleet import fleet_on

from jetfleet_agent.supervisor import mqtt as agent_mqtt
from jetfleet_contract.broker_limits import PROFILES, BrokerLimits
from jetfleet_contract.errors import InputError
from jetfleet_host import mqtt as host_mqtt
from jetfleet_host.project import CONFIG, Project
from jetfleet_host.publish import publish

SIDES = [agent_mqtt, host_mqtt]
SIDE_NAMES = ["agent", "host"]
WILL = ("jf/1/d/one/state", b"dead")


class Client:
    """A link that hears all that is below ``t/``, its own messages too."""

    def __init__(self, side: Any, port: int, limits: BrokerLimits | None = None, keepalive_s: int = 5) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.ups: list[int] = []
        self.downs: list[str] = []
        settings = side.BrokerSettings(LOOPBACK, port, keepalive_s=keepalive_s, limits=limits or BrokerLimits())
        self.link = side.MqttLink(settings, "one", lambda topic, data: self.heard.append((topic, data)), lambda: self.ups.append(1),
                                  self.downs.append, WILL)
        self.link.subscribe("t/#", 1)
        self.link.start()
        until(lambda: self.link.connected, "the link")

    def hears(self, topic: str) -> None:
        """A small message makes the round trip: everything sent before it was taken or refused."""
        self.link.publish(topic, b"1")
        until(lambda: (topic, b"1") in self.heard, topic)


@pytest.fixture
def client() -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(*args: Any, **kwargs: Any) -> Client:
        made.append(Client(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.link.stop()


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_an_announced_packet_size_is_obeyed_to_the_byte(side: Any, client: Callable[..., Client]) -> None:
    with mosquitto("max_packet_size 20000") as broker:
        one = client(side, broker.port)
        assert one.link.limits.max_packet_bytes == 20_000
        fits = 20_000 - 4 - 2 - 3 - 2 - 1  # fixed header, topic, packet id, no property
        assert one.link.publish("t/a", b"x" * fits)
        until(lambda: one.heard, "the largest message that fits")
        assert not one.link.publish("t/a", b"x" * (fits + 1))
        assert one.link.refuses("t/a", b"x" * (fits + 1)).code == "broker.packet-size"
        one.hears("t/b")
        assert one.link.refused == {"broker.packet-size": 1}
        assert (len(one.ups), one.downs) == (1, [])


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_a_limit_that_is_not_announced_costs_one_connection(side: Any, client: Callable[..., Client]) -> None:
    with mosquitto("message_size_limit 20000") as broker:
        one = client(side, broker.port)
        one.link.publish("t/small", b"x" * 5000)
        one.link.publish("t/large", b"x" * 50_000)
        until(lambda: one.link.refused["broker.packet-size"], "the refusal")
        one.hears("t/b")
        assert len(one.ups) == 2
        assert "t/large" not in {topic for topic, _ in one.heard}
        assert not one.link.publish("t/large", b"x" * 50_000, qos=0)


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_a_message_that_waited_is_judged_by_what_the_broker_says_after_its_restart(side: Any, client: Callable[..., Client]) -> None:
    with mosquitto() as broker:
        one = client(side, broker.port)
        broker.stop()
        until(lambda: one.downs, "the loss")
        assert one.link.publish("t/large", b"x" * 50_000)
        assert one.link.publish("t/after", b"1")
        broker.configure("max_packet_size 20000")
        broker.start()
        until(lambda: ("t/after", b"1") in one.heard, "what waited and fits")
        assert one.link.refused == {"broker.packet-size": 1}
        assert len(one.ups) == 2


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_qos_is_lowered_to_what_the_broker_takes_the_will_too(side: Any, client: Callable[..., Client]) -> None:
    with mosquitto("max_qos 0") as broker:
        one = client(side, broker.port)
        assert one.link.limits.max_qos == 0
        assert "QoS not supported" in one.downs[0]  # the will of the first attempt
        for _ in range(30):
            assert one.link.publish("t/a", b"x", qos=1)
        until(lambda: len(one.heard) == 30, "all of them")
        assert len(one.ups) == 1


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_a_broker_without_retained_messages_is_used_and_named(side: Any, client: Callable[..., Client]) -> None:
    with mosquitto("retain_available false") as broker:
        one = client(side, broker.port)
        assert not one.link.limits.retain
        assert one.link.publish("t/kept", b"1", retain=True)
        until(lambda: one.heard == [("t/kept", b"1")], "the message, not retained")
        assert one.link.refused == {"broker.retain": 1}
        assert len(one.ups) == 1


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_receive_maximum_and_keepalive_are_the_brokers(side: Any, client: Callable[..., Client]) -> None:
    with mosquitto("max_inflight_messages 3", "max_keepalive 11") as broker:
        one = client(side, broker.port, keepalive_s=60)
        assert (one.link.limits.window, one.link.limits.keepalive_s) == (3, 11)
        assert one.link._client.keepalive == 11
        most: list[int] = []
        send = one.link._send

        def watched(item: Any) -> None:
            send(item)
            most.append(len(one.link._unacked))

        one.link._send = watched
        for number in range(200):
            one.link.publish("t/a", b"%d" % number)
        until(lambda: len(one.heard) == 200, "all of them")
        assert [int(data) for _, data in one.heard] == list(range(200))
        assert max(most) <= 3
        assert one.downs == []


class Recorder:
    """A broker as far as this needs: answers CONNECT with the given CONNACK properties, acknowledges nothing, keeps the bytes."""

    def __init__(self, properties: bytes) -> None:
        self.received = bytearray()
        self._answer = bytes((0x20, 3 + len(properties), 0, 0, len(properties))) + properties
        self._server = socket.create_server((LOOPBACK, 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        sock, _ = self._server.accept()
        sock.recv(65536)
        sock.sendall(self._answer)
        while data := sock.recv(65536):
            self.received += data

    def publishes(self) -> int:
        """Complete PUBLISH packets of less than 128 bytes; nothing larger is sent in these tests."""
        at = count = 0
        while at + 1 < len(self.received):
            count += self.received[at] >> 4 == 3
            at += 2 + self.received[at + 1]
        return count


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_no_more_than_the_receive_maximum_leaves_without_an_acknowledgement(side: Any, client: Callable[..., Client]) -> None:
    broker = Recorder(b"\x21" + struct.pack(">H", 2))
    one = client(side, broker.port)
    for _ in range(10):
        one.link.publish("t/a", b"x")
    until(lambda: broker.publishes() >= 2, "the window")
    one.link.publish("t/b", b"x", qos=0)
    threading.Event().wait(0.3)  # what must not come has to be waited for
    assert broker.publishes() == 2
    assert one.link.backlog == 9


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_publishes_a_second_are_capped(side: Any, client: Callable[..., Client]) -> None:
    broker = Recorder(b"")
    one = client(side, broker.port, BrokerLimits(max_publishes_s=20.0))
    for _ in range(100):
        one.link.publish("t/a", b"x", qos=0)
    until(lambda: broker.publishes() >= 10, "the first ones")
    assert broker.publishes() < 60  # 5 gather, and then 20 a second: 60 would take longer than any look takes
    assert one.link.backlog > 0


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
def test_nagle_is_off_on_our_side(side: Any, client: Callable[..., Client]) -> None:
    with mosquitto() as broker:
        sock = client(side, broker.port).link._client.socket()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_blob_that_does_not_fit_is_refused_by_name_and_one_that_was_cut_smaller_arrives(tmp_path: Path) -> None:
    data = content(500_000)
    with mosquitto("max_packet_size 40000") as broker:
        blobs = MemoryBlobs()
        host, board = Host(broker.port, blobs), Board("b0", broker.port, tmp_path)
        try:
            blob, info = blobs.add(data)
            board.want(blob, info)
            until(lambda: "broker.packet-size" in host.distributor.stats.refused, "the refusal")
            assert not board.done
            blob, info = blobs.add(data, 32768)
            board.want(blob, info)
            until(lambda: board.done, "the blob")
            assert holds(board, blob)
            assert board.downs == []
        finally:
            board.stop()
            host.stop()
        assert not board.faults + host.faults


def test_a_blob_travels_within_all_the_limits_of_aws_iot_core(tmp_path: Path) -> None:
    aws = PROFILES["aws-iot-core"]
    data = content(8_000_000)  # 123 messages, more than a second's worth
    with mosquitto("max_packet_size 131300", "max_qos 1", "max_inflight_messages 100") as broker:
        blobs = MemoryBlobs()
        host, board = Host(broker.port, blobs, limits=aws), Board("b0", broker.port, tmp_path)
        sent: list[float] = []
        send = host.link._send

        def watched(item: Any) -> None:
            assert len(item.payload) <= aws.max_payload_bytes
            sent.append(time.monotonic())
            send(item)

        host.link._send = watched  # type: ignore[method-assign]
        try:
            blob, info = blobs.add(data)
            board.want(blob, info)
            until(lambda: board.done, "the blob", 60)
            assert holds(board, blob)
        finally:
            board.stop()
            host.stop()
        assert len(sent) >= 123
        for first, at in enumerate(sent):
            within = sum(at <= other < at + 1.0 for other in sent[first:])
            assert within <= aws.max_publishes_s * 1.2 + 2  # what gathers in a fifth of a second may go at once


def test_serve_says_what_does_not_work_over_its_broker(tmp_path: Path) -> None:
    with mosquitto("retain_available false", "max_packet_size 20000") as broker, fleet_on(tmp_path, f"{LOOPBACK}:{broker.port}") as fleet:
        make_bundle(tmp_path / "b", weight_bytes=100_000)
        publish(fleet.project, tmp_path / "b")
        fleet.start()
        until(lambda: fleet.log.read_text().count('"event": "limits"') >= 2, "both findings", 30)
        said = fleet.log.read_text()
        assert "[broker.retain]" in said
        assert "[broker.packet-size]" in said
        assert "set [delivery] chunk_kb = 19 and publish the model again" in said
        assert fleet.stop() == 0


def test_publish_and_serve_refuse_at_once_what_the_configured_broker_does_not_take(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", weight_bytes=100_000)
    with fleet_on(tmp_path, f"{LOOPBACK}:{free_port()}") as fleet:
        publish(fleet.project, tmp_path / "b")
        config = fleet.dir / CONFIG
        config.write_text(config.read_text().replace("[database]", 'profile = "thingsboard"\n[database]'))
        told = fleet.cli("publish", str(tmp_path / "b"), fails=True)
        assert told["error"]["code"] == "broker.packet-size"
        told = fleet.cli("serve", fails=True)
        assert told["error"]["code"] == "broker.packet-size"
        assert "chunk_kb = 63" in told["error"]["remedy"]
        config.write_text(config.read_text().replace("[delivery]", "[delivery]\nchunk_kb = 32"))
        assert fleet.cli("publish", str(tmp_path / "b"))["recut"]
        project = Project.load(fleet.dir)
        assert project.settings.broker.limits.max_packet_bytes == 65_536


def test_a_profile_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    Project.init(tmp_path / "fleet")
    config = tmp_path / "fleet" / CONFIG
    config.write_text(config.read_text().replace("[database]", 'profile = "aws"\n[database]'))
    with pytest.raises(InputError) as caught:
        Project.load(tmp_path / "fleet")
    assert caught.value.code == "broker.profile"
    assert "aws-iot-core" in caught.value.remedy
