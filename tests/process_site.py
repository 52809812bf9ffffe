"""A fleet of real processes for fault tests: a broker, `jetfleet serve`, `jetfleet-agent run`, and an onlooker that counts what travels."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brokers import LOOPBACK, Mosquitto, free_port, mosquitto, until
from fleet_rig import AgentProcess, make_padded_bundle
from network_namespaces import HOST, Wire, lossy_wire
from served_fleet import ServedFleet, fleet_on

from jetfleet_contract import topics, transfer
from jetfleet_contract.chunks import CHUNK_BYTES, chunk_count
from jetfleet_host import mqtt
from jetfleet_host.brokers import EmbeddedBroker
from jetfleet_host.project import CONFIG
from jetfleet_host.publish import find_bundle, publish

SIZE = 8_000_000
RATE_MBIT_S = 16  # 8 MB take four seconds: time to pull plugs
DEVICE = "gate-7"


class Onlooker:
    """Hears every chunk and every want, and does nothing. Counts what really travelled, whatever the parties think of it."""

    def __init__(self, port: int, blob: str, count: int) -> None:
        self.blob = blob
        self.chunk_bytes = 0
        self.wanted: list[int] = []  # chunks that were lacking, want by want
        self._count = count
        self._link = mqtt.MqttLink(mqtt.BrokerSettings(LOOPBACK, port, keepalive_s=5), f"onlooker-{random.randrange(1 << 30)}",
                                   self._heard, lambda: None, lambda _: None)
        self._link.subscribe(f"{topics.PREFIX}/b/{blob}/#", 0)
        self._link.start()
        until(lambda: self._link.connected, "the onlooker's link")

    def _heard(self, topic: str, payload: bytes) -> None:
        if "/want/" in topic:
            self.wanted.append(len(transfer.decode_want(payload, self._count).missing))
        elif topic.split("/")[4] in ("c", "u"):
            self.chunk_bytes += len(payload)

    @property
    def connected(self) -> bool:
        return self._link.connected

    def stop(self) -> None:
        self._link.stop()


class ProcessSite:
    """One board that is about to be given a model of about `size` bytes."""

    def __init__(self, folder: Path, fleet: ServedFleet, agent: AgentProcess, size: int = SIZE, rate_mbit_s: int = RATE_MBIT_S) -> None:
        self.fleet, self.agent = fleet, agent
        config = fleet.dir / CONFIG
        config.write_text(config.read_text().replace("[delivery]", f"[delivery]\nrate_mbit_s = {rate_mbit_s}"))
        make_padded_bundle(folder / "padded", size)
        publish(fleet.project, folder / "padded")
        self.blob, self.info = max(find_bundle(fleet.project, "brightness", "1").blobs.items(), key=lambda item: item[1].size)
        self.size = self.info.size

    def begin(self) -> None:
        """Everything up, and the model on its way."""
        self.fleet.start()
        self.agent.start()
        until(lambda: self.fleet.knows(DEVICE), "the board's birth", 60)
        self.fleet.begin("brightness:1", "--all")

    def arrives(self, deadline_s: float = 120.0) -> None:
        """Wait until the board's store has the model, whole."""
        path = self.agent.folder / "state" / "blobs" / self.blob
        until(path.exists, f"the model on the board; {self.agent.said()[-2000:]}", deadline_s)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == self.blob


class WatchedSite(ProcessSite):
    """On loopback, with an onlooker."""

    def __init__(self, folder: Path, fleet: ServedFleet, broker: Mosquitto | EmbeddedBroker) -> None:
        super().__init__(folder, fleet, AgentProcess(folder / "board", DEVICE, broker.port, fleet.project.root_file))
        self.broker = broker
        self.onlooker = Onlooker(broker.port, self.blob, chunk_count(self.info.size, self.info.chunk_size))

    def travelled(self, share: float) -> None:
        """Wait until that share of the model has gone over the broker."""
        until(lambda: self.onlooker.chunk_bytes > self.size * share, f"{share:.0%} of the model; {self.agent.said()[-2000:]}", 60)

    def bytes_of(self, chunks: int) -> int:
        """At most so many bytes travel for that many chunks, headers and four chunks that crossed with an answer included."""
        return (chunks + 4) * (CHUNK_BYTES + transfer.CHUNK_HEADER_BYTES)


class WiredSite(ProcessSite):
    """Host and broker in one network namespace, the board in another, a wire between them."""

    def __init__(self, folder: Path, fleet: ServedFleet, port: int, wire: Wire, size: int, rate_mbit_s: int) -> None:
        super().__init__(folder, fleet, AgentProcess(folder / "board", DEVICE, port, fleet.project.root_file, host=HOST,
                                                     prefix=wire.boards.prefix, keepalive_s=5), size, rate_mbit_s)
        self.wire = wire

    def crossed(self, share: float) -> None:
        """Wait until as many bytes as that share of the model have left the host's side."""
        until(lambda: self.wire.host.sent() > self.size * share, f"{share:.0%} of the model; {self.agent.said()[-2000:]}", 60)


@contextmanager
def watched_site(folder: Path, broker: Mosquitto | EmbeddedBroker) -> Iterator[WatchedSite]:
    """Everything is ended at the end, whatever was killed in between."""
    with fleet_on(folder, f"{LOOPBACK}:{broker.port}") as fleet:
        site = WatchedSite(folder, fleet, broker)
        try:
            yield site
        finally:
            site.onlooker.stop()
            _end(site.agent)


@contextmanager
def wired_site(folder: Path, *, size: int = SIZE, rate_mbit_s: int = RATE_MBIT_S) -> Iterator[WiredSite]:
    """The same over a wire that can be cut; skipped by name where network namespaces cannot be made."""
    port = free_port()
    with (lossy_wire() as wire, mosquitto(f"listener {port} {HOST}", prefix=wire.host.prefix),
          fleet_on(folder, f"{HOST}:{port}", wire.host.prefix) as fleet):
        site = WiredSite(folder, fleet, port, wire, size, rate_mbit_s)
        try:
            yield site
        finally:
            _end(site.agent)


def _end(agent: AgentProcess) -> None:
    if agent.process is not None and agent.process.poll() is None:
        agent.stop()
