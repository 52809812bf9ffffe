"""A fleet of real processes for fault tests: a broker, `jetfleet serve`, `jetfleet-agent run`, and an onlooker that counts what travels."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brokers import LOOPBACK, Mosquitto, until
from fleet_rig import AgentProcess, make_padded_bundle
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
        elif topic == topics.chunk(self.blob) or "/u/" in topic:
            self.chunk_bytes += len(payload)

    @property
    def connected(self) -> bool:
        return self._link.connected

    def stop(self) -> None:
        self._link.stop()


class ProcessSite:
    """One board that is about to be given a model of `SIZE` bytes."""

    def __init__(self, folder: Path, fleet: ServedFleet, broker: Mosquitto | EmbeddedBroker) -> None:
        self.fleet, self.broker = fleet, broker
        config = fleet.dir / CONFIG
        config.write_text(config.read_text().replace("[delivery]", f"[delivery]\nrate_mbit_s = {RATE_MBIT_S}"))
        make_padded_bundle(folder / "padded", SIZE)
        publish(fleet.project, folder / "padded")
        target = find_bundle(fleet.project, "brightness", "1")
        self.blob, info = max(target.blobs.items(), key=lambda item: item[1].size)
        self.size = info.size
        self.agent = AgentProcess(folder / "board", DEVICE, broker.port, fleet.project.root_file)
        self.onlooker = Onlooker(broker.port, self.blob, chunk_count(info.size, info.chunk_size))

    def begin(self) -> None:
        """Everything up, and the model on its way."""
        self.fleet.start()
        self.agent.start()
        until(lambda: self.fleet.knows(DEVICE), "the board's birth", 60)
        self.fleet.begin("brightness:1", "--all")

    def travelled(self, share: float) -> None:
        """Wait until that share of the model has gone over the broker."""
        until(lambda: self.onlooker.chunk_bytes > self.size * share, f"{share:.0%} of the model; {self.agent.said()[-2000:]}", 60)

    def arrives(self) -> None:
        """Wait until the board's store has the model, whole."""
        path = self.agent.folder / "state" / "blobs" / self.blob
        until(path.exists, f"the model on the board; {self.agent.said()[-2000:]}", 120)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == self.blob

    def bytes_of(self, chunks: int) -> int:
        """At most so many bytes travel for that many chunks, headers and four chunks that crossed with an answer included."""
        return (chunks + 4) * (CHUNK_BYTES + transfer.CHUNK_HEADER_BYTES)


@contextmanager
def site_of(folder: Path, broker: Mosquitto | EmbeddedBroker) -> Iterator[ProcessSite]:
    """Everything is ended at the end, whatever was killed in between."""
    with fleet_on(folder, f"{LOOPBACK}:{broker.port}") as fleet:
        site = ProcessSite(folder, fleet, broker)
        try:
            yield site
        finally:
            site.onlooker.stop()
            if site.agent.process is not None and site.agent.process.poll() is None:
                site.agent.stop()
