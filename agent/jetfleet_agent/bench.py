"""Measures every candidate of a model on this machine, for `jetfleet-agent bench`: one process a measurement, in rounds.

Unlike the choice, it leaves nothing out that the board can run: also what the builder refused, and what it saw slow.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

from jetfleet_contract.bundle import Evaluation, InputSpec, ModelSpec, ProbeSet, TaskSpec, Variant
from jetfleet_contract.errors import InputError
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.messages import Capability, Message
from jetfleet_contract.policy import Candidate, candidates, why_unsupported
from jetfleet_contract.predictions import agreement

from .bundle_folder import BundleFolder

Precision = Literal["fp32", "fp16", "int8", "uint8"]
Run = Callable[[EvaluationJob], EvaluationResult]
READ_BYTES = 1 << 20


class BenchRow(Message, frozen=True):
    """One candidate, milliseconds of the session alone at batch 1; `agreement` with the reference's answers on the probe set,
    0..1, -1 without one. `runs_in` is the precision that the runtime really used; `error` says why there are no figures."""

    candidate: Candidate
    builder: str
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    activate_ms: float = 0.0
    peak_rss_mb: float = 0.0
    agreement: float = -1.0
    runs_in: str = ""
    provider: str = ""
    error: str = ""


def bench(bundle: BundleFolder, capability: Capability, run: Run, *, threads: int, runs: int, warmup: int, rounds: int,
          progress: Callable[[str, int, int], None]) -> tuple[BenchRow, ...]:
    """Measure all candidates, in turns over `rounds`; of each the best round counts.

    Args:
        run: runs one job.
        threads: CPU threads for the runtime, 0: its own choice.
        progress: told of each measurement before it starts: name, number, total.

    Returns:
        Rows, fastest first, those without figures last.
    """
    every = candidates(bundle.spec)
    possible = [candidate for candidate in every if not why_unsupported(candidate, capability)]
    results: dict[str, list[EvaluationResult]] = {candidate.name: [] for candidate in possible}
    for number in range(rounds):
        for position, candidate in enumerate(possible):
            progress(candidate.name, number * len(possible) + position + 1, rounds * len(possible))
            if not any(result.error for result in results[candidate.name]):
                results[candidate.name].append(run(_job(bundle, candidate, threads, runs, warmup, with_probe=number == 0)))
    rows = [_row(bundle, candidate, results.get(candidate.name, []), why_unsupported(candidate, capability)) for candidate in every]
    return tuple(sorted(rows, key=lambda row: (bool(row.error), row.p50_ms)))


def lone_model(path: Path, *, width: int, height: int, precision: Precision) -> BundleFolder:
    """An ONNX file without a bundle: no probe set, no accuracy, only its speed can be measured.

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
    spec = ModelSpec(path.stem, "0", TaskSpec("classify", InputSpec("", width, height)), (variant,), ())
    return BundleFolder(spec, Evaluation("", "", 0.0, "", ()), ProbeSet(()), {precision: path.resolve()}, ())


def _job(bundle: BundleFolder, candidate: Candidate, threads: int, runs: int, warmup: int, *, with_probe: bool) -> EvaluationJob:
    images = bundle.images if with_probe else bundle.images[:1]
    backend = cast("Literal['onnxruntime', 'openvino', 'tensorrt']", candidate.backend)
    return EvaluationJob(model=str(bundle.paths[candidate.variant]), task=bundle.spec.task, backend=backend, precision=candidate.precision,
                         threads=threads, images=tuple(str(image) for image in images), warmup=warmup, latency_runs=runs)


def _row(bundle: BundleFolder, candidate: Candidate, results: list[EvaluationResult], unsupported: str) -> BenchRow:
    builder = _builder_says(bundle.evaluation, candidate)
    if unsupported:
        return BenchRow(candidate, builder, error=unsupported)
    failed = next((result for result in results if result.error), None)
    if failed:
        return BenchRow(candidate, builder, error=f"{failed.detail} [{failed.error}]", peak_rss_mb=failed.peak_rss_mb)
    best = min(results, key=lambda result: statistics.median(result.latency_ms))
    ordered = sorted(best.latency_ms)
    expected = [item.expected for item in bundle.probe.items]
    agreed = agreement(expected, results[0].predictions) if expected and len(results[0].predictions) == len(expected) else -1.0
    return BenchRow(candidate, builder, p50_ms=statistics.median(ordered), p99_ms=ordered[int(0.99 * (len(ordered) - 1))],
                    activate_ms=best.activate_ms, peak_rss_mb=best.peak_rss_mb, agreement=agreed, runs_in=best.precision,
                    provider=best.provider)


def _builder_says(evaluation: Evaluation, candidate: Candidate) -> str:
    for row in evaluation.rows:
        if (row.variant, row.backend, row.precision) == (candidate.variant, candidate.backend, candidate.precision):
            return f"drop {row.drop:.2f}" if row.verdict == "accepted" else f"refused: {row.reason}"
    return "not evaluated"
