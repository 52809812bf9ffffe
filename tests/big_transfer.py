"""A blob of any size from a Distributor to a Fetcher over a link in memory, in a process of its own: says what that took, as JSON.

    python tests/big_transfer.py FOLDER SIZE CHUNK_SIZE
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from pathlib import Path

from jetfleet_agent.supervisor.fetch import Fetcher
from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.chunks import CHUNK_BYTES, BlobInfo, Tabled, table_of
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Instant
from jetfleet_host.delivery import Distributor


class MadeUp:
    """A blob whose chunks are made when they are read: all different, none kept."""

    def __init__(self, size: int, chunk_size: int) -> None:
        self.whole, self.chunk_size = size, chunk_size
        self.filling = bytes(range(256)) * (chunk_size // 256 + 1)
        self.tabled: Tabled = table_of((self.chunk(index) for index in range(-(-size // chunk_size))), chunk_size)
        self.pages = dict(self.tabled.pages)

    def chunk(self, index: int) -> bytes:
        length = min(self.chunk_size, self.whole - index * self.chunk_size)
        return (index.to_bytes(8, "big") + self.filling)[:length]

    def size(self, blob: str) -> int | None:
        return self.whole if blob == self.tabled.blob else len(self.pages[blob])

    def read(self, blob: str, offset: int, length: int) -> bytes:
        if blob in self.pages:
            return self.pages[blob][offset : offset + length]
        return self.chunk(offset // self.chunk_size)[:length]

    def cut(self, blob: str) -> int:
        return self.chunk_size if blob == self.tabled.blob else CHUNK_BYTES


class Wire:
    """Both ends of a link: what one publishes waits, bounded, for the other."""

    connected = True
    limits = BrokerLimits()

    def __init__(self) -> None:
        self.topics: set[str] = set()
        self.waiting: deque[tuple[str, bytes]] = deque()

    @property
    def backlog(self) -> int:
        return sum(len(payload) for _, payload in self.waiting)

    def subscribe(self, topic: str, qos: int) -> None:
        self.topics.add(topic)

    def unsubscribe(self, topic: str) -> None:
        self.topics.discard(topic)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
        self.waiting.append((topic, payload))
        return True


def peak_mb() -> float:
    """Peak resident memory of this program alone: `ru_maxrss` would begin with what its parent had when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def transfer(folder: Path, blobs: MadeUp) -> dict[str, float]:
    """Fetch it, and read what was told of it."""
    down, up, done = Wire(), Wire(), list[str]()
    info: BlobInfo = blobs.tabled.info
    host = Distributor(down, blobs, chunk_size=blobs.cut)

    class BoardLink(Wire):
        def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool:
            return up.publish(topic, payload)

    board_link = BoardLink()

    def failed(blob: str, error: JetfleetError) -> None:
        raise error

    def now() -> Instant:
        return Instant(time.monotonic(), "boot", time.time(), wall_trusted=True)

    board = Fetcher(BlobStore(folder), board_link, "board", now, done.append, failed)
    board.want(blobs.tabled.blob, info)
    while not done:
        host.tick(time.monotonic())
        while down.waiting:
            topic, payload = down.waiting.popleft()
            if topic in board_link.topics:
                board.on_message(topic, payload)
        board.tick()
        while up.waiting:
            host.on_want(*up.waiting.popleft(), time.monotonic())
    traffic = board.meter.take(blobs.tabled.blob)
    board.close()
    return {"published": host.stats.published_bytes, "received": traffic.received, "useful": traffic.useful}


def main() -> None:
    folder, size, chunk_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    blobs = MadeUp(size, chunk_size)
    began = time.monotonic()
    told = transfer(folder, blobs)
    path = folder / "blobs" / blobs.tabled.blob
    print(json.dumps({**told, "seconds": time.monotonic() - began, "stored": path.stat().st_size, "pages": len(blobs.pages),
                      "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main()
