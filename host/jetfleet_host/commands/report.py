"""Command: report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from jetfleet_host.compress.stage_records import FloatRun

_BUNDLE = typer.Argument(..., metavar="FOLDER", help="A bundle, made by `jetfleet build`, or a matrix, made by `jetfleet matrix`.")
_HTML = typer.Option(None, "--html", help="Write the report as one self-contained page.")
_JSON = typer.Option(False, "--json", help="Print JSON.")


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("report")(report)


def report(bundle: Path = _BUNDLE, as_json: bool = _JSON, page: Path | None = _HTML) -> None:
    """Show a bundle's candidates: accuracy, latency, verdict, where each number came from; and the floor on each target board. Or show
    a matrix: every cell, measured, floor or empty with the reason, and which of them are on the Pareto front.

    Examples:

        jetfleet report detector.bundle

        jetfleet report detector.bundle --html report.html

        jetfleet report lab.matrix --html matrix.html
    """
    from jetfleet_host.durable import write_file
    from jetfleet_host.matrix.store import is_matrix

    html = _matrix(bundle, as_json, page is not None) if is_matrix(bundle) else _bundle(bundle, as_json, page is not None)
    if page is not None:
        write_file(page, html.encode())
        if not as_json:
            print(f"Wrote {page}.")


def _matrix(folder: Path, as_json: bool, wanted: bool) -> str:
    """Show it, and give its page where that is wanted."""
    from jetfleet_host.matrix.page import as_html
    from jetfleet_host.matrix.store import MatrixStore

    from .matrix import show

    filled = MatrixStore(folder).matrix()
    show(filled, folder, as_json)
    return as_html(filled, folder.resolve().name) if wanted else ""


def _bundle(folder: Path, as_json: bool, wanted: bool) -> str:
    from jetfleet_host import report as reports
    from jetfleet_host.build_record import record_of
    from jetfleet_host.bundles import open_bundle
    from jetfleet_host.floors import floors_of
    from jetfleet_host.measurements import measurements_of

    opened = open_bundle(folder)
    measured, floors, record = measurements_of(opened), floors_of(opened), record_of(opened)
    if as_json:
        print(json.dumps(reports.as_json(opened, measured, floors, record), indent=2))
    else:
        print_table(opened, measured, record)
        if record is not None and record.floats is not None:
            print_stages(record.floats)
        if floors:
            _print_floors(floors)
    return reports.as_html(opened, measured, floors, record) if wanted else ""


def print_table(bundle: Any, measurements: Any, record: Any = None) -> None:
    """A bundle's candidates on the terminal, and where the numbers come from."""
    from rich.console import Console
    from rich.table import Table

    from jetfleet_host import report as reports

    table = Table(title=f"{bundle.spec.name}:{bundle.spec.version}", title_justify="left")
    for index, heading in enumerate(reports.headings(bundle.evaluation.metric)):
        table.add_column(heading, justify="left" if index in (0, 7, 8) else "right", no_wrap=index == 0,
                         overflow="fold")
    for line in reports.lines_of(bundle, measurements):
        table.add_row(*reports.table_cells(line), style="" if line.row.verdict == "accepted" else "red")
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    for sentence in (*reports.provenance(bundle, measurements), *reports.build_sentences(record)):
        console.print(sentence, highlight=False)


def print_stages(floats: FloatRun) -> None:
    """What became of each stage on the torch module."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Stages, {floats.samples} validation samples: {floats.baseline:.4f} as given, {floats.metric:.4f} at the end",
                  title_justify="left")
    for heading in ("stage", "metric", "ending", "settings tried", "why"):
        table.add_column(heading, overflow="fold")
    for stage in floats.stages:
        tried = ", ".join(f"{entry.strength:.2f}" for entry in stage.tried)
        style = "red" if stage.ending == "left-out" else ""
        table.add_row(stage.kind, f"{stage.metric:.4f}", stage.ending, tried, stage.reason, style=style)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)


def _print_floors(floors: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from jetfleet_host.floors import FORMULA, HEADINGS

    table = Table(title="Floors, computed", title_justify="left")
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if index in (3, 4) else "left", overflow="fold")
    for line in floors:
        table.add_row(*line.cells())
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    console.print(FORMULA, highlight=False)
