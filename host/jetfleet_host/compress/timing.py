"""Latency of every candidate on this machine, interleaved: one process a measurement, round by round over all of them.

A slow phase of the machine then hits all candidates alike. Timings differ from run to run, so they never enter the
bundle: they go beside it as a referrer (`measurements`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult

from .jobs import JobRunner

WARMUP = 5


@dataclass(frozen=True)
class Timed:
    """One candidate to time."""

    name: str
    model: Path
    backend: str
    precision: str


@dataclass
class Timing:
    """What was measured of one candidate: session ms of all rounds together, and what the runtime said it used."""

    samples: list[float] = field(default_factory=list)
    provider: str = ""
    ran_in: str = ""
    peak_rss_mb: float = 0.0
    activate_ms: float = 0.0
    error: str = ""

    def quantile(self, q: float) -> float:
        """Exact sample quantile, ms; 0 when nothing was measured."""
        return float(np.quantile(self.samples, q)) if self.samples else 0.0


def time_interleaved(candidates: Sequence[Timed], task: TaskSpec, image: Path, runner: JobRunner, *, rounds: int, runs: int, threads: int,
                     step: Callable[[int, int], None]) -> dict[str, Timing]:
    """Time all candidates; a candidate that fails once is not tried again."""
    timings = {candidate.name: Timing() for candidate in candidates}
    done = 0
    for _ in range(rounds):
        for candidate in candidates:
            timing = timings[candidate.name]
            if not timing.error:
                job = EvaluationJob(str(candidate.model), task, candidate.backend, candidate.precision, threads,  # type: ignore[arg-type]
                                    (str(image),), warmup=WARMUP, latency_runs=runs)
                _add(timing, runner.run(job))
            done += 1
            step(done, rounds * len(candidates))
    return timings


def _add(timing: Timing, result: EvaluationResult) -> None:
    if result.error:
        timing.error = f"{result.detail or result.error} [{result.error}]"
        return
    timing.samples.extend(result.latency_ms)
    timing.provider, timing.ran_in = result.provider, result.precision
    timing.peak_rss_mb = max(timing.peak_rss_mb, result.peak_rss_mb)
    timing.activate_ms = max(timing.activate_ms, result.activate_ms)
