"""Runs the board's own bench of a bundle that it keeps, in a thread of its own: one process a measurement, as a guest of the running apps.

Each process has the least priority, no more memory than is free, and what is left of the bench's time; its frames rest as long as the
apps' trial budget wants. Whatever happens to a process is a row's reason. Stopped, it kills the process in hand.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from jetfleet_agent.bench import Wish, bench, record_of
from jetfleet_agent.bundle_folder import BundleFolder
from jetfleet_contract.bench_orders import BenchOrder
from jetfleet_contract.bench_records import MAX_RECORD_BYTES, BenchRecord
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.footings import KINDS
from jetfleet_contract.messages import Capability, encode
from jetfleet_contract.trials import predict_memory, why_no_room

from .evaluation_process import PROGRAM, EvaluationProcess

log = logging.getLogger(__name__)

NICE = 19
RUNAWAY_MB = 512.0
SOURCE = "synthetic:1280x720?frames=100"
RUNS = 50
WARMUP = 10
MAX_REASONS = 3


class BenchJob(msgspec.Struct, frozen=True):
    """A bundle to measure; `share` of all time is the most that its frames may take, over 0 to 1."""

    order: BenchOrder
    bundle: BundleFolder
    share: float


class BenchOutcome(msgspec.Struct, frozen=True):
    """The record, or `code` and `detail`: `bench.timeout`, `bench.nothing`, `bench.large` or `bench.internal`."""

    order: BenchOrder
    record: BenchRecord | None = None
    code: str = ""
    detail: str = ""


class BenchWork:
    """See the module. All methods belong to the control thread.

    Args:
        folder: for jobs in hand; what a killed agent left there is swept.
        threads: CPU threads given to a runtime; 0: its own choice.
        program: the evaluate program, to which two paths are appended.
        free_mb: memory that new work may take now, MB; 0: nobody knows.
        conditions: the board's power mode and clocks now.
        kernels: the agent's state folder, where signed kernels lie.
    """

    def __init__(self, folder: Path, capability: Capability, *, threads: int, program: Sequence[str] = PROGRAM,
                 free_mb: Callable[[], float] = lambda: 0.0, conditions: Callable[[], Conditions] = Conditions, kernels: str = "") -> None:
        self._folder = folder
        self._capability = capability
        self._threads = threads
        self._program = tuple(program)
        self._free_mb = free_mb
        self._conditions = conditions
        self._kernels = kernels
        self._guests: _Guests | None = None
        self._worker: threading.Thread | None = None
        self._outcome: BenchOutcome | None = None
        shutil.rmtree(folder / "jobs", ignore_errors=True)

    def start(self, job: BenchJob) -> None:
        """Begin; nothing else may be running."""
        guests = _Guests(self._folder, job, self._program, self._free_mb, self._kernels)
        self._guests, self._outcome = guests, None
        self._worker = threading.Thread(target=self._work, args=(job, guests), name="bench", daemon=True)
        self._worker.start()

    def take(self) -> BenchOutcome | None:
        """What came out, once."""
        found, self._outcome = self._outcome, None
        return found

    def stop(self) -> None:
        """Kill the process in hand; there will be no outcome."""
        if self._guests is not None:
            self._guests.stop()
        if self._worker is not None:
            self._worker.join(timeout=5.0)
        self._guests = self._worker = self._outcome = None

    # --- worker thread ------------------------------------------------------------------------------------

    def _work(self, job: BenchJob, guests: _Guests) -> None:
        try:
            outcome = self._measured(job, guests)
        except JetfleetError as error:
            outcome = BenchOutcome(job.order, code=error.code, detail=error.what)
        except Exception as error:
            log.exception("the bench of %s failed", job.order.text)
            outcome = BenchOutcome(job.order, code="bench.internal", detail=str(error)[:300])
        if not guests.stopped:
            self._outcome = outcome

    def _measured(self, job: BenchJob, guests: _Guests) -> BenchOutcome:
        wish = Wish(SOURCE, self._threads, RUNS, WARMUP)
        rows = bench(job.bundle, self._capability, guests.run, wish, _say)
        if not any(not row.error for row in rows):
            return _nothing(job.order, (*guests.failures, *(row.error for row in rows)), timed_out=guests.is_over)
        record = record_of(job.bundle, self._capability, self._conditions(), wish, rows, time.time())
        size = len(encode(record))
        if size > MAX_RECORD_BYTES:
            return BenchOutcome(job.order, code="bench.large", detail=f"a record of {size} bytes is over the limit of {MAX_RECORD_BYTES}")
        return BenchOutcome(job.order, record)


class _Guests:
    """The processes of one bench, one after the other, until its time is over or it is stopped."""

    def __init__(self, folder: Path, job: BenchJob, program: tuple[str, ...], free_mb: Callable[[], float], kernels: str) -> None:
        self._folder = folder
        self._share = job.share
        self._limit_s = job.order.limit_s
        self._program = program
        self._free_mb = free_mb
        self._kernels = kernels
        self._deadline = time.monotonic() + job.order.limit_s
        self._guard = threading.Lock()
        self._process: EvaluationProcess | None = None
        self.stopped = False
        self.failures: list[str] = []

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._deadline

    def run(self, job: EvaluationJob) -> EvaluationResult:
        result = self._run(job)
        if result.error:
            self.failures.append(f"{result.detail or result.error} [{result.error}]")
        return result

    def _run(self, job: EvaluationJob) -> EvaluationResult:
        left_s, free_mb = self._deadline - time.monotonic(), self._free_mb()
        if left_s <= 0:
            return EvaluationResult(job.backend, error="bench.timeout", detail=f"the bench's {self._limit_s:g} s were over before its turn")
        need = predict_memory(Path(job.model).stat().st_size, job.task.input.width * job.task.input.height)
        no_room = why_no_room(need.alone_mb, free_mb, need.origin)
        if no_room:
            return EvaluationResult(job.backend, error="backend.memory", detail=no_room)
        with self._guard:
            if self.stopped:
                return EvaluationResult(job.backend, error="evaluate.stopped", detail="the bench was ended")
            self._process = EvaluationProcess(self._folder / "jobs", left_s, self._program, nice=NICE)
        kind = KINDS.get(job.backend)
        timing = str(self._folder / "kernels.timing") if kind is not None and kind.timed else ""
        return self._process.run(msgspec.structs.replace(job, share=self._share, kernels=self._kernels, timing=timing),
                                 free_mb + RUNAWAY_MB if free_mb else 0.0)

    def stop(self) -> None:
        with self._guard:
            self.stopped = True
            if self._process is not None:
                self._process.stop()


def _nothing(order: BenchOrder, errors: Sequence[str], *, timed_out: bool) -> BenchOutcome:
    """What came of candidates that were run is told before what this board cannot run anyway."""
    reasons = "; ".join([*dict.fromkeys(errors)][:MAX_REASONS])
    return BenchOutcome(order, code="bench.timeout" if timed_out else "bench.nothing",
                        detail=f"nothing was measured of {order.text}: {reasons or 'it has no candidate'}"[:400])


def _say(name: str, number: int, total: int) -> None:
    log.info("bench %d of %d: %s", number, total, name)
