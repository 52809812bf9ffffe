"""The group `engines`: what is prepared for boards' accelerators, and by whom."""

from __future__ import annotations

import typer

from . import engine_building


def register(app: typer.Typer) -> None:
    """Add the group `engines`."""
    group = typer.Typer(name="engines", help="Engines for boards: models screened, engines built where that can be done.",
                        no_args_is_help=True)
    engine_building.add_commands(group)
    app.add_typer(group)
