"""Builds and tries engines, one at a time, in processes of their own: at low priority, bounded in memory, killed when the agent stops.

What was built counts only once it was loaded again and has answered the bundle's probe set. The file is written whole or not at all; what a
killed build leaves is swept away at the next start.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import statistics
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from jetfleet_agent.durable import need_folder, write_file
from jetfleet_contract.engines import EngineFile, Passport, key_of, timing_name
from jetfleet_contract.errors import StorageError
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.footings import KINDS, tuning_of
from jetfleet_contract.predictions import agreement

from .bundle_reader import Contents
from .evaluation_process import PROGRAM, EvaluationProcess

log = logging.getLogger(__name__)

TRIED_RUNS = 20
BUILD_S = 3600.0  # TensorRT tries thousands of kernels, and the running models keep their cores meanwhile
RUNAWAY_MB = 512.0


class EngineOrder(msgspec.Struct, frozen=True):
    """Build an engine, or try the one that `engine` names. `command` is the signed command behind it, 0: the board's own wish. `timings`:
    the class's timing cache, to build upon; without it the board's own is taken."""

    passport: Passport
    contents: Contents
    weights: Path
    command: int = 0
    engine: EngineFile | None = None
    timings: Path | None = None


class EngineAnswer(msgspec.Struct, frozen=True):
    """How far it is (`percent` below 100), or what came out: `engine` with `agreement` 0..1 and `p50_ms`, or `code` and `detail`.
    `timings`: the timing cache after a build that kept one."""

    order: EngineOrder
    percent: float = 100.0
    engine: EngineFile | None = None
    agreement: float = 0.0
    p50_ms: float = 0.0
    code: str = ""
    detail: str = ""
    timings: Path | None = None


class EngineWork:
    """See the module. `put`, `answers` and `stop` belong to the control thread.

    Args:
        folder: for engines that are being built. timeout_s: of one process. free_mb: memory that new work may take now; 0: nobody knows.
    """

    def __init__(self, folder: Path, *, threads: int, timeout_s: float = BUILD_S, nice: int = 10, program: Sequence[str] = PROGRAM,
                 free_mb: Callable[[], float] = lambda: 0.0) -> None:
        need_folder(folder)
        self._folder = folder
        self._threads = threads
        self._free_mb = free_mb
        self._process = EvaluationProcess(folder / "jobs", timeout_s, program, nice=nice)
        self._orders: queue.SimpleQueue[EngineOrder | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[EngineAnswer] = queue.SimpleQueue()
        for leftover in (*folder.glob(".*.partial"), *folder.glob("*.engine")):
            leftover.unlink(missing_ok=True)
        self._worker = threading.Thread(target=self._work, name="engines", daemon=True)
        self._worker.start()

    def put(self, order: EngineOrder) -> None:
        self._orders.put(order)

    def answers(self) -> list[EngineAnswer]:
        """What came since the last call, without waiting."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._answers.get_nowait())
        return found

    def stop(self) -> None:
        """Kill what is being built."""
        self._orders.put(None)
        self._process.stop()
        self._worker.join(timeout=5.0)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                self._answers.put(self._done(order))
            except Exception as error:  # noqa: PERF203  whatever it was, whoever waits for the engine must hear of it
                log.exception("an engine could not be worked on")
                self._answers.put(EngineAnswer(order, code="engine.internal", detail=str(error)[:300]))

    def _done(self, order: EngineOrder) -> EngineAnswer:
        if order.engine is not None:
            return self._tried(order, order.engine)
        path = self._folder / f"{key_of(order.passport)[:16]}.engine"
        timings = self._timings(order)
        built = self._run(msgspec.structs.replace(self._job(order), export=str(path), timing=str(timings or "")))
        if built.error or built.engine is None:
            return EngineAnswer(order, code=built.error or "engine.export", detail=built.detail)
        self._answers.put(EngineAnswer(order, 60.0))
        return msgspec.structs.replace(self._tried(order, built.engine), timings=timings if timings and timings.is_file() else None)

    def _timings(self, order: EngineOrder) -> Path | None:
        """The file of timings that the build reads and writes: as the class has it now, else as this board's last build left it."""
        footing = order.passport.footing
        if not KINDS[footing.backend].timed:
            return None
        path = self._folder / f"{timing_name(footing)[:17]}.timing"
        for other in self._folder.glob("*.timing"):
            if other != path:  # of before an upgrade
                other.unlink(missing_ok=True)
        if order.timings is not None:
            with contextlib.suppress(OSError, StorageError):  # without it the build only takes longer
                write_file(path, order.timings.read_bytes())
        return path

    def _tried(self, order: EngineOrder, engine: EngineFile) -> EngineAnswer:
        images = tuple(str(image) for image in order.contents.images)
        result = self._run(msgspec.structs.replace(self._job(order), engine=engine, images=images, warmup=3, latency_runs=TRIED_RUNS))
        expected = [item.expected for item in order.contents.probe.items]
        if result.error:
            return EngineAnswer(order, code=result.error, detail=result.detail)
        if len(result.predictions) != len(expected) or not result.latency_ms:
            return EngineAnswer(order, code="evaluate.result", detail="the probe set has not been answered as a whole")
        agreed, least = agreement(expected, result.predictions), order.contents.probe.min_agreement
        if agreed < least:
            return EngineAnswer(order, agreement=agreed, code="engine.disagrees",
                                detail=f"the engine agrees with {agreed:.3f} of the reference's answers, {least:.3f} is the bound")
        return EngineAnswer(order, engine=engine, agreement=agreed, p50_ms=statistics.median(result.latency_ms))

    def _job(self, order: EngineOrder) -> EvaluationJob:
        recipe = order.passport.recipe
        return EvaluationJob(str(order.weights), order.contents.spec.task, order.passport.footing.backend, recipe.precision, self._threads,
                             warmup=0, latency_runs=0, tuning=tuning_of(recipe))

    def _run(self, job: EvaluationJob) -> EvaluationResult:
        free = self._free_mb()
        return self._process.run(job, free + RUNAWAY_MB if free else 0.0)
