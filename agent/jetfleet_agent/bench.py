"""Measures every candidate of a model on this machine, for `jetfleet-agent bench`: one process a measurement, in rounds.

First each candidate is loaded, asked the probe set, and its runtime's settings are measured; then frames of a real source go through the
whole work and, right behind, through the session alone, so that the overhead is of the same frames in the same minute.

Unlike the choice, it leaves nothing out that the board can run: also what the builder refused, and what it saw slow.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec

from jetfleet_contract.bench_records import BenchFigures, BenchRecord
from jetfleet_contract.bundle import Evaluation, InputSpec, ModelSpec, ProbeSet, TaskSpec, Variant
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import InputError
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.footings import runs_on_dla
from jetfleet_contract.messages import Capability, Message
from jetfleet_contract.policy import Candidate, candidates, why_unsupported
from jetfleet_contract.predictions import agreement
from jetfleet_contract.tuning import Tuning, TuningChoice, choose_tuning, settings_to_measure

from .bundle_folder import BundleFolder

Precision = Literal["fp32", "fp16", "int8", "uint8"]
Run = Callable[[EvaluationJob], EvaluationResult]
READ_BYTES = 1 << 20


class Percentiles(Message, frozen=True):
    """Milliseconds of one thing, many times."""

    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    most: float = 0.0
    mean: float = 0.0

    @property
    def per_second(self) -> float:
        return 1e3 / self.mean if self.mean else 0.0


class Wish(Message, frozen=True):
    """What to measure: `rounds` rounds of `runs` frames of `source` after `warmup` untimed ones, with `threads` CPU threads for the runtime
    (0: its own choice). `tune_s`: seconds for a runtime's settings before (0: its defaults). `provider`: an execution provider or device
    other than the CPU. `only`: names of candidates (empty: all)."""

    source: str
    threads: int = 0
    runs: int = 50
    warmup: int = 10
    rounds: int = 1
    tune_s: float = 0.0
    provider: str = ""
    only: tuple[str, ...] = ()


class BenchRow(Message, frozen=True):
    """One candidate, milliseconds at batch 1.

    `session` is the session alone, `work` a frame's whole work (pre-processing, session, decoding), `pre_ms` and `decode_ms` medians of
    two of its parts, `overhead` the median, over frames, of the whole work over the session alone right behind it; all of the round whose
    session had the least median. `rounds_p50_ms`: the session's median of each round; `floor_ms` the least of those. `agreement` with the
    reference's answers on the probe set, 0..1, -1 without one. `runs_in` is the precision that the runtime really used, `layers` how many
    layers with weights ran in which; `error` says why there are no figures; `gpu_work` where frames were prepared and answers
    decoded, where a GPU may do it.
    """

    candidate: Candidate
    builder: str
    session: Percentiles = Percentiles()
    work: Percentiles = Percentiles()
    floor_ms: float = 0.0
    pre_ms: float = 0.0
    decode_ms: float = 0.0
    overhead: float = 0.0
    runs: int = 0
    rounds_p50_ms: tuple[float, ...] = ()
    activate_ms: float = 0.0
    peak_rss_mb: float = 0.0
    agreement: float = -1.0
    runs_in: str = ""
    layers: dict[str, int] = {}
    provider: str = ""
    tuning: TuningChoice = TuningChoice()
    error: str = ""
    gpu_work: str = ""


class _Trials:
    """What was measured of one candidate: the first run, over the probe set and settings, then one timed result a round."""

    def __init__(self, first: EvaluationResult, tuning: TuningChoice) -> None:
        self.first = first
        self.tuning = tuning
        self.timed: list[EvaluationResult] = []

    @property
    def failed(self) -> EvaluationResult | None:
        return next((result for result in (self.first, *self.timed) if result.error), None)


def bench(bundle: BundleFolder, capability: Capability, run: Run, wish: Wish,
          progress: Callable[[str, int, int], None]) -> tuple[BenchRow, ...]:
    """Measure all candidates, in turns over the rounds; one that fails once is not tried again.

    Args:
        bundle: a variant without a path is a row with that reason. run: runs one job.
        progress: told of each run before it starts: name, number, total.

    Returns:
        Rows, fastest session first, those without figures last.

    Raises:
        InputError: `bench.candidate` when a name in `wish.only` is none of the model's.
    """
    every = _asked_for(bundle.spec, wish.only)
    possible = [candidate for candidate in every if not _why_not(bundle, candidate, capability)]
    total = len(possible) * (1 + wish.rounds)
    trials: dict[str, _Trials] = {}
    for position, candidate in enumerate(possible):
        progress(f"{candidate.name}: load, probe set, settings", position + 1, total)
        trials[candidate.name] = _first(bundle, candidate, run, wish, capability)
    for number in range(wish.rounds):
        for position, candidate in enumerate(possible):
            progress(f"{candidate.name}: round {number + 1} of {wish.rounds}", (number + 1) * len(possible) + position + 1, total)
            trial = trials[candidate.name]
            if trial.failed is None:
                job = _job(bundle, candidate, wish, trial.tuning.tuning)
                trial.timed.append(run(msgspec.structs.replace(job, source=wish.source, warmup=wish.warmup, latency_runs=wish.runs)))
    rows = [_row(bundle, candidate, trials.get(candidate.name), _why_not(bundle, candidate, capability)) for candidate in every]
    return tuple(sorted(rows, key=lambda row: (bool(row.error), row.session.p50)))


def record_of(bundle: BundleFolder, capability: Capability, conditions: Conditions, wish: Wish, rows: Sequence[BenchRow],
              taken: float) -> BenchRecord:
    """What was measured as a file for the host's matrix.

    Args:
        conditions: read while the bench ran. taken: seconds since 1970.
    """
    digests = {variant.name: variant.digest for variant in bundle.spec.variants}
    figures = tuple(
        BenchFigures(row.candidate, digests[row.candidate.variant], row.session.p50, row.session.p95, row.session.p99, row.runs,
                     wish.provider, row.provider, row.runs_in, row.peak_rss_mb, row.agreement, error=row.error) for row in rows)
    software = {backend.name: backend.version for backend in capability.backends if backend.version}
    return BenchRecord(capability.device_class, capability.board, capability.arch, capability.cpu, capability.isa, capability.cores,
                       conditions, software, bundle.spec.name, bundle.spec.version, taken, figures, wish.threads, capability.simulated)


def _asked_for(spec: ModelSpec, only: tuple[str, ...]) -> tuple[Candidate, ...]:
    every = {candidate.name: candidate for candidate in candidates(spec)}
    unknown = [name for name in only if name not in every]
    if unknown:
        raise InputError("bench.candidate", f"{spec.name} has no candidate {unknown[0][:80]!r}", remedy=f"it has {', '.join(every)}")
    return tuple(every[name] for name in only or every)


def _why_not(bundle: BundleFolder, candidate: Candidate, capability: Capability) -> str:
    """Why the candidate is not tried at all; empty when it is."""
    return why_unsupported(candidate, capability) or ("" if candidate.variant in bundle.paths else "its weights are not on this board")


def _first(bundle: BundleFolder, candidate: Candidate, run: Run, wish: Wish, capability: Capability) -> _Trials:
    plain = Tuning(provider=wish.provider)
    settings = settings_to_measure(
        candidate.backend, threads=wish.threads, cores=capability.cores,
        dla=runs_on_dla(capability, candidate.backend, candidate.precision)) if wish.tune_s and not wish.provider else ()
    job = _job(bundle, candidate, wish, plain)
    result = run(msgspec.structs.replace(job, images=tuple(str(image) for image in bundle.images), warmup=0, latency_runs=0,
                                         settings=settings, settings_s=wish.tune_s))
    return _Trials(result, choose_tuning(result.tuned) if result.tuned else TuningChoice(plain))


def lone_model(path: Path, *, width: int, height: int, precision: Precision, task: str = "raw") -> BundleFolder:
    """An ONNX file without a bundle: no probe set, no accuracy, only its speed can be measured. `task` is what decodes its outputs.

    Raises:
        InputError: `model.missing`.
    """
    if not path.is_file():
        raise InputError("model.missing", f"there is no model file {path}", where=str(path), remedy="give an ONNX file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    variant = Variant(precision, f"sha256:{digest.hexdigest()}", path.stat().st_size, precision)
    spec = ModelSpec(path.stem, "0", TaskSpec(task, InputSpec("", width, height)), (variant,), ())
    return BundleFolder(spec, Evaluation("", "", 0.0, "", ()), ProbeSet(()), {precision: path.resolve()}, ())


def _job(bundle: BundleFolder, candidate: Candidate, wish: Wish, tuning: Tuning) -> EvaluationJob:
    backend = cast("Literal['onnxruntime', 'openvino', 'tensorrt', 'tensorrt-rtx']", candidate.backend)
    return EvaluationJob(model=str(bundle.paths[candidate.variant]), task=bundle.spec.task, backend=backend, precision=candidate.precision,
                         threads=wish.threads, tuning=tuning)


def _row(bundle: BundleFolder, candidate: Candidate, trials: _Trials | None, unsupported: str) -> BenchRow:
    builder = _builder_says(bundle.evaluation, candidate)
    if trials is None:
        return BenchRow(candidate, builder, error=unsupported)
    failed = trials.failed
    if failed:
        return BenchRow(candidate, builder, error=f"{failed.detail} [{failed.error}]", peak_rss_mb=failed.peak_rss_mb,
                        runs_in=failed.precision, layers=failed.layers, provider=failed.provider, tuning=trials.tuning)
    medians = tuple(statistics.median(result.latency_ms) for result in trials.timed)
    best = trials.timed[medians.index(min(medians))]
    works = [sum(parts) for parts in zip(*best.stage_ms.values(), strict=True)]
    overhead = statistics.median(work / alone for work, alone in zip(works, best.latency_ms, strict=True))
    pre_ms, decode_ms = (statistics.median(best.stage_ms[name]) for name in ("pre", "decode"))
    expected = [item.expected for item in bundle.probe.items]
    said = trials.first.predictions
    return BenchRow(
        candidate, builder, percentiles(best.latency_ms), percentiles(works), min(medians), pre_ms, decode_ms, overhead,
        len(best.latency_ms), medians, best.activate_ms, max(result.peak_rss_mb for result in trials.timed),
        agreement(expected, said) if expected and len(said) == len(expected) else -1.0, best.precision, best.layers, best.provider,
        trials.tuning, gpu_work=best.gpu_work)


def percentiles(values: Sequence[float]) -> Percentiles:
    """Exact percentiles of at least one value: the least value that so many are not above."""
    ordered = sorted(values)

    def at(q: float) -> float:
        return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)]

    return Percentiles(statistics.median(ordered), at(0.90), at(0.95), at(0.99), ordered[-1], statistics.fmean(ordered))


def _builder_says(evaluation: Evaluation, candidate: Candidate) -> str:
    for row in evaluation.rows:
        if (row.variant, row.backend, row.precision) == (candidate.variant, candidate.backend, candidate.precision):
            return f"drop {row.drop:.2f}" if row.verdict == "accepted" else f"refused: {row.reason}"
    return "not evaluated"
