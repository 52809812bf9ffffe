"""Fetches blobs: drives one `transfer` receiver a blob over the link, into the store.

Called from the supervisor's control thread. What blocks for long (hashing what is on disk, the whole read-back, fsync) is done by one
worker thread; its outcome is taken up by the next `tick`. A blob's chunk table is fetched first, as blobs of one chunk.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from jetfleet_contract import listening, topics, transfer
from jetfleet_contract.chunks import Bitmap, BlobInfo, ChunkTable, TablePage, chunk_count, top_page
from jetfleet_contract.errors import JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import Instant

from .metering import Metering
from .mirror import Got
from .store import BlobStore, Partial
from .table_pages import load_table, missing_pages

WORK_POLL_S = 0.002
SETTLE_CHUNKS = 128
METER = "delivery-days.json"
IDLE_S = 60.0
_OPEN = ("offline", "asking", "receiving")

_log = logging.getLogger(__name__)


class Link(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    def subscribe(self, topic: str, qos: int) -> None: ...
    def unsubscribe(self, topic: str) -> None: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class SecondTransport(Protocol):
    """What is used of a Mirror."""

    @property
    def received_bytes(self) -> int: ...
    @property
    def wrong_chunks(self) -> int: ...
    def offer(self, blob: str, table: ChunkTable, missing: Bitmap, write: Callable[[int, bytes], bool]) -> bool: ...
    def forget(self, blob: str) -> None: ...
    def holds(self, blob: str) -> bool: ...
    def taken(self) -> list[Got]: ...
    def due_s(self) -> float: ...
    def close(self) -> None: ...


class _Job:
    """One blob that is wanted: its receiver, its open part, and the work that runs for it."""

    def __init__(self, blob: str, info: BlobInfo, parents: set[str], root: str = "") -> None:
        self.blob = blob
        self.root = root or blob  # the blob whose bytes these count as
        self.info = info
        self.count = chunk_count(info.size, info.chunk_size)
        self.parents = parents  # blobs whose table this one is a page of
        self.asked_for = not parents
        self.pages: set[str] = set()  # those that are still to come
        self.table_pages: set[str] = set()
        self.table: ChunkTable | None = None
        self.partial: Partial | None = None
        self.receiver: transfer.Receiver | None = None
        self.work: Future[Bitmap | Path] | None = None
        self.settling: Future[None] | None = None
        self.stored = 0
        self.listening: tuple[str, ...] = ()
        self.admit_at = transfer.NEVER
        self.cancelled = False


class Fetcher:
    """Fetches what it is told to want and calls `on_done(blob)` or `on_failed(blob, error)`, from the calling thread.

    A blob that failed is forgotten: `want` it again to try again; nothing that was received is lost.
    """

    def __init__(
        self,
        store: BlobStore,
        link: Link,
        device: str,
        clock: Callable[[], Instant],
        on_done: Callable[[str], None],
        on_failed: Callable[[str, JetfleetError], None],
        mirror: SecondTransport | None = None,
    ) -> None:
        self._store = store
        self._link = link
        self._device = topics.check_name("device", device)
        self._clock = clock
        self._on_done = on_done
        self._on_failed = on_failed
        self._mirror = mirror
        self.meter = Metering(store.folder.with_name(METER))
        self._jobs: dict[str, _Job] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        self._random = random.SystemRandom()
        self._errors: dict[str, JetfleetError] = {}

    # --- called by the supervisor -----------------------------------------------------------------------------

    def want(self, blob: str, info: BlobInfo) -> None:
        """Fetch `blob`. Idempotent; resumes from what the store has; calls `on_done` at once when it is complete. When `info` cuts it
        otherwise than before, it begins anew with what was received.

        Raises:
            MalformedError: when `info` cannot be a blob's.
        """
        topics.check_blob(blob)
        top_page(info)
        known = self._jobs.get(blob)
        if known is not None and known.info == info:
            known.asked_for, known.cancelled = True, False
            return
        if known is not None:
            self._drop(known)
        if self._store.has(blob):
            self._on_done(blob)
            return
        self._jobs[blob] = _Job(blob, info, set())
        self._advance(self._jobs[blob])

    def cancel_except(self, blobs: set[str]) -> None:
        """Stop fetching whatever is not in `blobs`; parts stay in the store until it is swept."""
        for job in list(self._jobs.values()):
            job.parents &= self._jobs.keys()
            if job.blob not in blobs and job.asked_for:
                job.asked_for = False
                self._release(job)

    def on_message(self, topic: str, payload: bytes) -> bool:
        """Take a chunk or a round mark; False when `topic` is neither. Bad ones are dropped and counted."""
        if not listening.is_bulk(topic):
            return False
        job = self._jobs.get(topics.blob_of(topic))
        if job is None or job.receiver is None:
            return True
        try:
            heard = listening.heard(job.receiver, job.blob, self._device, topic, payload)
        except MalformedError as error:
            _log.warning("dropped a message on %s: %s", topic, error.what)
            return True
        if isinstance(heard, listening.Chunk):
            self.meter.count(job.root, job.blob, len(payload), "unicast" if heard.alone else "broadcast", self._clock())
            self._take(job, heard)
        elif heard is not None:
            self._step(job, transfer.Marked(heard, self._random.random()))
        return True

    def on_link_up(self) -> None:
        for job in list(self._jobs.values()):
            self._step(job, transfer.Up(self._random.random()))

    def on_link_down(self) -> None:
        for job in list(self._jobs.values()):
            self._step(job, transfer.Down())

    def tick(self) -> float:
        """Let time pass and take up finished work; seconds until the next tick is due."""
        now = self._clock().mono
        for job in list(self._jobs.values()):
            if job.work is not None and job.work.done():
                self._finish_work(job)
            elif now >= job.admit_at:
                self._admit(job)
            elif job.receiver is not None and now >= job.receiver.wake_at:
                self._step(job, transfer.Tick(self._random.random()))
        mirror_due = self._take_mirrored(self._mirror) if self._mirror is not None else IDLE_S
        if any(job.work is not None for job in self._jobs.values()):
            return WORK_POLL_S
        receivers = [(job, job.receiver) for job in self._jobs.values() if job.receiver is not None]
        wake = min((min(job.admit_at, receiver.wake_at) for job, receiver in receivers), default=transfer.NEVER)
        return max(0.0, min(IDLE_S, mirror_due, wake - self._clock().mono))

    def close(self) -> None:
        """End the worker and close the parts; what was received stays."""
        if self._mirror is not None:
            self._mirror.close()
        self._worker.shutdown(wait=True, cancel_futures=True)
        for job in self._jobs.values():
            if job.partial is not None:
                job.partial.close()
        self._jobs.clear()
        self.meter.close()

    @property
    def gauges(self) -> dict[str, float]:
        """What came by the mirror, apart from what came over MQTT: bytes since the start, and chunks that were wrong."""
        if self._mirror is None:
            return {}
        return {"mirror_bytes": float(self._mirror.received_bytes), "mirror_wrong": float(self._mirror.wrong_chunks)}

    @property
    def progress(self) -> dict[str, tuple[int, int]]:
        """Of each blob that is wanted: bytes that are here (counted in whole chunks) and bytes in all."""
        return {job.blob: (_have(job), job.info.size) for job in self._jobs.values() if job.asked_for}

    @property
    def held(self) -> set[str]:
        """Blobs that must stay in the store while this runs: what is fetched and the chunk tables that were fetched for it."""
        held = set(self._jobs)
        for job in self._jobs.values():
            if job.info.table:
                held |= {job.info.table, *job.table_pages}
        return held

    # --- one blob's way ---------------------------------------------------------------------------------------

    def _advance(self, job: _Job) -> None:
        """Get the table first; then open the part and look at what it holds."""
        try:
            pages, known = missing_pages(self._store, job.info)
            job.table_pages = known or job.table_pages
            if pages:
                self._want_pages(job, pages)
                return
            job.pages = set()
            job.table = load_table(self._store, job.blob, job.info)
        except JetfleetError as error:
            self._fail(job, error)
            return
        job.receiver = transfer.receiver(job.count, job.info.chunk_size)
        if self._link.connected:
            self._step(job, transfer.Up(self._random.random()))
        self._submit(job, self._open)

    def _want_pages(self, job: _Job, pages: list[TablePage]) -> None:
        job.pages = {page.blob for page in pages}
        for page in pages:
            known = self._jobs.get(page.blob)
            if known is not None:
                known.parents.add(job.blob)
                continue
            self._jobs[page.blob] = _Job(page.blob, page.info, {job.blob}, job.root)
            self._advance(self._jobs[page.blob])

    def _take(self, job: _Job, chunk: listening.Chunk) -> None:
        if job.partial is None or job.receiver is None or job.receiver.phase == "opening":
            return  # it comes again: what is missing is asked for after the disk was looked at
        stored = transfer.Stored(chunk.round, chunk.index)
        if not job.receiver.missing.has(chunk.index):
            self._step(job, stored)
            return
        try:
            fits = job.partial.write(chunk.index, chunk.data)
        except StorageError as error:
            self._break(job, error)
            return
        if fits:
            self.meter.useful(job.root, len(chunk.data))
        self._step(job, stored if fits else transfer.Spoiled(chunk.round, chunk.index))
        self._count_stored(job)

    def _step(self, job: _Job, event: transfer.ReceiverEvent) -> None:
        if job.receiver is None:
            return
        job.receiver, effects = transfer.step_receiver(job.receiver, event, self._clock().mono)
        self._listen(job, job.receiver)
        for effect in effects:
            if isinstance(effect, transfer.Ask):
                self._ask(job, effect.want)
            elif isinstance(effect, transfer.Check):
                if self._mirror is not None:
                    self._mirror.forget(job.blob)
                self._submit(job, self._check)
            elif isinstance(effect, transfer.Finish):
                self._done(job)
            else:
                self._fail(job, self._errors.pop(job.blob, _unverifiable(job, effect.code, self._store.folder)))
        if isinstance(event, transfer.Stored) and job.receiver.phase == "held":
            self._admit(job)  # what was allowed has come

    def _admit(self, job: _Job) -> None:
        """Let the receiver go on, or hold it, as the policy of its app says now."""
        receiver = job.receiver
        if receiver is None or receiver.phase not in (*_OPEN, "held"):
            return
        now = self._clock()
        admission = self.meter.admit(job.root, job.blob, len(receiver.missing), job.info.chunk_size, now)
        job.admit_at = now.mono + admission.wait_s
        if not admission.free:
            if self._mirror is not None:
                self._mirror.forget(job.blob)
            self._step(job, transfer.Hold())
        elif receiver.phase == "held":
            self._step(job, transfer.Release(self._random.random(), admission.allowed, admission.apart))

    def _ask(self, job: _Job, want: transfer.Want) -> None:
        """Publish a want, unless the mirror has its turn; that nothing is missing any more is always said."""
        if want.missing and self._mirror is not None and self._mirror.holds(job.blob):
            return
        self._link.publish(topics.want(job.blob, self._device), transfer.encode_want(want), qos=1)

    def _take_mirrored(self, mirror: SecondTransport) -> float:
        """Take up what the mirror wrote, and tell it what is missing; seconds until the next time."""
        for got in mirror.taken():
            job = self._jobs.get(got.blob)
            if job is None or job.receiver is None or job.receiver.phase not in _OPEN:
                continue
            if got.error is not None:
                self._break(job, got.error)
            else:
                size = job.info.chunk_size if got.index < job.count - 1 else job.info.size - got.index * job.info.chunk_size
                self.meter.count(job.root, job.blob, size, "mirror", self._clock())
                self.meter.useful(job.root, size)
                self._step(job, transfer.Stored(job.receiver.round, got.index))
                self._count_stored(job)
        for job in list(self._jobs.values()):
            if job.receiver is None or job.table is None or job.partial is None or job.receiver.phase not in _OPEN:
                continue
            allowed, missing = job.receiver.allowed, job.receiver.missing
            ask_now = mirror.offer(job.blob, job.table, missing if allowed is None else missing.lowest(allowed), job.partial.write)
            if ask_now and self._link.connected:
                self._step(job, transfer.Up(self._random.random()))
        return mirror.due_s()

    def _count_stored(self, job: _Job) -> None:
        job.stored += 1
        if job.stored % SETTLE_CHUNKS == 0 and job.work is None and job.partial is not None and job.receiver is not None:
            self._settle(job, job.partial, job.receiver.missing)

    def _listen(self, job: _Job, receiver: transfer.Receiver) -> None:
        """Subscribe to what the receiver listens to, before it asks."""
        wanted = listening.topics_of(receiver, job.blob, self._device)
        if wanted == job.listening:
            return
        before, job.listening = job.listening, wanted
        for topic in wanted:
            if topic not in before:
                self._link.subscribe(topic, 0)
        for topic in before:
            if topic not in wanted:
                self._link.unsubscribe(topic)

    # --- work in the other thread -----------------------------------------------------------------------------

    def _submit(self, job: _Job, work: Callable[[_Job], Bitmap | Path]) -> None:
        job.work = self._worker.submit(work, job)

    def _settle(self, job: _Job, partial: Partial, missing: Bitmap) -> None:
        """Write back and hash what is complete from the beginning, while the rest is still coming."""
        if job.settling is not None and not job.settling.done():
            return
        complete = next(missing.runs(), (job.count, 0))[0] * job.info.chunk_size
        job.settling = self._worker.submit(partial.settle, min(complete, job.info.size))

    def _open(self, job: _Job) -> Bitmap:
        assert job.table is not None  # noqa: S101  set before it was submitted
        job.partial = self._store.open_partial(job.blob, job.table)
        return job.partial.missing()

    def _check(self, job: _Job) -> Bitmap | Path:
        assert job.partial is not None  # noqa: S101  opened before any chunk
        try:
            return job.partial.finish()
        except UntrustedError:
            return job.partial.missing()

    def _finish_work(self, job: _Job) -> None:
        work, job.work = job.work, None
        if job.cancelled:
            self._forget(job)
            return
        try:
            outcome = work.result() if work is not None else None
        except JetfleetError as error:
            self._break(job, error)
            return
        if isinstance(outcome, Path):
            self._step(job, transfer.Checked())
        elif isinstance(outcome, Bitmap) and job.receiver is not None:
            draw = self._random.random()
            opening = job.receiver.phase == "opening"
            self._step(job, transfer.Opened(outcome, draw, held=True) if opening else transfer.Unchecked(outcome, draw))
            self._admit(job)

    # --- ends -------------------------------------------------------------------------------------------------

    def _break(self, job: _Job, error: JetfleetError) -> None:
        self._errors[job.blob] = error
        self._step(job, transfer.Broken(error.code))

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
        for parent in [self._jobs[name] for name in job.parents if name in self._jobs]:
            self._fail(parent, error)
        if job.asked_for:
            self._on_failed(job.blob, error)

    def _release(self, job: _Job) -> None:
        """Drop a job that nobody wants any more, and the pages that were fetched only for it."""
        if job.asked_for or any(parent in self._jobs and not self._jobs[parent].cancelled for parent in job.parents):
            return
        job.cancelled = True
        if job.work is None:
            self._forget(job)
        for page in [self._jobs[name] for name in job.pages if name in self._jobs]:
            self._release(page)

    def _drop(self, job: _Job) -> None:
        """Forget a job at once, whatever runs for it: its part on disk is left as a power cut would leave it."""
        if job.work is not None:
            wait([job.work])
        for page in [self._jobs[name] for name in job.pages if name in self._jobs]:
            page.parents.discard(job.blob)
            self._release(page)
        self._forget(job)

    def _forget(self, job: _Job) -> None:
        self._jobs.pop(job.blob, None)
        for topic in job.listening:
            self._link.unsubscribe(topic)
        job.listening = ()
        self.meter.ended(job.blob)
        if self._mirror is not None:
            self._mirror.forget(job.blob)
        if job.partial is not None:
            job.partial.close()


def _unverifiable(job: _Job, code: str, folder: Path) -> JetfleetError:
    return UntrustedError(code, f"blob {job.blob} was complete and read back wrong, again and again", where=str(folder),
                          remedy="replace the storage of this board")


def _have(job: _Job) -> int:
    if job.receiver is None:
        return 0
    return max(0, job.info.size - len(job.receiver.missing) * job.info.chunk_size)
