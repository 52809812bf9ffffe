"""What a bundle says of itself: a table of every candidate with its verdict, and where each number came from.

Accuracy comes from the signed evaluation inside the bundle, latency from the measurements attached beside it. Both name the
machine; a number that was not measured is empty, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from jetfleet_contract.bundle import EvaluationRow

from .build_record import BuildRecord
from .bundles import OpenBundle
from .floors import FORMULA, HEADINGS, FloorLine
from .matrix.pareto import front
from .measurements import MeasuredRow, Measurements
from .pages.charts import Bar, Point, bars, scatter
from .pages.sheet import charts, notes, page, table

MOST_LAYERS = 24
# Layers that int8 does not pay for, named on the terminal.
_SHOWN_LAYERS = 8


@dataclass(frozen=True)
class Line:
    """One candidate: its evaluation and, where somebody measured it, its timing."""

    row: EvaluationRow
    timing: MeasuredRow | None
    shipped: bool

    @property
    def candidate(self) -> str:
        return f"{self.row.variant}@{self.row.backend}:{self.row.precision}"

    @property
    def ms(self) -> float:
        """p50 in ms; 0 when not measured."""
        return self.timing.p50_ms if self.timing and not self.timing.error else 0.0


def lines_of(bundle: OpenBundle, measurements: Measurements | None) -> list[Line]:
    """Accepted and fast first, refused last."""
    shipped = {variant.name for variant in bundle.spec.variants}
    found = [Line(row, measurements.row(row.variant, row.backend, row.precision) if measurements else None, row.variant in shipped)
             for row in bundle.evaluation.rows]
    return sorted(found, key=lambda line: (line.row.verdict != "accepted", line.ms or float("inf"), line.candidate))


def as_json(bundle: OpenBundle, measurements: Measurements | None, floors: Sequence[FloorLine] = (),
            record: BuildRecord | None = None) -> dict[str, object]:
    """The report for machines. `latency_*` is null where nobody measured; `floors` are computed, and stand apart."""
    evaluation = bundle.evaluation
    return {
        "bundle": bundle.manifest_digest, "name": bundle.spec.name, "version": bundle.spec.version, "task": bundle.spec.task.kind,
        "targets": list(bundle.spec.targets), "metric": evaluation.metric, "reference": evaluation.reference,
        "max_drop": evaluation.max_drop, "machine": evaluation.machine, "software": evaluation.software,
        "measured_on": measurements.machine if measurements else None, "measured_at": measurements.taken if measurements else None,
        "probes": len(bundle.probe.items), "rows": [_json_row(line) for line in lines_of(bundle, measurements)],
        "floors": [line.as_dict() for line in floors], "build": msgspec.to_builtins(record) if record else None,
    }


def _json_row(line: Line) -> dict[str, object]:
    row, timing = line.row, line.timing
    return {
        "candidate": line.candidate, "variant": row.variant, "backend": row.backend, "precision": row.precision, "verdict": row.verdict,
        "reason": row.reason, "accuracy": row.accuracy, "drop": row.drop, "agreement": row.agreement, "samples": row.samples,
        "size": row.size, "origin": row.origin, "shipped": line.shipped, "ran_in": timing.ran_in if timing else None,
        "latency_p50_ms": line.ms or None, "latency_p99_ms": timing.p99_ms if timing and line.ms else None,
        "latency_runs": timing.runs if timing else 0, "peak_rss_mb": timing.peak_rss_mb if timing and line.ms else None,
    }


def table_cells(line: Line) -> tuple[str, ...]:
    """One table row as text: candidate, accuracy, drop, agreement, MB, p50, p99, origin, verdict."""
    row = line.row
    ran = row.samples > 0
    return (
        line.candidate,
        f"{row.accuracy:.4f}" if ran else "-", f"{row.drop:+.2f}" if ran else "-", f"{row.agreement:.3f}" if ran else "-",
        f"{row.size / 1e6:.2f}", f"{line.ms:.2f}" if line.ms else "-", f"{line.timing.p99_ms:.2f}" if line.timing and line.ms else "-",
        row.origin, f"{row.verdict}: {row.reason}",
    )


def headings(metric: str) -> tuple[str, ...]:
    return ("candidate", metric, "drop, points", "agreement", "MB", "p50 ms", "p99 ms", "accuracy is", "verdict")


def provenance(bundle: OpenBundle, measurements: Measurements | None) -> list[str]:
    """Where the numbers come from, one sentence a line."""
    evaluation = bundle.evaluation
    samples = max((row.samples for row in evaluation.rows), default=0)
    software = ", ".join(f"{name} {version}" for name, version in sorted(evaluation.software.items()))
    accuracy = (f"Accuracy: {evaluation.metric} over {samples} images, drop against {evaluation.reference}, limit "
                f"{evaluation.max_drop} points; on {evaluation.machine} with {software}.")
    if measurements is None:
        return [accuracy, "Latency: not measured (build with --latency-rounds, or let a board measure)."]
    runs = max((row.runs for row in measurements.rows), default=0)
    threads = f"{measurements.threads} threads" if measurements.threads else "the runtime's own number of threads"
    latency = (f"Latency: session alone, batch 1, {threads}, {runs} runs interleaved, one process a measurement; "
               f"on {measurements.machine}.")
    return [accuracy, latency]


def build_sentences(record: BuildRecord | None) -> list[str]:
    """What the clean-up made of the graph, and whether int8 pays; one sentence a line."""
    if record is None:
        return []
    found = []
    if len(record.graphs) > 1:
        first, last = record.graphs[0], record.graphs[-1]
        parts = [f"{name} {getattr(first.count, name)} -> {getattr(last.count, name)}" for name in ("nodes", "groups", "kernels")]
        found.append(f"Graph, {first.stage} -> {last.stage}: {', '.join(parts)} (kernels: what ONNX Runtime leaves of it).")
    if record.worth is not None:
        found.append(f"On a GPU at batch 1 {record.worth.reason}.")
        found += [f"  {layer.node}: {layer.told} ({100 * layer.share:.1f} % of the work)." for layer in record.worth.layers[:_SHOWN_LAYERS]]
        left = len(record.worth.layers) - _SHOWN_LAYERS
        found += [f"  ... and {left} more (--json names them)."] if left > 0 else []
    return found


def as_html(bundle: OpenBundle, measurements: Measurements | None, floors: Sequence[FloorLine] = (),
            record: BuildRecord | None = None) -> str:
    """One self-contained page: plots in inline SVG, the tables, where the numbers come from."""
    lines = lines_of(bundle, measurements)
    spec, metric = bundle.spec, bundle.evaluation.metric
    variants = [("", (v.name, f"{v.size / 1e6:.2f}", v.digest[:19], v.detail)) for v in spec.variants]
    rows = [(line.row.verdict, table_cells(line)) for line in lines]
    return page(f"{spec.name}:{spec.version}", [
        notes([f"Task {spec.task.kind}, for {', '.join(spec.targets)}; bundle {bundle.manifest_digest}"]),
        charts([_latencies(lines), _trade(lines, metric), *record_charts(record)]),
        table(headings(metric), rows, numbers=range(1, 7)), _stage_table(record), _floor_table(floors),
        "<h2>Variants</h2>", table(("variant", "MB", "digest", "what it is"), variants, numbers=(1,)),
        "<h2>Where the numbers come from</h2>", notes([*provenance(bundle, measurements), *build_sentences(record)])])


def _stage_table(record: BuildRecord | None) -> str:
    """What the guard said of each stage on the torch module; nothing where there was none."""
    if record is None or record.floats is None:
        return ""
    run = record.floats
    rows = [("refused" if stage.ending == "left-out" else "", (stage.kind, stage.ending, f"{stage.metric:.4f}", stage.reason))
            for stage in run.stages]
    told = f"The metric on {run.samples} validation samples: {run.baseline:.4f} as the model came in, {run.metric:.4f} after all stages."
    return f"<h2>Stages under the guard</h2>{notes([told])}{table(('stage', 'ending', 'metric', 'why'), rows, numbers=(2,), name='stages')}"


def _floor_table(floors: Sequence[FloorLine]) -> str:
    """A table of its own, so that nobody takes a floor for a measurement; nothing when there is none."""
    if not floors:
        return ""
    rows = [("floor", line.cells()) for line in floors]
    return f"<h2>Floors, computed</h2>{notes([FORMULA])}{table(HEADINGS, rows, numbers=(3, 4), name='floors')}"


def _latencies(lines: list[Line]) -> str:
    """Bars of p50, a thin mark at p99; nothing when nobody measured."""
    found = [Bar(line.candidate, line.ms, f"{line.ms:.2f} ms", "good" if line.row.verdict == "accepted" else "bad", line.timing.p99_ms)
             for line in lines if line.ms and line.timing]
    return bars(found, "Session latency", "Bar p50, mark p99. Green is accepted, red is refused.")


def _trade(lines: list[Line], metric: str) -> str:
    """Accuracy against latency, with the Pareto front of what is accepted."""
    timed = [line for line in lines if line.ms and line.row.samples]
    accepted = [line for line in timed if line.row.verdict == "accepted"]
    best = {accepted[index].candidate for index in front([(line.ms, line.row.accuracy) for line in accepted])}
    points = [Point(line.ms, 100.0 * line.row.accuracy, line.candidate, line.row.verdict, line.candidate in best) for line in timed]
    return scatter(points, "measured p50, ms", f"{metric}, %", "Accuracy against latency")


def record_charts(record: BuildRecord | None) -> list[str]:
    """Size by stage, and the noisiest layers."""
    if record is None:
        return []
    sizes = [Bar(stage.stage, stage.size / 1e6, f"{stage.size / 1e6:.3g} MB") for stage in record.stages]
    worst = sorted(record.layers, key=lambda layer: -layer.error)[:MOST_LAYERS]
    noise = [Bar(layer.layer, layer.error, f"{layer.error:.2%}", "good" if layer.int8 else "bad") for layer in worst]
    note = f"Relative error of the output when the layer alone is int8; red stays in float. {len(worst)} of {len(record.layers)} layers."
    return [bars(sizes, "Size by stage"), bars(noise, "Sensitivity by layer", note)]
