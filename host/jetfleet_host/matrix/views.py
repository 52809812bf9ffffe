"""The matrix as text and as JSON. A floor carries a sign that it is one; an empty cell says why."""

from __future__ import annotations

from typing import Any

import msgspec

from .cells import Cell, Matrix, pareto

HEADINGS = ("model", "target", "method", "accuracy", "drop, points", "agreement", "MB", "p50 ms", "p95 ms", "peak MB", "mJ", "on")
FLOOR_NOTE = "floor: computed from the board file's roofline, not measured; nothing on that board can be faster."
FRONT_NOTE = "*: on the Pareto front of its model and target: no other method there is both as fast and as accurate."


def text_rows(matrix: Matrix) -> list[tuple[str, ...]]:
    """A row a cell, in the order of `HEADINGS`; of an empty cell the reason stands in the last column."""
    best = pareto(matrix.cells)
    return [_row(cell, cell.axis in best) for cell in matrix.cells]


def _row(cell: Cell, on_front: bool) -> tuple[str, ...]:
    axis = (cell.axis.model, cell.axis.target, f"{cell.axis.method}{' *' if on_front else ''}")
    way = cell.way
    if way is None:
        return (*axis, *("-",) * 8, f"empty: {cell.reason}")
    floor = f"floor {way.floor_ms:.3g}" if way.floor_ms is not None else "-"
    latency = _number(way.p50_ms, "{:.2f}") if cell.origin == "measured" else floor
    return (*axis, _number(way.accuracy, "{:.4f}"), _number(way.drop, "{:+.2f}"), _number(way.agreement, "{:.3f}"),
            f"{way.size / 1e6:.2f}", latency, _number(way.p95_ms, "{:.2f}"), _number(way.peak_mb, "{:.0f}"),
            _number(way.energy_mj, "{:.1f}"), place(cell))


def place(cell: Cell) -> str:
    """Where the latency of a full cell comes from, in words."""
    if cell.way is None:
        return ""
    told = cell.way.provenance
    mode = f", {told.power_mode}" if told.power_mode else ""
    if cell.origin == "floor":
        return f"{cell.way.candidate}: floor{mode}"
    return f"{cell.way.candidate}: {told.device}{mode}, {told.provider} in {told.ran_in}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def as_json(matrix: Matrix) -> dict[str, Any]:
    """For machines: the header, every cell with `on_front`, and what is still missing."""
    best = pareto(matrix.cells)
    cells = [{**msgspec.to_builtins(cell), "on_front": cell.axis in best} for cell in matrix.cells]
    return {"header": msgspec.to_builtins(matrix.header), "cells": cells, "counts": counts(matrix)}


def counts(matrix: Matrix) -> dict[str, int]:
    """Cells by origin, `failed` among the empty ones, and `missing`: not reached yet."""
    header = matrix.header
    found = {origin: sum(cell.origin == origin for cell in matrix.cells) for origin in ("measured", "floor", "empty")}
    whole = len(header.models) * len(header.targets) * len(header.methods)
    return {**found, "failed": sum(cell.failed for cell in matrix.cells), "missing": whole - len(matrix.cells)}


def provenance(matrix: Matrix) -> list[str]:
    """Sentences that say how the numbers came about."""
    header = matrix.header
    threads = f"{header.threads} threads" if header.threads else "the runtime's own number of threads"
    devices = sorted({f"{cell.way.provenance.device} ({' '.join(cell.way.provenance.isa)})" for cell in matrix.cells
                      if cell.way is not None and cell.origin == "measured"})
    accuracy = sorted({cell.way.accuracy_on.split(" on ", 1)[-1].split(", standing", 1)[0] for cell in matrix.cells
                       if cell.way is not None})
    found = [f"Accuracy: limit {header.max_drop} points against fp32; scored on {'; '.join(accuracy)}." if accuracy else "",
             f"Latency: session alone, batch 1, {threads}, interleaved, one process a measurement; on {'; '.join(devices)}."
             if devices else ""]
    if any(cell.origin == "floor" for cell in matrix.cells):
        found.append(FLOOR_NOTE)
    return [*(sentence for sentence in found if sentence), FRONT_NOTE]
