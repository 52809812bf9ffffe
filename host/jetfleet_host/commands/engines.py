"""The group `engines`: what is prepared for boards' accelerators, and by whom."""

from __future__ import annotations

import typer

from . import class_engines, engine_building


def register(app: typer.Typer) -> None:
    """Add the group `engines`."""
    group = typer.Typer(name="engines", no_args_is_help=True,
                        help="Engines for boards: what a class shares; models screened; engines built where a host can.")
    engine_building.add_commands(group)
    class_engines.add_commands(group)
    app.add_typer(group)
