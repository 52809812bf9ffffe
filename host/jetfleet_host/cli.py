"""The host's command line: one of the two composition roots. Wires commands, turns errors into text and exit codes.

Each module of `commands` registers its commands; they import heavy libraries only when they run.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys

import typer

from jetfleet_contract import __version__
from jetfleet_contract.errors import JetfleetError

COMMAND_MODULES = (
    "project", "keys", "build", "recipes", "matrix", "search", "report", "lint", "boards", "broker", "serve", "mirror", "fleet", "kpis",
    "rollout", "delivery", "models", "kernels", "engines", "harvest", "learn", "experiment", "demo", "sim",
)

app = typer.Typer(
    name="jetfleet",
    help="Takes trained vision models to a fleet of Jetson boards and keeps them healthy there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jetfleet {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(  # noqa: ARG001 - handled by its eager callback
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what happens to stderr."),
) -> None:
    """Set up logging before any command runs."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )


for _name in COMMAND_MODULES:
    importlib.import_module(f"jetfleet_host.commands.{_name}").register(app)


def main() -> None:
    """Run the command line; every JetfleetError ends as one clear message and its own exit code."""
    try:
        app()
    except JetfleetError as error:
        if "--json" in sys.argv:
            print(json.dumps({"error": {"code": error.code, "what": error.what, "where": error.where, "remedy": error.remedy}}))
        print(f"jetfleet: {error.diagnostics()}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("jetfleet: stopped", file=sys.stderr)
        sys.exit(130)
