"""What a bundle says of itself: a table of every candidate with its verdict, and where each number came from.

Accuracy comes from the signed evaluation inside the bundle, latency from the measurements attached beside it. Both name the
machine; a number that was not measured is empty, never guessed.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from jetfleet_contract.bundle import EvaluationRow

from .bundles import OpenBundle
from .floors import FORMULA, HEADINGS, FloorLine
from .measurements import MeasuredRow, Measurements


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


def as_json(bundle: OpenBundle, measurements: Measurements | None, floors: Sequence[FloorLine] = ()) -> dict[str, object]:
    """The report for machines. `latency_*` is null where nobody measured; `floors` are computed, and stand apart."""
    evaluation = bundle.evaluation
    return {
        "bundle": bundle.manifest_digest, "name": bundle.spec.name, "version": bundle.spec.version, "task": bundle.spec.task.kind,
        "targets": list(bundle.spec.targets), "metric": evaluation.metric, "reference": evaluation.reference,
        "max_drop": evaluation.max_drop, "machine": evaluation.machine, "software": evaluation.software,
        "measured_on": measurements.machine if measurements else None, "measured_at": measurements.taken if measurements else None,
        "probes": len(bundle.probe.items), "rows": [_json_row(line) for line in lines_of(bundle, measurements)],
        "floors": [line.as_dict() for line in floors],
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


def as_html(bundle: OpenBundle, measurements: Measurements | None, floors: Sequence[FloorLine] = ()) -> str:
    """One self-contained page: a bar chart of latency in inline SVG, the table, where the numbers come from."""
    lines = lines_of(bundle, measurements)
    title = html.escape(f"{bundle.spec.name}:{bundle.spec.version}")
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings(bundle.evaluation.metric))
    body = "".join(_html_row(line) for line in lines)
    notes = "".join(f"<p>{html.escape(text)}</p>" for text in provenance(bundle, measurements))
    variants = "".join(f"<li><code>{html.escape(v.name)}</code> {v.size / 1e6:.2f} MB, {html.escape(v.detail)} "
                       f"<code>{v.digest[:19]}...</code></li>" for v in bundle.spec.variants)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_CSS}</style></head><body>
<h1>{title}</h1><p>task {html.escape(bundle.spec.task.kind)}, for {html.escape(', '.join(bundle.spec.targets))};
bundle <code>{bundle.manifest_digest}</code></p>
{_chart(lines)}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{_floor_table(floors)}<h2>Variants</h2><ul>{variants}</ul>
<h2>Where the numbers come from</h2>{notes}</body></html>
"""


_CSS = ("body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
        "table{border-collapse:collapse;width:100%}th,td{padding:.3rem .6rem;border-bottom:1px solid #d8dee4;text-align:left}"
        "tr.refused td{color:#8a1f11}code{font-size:.85em}svg text{font:13px system-ui,sans-serif;fill:#1b1f24}")


def _html_row(line: Line) -> str:
    cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in table_cells(line))
    return f'<tr class="{line.row.verdict}">{cells}</tr>'


def _floor_table(floors: Sequence[FloorLine]) -> str:
    """A table of its own, so that nobody takes a floor for a measurement; nothing when there is none."""
    if not floors:
        return ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in HEADINGS)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line.cells()) + "</tr>" for line in floors)
    return (f'<h2>Floors, computed</h2><p>{html.escape(FORMULA)}</p><table class="floors"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table>")


def _chart(lines: list[Line]) -> str:
    """Horizontal bars of p50, a thin mark at p99; nothing when nobody measured."""
    measured = [line for line in lines if line.ms and line.timing]
    if not measured:
        return ""
    longest = max(line.timing.p99_ms for line in measured if line.timing)
    rows = []
    for index, line in enumerate(measured):
        y, width = 8 + index * 28, 560 * line.ms / longest
        mark = 260 + 560 * (line.timing.p99_ms if line.timing else line.ms) / longest
        colour = "#2f6f4f" if line.row.verdict == "accepted" else "#c0604d"
        rows.append(f'<text x="250" y="{y + 15}" text-anchor="end">{html.escape(line.candidate)}</text>'
                    f'<rect x="260" y="{y}" width="{width:.1f}" height="20" fill="{colour}"/>'
                    f'<rect x="{mark:.1f}" y="{y}" width="2" height="20" fill="#1b1f24"/>'
                    f'<text x="{mark + 8:.1f}" y="{y + 15}">{line.ms:.2f} ms</text>')
    height = 16 + 28 * len(measured)
    return (f'<figure><svg viewBox="0 0 920 {height}" role="img" aria-label="latency by candidate">{"".join(rows)}</svg>'
            "<figcaption>Session latency: bar p50, mark p99. Green is accepted, red is refused.</figcaption></figure>")
