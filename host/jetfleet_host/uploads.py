"""Takes in what boards offer: judges each offer, asks for its chunks, checks them against its table, makes the whole durable, says so.

Called from serve's control thread; what reads or syncs whole files is done by one worker thread. What was let in is a row of the
database, so a restart of this process goes on with what is on disk. Only the topics of offers that were let in are subscribed to: what
nobody asked for stops at the broker.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import msgspec

from jetfleet_contract import topics, transfer, uploads
from jetfleet_contract.chunks import Bitmap, BlobInfo, TablePage, chunk_count, lower_pages, open_table, top_page
from jetfleet_contract.errors import JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import Instant
from jetfleet_contract.uploads import DAY_S, Bounds, Offer, Verdict

from . import intake
from .collector import Incoming
from .intake import VerifyDevice
from .store import fleet
from .store import uploads as rows
from .store.database import Transactions
from .upload_files import MemoryPart, UploadFiles, UploadPart

MAX_JOBS = 16
MAX_JOBS_A_DEVICE = 4
MAX_WAITING_BYTES = 48 << 20
MAX_SPOILED = 64
WORK_POLL_S = 0.005
IDLE_S = 60.0
PROGRESS_S = 0.5
HOST_LIFE_S = 7 * DAY_S

_log = logging.getLogger(__name__)


class Link(Protocol):
    """What is used of an MqttLink."""

    @property
    def connected(self) -> bool: ...
    def subscribe(self, topic: str, qos: int) -> None: ...
    def unsubscribe(self, topic: str) -> None: ...
    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> bool: ...


class Gate:
    """Bounds the chunks that wait between the link's thread and the control thread: what does not fit is lost, and asked for again."""

    def __init__(self, maximum: int = MAX_WAITING_BYTES) -> None:
        self._left = maximum
        self._lock = threading.Lock()

    def enter(self, size: int) -> bool:
        """From the link's thread; False when it does not fit."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def leave(self, size: int) -> None:
        """From the control thread, once the message was taken."""
        with self._lock:
            self._left += size


class _Inflow:
    """One blob on its way: the offered one, or a page of its chunk table."""

    def __init__(self, blob: str, info: BlobInfo, part: UploadPart | MemoryPart, device: str) -> None:
        self.blob = blob
        self.part = part
        self.count = chunk_count(info.size, info.chunk_size)
        self.topic = topics.upload(device, blob)
        self.ask_topic = topics.upload_want(device, blob)
        self.receiver = transfer.receiver(self.count, info.chunk_size)
        self.work: Future[Bitmap | None] | None = None


class _Job:
    """One offer that was let in. Its pages come first, from the top; `inflow` is what is being received now."""

    def __init__(self, row: int, offer: Offer) -> None:
        self.row = row
        self.offer = offer
        self.wanted: list[TablePage] = []
        self.pages: list[bytes] = []
        self.top: bytes | None = None
        self.inflow: _Inflow | None = None
        self.noted = 0
        self.noted_at = 0.0


class Uploads:
    """See the module.

    Args:
        verify: opens what a board signed with its pinned key. sign: gives the envelope of a verdict.
    """

    def __init__(self, database: Transactions, link: Link, files: UploadFiles, verify: VerifyDevice, sign: Callable[[Verdict], bytes],
                 bounds: Bounds) -> None:
        self._database = database
        self._link = link
        self._files = files
        self._verify = verify
        self._sign = sign
        self._bounds = bounds
        self._jobs: dict[int, _Job] = {}
        self._by_topic: dict[str, _Job] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="uploads")
        self._random = random.SystemRandom()
        self.gate = Gate()

    def restore(self, now: Instant) -> None:
        """Go on with what an earlier process let in. Raises StorageError `store.database`."""
        with self._database.reading() as session:
            found = rows.under_way(session)
        for row, offer in found:
            if row not in self._jobs:
                self._begin(_Job(row, offer), now)

    def close(self) -> None:
        """End the worker and close the parts; what was received stays."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        for job in self._jobs.values():
            if job.inflow is not None:
                job.inflow.part.close()

    # --- offers -----------------------------------------------------------------------------------------------

    def on_offer(self, message: Incoming, now: Instant) -> None:
        """Judge an offer. A forged or malformed one is counted and kept in part, and gets no answer; any other gets a verdict.

        Raises:
            StorageError: `store.database`: it is offered again.
        """
        try:
            device = topics.device_of(message.topic)
            with self._database.reading() as session:
                key = rows.key_of(session, device)
            offer = intake.offer_from(message.topic, message.payload, key, self._verify)
        except (MalformedError, UntrustedError) as error:
            with self._database.session() as session:
                fleet.save_rejected(session, message.topic, message.payload, error.code, intake.clean(error.what, 500), message.at)
            return
        self._judge(msgspec.structs.replace(offer, expires=offer.expires or now.wall + HOST_LIFE_S), now)

    def _judge(self, offer: Offer, now: Instant) -> None:
        with self._database.reading() as session:
            known = rows.find(session, offer)
            asked, used = rows.asked_op(session, offer), rows.used_bytes(session, offer.device, now.wall)
        if known is not None:
            self._repeat(offer, known.blob, known.state, known.code, known.id, now)
            return
        try:
            uploads.judge(offer, self._bounds, asked, used, now.wall)
        except UntrustedError as error:
            with self._database.session() as session:
                rows.add(session, offer, rows.REFUSED, now.wall, error.code)
            _log.warning("%s: %s", offer.device, error.what)
            self._say(offer, error.code, error.what)
            return
        if self._busy(offer) or not self._files.room(offer.info.size):
            _log.warning("%s: %s %s has to wait: too much is under way, or the disk is full", offer.device, offer.kind, offer.name)
            return  # no verdict: it is offered again
        with self._database.session() as session:
            row = rows.add(session, offer, rows.OPEN, now.wall)
        self._begin(_Job(row, offer), now)

    def _repeat(self, offer: Offer, blob: str, state: str, code: str, row: int, now: Instant) -> None:
        if blob != offer.blob:
            self._say(offer, "upload.repeated", f"offer {offer.id} was another blob before")
        elif state == rows.OPEN:
            self._go_on(row, offer, now)
        else:
            self._say(offer, code if state == rows.REFUSED else "")

    def _go_on(self, row: int, offer: Offer, now: Instant) -> None:
        """The board may have been away: ask at once; or the disk was full when this was put aside: try again."""
        job = self._jobs.get(row)
        if job is None:
            self._begin(_Job(row, offer), now)
        else:
            self._step(job, transfer.Up(self._random.random()), now)

    def _busy(self, offer: Offer) -> bool:
        """Too much is under way, or another offer brings the same blob just now."""
        of_device = [job.offer.blob for job in self._jobs.values() if job.offer.device == offer.device]
        return len(self._jobs) >= MAX_JOBS or len(of_device) >= MAX_JOBS_A_DEVICE or offer.blob in of_device

    def _say(self, offer: Offer, code: str, detail: str = "") -> None:
        verdict = Verdict(offer.device, offer.id, offer.blob, code, detail[:200])
        try:
            self._link.publish(topics.upload_want(offer.device, offer.blob), self._sign(verdict), qos=1)
        except JetfleetError as error:  # no key: it is offered again
            _log.error("%s", error.diagnostics())

    # --- what arrives -----------------------------------------------------------------------------------------

    def on_part(self, topic: str, payload: bytes, now: Instant) -> None:
        """Take a chunk or a mark; a bad one is dropped."""
        job = self._by_topic.get(topic)
        if job is None or job.inflow is None or job.inflow.topic != topic:
            return
        try:
            part = uploads.decode_part(payload)
        except MalformedError as error:
            _log.warning("dropped a part on %s: %s", topic, error.what)
            return
        if not isinstance(part, uploads.Part):
            self._step(job, transfer.Marked(part, self._random.random()), now)
        elif part.index < job.inflow.count and job.inflow.receiver.phase != "opening":
            self._chunk(job, job.inflow, part, now)

    def _chunk(self, job: _Job, inflow: _Inflow, part: uploads.Part, now: Instant) -> None:
        if not inflow.receiver.missing.has(part.index):
            self._step(job, transfer.Stored(part.round, part.index), now)
            return
        try:
            stored = inflow.part.write(part.index, part.data)
        except StorageError as error:
            self._pause(job, error)
            return
        self._step(job, transfer.Stored(part.round, part.index) if stored else transfer.Spoiled(part.round, part.index), now)
        if job.inflow is inflow and inflow.receiver.spoiled > MAX_SPOILED + inflow.count // 16:
            self._end(job, "upload.wrong", f"{inflow.receiver.spoiled} chunks were not what the offer's table says", now)

    def on_link_up(self, now: Instant) -> None:
        for job in list(self._jobs.values()):
            self._step(job, transfer.Up(self._random.random()), now)

    def on_link_down(self, now: Instant) -> None:
        for job in list(self._jobs.values()):
            self._step(job, transfer.Down(), now)

    def tick(self, now: Instant) -> float:
        """Let time pass, take up finished work, end what has expired; seconds until the next tick."""
        for job in list(self._jobs.values()):
            inflow = job.inflow
            if inflow is not None and inflow.work is not None and inflow.work.done():
                self._finish_work(job, inflow, now)
            elif inflow is not None and now.mono >= inflow.receiver.wake_at:
                self._step(job, transfer.Tick(self._random.random()), now)
            if now.wall_trusted and job.offer.expires <= now.wall:
                self._end(job, "upload.expired", "the board's offer expired before all of it had come", now)
        self._note_progress(now)
        inflows = [job.inflow for job in self._jobs.values() if job.inflow is not None]
        if any(inflow.work is not None for inflow in inflows):
            return WORK_POLL_S
        return max(0.0, min((inflow.receiver.wake_at - now.mono for inflow in inflows), default=IDLE_S))

    # --- one offer's way --------------------------------------------------------------------------------------

    def _begin(self, job: _Job, now: Instant) -> None:
        self._jobs[job.row] = job
        if self._files.has(job.offer.device, job.offer.blob):
            self._end(job, "", "", now)
            return
        top = top_page(job.offer.info)
        job.wanted = [top] if top is not None else []
        self._next(job, now)

    def _next(self, job: _Job, now: Instant) -> None:
        """Receive the next page, or with all of them the blob itself."""
        if job.wanted:
            page = job.wanted.pop(0)
            self._receive(job, page.blob, page.info, MemoryPart(open_table(page.blob, page.info)), now)
            return
        try:
            table = open_table(job.offer.blob, job.offer.info, job.pages)
            part = self._files.open(job.offer.device, job.offer.blob, table)
        except MalformedError as error:
            self._end(job, error.code, error.what, now)
            return
        except StorageError as error:
            self._pause(job, error)
            return
        self._receive(job, job.offer.blob, job.offer.info, part, now)

    def _receive(self, job: _Job, blob: str, info: BlobInfo, part: UploadPart | MemoryPart, now: Instant) -> None:
        job.inflow = inflow = _Inflow(blob, info, part, job.offer.device)
        self._by_topic[inflow.topic] = job
        self._link.subscribe(inflow.topic, 0)
        if self._link.connected:
            self._step(job, transfer.Up(self._random.random()), now)
        inflow.work = self._worker.submit(part.missing)

    def _step(self, job: _Job, event: transfer.ReceiverEvent, now: Instant) -> None:
        inflow = job.inflow
        if inflow is None:
            return
        inflow.receiver, effects = transfer.step_receiver(inflow.receiver, event, now.mono)
        for effect in effects:
            if isinstance(effect, transfer.Ask):
                self._link.publish(inflow.ask_topic, transfer.encode_want(effect.want), qos=1)
            elif isinstance(effect, transfer.Check):
                inflow.work = self._worker.submit(_finished, inflow.part)
            elif isinstance(effect, transfer.Finish):
                self._whole(job, inflow, now)
            else:
                self._end(job, effect.code, "what was received cannot be verified", now)

    def _finish_work(self, job: _Job, inflow: _Inflow, now: Instant) -> None:
        work, inflow.work = inflow.work, None
        try:
            outcome = work.result() if work is not None else None
        except StorageError as error:
            self._pause(job, error)
            return
        if outcome is None:
            self._step(job, transfer.Checked(), now)
            return
        draw = self._random.random()
        opening = inflow.receiver.phase == "opening"
        self._step(job, transfer.Opened(outcome, draw) if opening else transfer.Unchecked(outcome, draw), now)

    def _whole(self, job: _Job, inflow: _Inflow, now: Instant) -> None:
        self._leave(job)
        if not isinstance(inflow.part, MemoryPart):
            self._end(job, "", "", now)
            return
        try:
            lower = lower_pages(job.offer.info, inflow.part.data) if job.top is None else ()
        except MalformedError as error:
            self._end(job, error.code, error.what, now)
            return
        if job.top is None:
            job.top = inflow.part.data
            job.wanted = list(lower)
        if not lower:
            job.pages.append(inflow.part.data)
        self._next(job, now)

    def _leave(self, job: _Job) -> None:
        """Stop receiving the blob in hand."""
        inflow, job.inflow = job.inflow, None
        if inflow is None:
            return
        if self._by_topic.get(inflow.topic) is job:
            del self._by_topic[inflow.topic]
            self._link.unsubscribe(inflow.topic)
        inflow.part.close()

    def _pause(self, job: _Job, error: StorageError) -> None:
        """The disk does not take it now: leave it as it is; the next offer of it, or the next start, goes on."""
        _log.error("upload %s of %s: %s", job.offer.blob[:16], job.offer.device, error.diagnostics())
        self._leave(job)
        self._jobs.pop(job.row, None)

    def _end(self, job: _Job, code: str, detail: str, now: Instant) -> None:
        """The last word: first in the database, then to the board. What was refused leaves nothing behind."""
        self._leave(job)
        self._jobs.pop(job.row, None)
        with self._database.session() as session:
            rows.end(session, job.row, rows.REFUSED if code else rows.STORED, now.wall, code)
        if code:
            self._files.drop_part(job.offer.device, job.offer.blob)
            _log.warning("upload %s of %s: %s [%s]", job.offer.name, job.offer.device, detail, code)
        self._say(job.offer, code, detail)

    def _note_progress(self, now: Instant) -> None:
        """For who watches: at most twice a second, and only what changed."""
        changed = {}
        for job in self._jobs.values():
            inflow = job.inflow
            if inflow is None or isinstance(inflow.part, MemoryPart) or now.mono < job.noted_at + PROGRESS_S:
                continue
            received = max(0, job.offer.info.size - len(inflow.receiver.missing) * job.offer.info.chunk_size)
            if received != job.noted:
                job.noted, job.noted_at = received, now.mono
                changed[job.row] = received
        if changed:
            with self._database.session() as session:
                for row, received in changed.items():
                    rows.progress(session, row, received)


def _finished(part: UploadPart | MemoryPart) -> Bitmap | None:
    """None when the part is whole and durable, else what it really lacks."""
    try:
        part.finish()
    except UntrustedError:
        return part.missing()
    return None
