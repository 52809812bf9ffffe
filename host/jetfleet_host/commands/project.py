"""Commands of the project folder: init, keys, publish."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_FOLDER = typer.Argument(..., metavar="DIR", help="Folder to make.")
_BUNDLE = typer.Argument(..., metavar="BUNDLE", help="Bundle folder, made by `jetfleet build`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")



def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    keys = typer.Typer(name="keys", help="The project's signing keys.", no_args_is_help=True)
    keys.command("list")(list_keys)
    keys.command("rotate")(rotate_key)
    app.command("init")(init)
    app.add_typer(keys)
    app.command("publish")(publish)


def init(
    folder: Path = _FOLDER,
    broker: str = typer.Option("embedded", help="embedded, embedded:PORT or HOST:PORT."),
    as_json: bool = _JSON,
) -> None:
    """Make a project folder: keys, config and the root of trust that boards pin.

    Examples:

        jetfleet init fleet

        jetfleet init fleet --broker mqtt.example.org:8883
    """
    from jetfleet_host.project import Project

    project = Project.init(folder, broker=broker)
    where = project.settings.broker
    made = {"dir": str(project.dir), "root": str(project.root_file), "broker": f"{where.host}:{where.port}", "embedded": where.embedded}
    _print(as_json, made, [
        f"Project {project.dir} is ready.",
        f"  broker       {made['broker']}{' (embedded, this machine only)' if where.embedded else ''}",
        f"  boards pin   {project.root_file}",
        f"  keys         {project.keys_dir}  (keep a copy off this machine)",
        f"Next: jetfleet build MODEL.onnx ... then jetfleet publish BUNDLE --dir {folder}",
    ])


def list_keys(folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """List the project's keys: role, public key, and whether its private half is here.

    Example: jetfleet keys list --dir fleet
    """
    from jetfleet_host.project import Project

    rows = [asdict(row) for row in Project.load(folder).key_table()]
    lines = [f"{'role':<11} {'public key':<64} {'use':<8} private half"]
    lines += [f"{row['role']:<11} {row['public']:<64} {row['use']:<8} {'here' if row['held'] else 'elsewhere'}" for row in rows]
    _print(as_json, rows, lines)


def rotate_key(role: str = typer.Argument(..., help="Role whose key is replaced."), folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Replace the key of a role. Boards learn of it with the next metadata; the old private key is removed.

    Roles: root, targets, snapshot, timestamp, deployment, command.

    Example: jetfleet keys rotate timestamp --dir fleet
    """
    from jetfleet_host.keys import check_role
    from jetfleet_host.project import Project

    public = Project.load(folder).rotate(check_role(role))
    _print(as_json, {"role": role, "public": public}, [f"The {role} key is now {public}.",
                                                       "A running `jetfleet serve` sends the new metadata to the boards."])


def publish(bundle: Path = _BUNDLE, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Verify a bundle and sign it into the project, so that boards may run it.

    Example: jetfleet publish detector-1.bundle --dir fleet
    """
    from jetfleet_host.project import Project
    from jetfleet_host.publish import publish as sign_and_store

    done = sign_and_store(Project.load(folder), bundle)
    verb = "Published" if done.new else "Cut into chunks of another size:" if done.recut else "Already published:"
    text = f"{verb} {done.name}:{done.version}, {done.blobs} blobs, {done.size / 1e6:.1f} MB, manifest {done.manifest}"
    _print(as_json, asdict(done), [text])


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
