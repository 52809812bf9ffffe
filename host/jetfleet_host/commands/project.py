"""Commands of the project folder: init, publish, accept."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from .delta_table import bars, delta_lines

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_FOLDER = typer.Argument(..., metavar="DIR", help="Folder to make.")
_BUNDLE = typer.Argument(..., metavar="BUNDLE", help="Bundle folder, made by `jetfleet build`.")
_BUILDER = typer.Argument(..., metavar="BUILDER", help="The builder's project folder, or a copy of it.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_DELTA_FROM = typer.Option([], "--delta-from", metavar="NAME:VERSION", help="One more version to make deltas from; give it again for more.")



def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("init")(init)
    app.command("publish")(publish)
    app.command("accept")(accept)


def init(
    folder: Path = _FOLDER,
    broker: str = typer.Option("embedded", help="embedded, embedded:PORT or HOST:PORT."),
    root_keys: int = typer.Option(1, "--root-keys", help="How many root keys are made, one for each holder."),
    root_threshold: int = typer.Option(1, "--root-threshold", help="How many of them have to sign a new root."),
    as_json: bool = _JSON,
) -> None:
    """Make a project folder: keys, config and the root of trust that boards pin.

    Examples:

        jetfleet init fleet

        jetfleet init fleet --broker mqtt.example.org:8883

        jetfleet init fleet --root-keys 3 --root-threshold 2
    """
    from jetfleet_host.project import Project

    project = Project.init(folder, broker=broker, root_keys=root_keys, root_threshold=root_threshold)
    where = project.settings.broker
    made = {"dir": str(project.dir), "root": str(project.root_file), "broker": f"{where.host}:{where.port}", "embedded": where.embedded}
    _print(as_json, made, [
        f"Project {project.dir} is ready.",
        f"  broker       {made['broker']}{' (embedded, this machine only)' if where.embedded else ''}",
        f"  boards pin   {project.root_file}",
        f"  keys         {project.keys_dir}  (keep a copy off this machine)",
        f"Next: jetfleet build MODEL.onnx ... then jetfleet publish BUNDLE --dir {folder}",
    ])


def publish(
    bundle: Path = _BUNDLE,
    folder: Path = _DIR,
    no_deltas: bool = typer.Option(False, "--no-deltas", help="Make no deltas from the last versions: boards get every file in full."),
    delta_from: list[str] = _DELTA_FROM,
    as_json: bool = _JSON,
) -> None:
    """Verify a bundle and sign it into the project, so that boards may run it.

    Boards that run one of the last three versions get a delta where that saves a tenth or more; the table tells what was tried.

    Examples:

        jetfleet publish detector-1.bundle --dir fleet

        jetfleet publish detector-2.bundle --dir fleet --delta-from detector:1
    """
    from jetfleet_host.deltas.publishing import KEPT
    from jetfleet_host.project import Project
    from jetfleet_host.publish import publish as sign_and_store

    with bars() as step:
        done = sign_and_store(Project.load(folder), bundle, deltas=0 if no_deltas else KEPT, deltas_from=delta_from, step=step)
    verb = "Published" if done.new else "Cut into chunks of another size:" if done.recut else "Already published:"
    text = f"{verb} {done.name}:{done.version}, {done.blobs} blobs, {done.size / 1e6:.1f} MB, manifest {done.manifest}"
    waits = f"It waits to be published: jetfleet accept {folder}, on the control machine, with this folder or a copy of it."
    _print(as_json, asdict(done), [text, *delta_lines(done.deltas), *([waits] if done.waits else [])])


def accept(builder: Path = _BUILDER, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Publish what a builder has signed: its targets and blobs are checked, taken over, and put under a new snapshot and timestamp.

    Example: jetfleet accept /media/builder/fleet --dir fleet
    """
    from jetfleet_host.handover import accept as take_over
    from jetfleet_host.project import Project

    done = take_over(Project.load(folder), builder)
    verb = "Accepted" if done.new else "Accepted before:"
    _print(as_json, asdict(done), [f"{verb} targets {done.version}, {done.blobs} blobs, {done.size / 1e6:.1f} MB copied."])


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
