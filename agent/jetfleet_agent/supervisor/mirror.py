"""Fetches missing chunks from a web server, in a thread of its own, beside the MQTT transfer.

The control thread says what is missing (`offer`) and takes up what came (`taken`); the thread asks for merged ranges, checks each chunk
against the signed table and writes it at once. Which of the two transports has its turn is decided by `mirrors`, per blob.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from jetfleet_contract import mirrors
from jetfleet_contract.chunks import Bitmap, ChunkTable
from jetfleet_contract.errors import JetfleetError, StorageError, TransportError
from jetfleet_contract.mirrors import Health, Mode, Turn

from .web import Body

BUSY_S = 0.02
IDLE_S = 1.0
CLOSE_S = 15.0
OF_THE_BLOB = ("mirror.missing", "mirror.no-range")
"""Faults that say nothing of other blobs."""

_log = logging.getLogger(__name__)

Write = Callable[[int, bytes], bool]


class Folder(Protocol):
    """What is used of a WebFolder."""

    @property
    def host(self) -> str: ...
    def get(self, blob: str, start: int, end: int, size: int, *, whole: bool) -> Body: ...
    def cut(self) -> None: ...
    def close(self) -> None: ...


class Got(msgspec.Struct, frozen=True):
    """Chunk `index` of a blob is written, or the disk did not take it."""

    blob: str
    index: int
    error: StorageError | None = None


class _Wanted:
    """One blob that the thread may fetch."""

    def __init__(self, table: ChunkTable, missing: Bitmap, write: Write, turn: Turn) -> None:
        self.table = table
        self.missing = missing
        self.write = write
        self.turn = turn
        self.bad = Bitmap(table.count)  # what the mirror has wrong: not asked for again before the next turn
        self.held = False


class Mirror:
    """See the module. All methods are the control thread's."""

    def __init__(self, folder: Folder, mode: Mode, mono: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._mode = mode
        self._mono = mono
        self._random = random.SystemRandom()
        self._lock = threading.Condition()  # guards all below; held while a chunk is written, so that no part is closed meanwhile
        self._wanted: dict[str, _Wanted] = {}
        self._taken: deque[Got] = deque()
        self._health = Health()
        self._closing = False
        self.received_bytes = 0
        self.wrong_chunks = 0
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str:
        """The code of the fault that keeps the mirror out of use; empty when it is in use."""
        with self._lock:
            return "" if self._health.usable(self._mono()) else self._health.code

    def offer(self, blob: str, table: ChunkTable, missing: Bitmap, write: Write) -> bool:
        """What is missing now of a blob whose part is open; True when from now on it is to be asked for over MQTT.

        Args:
            write: `(index, data)` checks, writes and says whether it fitted; called from the thread, until `forget`.
        """
        now = self._mono()
        with self._lock:
            known = self._wanted.get(blob)
            if known is None:
                known = self._wanted[blob] = _Wanted(table, missing, write, Turn(len(missing), now))
            written = (got.index for got in self._taken if got.blob == blob and got.error is None)
            known.missing, known.write = missing.minus(Bitmap.of(table.count, written)), write
            known.turn = mirrors.judge(self._mode, known.turn, len(missing), self._health, now)
            if known.turn.mirror:
                self._lock.notify()
            before, known.held = known.held, mirrors.holds_mqtt(self._mode, known.turn)
            return before and not known.held

    def forget(self, blob: str) -> None:
        """Nothing more is written of this blob when this returns."""
        with self._lock:
            self._wanted.pop(blob, None)

    def holds(self, blob: str) -> bool:
        """True while nothing of this blob is to be asked for over MQTT."""
        with self._lock:
            known = self._wanted.get(blob)
            if known is None:
                return self._mode != "fallback" and (self._mode == "only" or self._health.usable(self._mono()))
            return mirrors.holds_mqtt(self._mode, known.turn)

    def taken(self) -> list[Got]:
        """What came since the last call."""
        with self._lock:
            got = list(self._taken)
            self._taken.clear()
        return got

    def due_s(self) -> float:
        """Seconds until `offer` and `taken` should be called again."""
        with self._lock:
            if not self._wanted:
                return float("inf")
            return BUSY_S if any(wanted.turn.mirror for wanted in self._wanted.values()) else IDLE_S

    def close(self) -> None:
        """End the thread; what was written stays."""
        with self._lock:
            self._closing = True
            self._wanted.clear()
            self._lock.notify()
        self._folder.cut()
        self._thread.join(CLOSE_S)

    # --- the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._closing and (task := self._task()) is None:
                    self._lock.wait(IDLE_S)
                if self._closing:
                    break
            assert task is not None  # noqa: S101  the loop above ended with one
            self._fetch(*task)
        self._folder.close()

    def _task(self) -> tuple[str, ChunkTable, int, int, bool] | None:
        """The next range: blob, table, first chunk, count, and whether most of the blob is missing."""
        if not self._health.usable(self._mono()):
            return None
        for blob, wanted in self._wanted.items():
            left = wanted.missing.minus(wanted.bad)
            if not wanted.turn.mirror or not wanted.missing:
                continue
            if left:
                first, count = next(mirrors.ranges(left, wanted.table.chunk_size))
                return blob, wanted.table, first, count, 2 * len(left) >= wanted.table.count
            self._absent(wanted)
        return None

    def _absent(self, wanted: _Wanted) -> None:
        wanted.turn = mirrors.absent(wanted.turn, self._mono(), self._random.random())
        wanted.bad = Bitmap(wanted.table.count)

    def _fetch(self, blob: str, table: ChunkTable, first: int, count: int, most: bool) -> None:
        try:
            end = min(table.size, (first + count) * table.chunk_size)
            self._take(blob, table, self._folder.get(blob, first * table.chunk_size, end, table.size, whole=most))
        except TransportError as error:
            self._failed(blob, error)
        except Exception as error:  # noqa: BLE001  a bug in here must not end the thread that would fetch the cure
            _log.exception("the mirror's thread stumbled")
            self._failed(blob, TransportError("mirror.broken", f"cannot use the mirror: {type(error).__name__}", where=self._folder.host))

    def _take(self, blob: str, table: ChunkTable, body: Body) -> None:
        """Cut the body into chunks; it begins on the grid."""
        index, held = body.start // table.chunk_size, bytearray()
        for piece in body.pieces:
            self.received_bytes += len(piece)
            held += piece
            while index < table.count and len(held) >= table.length(index):
                length = table.length(index)
                if not self._put(blob, index, bytes(held[:length])):
                    self._folder.close()
                    return
                del held[:length]
                index += 1

    def _put(self, blob: str, index: int, data: bytes) -> bool:
        """Write one chunk; False when this blob, or this mirror, is not wanted any more."""
        with self._lock:
            wanted = self._wanted.get(blob)
            if wanted is None:
                return False
            if not wanted.missing.has(index):
                return True
            try:
                fits = wanted.write(index, data)
            except StorageError as error:
                self._taken.append(Got(blob, index, error))
                del self._wanted[blob]
                return False
            if fits:
                wanted.missing = wanted.missing.without(index)
                self._health = mirrors.worked(self._health)
                self._taken.append(Got(blob, index))
                return True
            return self._spoiled(wanted, index)

    def _spoiled(self, wanted: _Wanted, index: int) -> bool:
        """The rest of the body may still be right; False when this was one wrong chunk too many."""
        self.wrong_chunks += 1
        wanted.bad = wanted.bad.with_(index)
        self._health = mirrors.spoiled(self._health, self._mono())
        dropped = not self._health.usable(self._mono())
        _log.warning("chunk %d from mirror %s is not what was signed%s [mirror.wrong]", index, self._folder.host,
                     ", like others before: the mirror is left alone for a while" if dropped else "")
        return not dropped

    def _failed(self, blob: str, error: JetfleetError) -> None:
        now = self._mono()
        with self._lock:
            if self._closing:
                return
            wanted = self._wanted.get(blob)
            if error.code in OF_THE_BLOB and wanted is not None:
                self._absent(wanted)
            else:
                self._health = mirrors.failed(self._health, error.code, now, self._random.random())
        _log.warning("%s [%s]", error.what, error.code)
