"""How a virtual device fetches blobs: one `transfer` receiver a blob, over its link, onto its disk.

The machine is the contract's; this shell keeps what it asks for. Verified chunks and blobs are shared by all devices of the process
(same digest, same bytes), so that a thousand devices hold one copy; whether a device has a chunk is its own disk's business.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from jetfleet_contract import listening, topics, transfer
from jetfleet_contract.chunks import Bitmap, BlobInfo, ChunkTable, TablePage, chunk_count, lower_pages, open_table, top_page
from jetfleet_contract.errors import JetfleetError, UntrustedError

from .disk import Disk

SYNC_CHUNKS = 16


class Link(Protocol):
    """What is used of a DeviceLink."""

    connected: bool

    def subscribe(self, topic: str, qos: int) -> None: ...
    def unsubscribe(self, topic: str) -> None: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> None: ...


class TransferCounts(msgspec.Struct):
    """Chunk messages of one device that passed its port, in every life of it: their sum is what passed."""

    stored: int = 0
    stored_bytes: int = 0
    repeated: int = 0
    spoiled: int = 0
    late: int = 0
    damaged_on_disk: int = 0
    blobs: int = 0


class SharedBytes:
    """One copy of each verified chunk and blob, whoever has it."""

    def __init__(self) -> None:
        self._chunks: dict[tuple[str, int], bytes] = {}
        self._blobs: dict[str, bytes] = {}

    def chunk(self, blob: str, index: int, data: memoryview) -> bytes:
        """`data` is verified."""
        known = self._chunks.get((blob, index))
        return known if known is not None else self._chunks.setdefault((blob, index), bytes(data))

    def blob(self, blob: str, data: bytes) -> bytes:
        return self._blobs.setdefault(blob, data)


def is_chunk(topic: str, payload: bytes) -> bool:
    """Whether a bulk message is a chunk, and no round mark."""
    kind = topic.split("/")[4]
    return kind == "c" or (kind == "u" and transfer.own_mark(payload) is None)


class _Job:
    """One blob that is wanted."""

    def __init__(self, blob: str, info: BlobInfo, parents: set[str]) -> None:
        self.blob = blob
        self.info = info
        self.count = chunk_count(info.size, info.chunk_size)
        self.parents = parents  # blobs whose table this one is a page of
        self.asked_for = not parents
        self.pages: set[str] = set()
        self.table: ChunkTable | None = None
        self.receiver: transfer.Receiver | None = None
        self.listening: tuple[str, ...] = ()
        self.unsynced = 0


class Transfers:
    """Fetches what it is told to want and calls `on_done(blob)` or `on_failed(blob, error)`.

    Args:
        mono: seconds since the device's boot.
    """

    def __init__(self, disk: Disk, link: Link, device: str, shared: SharedBytes, counts: TransferCounts, draws: random.Random,
                 mono: Callable[[], float], on_done: Callable[[str], None], on_failed: Callable[[str, JetfleetError], None]) -> None:
        self._disk = disk
        self._link = link
        self._device = device
        self._shared = shared
        self._counts = counts
        self._draws = draws
        self._mono = mono
        self._on_done = on_done
        self._on_failed = on_failed
        self._jobs: dict[str, _Job] = {}

    def want(self, blob: str, info: BlobInfo) -> None:
        """Fetch `blob`; idempotent; goes on from what the disk has; `on_done` at once when it is whole."""
        known = self._jobs.get(blob)
        if known is not None:
            known.asked_for = True
            return
        if blob in self._disk.blobs:
            self._on_done(blob)
            return
        self._jobs[blob] = _Job(blob, info, set())
        self._advance(self._jobs[blob])

    def cancel_except(self, blobs: set[str]) -> None:
        """Stop fetching whatever is not in `blobs`, and the table pages that were only for it."""
        for job in list(self._jobs.values()):
            if job.asked_for and job.blob not in blobs:
                job.asked_for = False
                self._forget(job)
        for job in list(self._jobs.values()):
            job.parents &= self._jobs.keys()
            if not job.asked_for and not job.parents:
                self._forget(job)

    def on_chunk(self, topic: str, payload: bytes) -> None:
        """A chunk that passed the port. MalformedError `chunk.bad`."""
        job = self._jobs.get(topics.blob_of(topic))
        if job is None or job.receiver is None or job.table is None:
            self._counts.late += 1
            return
        heard = listening.heard(job.receiver, job.blob, self._device, topic, payload)
        if not isinstance(heard, listening.Chunk):
            self._counts.late += 1
            return
        stored = transfer.Stored(heard.round, heard.index)
        if not job.receiver.missing.has(heard.index):
            self._counts.repeated += 1
            self._step(job, stored)
            return
        if not job.table.matches(heard.index, heard.data):
            self._counts.spoiled += 1
            self._step(job, transfer.Spoiled(heard.round, heard.index))
            return
        self._disk.write_chunk(job.blob, heard.index, self._shared.chunk(job.blob, heard.index, heard.data))
        self._counts.stored += 1
        self._counts.stored_bytes += len(heard.data)
        job.unsynced += 1
        if job.unsynced >= SYNC_CHUNKS:
            job.unsynced = 0
            self._disk.sync(job.blob)
        self._step(job, stored)

    def on_mark(self, topic: str, payload: bytes) -> None:
        """A round mark, shared or this device's own. MalformedError `mark.bad`, `message.*`."""
        job = self._jobs.get(topics.blob_of(topic))
        if job is None or job.receiver is None:
            return
        heard = listening.heard(job.receiver, job.blob, self._device, topic, payload)
        if isinstance(heard, transfer.RoundMark):
            self._step(job, transfer.Marked(heard, self._draws.random()))

    def on_link_up(self) -> None:
        for job in list(self._jobs.values()):
            self._step(job, transfer.Up(self._draws.random()))

    def on_link_down(self) -> None:
        for job in list(self._jobs.values()):
            self._step(job, transfer.Down())

    def tick(self) -> float:
        """Let time pass; seconds until the next tick is due."""
        now = self._mono()
        for job in list(self._jobs.values()):
            if job.receiver is not None and now >= job.receiver.wake_at:
                self._step(job, transfer.Tick(self._draws.random()))
        wake = min((job.receiver.wake_at for job in self._jobs.values() if job.receiver is not None), default=transfer.NEVER)
        return max(0.0, wake - now)

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    # --- one blob's way ---------------------------------------------------------------------------------------

    def _advance(self, job: _Job) -> None:
        """The table first; then look at what the disk holds, and ask for the rest."""
        pages = self._missing_pages(job)
        if pages:
            job.pages = {page.blob for page in pages}
            for page in pages:
                if page.blob in self._jobs:
                    self._jobs[page.blob].parents.add(job.blob)
                    continue
                self._jobs[page.blob] = _Job(page.blob, page.info, {job.blob})
                self._advance(self._jobs[page.blob])
            return
        job.table = self._load_table(job)
        job.receiver = transfer.receiver(job.count, job.info.chunk_size)
        if self._link.connected:
            self._step(job, transfer.Up(self._draws.random()))
        self._step(job, transfer.Opened(self._lacking(job, job.table), self._draws.random()))

    def _missing_pages(self, job: _Job) -> list[TablePage]:
        top = top_page(job.info)
        if top is None:
            return []
        if top.blob not in self._disk.blobs:
            return [top]
        return [page for page in lower_pages(job.info, self._disk.blobs[top.blob]) if page.blob not in self._disk.blobs]

    def _load_table(self, job: _Job) -> ChunkTable:
        top = top_page(job.info)
        if top is None:
            return open_table(job.blob, job.info)
        data = self._disk.blobs[top.blob]
        pages: Iterable[bytes] = [self._disk.blobs[page.blob] for page in lower_pages(job.info, data)] or [data]
        return open_table(job.blob, job.info, pages)

    def _lacking(self, job: _Job, table: ChunkTable) -> Bitmap:
        """What the disk lacks, found by hashing what it holds; damaged chunks are dropped."""
        held = self._disk.parts.get(job.blob, {})
        damaged = [index for index, data in held.items() if not table.matches(index, data)]
        for index in damaged:
            del held[index]
        self._counts.damaged_on_disk += len(damaged)
        return Bitmap.full(job.count).minus(Bitmap.of(job.count, held))

    def _step(self, job: _Job, event: transfer.ReceiverEvent) -> None:
        if job.receiver is None:
            return
        job.receiver, effects = transfer.step_receiver(job.receiver, event, self._mono())
        self._listen(job, listening.topics_of(job.receiver, job.blob, self._device))  # before it asks
        for effect in effects:
            if isinstance(effect, transfer.Ask):
                self._link.publish(topics.want(job.blob, self._device), transfer.encode_want(effect.want), qos=1)
            elif isinstance(effect, transfer.Check):
                self._check(job)
            elif isinstance(effect, transfer.Finish):
                self._done(job)
            elif isinstance(effect, transfer.GiveUp):
                self._fail(job, UntrustedError(effect.code, f"blob {job.blob} was complete and read back wrong, again and again"))

    def _listen(self, job: _Job, wanted: tuple[str, ...]) -> None:
        before, job.listening = job.listening, wanted
        for topic in wanted:
            if topic not in before:
                self._link.subscribe(topic, 0)
        for topic in before:
            if topic not in wanted:
                self._link.unsubscribe(topic)

    def _check(self, job: _Job) -> None:
        """Read the whole blob again, hash it, and give it its name."""
        held = self._disk.parts.get(job.blob, {})
        data = b"".join(held[index] for index in sorted(held))
        if len(data) == job.info.size and hashlib.sha256(data).hexdigest() == job.blob:
            self._disk.finish(job.blob, self._shared.blob(job.blob, data))
            self._counts.blobs += 1
            self._step(job, transfer.Checked())
            return
        assert job.table is not None  # noqa: S101 - it has chunks
        self._step(job, transfer.Unchecked(self._lacking(job, job.table), self._draws.random()))

    def _done(self, job: _Job) -> None:
        self._forget(job)
        for parent in [self._jobs[name] for name in job.parents if name in self._jobs]:
            parent.pages.discard(job.blob)
            if not parent.pages:
                self._advance(parent)
        if job.asked_for:
            self._on_done(job.blob)

    def _fail(self, job: _Job, error: JetfleetError) -> None:
        self._forget(job)
        self._disk.discard(job.blob)
        for parent in [self._jobs[name] for name in job.parents if name in self._jobs]:
            self._fail(parent, error)
        if job.asked_for:
            self._on_failed(job.blob, error)

    def _forget(self, job: _Job) -> None:
        self._jobs.pop(job.blob, None)
        self._listen(job, ())
