"""Asks the full-precision model: one long-lived process that runs the boards' own task code, one thread that feeds it.

The process (`python -m jetfleet_agent.pipeline.answer_crops`) is started at the first crop and again after it died or hung; the crop in
hand is given up then, because it may be the cause. It ends when our end of its standard input closes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from jetfleet_contract.crops import CropAnswer, CropJob

from .fair_queue import FairQueue

PROGRAM = (sys.executable, "-m", "jetfleet_agent.pipeline.answer_crops")
ANSWER_S = 60.0
PAUSE_S = 1.0
MAX_PIECES = 8
MAX_LINE_BYTES = 8 << 20

_log = logging.getLogger(__name__)


class Work(msgspec.Struct, frozen=True):
    """One crop to be answered. `picture` tells which picture of `device` it is a piece of; `subject` is the asker's own and comes back with
    the answer."""

    job: CropJob
    device: str
    picture: tuple[str, ...]
    subject: object


def _is_piece(other: Work, one: Work) -> bool:
    """Two crops of one picture, for one model: one run answers both."""
    mine, theirs = one.job, other.job
    return other.picture == one.picture and (theirs.model, theirs.task, theirs.canvas) == (mine.model, mine.task, mine.canvas)


class Answering:
    """See the module. Crops of one picture that wait together are answered by one run.

    Args:
        done: told each answer, from this thread; `crop.model` when the process gave none.
        program: the command.
    """

    def __init__(self, queue: FairQueue[Work], done: Callable[[Work, CropAnswer], None], *, program: Sequence[str] = PROGRAM,
                 answer_s: float = ANSWER_S) -> None:
        self._queue = queue
        self._done = done
        self._program = tuple(program)
        self._answer_s = answer_s
        self._child: subprocess.Popen[bytes] | None = None
        self._received = bytearray()
        self._stop = threading.Event()
        self.restarts = 0
        self._thread = threading.Thread(target=self._loop, name="crop-answers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End thread and process; what waits is dropped."""
        self._stop.set()
        self._queue.close()
        child = self._child
        if child is not None:
            child.kill()
        if self._thread.ident is not None:
            self._thread.join(10.0)
        self._end()

    def _loop(self) -> None:
        while not self._stop.is_set():
            work = self._queue.get(1.0)
            if work is None:
                continue
            together = (work, *self._queue.take(work.device, partial(_is_piece, one=work), MAX_PIECES - 1))
            answer = self._asked(msgspec.structs.replace(work.job, pieces=tuple(p for each in together for p in each.job.pieces)))
            for each in () if self._stop.is_set() else together:
                self._done(each, answer)

    def _asked(self, job: CropJob) -> CropAnswer:
        try:
            return self._ask(job)
        except (OSError, msgspec.MsgspecError) as error:
            if not self._stop.is_set():
                _log.warning("the process that answers crops is started again: %s", error)
                self.restarts += 1
            self._end()
            self._stop.wait(PAUSE_S)
            return CropAnswer(job.id, code="crop.model", detail="the model's process ended or hung")

    def _ask(self, job: CropJob) -> CropAnswer:
        child = self._running()
        assert child.stdin is not None  # noqa: S101  piped below
        child.stdin.write(msgspec.json.encode(job) + b"\n")
        child.stdin.flush()
        answer = msgspec.json.decode(self._line(child), type=CropAnswer)
        if answer.id != job.id:
            raise OSError("an answer to another crop came")
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
            self._child = subprocess.Popen(self._program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            self._received = bytearray()
        return self._child

    def _line(self, child: subprocess.Popen[bytes]) -> bytes:
        """The next line. OSError when it does not come in time, or the process is gone."""
        assert child.stdout is not None  # noqa: S101  piped above
        deadline = time.monotonic() + self._answer_s
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise OSError(f"no answer within {self._answer_s:.0f} s")
                data = os.read(child.stdout.fileno(), 1 << 16)
                if not data or len(self._received) > MAX_LINE_BYTES:
                    raise OSError(f"its output ended (exit code {child.poll()})")
                self._received += data
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        return bytes(line)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.poll() is None:
            child.kill()
        child.wait()
        for end in (child.stdin, child.stdout):
            if end is not None:
                with contextlib.suppress(OSError):  # what was not written yet goes nowhere
                    end.close()
