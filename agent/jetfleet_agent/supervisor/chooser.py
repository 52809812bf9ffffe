"""Chooses how a board runs a model: asks the policy what is worth trying, measures it here, and keeps the table.

Measurements run one at a time in processes of their own, in a worker thread, at low priority. Where the best ones are
too near to call, they are measured again in turns, so that a disturbance hits them alike.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec

from jetfleet_agent.config import MeasureConfig
from jetfleet_contract.bundle import Evaluation, ModelSpec, ProbeSet, TaskSpec
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import StorageError
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.footings import KINDS, runs_on_dla
from jetfleet_contract.messages import BackendInfo, Capability
from jetfleet_contract.policy import (
    Candidate,
    Choice,
    ChoiceRow,
    Measurement,
    candidates,
    choose,
    contenders,
    leaner,
    slower_at_builder,
    slower_before,
    worth_measuring,
)
from jetfleet_contract.predictions import agreement
from jetfleet_contract.trials import predict_memory, why_no_room
from jetfleet_contract.tuning import Tuning, TuningChoice, choose_tuning, eco_tuning, settings_to_measure

from .evaluation_process import PROGRAM, EvaluationProcess
from .measurements import ChoiceRecord, MeasurementStore, measurement_key

log = logging.getLogger(__name__)

TIE_ROUNDS = 2
PROBE_RUNS = 10
DEFAULTS = Tuning()
LOCK_POLL_S = 0.2
ROOM_WAIT_S = 6.0  # a pipeline that was told to stop gives its memory back within that
# A process that runs away must not take the running models with it. What counts against its limit is more than what is resident
# (measured: by 190 to 230 MB on two cores, stacks and arenas of a runtime's threads), so the net hangs lower.
RUNAWAY_FACTOR = 1.5
RUNAWAY_MB = 256.0

Progress = Callable[[str, Measurement], None]


class Chooser:
    """See the module. All methods return at once; `done` callbacks come from the worker thread.

    Args:
        capability: what this board can do.
        folder: for measurements, choices and jobs in hand (below the agent's state folder).
        threads: CPU threads given to a runtime; 0: its own choice.
        memory_mb: budget of one model's process; 0: none.
        program: the evaluate program, to which two paths are appended.
        progress: told of each new measurement, from the worker thread.
        free_mb: memory that new work may take now, MB; 0: nobody knows.
        conditions: what measurements depend on besides the hardware, read anew for each choice.
        kernels: the agent's state folder, where signed kernels lie; empty: only the wheel's are used.
    """

    def __init__(
        self,
        capability: Capability,
        folder: Path,
        *,
        threads: int = 0,
        memory_mb: float = 0.0,
        measure: MeasureConfig | None = None,
        program: Sequence[str] = PROGRAM,
        progress: Progress | None = None,
        free_mb: Callable[[], float] = lambda: 0.0,
        conditions: Callable[[], Conditions] = Conditions,
        kernels: str = "",
    ) -> None:
        self._capability = capability
        self._threads = threads
        self._memory_mb = memory_mb
        self._measure = measure or MeasureConfig()
        self._process = EvaluationProcess(folder / "jobs", self._measure.timeout_s, program, nice=self._measure.nice)
        self._store = MeasurementStore(folder)
        self._timings = folder / "kernels.timing"  # one model is built for each measurement, and each but the first is quick
        self._progress = progress
        self._free_mb = free_mb
        self._kernels = kernels
        self._conditions = conditions
        self._under = conditions()
        self._peaks: dict[tuple[Path, str], Measurement] = {}
        self._stopping = threading.Event()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, name="chooser", daemon=True)
        self._worker.start()

    @property
    def capability(self) -> Capability:
        """What the choices are bounded by."""
        return self._capability

    def wanted(self, spec: ModelSpec, evaluation: Evaluation) -> tuple[Candidate, ...]:
        """The candidates worth downloading and measuring here."""
        slow = self._left_out(spec, evaluation)
        fitting = worth_measuring(spec, evaluation, self._capability, memory_mb=self._memory_mb)
        return tuple(candidate for candidate in fitting if candidate.name not in slow)

    def choose(self, spec: ModelSpec, evaluation: Evaluation, paths: Mapping[str, Path], images: tuple[Path, ...],
               done: Callable[[Choice], None]) -> None:
        """Measure what is wanted and choose.

        Args:
            paths: weight files on disk, by variant name; a variant without one is refused with that reason.
            images: sample inputs.
            done: gets the table, always, unless `stop` came first.
        """
        def task() -> None:
            self._under = self._conditions()
            table = _Table(spec, evaluation, self._capability, self._memory_mb, self._left_out(spec, evaluation))
            choice = self._choose_safely(table, dict(paths), images)
            if not self._stopping.is_set():
                self._keep(table, choice)
                done(choice)

        self._tasks.put(task)

    def probe_model(self, model_path: Path, candidate: Candidate, spec: ModelSpec, probe: ProbeSet, images: tuple[Path, ...],
                    done: Callable[[EvaluationResult, float], None]) -> None:
        """Run the signed probe set in a throw-away process, set up as the pipeline will be.

        Args:
            images: the probe set's images on disk, in its order.
            done: gets the result and the agreement with the reference's answers, 0..1 (0 when it could not run).
        """
        def probing() -> None:
            result, agreed = self._probe(model_path, candidate, spec, probe, images)
            if not self._stopping.is_set():
                done(result, agreed)

        self._tasks.put(probing)

    def tuning(self, spec: ModelSpec, candidate: Candidate) -> Tuning:
        """How this board sets up the runtime for that candidate: as it measured, else the defaults."""
        kept = self._store.tuning(self._key(candidate, spec))
        return kept.tuning if kept is not None else Tuning()

    def eco(self, spec: ModelSpec, candidate: Candidate) -> Tuning | None:
        """The setting of that candidate's runtime that takes clearly less CPU time, as this board measured; None when none does."""
        kept = self._store.tuning(self._key(candidate, spec))
        return eco_tuning(kept) if kept is not None else None

    def chosen_under(self, name: str, version: str) -> Conditions | None:
        """The conditions under which this board chose how to run that model last; None when it is not known."""
        record = self._store.choice(name, version)
        return record.conditions if record is not None else None

    def lean(self, spec: ModelSpec, candidate: Candidate) -> Candidate | None:
        """The candidate to run instead of that one while the board is hot, by the last choice for this model; None when none is cheaper."""
        record = self._store.choice(spec.name, spec.version)
        return leaner(record.choice, record.measured) if record is not None and record.choice.chosen == candidate else None

    def stop(self) -> None:
        """Kill the measurement in hand; callbacks that have not come will not come."""
        self._stopping.set()
        self._tasks.put(None)
        self._process.stop()
        self._worker.join(timeout=5.0)

    # --- worker thread ------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._stopping.is_set():
                return
            try:
                task()
            except Exception:
                log.exception("a callback of the chooser failed")

    def _choose_safely(self, table: _Table, paths: dict[str, Path], images: tuple[Path, ...]) -> Choice:
        spec = table.spec
        try:
            with self._turn():
                self._measure_all(table, paths, images)
                choice = table.choice()
                if choice.chosen is None:
                    return choice
                return msgspec.structs.replace(choice, tuning=self._tuned(choice.chosen, spec, paths, images))
        except Exception as error:
            log.exception("choosing for %s %s failed", spec.name, spec.version)
            return Choice(tuple(ChoiceRow(candidate, "refused", f"could not be measured: {error}") for candidate in candidates(spec)))

    def _keep(self, table: _Table, choice: Choice) -> None:
        spec = table.spec
        record = ChoiceRecord(spec.name, spec.version, time.time(), self._capability, choice,
                              {variant.name: variant.size for variant in spec.variants}, table.measured, self._under)
        try:
            self._store.keep_choice(record)
        except (OSError, StorageError) as error:  # a full disk must not lose the choice: it is made again at the next start
            log.warning("the choice for %s %s is not kept: %s", spec.name, spec.version, error)

    def _left_out(self, spec: ModelSpec, evaluation: Evaluation) -> dict[str, str]:
        """What needs no measurement here, with the reason: the builder or an earlier version showed it to be far slower."""
        by_builder = slower_at_builder(spec, evaluation, self._capability, memory_mb=self._memory_mb)
        other = self._store.other_version(spec, self._capability, self._under)
        return {**by_builder, **slower_before(other.version, other.measured)} if other else by_builder

    def _measure_all(self, table: _Table, paths: dict[str, Path], images: tuple[Path, ...]) -> None:
        worth = worth_measuring(table.spec, table.evaluation, self._capability, memory_mb=self._memory_mb)
        wanted = [candidate for candidate in worth if candidate.name not in table.left_out]
        fresh = [self._measure_once(candidate, table, paths, images) for candidate in wanted]
        if table.choice().chosen is None:  # what looked best runs badly here: try also what looked slow
            rest = [candidate for candidate in worth if candidate.name in table.left_out and candidate.variant in paths]
            fresh += [self._measure_once(candidate, table, paths, images) for candidate in rest]
        if any(fresh):
            self._settle_ties(table, paths, images)

    def _measure_once(self, candidate: Candidate, table: _Table, paths: dict[str, Path], images: tuple[Path, ...]) -> bool:
        """Take the kept measurement, or make one. True when it was made."""
        path = paths.get(candidate.variant)
        if path is None:
            table.put(candidate, Measurement(error="its weights are not on this board"))
            return False
        kept = self._store.measurement(self._key(candidate, table.spec))
        if kept is not None and not kept.error:
            table.put(candidate, kept)
            self._peaks[path, candidate.name] = kept
            return False
        return self._measure_fresh(candidate, table, path, images)

    def _measure_fresh(self, candidate: Candidate, table: _Table, path: Path, images: tuple[Path, ...]) -> bool:
        """Measure now; False when there is no memory for it, which says nothing about the candidate: it keeps the builder's figure."""
        result = self._run(path, candidate, table.spec.task, images[:self._measure.images], self._measure.runs)
        if result.predicted_mb:
            log.warning("%s is not measured: %s", candidate.name, result.detail)
            return False
        measurement = _measurement(result)
        table.put(candidate, measurement)
        if self._progress:
            self._progress(candidate.name, measurement)
        if not measurement.error:
            with contextlib.suppress(OSError, StorageError):
                self._store.keep(self._key(candidate, table.spec), table.measured[candidate.name])
        return True

    def _settle_ties(self, table: _Table, paths: dict[str, Path], images: tuple[Path, ...]) -> None:
        for _ in range(TIE_ROUNDS):
            for candidate in contenders(table.choice(), table.measured):
                self._measure_fresh(candidate, table, paths[candidate.variant], images)

    def _tuned(self, chosen: Candidate, spec: ModelSpec, paths: Mapping[str, Path], images: tuple[Path, ...]) -> TuningChoice:
        """The settings kept for that candidate, or those of another version whose files are alike, or measured now."""
        settings = settings_to_measure(chosen.backend, threads=self._threads, cores=self._capability.cores,
                                       dla=runs_on_dla(self._capability, chosen.backend, chosen.precision))
        if not settings or not self._measure.tune_s or chosen.variant not in paths:
            return TuningChoice()
        key = self._key(chosen, spec)
        kept = self._store.tuning(key)
        if kept is not None and tuple(one.tuning for one in kept.figures) == settings:
            return kept
        other = self._store.other_version(spec, self._capability, self._under)
        if other is not None and other.choice.chosen == chosen and other.choice.tuning.figures:
            tuning = other.choice.tuning
        else:
            no_room, _ = self._no_room(paths[chosen.variant], chosen, spec.task)
            if no_room:
                return TuningChoice(reason=f"not measured: {no_room}")
            job = self._job(paths[chosen.variant], chosen, spec.task, images[:1], 0, Tuning())
            result = self._process.run(msgspec.structs.replace(job, settings=settings, settings_s=self._measure.tune_s), self._limit_mb())
            if result.error or not result.tuned:
                return TuningChoice(reason=f"not measured: {result.detail or 'no figures'}")
            tuning = choose_tuning(result.tuned)
        with contextlib.suppress(OSError, StorageError):
            self._store.keep_tuning(key, tuning)
        return tuning

    def _run(self, path: Path, candidate: Candidate, task: TaskSpec, images: tuple[Path, ...], runs: int,
             tuning: Tuning = DEFAULTS) -> EvaluationResult:
        no_room, need_mb = self._no_room(path, candidate, task)
        if no_room:
            return EvaluationResult(candidate.backend, error="backend.memory", detail=no_room, predicted_mb=need_mb)
        result = self._process.run(self._job(path, candidate, task, images, runs, tuning), self._limit_mb())
        if not result.error:
            self._peaks[path, candidate.name] = Measurement(peak_rss_mb=result.peak_rss_mb, empty_rss_mb=result.empty_rss_mb)
        return result

    def _no_room(self, path: Path, candidate: Candidate, task: TaskSpec) -> tuple[str, float]:
        """Why the process is not started, and the MB that it was predicted to take; empty when it fits, or does after a moment."""
        seen = self._peaks.get((path, candidate.name), Measurement())
        need = predict_memory(path.stat().st_size, task.input.width * task.input.height, peak_mb=seen.peak_rss_mb,
                              empty_mb=seen.empty_rss_mb)
        deadline = time.monotonic() + ROOM_WAIT_S
        while (sentence := why_no_room(need.alone_mb, self._free_mb(), need.origin)) and time.monotonic() < deadline:
            if self._stopping.wait(LOCK_POLL_S):
                break
        return sentence, need.alone_mb

    def _limit_mb(self) -> float:
        """What the process may write to at most: well over what the board has, or over its budget. 0: nobody knows a bound."""
        least = min((bound for bound in (self._free_mb(), self._memory_mb) if bound), default=0.0)
        return least * RUNAWAY_FACTOR + RUNAWAY_MB if least else 0.0

    def _job(self, path: Path, candidate: Candidate, task: TaskSpec, images: tuple[Path, ...], runs: int, tuning: Tuning) -> EvaluationJob:
        backend = cast("Literal['onnxruntime', 'openvino', 'tensorrt', 'tensorrt-rtx']", candidate.backend)
        kind = KINDS.get(candidate.backend)
        return EvaluationJob(
            model=str(path), task=task, backend=backend, precision=candidate.precision, threads=self._threads,
            images=tuple(str(image) for image in images), warmup=self._measure.warmup, latency_runs=runs, tuning=tuning,
            kernels=self._kernels, timing=str(self._timings) if kind is not None and kind.timed else "")

    def _probe(self, model_path: Path, candidate: Candidate, spec: ModelSpec, probe: ProbeSet,
               images: tuple[Path, ...]) -> tuple[EvaluationResult, float]:
        result = self._run(model_path, candidate, spec.task, images, PROBE_RUNS, self.tuning(spec, candidate))
        if result.error:
            return result, 0.0
        expected = [item.expected for item in probe.items]
        if len(result.predictions) != len(expected):
            detail = f"{len(result.predictions)} answers for {len(expected)} probe images"
            return EvaluationResult(candidate.backend, error="evaluate.result", detail=detail), 0.0
        return result, agreement(expected, result.predictions)

    def _key(self, candidate: Candidate, spec: ModelSpec) -> str:
        backend = next((b for b in self._capability.backends if b.name == candidate.backend), BackendInfo(candidate.backend))
        return measurement_key(spec.variant(candidate.variant).digest, candidate, backend, self._capability, self._threads,
                               self._under)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock file that agents on one machine share, so that they do not measure each other."""
        if not self._measure.lock:
            yield
            return
        with Path(self._measure.lock).open("w") as file:
            while not self._stopping.is_set():
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._stopping.wait(LOCK_POLL_S)
            yield


class _Table:
    """The measurements of one choice under way. Of several measurements of a candidate the fastest counts: disturbances only add."""

    def __init__(self, spec: ModelSpec, evaluation: Evaluation, capability: Capability, memory_mb: float,
                 left_out: Mapping[str, str]) -> None:
        self.spec = spec
        self.measured: dict[str, Measurement] = {}
        self.evaluation = evaluation
        self.left_out = left_out
        self._capability = capability
        self._memory_mb = memory_mb

    def put(self, candidate: Candidate, measurement: Measurement) -> None:
        before = self.measured.get(candidate.name)
        if before is None or before.error:
            self.measured[candidate.name] = measurement
        elif not measurement.error:
            better = min(before, measurement, key=lambda one: one.p50_ms)
            self.measured[candidate.name] = msgspec.structs.replace(better, best_ms=min(before.best_ms, measurement.best_ms))

    def choice(self) -> Choice:
        return choose(self.spec, self.evaluation, self._capability, self.measured, memory_mb=self._memory_mb, skipped=self.left_out)


def _measurement(result: EvaluationResult) -> Measurement:
    if result.error:
        return Measurement(error=f"{result.detail or 'no reason given'} [{result.error}]")
    if not result.latency_ms:
        return Measurement(error="the measurement holds no latency [evaluate.result]")
    ordered = sorted(result.latency_ms)
    return Measurement(p50_ms=statistics.median(ordered), p99_ms=ordered[int(0.99 * (len(ordered) - 1))], peak_rss_mb=result.peak_rss_mb,
                       best_ms=ordered[0], empty_rss_mb=result.empty_rss_mb, cpu_ms=result.cpu_ms, gpu_work=result.gpu_work)
