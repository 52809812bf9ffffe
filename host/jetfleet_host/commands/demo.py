"""The command `demo`: the whole loop on one machine."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from jetfleet_contract.errors import InputError, JetfleetError, StorageError

if TYPE_CHECKING:
    from jetfleet_host.demo.narration import Narration

MIN_SECONDS, MAX_SECONDS = 3.0, 86_400.0

_HELP = """Show everything on this machine, on real frames: no board and no GPU needed.

Starts a broker, the server and three agents that pretend to be boards of three classes. Builds a text detector in two versions,
signs and publishes it, rolls out version 1, then version 2 while it runs, then a planted bad version 3 that the boards' own trial
refuses. Every answer is scored against the video's truth. The first run fetches the models (15 MB) and builds; later runs are quicker.

Leaves latency.png and frame.png in the out folder. Exit status 1 when something did not happen as it should.

Examples:

    jetfleet demo

    jetfleet demo --seconds 120 --out /tmp/demo --keep

    jetfleet demo --seconds 20 --headless --json result.json
"""


_OUT = typer.Option(Path("jetfleet-demo"), "--out", "-o", help="Folder for the pictures, and the fleet while it runs.")
_JSON = typer.Option(None, "--json", metavar="FILE", help="Write the outcome there; '-' prints it.")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("demo", help=_HELP)(demo)


def demo(
    seconds: float = typer.Option(30.0, "--seconds", "-s", help="How long the fleet just runs, in all."),
    headless: bool = typer.Option(False, "--headless", help="Plain lines instead of progress bars."),
    json_file: Path | None = _JSON,
    out: Path = _OUT,
    keep: bool = typer.Option(False, "--keep", help="Leave project, boards' state and logs in the out folder."),
) -> None:
    from jetfleet_host.demo.models import cache_folder
    from jetfleet_host.demo.narration import LiveNarration, PlainNarration
    from jetfleet_host.demo.run import Demo, DemoSettings

    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise InputError("demo.seconds", f"{seconds:g} seconds are out of bounds", where="--seconds",
                         remedy=f"give {MIN_SECONDS:g} to {MAX_SECONDS:g}")
    signal.signal(signal.SIGTERM, _interrupt)  # so that a killed demo takes its children with it
    printed = json_file is not None and str(json_file) == "-"
    live = sys.stdout.isatty() and not headless and not printed
    tell: Narration = LiveNarration() if live else PlainNarration(sys.stderr if printed else sys.stdout)
    try:
        outcome = Demo(DemoSettings(out.absolute(), cache_folder(), seconds, keep), tell).run()
    except JetfleetError as error:
        if json_file is not None:
            _write(json_file, {"passed": False, "error": {"code": error.code, "what": error.what, "remedy": error.remedy}})
        raise
    finally:
        tell.close()
    if json_file is not None:
        _write(json_file, outcome)
    if not printed:
        _show(outcome, out.absolute(), keep)
    if not outcome["passed"]:
        raise typer.Exit(1)


def _interrupt(_number: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _write(path: Path, outcome: dict[str, Any]) -> None:
    text = json.dumps(outcome, indent=2, sort_keys=True)
    if str(path) == "-":
        print(text)
        return
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError("demo.disk", f"cannot write the outcome: {error.strerror}", where=str(path)) from None


def _show(outcome: dict[str, Any], out: Path, keep: bool) -> None:
    from rich.console import Console

    from jetfleet_host.demo.summary import tables

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for table in tables(outcome):
        console.print(table)
    for what, path in outcome["pictures"].items():
        console.print(f"{what:<8} {path}", markup=False, soft_wrap=True)
    if keep:
        console.print(f"kept     {out / 'fleet'}  (jetfleet serve --dir {out / 'fleet' / 'project'})", markup=False, soft_wrap=True)
    for problem in outcome["problems"]:
        console.print(f"[red]\u2718[/] {problem}", soft_wrap=True)
    if outcome["passed"]:
        console.print("[green]\u2714[/] Version 1 and 2 were committed everywhere, version 3 was refused, the fleet runs version 2.")
