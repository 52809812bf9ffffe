"""Commands `devices tag/untag`: what operators say about boards."""

from __future__ import annotations

import json
import re
from pathlib import Path

import typer

from jetfleet_contract import topics
from jetfleet_contract.errors import InputError, MalformedError

from .database import transaction

MAX_TAGS = 32
_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_NAME = typer.Argument(..., metavar="DEVICE", help="The board's name.")
_PAIRS = typer.Argument(..., metavar="KEY=VALUE...", help="Its tags; `site` is where it stands.")
_KEYS = typer.Argument(..., metavar="KEY...", help="Tags to take away.")
_VALUE = re.compile(r"[^\x00-\x1f\x7f=,]{1,63}")

_TAG = """Say something about a board: where it stands, which line it watches. Rollouts select by it; its next deployment carries it.

Examples:

    jetfleet devices tag dock-1 site=berlin-2 line=3

    jetfleet rollout start --app reader --model ocr:2 --site 'berlin*' --tag line=3
"""
_UNTAG = """Take tags of a board away.

Example: jetfleet devices untag dock-1 line
"""


def register(devices: typer.Typer) -> None:
    """Add this module's commands to the group `devices`."""
    devices.command("tag", help=_TAG)(tag)
    devices.command("untag", help=_UNTAG)(untag)


def tag(device: str = _NAME, pairs: list[str] = _PAIRS, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    _change(folder, device, _pairs(pairs), (), as_json)


def untag(device: str = _NAME, keys: list[str] = _KEYS, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    _change(folder, device, {}, tuple(keys), as_json)


def _pairs(words: list[str]) -> dict[str, str]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            topics.check_name("tag", key)
        except MalformedError as error:
            raise InputError("tag.bad", f"{word[:80]!r} is no KEY=VALUE: {error.what}", where="KEY=VALUE",
                             remedy="for instance site=berlin-2") from None
        if not equals or not _VALUE.fullmatch(value) or key == "class":
            raise InputError("tag.bad", f"{word[:80]!r} is no KEY=VALUE", where="KEY=VALUE",
                             remedy="a value has 1 to 63 characters, no comma; class is the board's own. For instance site=berlin-2")
        pairs[key] = value
    return pairs


def _change(folder: Path, device: str, pairs: dict[str, str], gone: tuple[str, ...], as_json: bool) -> None:
    from jetfleet_host.store import tags
    from jetfleet_host.store.models import Device

    with transaction(folder) as (_project, session):
        if session.get(Device, device) is None:
            raise InputError("device.unknown", f"no board {device[:80]!r} has introduced itself", remedy="jetfleet devices lists them")
        before = tags.of(session, device)
        unknown = [key for key in gone if key not in before]
        if unknown:
            raise InputError("tag.unknown", f"board {device} has no tag {unknown[0][:63]!r}", where="KEY",
                             remedy=f"it has: {', '.join(before) or 'none'}")
        if len(before | pairs) > MAX_TAGS:
            raise InputError("tag.bad", f"board {device} would have over {MAX_TAGS} tags",
                             remedy="take some away with: jetfleet devices untag")
        tags.put(session, device, pairs)
        tags.drop(session, device, gone)
        session.flush()
        after = tags.of(session, device)
    shown = " ".join(f"{key}={value}" for key, value in after.items()) or "no tags"
    typer.echo(json.dumps({"device": device, "tags": after}) if as_json else f"{device}: {shown}")
