"""The matrix as one self-contained page: accuracy against latency for each model and target, sizes, every cell, where numbers come from."""

from __future__ import annotations

from collections.abc import Iterator

from jetfleet_host.pages.charts import Bar, Point, bars, scatter
from jetfleet_host.pages.sheet import charts, notes, page, table

from . import views
from .cells import Axis, Cell, Matrix, pareto


def as_html(matrix: Matrix, title: str) -> str:
    """See the module."""
    best = pareto(matrix.cells)
    found = views.counts(matrix)
    rows = [(cell.origin, cells) for cell, cells in zip(matrix.cells, views.text_rows(matrix), strict=True)]
    told = f"{len(matrix.cells)} cells: {found['measured']} measured, {found['floor']} floors, {found['empty']} empty."
    return page(title, [
        notes([told]), charts([*_scatters(matrix, best), *_sizes(matrix)]), "<h2>Every cell</h2>",
        table(views.HEADINGS, rows, numbers=range(3, 11)), "<h2>Where the numbers come from</h2>", notes(views.provenance(matrix))])


def _scatters(matrix: Matrix, best: frozenset[Axis]) -> Iterator[str]:
    """One a target and origin, all models in it: a floor and a measurement never share a plot."""
    for target in matrix.header.targets:
        for origin, what in (("measured", "measured p50, ms"), ("floor", "floor, ms: computed, not measured")):
            cells = [cell for cell in matrix.cells if cell.axis.target == target and cell.origin == origin]
            yield scatter([point for cell in cells if (point := _point(cell, cell.axis in best)) is not None], what, _metric(cells),
                          f"Accuracy against latency, {target}")


def _point(cell: Cell, on_front: bool) -> Point | None:
    way = cell.way
    ms = None if way is None else way.p50_ms if cell.origin == "measured" else way.floor_ms
    if way is None or ms is None or way.accuracy is None:
        return None
    return Point(ms, 100.0 * way.accuracy, cell.axis.method, cell.axis.model, on_front)


def _metric(cells: list[Cell]) -> str:
    return f"{' / '.join(dict.fromkeys(cell.metric for cell in cells)) or 'accuracy'}, %"


def _sizes(matrix: Matrix) -> Iterator[str]:
    """The file of each method, once a model; the smallest is green."""
    for model in matrix.header.models:
        sizes: dict[str, int] = {}
        for cell in matrix.cells:
            if cell.axis.model == model and cell.way is not None:
                sizes.setdefault(cell.axis.method, cell.way.size)
        yield bars([Bar(method, size / 1e6, f"{size / 1e6:.3g} MB", "good" if size == min(sizes.values()) else "plain")
                    for method, size in sizes.items()], f"Bytes of the file, {model}")
