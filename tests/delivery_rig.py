"""A host and boards that exchange blobs over a real broker, each with the production classes and a control thread of its own.

`Board` and `Host` are what supervisor and serve do with links, reduced to delivery: one queue, one thread, every callback posted to it.
"""

from __future__ import annotations

import hashlib
import queue
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from brokers import Mosquitto, until

from jetfleet_agent.supervisor.fetch import Fetcher
from jetfleet_agent.supervisor.mqtt import BrokerSettings, MqttLink
from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_contract import topics
from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.chunks import CHUNK_BYTES, BlobInfo, table_of
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Instant
from jetfleet_contract.transfer import own_mark
from jetfleet_host import mqtt as host_mqtt
from jetfleet_host.brokers import EmbeddedBroker
from jetfleet_host.delivery import DeliverySettings, Distributor


def now() -> Instant:
    return Instant(time.monotonic(), "test", time.time(), wall_trusted=True)


SIZE = 4_000_000 + 77


class MemoryBlobs:
    """Published blobs and the pages of their chunk tables."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.cuts: dict[str, int] = {}
        self.pages: dict[str, tuple[str, ...]] = {}

    def add(self, data: bytes, cut: int = CHUNK_BYTES) -> tuple[str, BlobInfo]:
        tabled = table_of((data[at : at + cut] for at in range(0, len(data), cut)), cut)
        self.blobs[tabled.blob] = data
        self.cuts[tabled.blob] = cut
        self.blobs.update(dict(tabled.pages))
        self.pages[tabled.blob] = tuple(page for page, _ in tabled.pages)
        return tabled.blob, tabled.info

    def chunk_size(self, blob: str) -> int:
        return self.cuts.get(blob, CHUNK_BYTES)

    def size(self, blob: str) -> int | None:
        data = self.blobs.get(blob)
        return None if data is None else len(data)

    def read(self, blob: str, offset: int, length: int) -> bytes:
        return self.blobs[blob][offset : offset + length]


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


class _Loop:
    """A queue and the thread that works through it."""

    def __init__(self, name: str) -> None:
        self.posted: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.faults: list[BaseException] = []

    def tick(self) -> float:
        raise NotImplementedError

    def _run(self) -> None:
        wait = 0.0
        while True:
            try:
                work = self.posted.get(timeout=max(0.0005, wait))
                if work is None:
                    return
                work()
            except queue.Empty:
                pass
            except Exception as error:  # noqa: BLE001  kept for the test to look at
                self.faults.append(error)
            wait = self.tick()


class Board(_Loop):
    """One board: link, store, fetcher. `loses(payload)` drops chunks before the fetcher sees them."""

    def __init__(self, name: str, port: int, root: Path, loses: Callable[[bytes], bool] = lambda _: False) -> None:
        super().__init__(name)
        self.done: list[str] = []
        self.failed: list[tuple[str, JetfleetError]] = []
        self.downs: list[str] = []
        self.chunks = 0
        self.loses = loses
        self.store = BlobStore(root / name)
        self.link = MqttLink(
            BrokerSettings("127.0.0.1", port), name, self._message,
            lambda: self.posted.put(self.fetcher.on_link_up),
            lambda reason: self.posted.put(lambda: self._down(reason)),
        )
        self.ahead_s = 0.0
        self.fetcher = Fetcher(self.store, self.link, name, self._now, self.done.append,
                               lambda blob, error: self.failed.append((blob, error)))
        self.tick = self.fetcher.tick  # type: ignore[method-assign]
        self.thread.start()
        self.link.start()

    def _now(self) -> Instant:
        read = now()
        return msgspec.structs.replace(read, wall=read.wall + self.ahead_s, mono=read.mono + self.ahead_s)

    def _message(self, topic: str, payload: bytes) -> None:
        if topic.split("/")[4] in ("c", "u") and own_mark(payload) is None:
            if self.loses(payload):
                return
            self.chunks += 1
        self.posted.put(lambda: self._take(topic, payload))

    def _take(self, topic: str, payload: bytes) -> None:
        self.fetcher.on_message(topic, payload)

    def _down(self, reason: str) -> None:
        self.downs.append(reason)
        self.fetcher.on_link_down()

    def want(self, blob: str, info: BlobInfo) -> None:
        self.posted.put(lambda: self.fetcher.want(blob, info))

    def progress(self) -> int:
        return sum(have for have, _ in self.fetcher.progress.values())

    def stop(self) -> None:
        """Stop at once, as a power cut would leave it: nothing is told to anybody."""
        self.posted.put(None)
        self.thread.join(10)
        self.link.stop()
        self.fetcher.close()


class Host(_Loop):
    """The host: link and distributor. `limits`: what is known of the broker beforehand."""

    def __init__(self, port: int, blobs: MemoryBlobs, settings: DeliverySettings | None = None,
                 limits: BrokerLimits | None = None) -> None:
        super().__init__("host")
        self.link = host_mqtt.MqttLink(
            host_mqtt.BrokerSettings("127.0.0.1", port, limits=limits or BrokerLimits()), f"host-{random.randrange(1 << 30)}",
            lambda topic, payload: self.posted.put(lambda: self.distributor.on_want(topic, payload, time.monotonic())),
            lambda: None,
            lambda _: self.posted.put(lambda: self.distributor.on_link_down(time.monotonic())),
        )
        self.distributor = Distributor(self.link, blobs, settings, chunk_size=blobs.chunk_size)
        self.link.subscribe(topics.ALL_WANTS, 1)
        self.thread.start()
        self.link.start()

    def tick(self) -> float:
        return self.distributor.tick(time.monotonic())

    def stop(self) -> None:
        self.posted.put(None)
        self.thread.join(10)
        self.link.stop()


def holds(board: Board, blob: str) -> bool:
    """True when the board's store has the blob and its bytes are right."""
    return board.store.has(blob) and hashlib.sha256(board.store.path(blob).read_bytes()).hexdigest() == blob


class Site:
    """A broker, a host with one blob, and a way to add boards; everything is stopped at the end."""

    def __init__(self, broker: Mosquitto | EmbeddedBroker, root: Path) -> None:
        self.broker, self.root = broker, root
        self.blobs = MemoryBlobs()
        self.data = content(SIZE)
        self.blob, self.info = self.blobs.add(self.data)
        self.parties: list[Board | Host] = []

    def host(self, settings: DeliverySettings | None = None) -> Host:
        host = Host(self.broker.port, self.blobs, settings)
        self.parties.append(host)
        until(lambda: host.link.connected, "the host's link")
        return host

    def board(self, name: str, loses: Callable[[bytes], bool] = lambda _: False) -> Board:
        board = Board(name, self.broker.port, self.root, loses)
        self.parties.append(board)
        until(lambda: board.link.connected, f"the link of {name}")
        return board

    def stop(self, party: Board | Host) -> None:
        self.parties.remove(party)
        party.stop()

    def close(self) -> None:
        faults = [fault for party in self.parties for fault in party.faults]
        for party in list(self.parties):
            self.stop(party)
        assert not faults


def everybody_has_it(site: Site, boards: list[Board]) -> None:
    until(lambda: all(board.done or board.failed for board in boards), "every board", 60)
    assert [board.failed for board in boards] == [[]] * len(boards)
    assert all(holds(board, site.blob) for board in boards)
