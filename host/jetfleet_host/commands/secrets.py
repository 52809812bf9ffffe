"""Commands: device secret. What only one board may read is sealed here and opened there; serve and broker carry a closed box."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from jetfleet_contract.errors import InputError
from jetfleet_host.commands.passphrases import secret_from_input

from .database import open_database

if TYPE_CHECKING:
    from jetfleet_host.project import Project
    from jetfleet_host.store.database import Database

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_DEVICE = typer.Argument(..., metavar="DEVICE", help="The board's name.")
_NAME = typer.Argument(..., metavar="NAME", help="The secret's name: a source says secret:NAME.")
_WAIT = typer.Option(30.0, "--timeout", min=1.0, max=3600.0, help="Seconds to wait for the board.")


def add_commands(device: typer.Typer) -> None:
    """Add the group `secret` to the group `device`."""
    secret = typer.Typer(name="secret", help="Camera addresses with passwords, sealed to one board.", no_args_is_help=True)
    for name, command in (("set", set_secret), ("remove", remove), ("list", list_secrets)):
        secret.command(name)(command)
    device.add_typer(secret)


def set_secret(device: str = _DEVICE, name: str = _NAME, wait: float = _WAIT, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Seal a secret to a board: the whole address of a camera, typed at a prompt or piped in, never on the command line.

    The board has to be connected. Running pipelines that use it reconnect with the new address.

    Example: jetfleet device secret set dock-1 front-camera < address.txt
    """
    from jetfleet_contract.sealing import box_text
    from jetfleet_host.sealing import seal

    secret = secret_from_input(f"Address for {name} on {device}")
    if b"://" not in secret:
        raise InputError("secret.address", "that is no address of a camera", where="standard input",
                         remedy="give the whole of it, as rtsp://user:password@host/path")
    version = time.time_ns() // 1_000_000
    with closing(open_database(project := _project(folder))) as database:
        sealed = seal(_sealing_key(database, device), secret, device=device, name=name, version=version)
        _send(database, project, device, {"name": name, "version": str(version), "box": box_text(sealed)}, wait)
    typer.echo(json.dumps({"device": device, "secret": name, "version": version}) if as_json
               else f"{device} keeps the secret {name}. A source uses it as secret:{name}")


def remove(device: str = _DEVICE, name: str = _NAME, wait: float = _WAIT, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Have a board forget a secret. A running pipeline keeps its connection until it starts again.

    Example: jetfleet device secret remove dock-1 front-camera
    """
    with closing(open_database(project := _project(folder))) as database:
        _send(database, project, device, {"name": name, "version": str(time.time_ns() // 1_000_000)}, wait)
    typer.echo(json.dumps({"device": device, "secret": name}) if as_json else f"{device} has forgotten the secret {name}.")


def list_secrets(device: str = _DEVICE, wait: float = _WAIT, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """List the names of the secrets that a board keeps; their values never leave it.

    Example: jetfleet device secret list dock-1
    """
    with closing(open_database(project := _project(folder))) as database:
        versions = _send(database, project, device, {}, wait)
    lines = [f"{name:<32} version {version}" for name, version in versions.items()]
    typer.echo(json.dumps(versions, indent=2) if as_json else "\n".join(lines) or f"{device} keeps no secret.")


def _send(database: Database, project: Project, device: str, args: dict[str, str], wait: float) -> dict[str, int]:
    """The names and versions that the board keeps afterwards. Raises as `ask_board`."""
    import msgspec

    from jetfleet_host.commands.device import ask_board

    answered = ask_board(database, project, device, "secret", args, wait)
    return msgspec.json.decode(answered.body, type=dict[str, int])


def _sealing_key(database: Database, device: str) -> str:
    """The key that the board announced in its last signed birth. InputError `device.unknown`; empty when it takes no secrets."""
    from jetfleet_host.intake import stored_birth
    from jetfleet_host.store.models import Device

    with database.reading() as session:
        row = session.get(Device, device)
        stored = row.birth if row else ""
    birth = stored_birth(stored)
    if birth is None:
        raise InputError("device.unknown", f"no board {device[:63]!r} has introduced itself", remedy="jetfleet devices lists the boards")
    return birth.sealing


def _project(folder: Path) -> Project:
    from jetfleet_host.project import Project

    return Project.load(folder)
