"""Measures the settings of a runtime beside each other, on this board, for one candidate: what `contract.tuning` decides upon.

All settings are loaded, then run in turns, a slice each, forwards and backwards, so that heat, clocks and neighbours hit all alike. One
frame's pre-processing and session are timed together: folding moves work from one to the other.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.backends import Backend, Outputs, open_backend
from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.tasks import Task
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.evaluation import EvaluationJob
from jetfleet_contract.predictions import agreement
from jetfleet_contract.tuning import LEAST_ROUNDS, Tuning, TuningFigures

ROUNDS = 5
LEAST_RUNS = 3
WARMUP = 2
# A slow model needs longer than it was given for a few runs a round; then fewer rounds must do.
PATIENCE = 3.0
# Folding changes the order of a few float32 operations, which an int8 or bf16 layer may round to its next step.
MAX_MEAN_DIFFERENCE = 0.005
LEAST_AGREEMENT = 0.98


class _Setting:
    """One setting with its own loaded session."""

    def __init__(self, job: EvaluationJob, task: Task, tuning: Tuning) -> None:
        self.tuning = tuning
        self.backend: Backend = open_backend(job.backend, Path(job.model), precision=job.precision, threads=job.threads,
                                             input_shape=task.input_shape, tuning=tuning, spec=task.spec.input,
                                             timing=Path(job.timing) if job.timing else None,
                                             kernels=Path(job.kernels) if job.kernels else None)
        self.period_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.error = ""

    def run(self, task: Task, frame: Image) -> Outputs:
        lane = self.backend.lanes[0]
        self.backend.prepare(frame, lane, 0, task.prepare)
        return self.backend.infer(lane)

    def slice(self, task: Task, frame: Image, seconds: float) -> None:
        """Run for about `seconds`, keep the medians of one frame."""
        for _ in range(WARMUP):
            self.run(task, frame)
        periods: list[float] = []
        cpus: list[float] = []
        end = time.perf_counter() + seconds
        while len(periods) < LEAST_RUNS or time.perf_counter() < end:
            began, cpu = time.perf_counter(), _cpu_seconds()
            self.run(task, frame)
            periods.append((time.perf_counter() - began) * 1e3)
            cpus.append((_cpu_seconds() - cpu) * 1e3)
        self.period_ms.append(statistics.median(periods))
        self.cpu_ms.append(statistics.fmean(cpus))  # the clock of CPU time is too coarse for single runs on some boards

    def figures(self) -> TuningFigures:
        return TuningFigures(self.tuning, tuple(self.period_ms), tuple(self.cpu_ms), self.error)


def measure_settings(job: EvaluationJob, task: Task, frame: Image) -> tuple[TuningFigures, ...]:
    """Figures of each of the job's settings, the first being what the others' answers are compared with.

    A setting that cannot be loaded, or answers differently, has an `error` and no figures.
    """
    if not job.settings or job.settings_s <= 0:
        return ()
    with contextlib.ExitStack() as loaded:
        settings = [_opened(job, task, tuning, loaded) for tuning in job.settings]
        _compare(settings, task, frame)
        running = [setting for setting in settings if not setting.error]
        each = job.settings_s / max(len(running) * ROUNDS, 1)
        enough = time.perf_counter() + PATIENCE * job.settings_s
        for number in range(ROUNDS):
            if number >= LEAST_ROUNDS and time.perf_counter() > enough:
                break
            for setting in running if number % 2 == 0 else reversed(running):
                setting.slice(task, frame, each)
        return tuple(setting.figures() for setting in settings)


def _opened(job: EvaluationJob, task: Task, tuning: Tuning, loaded: contextlib.ExitStack) -> _Setting:
    setting = _Setting(job, task, tuning)
    try:
        loaded.enter_context(setting.backend)
    except JetfleetError as error:
        setting.error = f"{error.what} [{error.code}]"
    return setting


def _compare(settings: list[_Setting], task: Task, frame: Image) -> None:
    """Refuse each setting that answers otherwise than the first."""
    first, *others = settings
    if first.error:
        return
    expected = tuple(np.array(output, np.float64) for output in first.run(task, frame))
    geometry = first.backend.prepare(frame, first.backend.lanes[0], 0, task.prepare)
    said = task.decode(first.backend.infer(first.backend.lanes[0]), geometry)
    for other in others:
        if other.error:
            continue
        outputs = other.run(task, frame)
        difference = max((_difference(a, np.asarray(b)) for a, b in zip(expected, outputs, strict=True)), default=0.0)
        agreed = agreement([said], [task.decode(outputs, geometry)])
        if difference > MAX_MEAN_DIFFERENCE or agreed < LEAST_AGREEMENT:
            other.error = f"answers differ from the defaults': {difference:.4f} of the range, agreement {agreed:.3f} [tuning.answers]"


def _difference(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Mean absolute difference over the range of what was expected."""
    span = float(np.ptp(expected)) if expected.size else 0.0
    return float(np.abs(expected - found).mean()) / (span or 1.0) if expected.size else 0.0


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
