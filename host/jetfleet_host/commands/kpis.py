"""The command that shows business figures: jetfleet kpis. It only reads the database."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import typer

from jetfleet_contract.errors import InputError

from .database import reading
from .fleet import print_json, print_table, seconds, table_of

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_BY = typer.Option("device", "--by", help="device, class or version.")
_HELP = """Business figures by board, class or version: what the apps' KPI hooks said of each frame.

Mean, least, most and sum are exact, quantiles within 1 %.

Examples:

    jetfleet kpis --by version --since 1h

    jetfleet kpis people --app shop --json
"""


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("kpis", help=_HELP)(kpis)


def kpis(name: str = typer.Argument("", help="Only this figure."), by: str = _BY,
         since: str = typer.Option("10m", help="How far back: 30s, 10m, 2h, 1d."), app: str = typer.Option("", help="Only this app."),
         folder: Path = _DIR, as_json: bool = _JSON) -> None:
    from jetfleet_host import views

    grouping = next((known for known in get_args(views.By) if known == by), None)
    if grouping is None:
        raise InputError("kpis.by", f"{by[:40]!r} is no grouping", where="--by", remedy="device, class or version")
    with reading(folder) as session:
        rows = views.figures(session, by=grouping, since=time.time() - seconds(since), app=app, kpi=name)
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo(f"No figures in the last {since}. A hook gives them: kpis = \"NAME\" in the app's settings.")
        return
    table = table_of(by, "app", "figure", "boards", "frames", "mean", "least", "p50", "p95", "most", "sum")
    for row in rows:
        table.add_row(row.group, row.app, row.kpi, str(row.devices), str(row.frames),
                      *(f"{value:.4g}" for value in (row.mean, row.least, row.p50, row.p95, row.most, row.total)))
    print_table(table)
