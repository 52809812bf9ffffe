"""Commands of the group keys that are about builder boards: delegate, delegations, revoke, add-delegated."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from jetfleet_contract.errors import InputError

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_CLASS = typer.Argument(..., metavar="CLASS", help="Device class, as `jetfleet devices` shows it.")
_FILE = typer.Argument(..., metavar="FILE", help="Targets metadata that a builder has signed.")
_KEY = typer.Option([], "--key", help="A builder's Ed25519 public key in hex; may be given more than once.")
_DEVICE = typer.Option([], "--device", help="A builder board that has introduced itself; its pinned key is taken.")
_HOST = typer.Option(False, "--host", help="This project itself, for engines that are built here; it gets a key of its own for that.")


def add_commands(keys: typer.Typer) -> None:
    """Add these to the group `keys`."""
    for name, command in (("delegate", delegate), ("delegations", delegations), ("revoke", revoke), ("add-delegated", add_delegated)):
        keys.command(name)(command)


def delegate(device_class: str = _CLASS, key: list[str] = _KEY, device: list[str] = _DEVICE, host: bool = _HOST,
             threshold: int = typer.Option(1, help="How many of the builders have to sign."), folder: Path = _DIR,
             as_json: bool = _JSON) -> None:
    """Let builder boards vouch for the engines of a device class: these, and no others. Needs the targets key.

    Examples:

        jetfleet keys delegate orin-nano --device bench-1 --dir fleet

        jetfleet keys delegate orin-nano --key 5e1f... --key 77ab... --threshold 2

        jetfleet keys delegate x86-gpu --host    # its engines are built here: jetfleet engines build --with rtx-aot
    """
    from jetfleet_host.delegations import delegate as name_builders
    from jetfleet_host.delegations import key_of_device
    from jetfleet_host.engine_publishing import host_key
    from jetfleet_host.project import Project

    project = Project.load(folder)
    publics = [*key, *(key_of_device(project, name) for name in device), *([host_key(project)] if host else [])]
    if not publics:
        raise InputError("keys.whom", "say who builds for this class", where="--key, --device, --host",
                         remedy="or: jetfleet keys revoke CLASS")
    made = name_builders(project, device_class, publics, threshold)
    _print(as_json, asdict(made), [f"{made.threshold} of {len(made.keys)} keys vouch for engines of {made.device_class}."])


def delegations(folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """List the device classes that builders vouch for.

    Example: jetfleet keys delegations --dir fleet
    """
    from jetfleet_host.delegations import delegations_of
    from jetfleet_host.project import Project

    rows = [asdict(one) for one in delegations_of(Project.load(folder))]
    lines = [f"{row['device_class']:<20} version {row['version']:<6} {row['threshold']} of {' '.join(row['keys'])}" for row in rows]
    _print(as_json, rows, lines or ["Nobody vouches for engines. Name a builder with: jetfleet keys delegate CLASS --device NAME"])


def revoke(device_class: str = _CLASS, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Let nobody vouch for the engines of a class any more. Needs the targets key.

    Example: jetfleet keys revoke orin-nano --dir fleet
    """
    from jetfleet_host.delegations import revoke as name_nobody
    from jetfleet_host.project import Project

    name_nobody(Project.load(folder), device_class)
    _print(as_json, {"device_class": device_class}, [f"Nobody vouches for engines of {device_class} any more."])


def add_delegated(device_class: str = _CLASS, file: Path = _FILE, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Take over what a builder signed: checked, published as a blob, and named in the next snapshot.

    Example: jetfleet keys add-delegated orin-nano class-orin-nano.json --dir fleet
    """
    from jetfleet_contract.delegations import MAX_DELEGATED_BYTES
    from jetfleet_host.delegations import accept
    from jetfleet_host.project import Project

    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_DELEGATED_BYTES + 1)
    except OSError as error:
        raise InputError("keys.file", f"the metadata cannot be read: {error.strerror}", where=str(file), remedy="give its path") from None
    version = accept(Project.load(folder), device_class, data)
    _print(as_json, {"device_class": device_class, "version": version}, [f"Version {version} of {device_class}'s engines is published."])


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
