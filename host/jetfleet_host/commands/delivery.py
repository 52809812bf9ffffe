"""Commands `delivery status/pause/resume`: what the host publishes, to whom, and what holds it back."""

from __future__ import annotations

import json
import time
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jetfleet_contract.errors import InputError

from .database import open_database

if TYPE_CHECKING:
    from jetfleet_host.project import Project
    from jetfleet_host.store.database import Database
    from jetfleet_host.store.deliveries import BlobLine, DeliveryStatus

ANSWER_S = 5.0
POLL_S = 0.1

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_WHAT = typer.Argument(..., metavar="WHAT", help="NAME:VERSION of a published model, a blob's id, or `all`.")

_STATUS = """Show what is being published: each blob with who wants it, what is missing, the bytes so far, and what holds it back.

`[delivery] mb_per_day` and `hours` of jetfleet.toml bound the whole host; when they hold it, the first line says so and until when.

Examples:

    jetfleet delivery status --dir fleet

    jetfleet delivery status --json
"""
_PAUSE = """Publish nothing of a model, of one blob, or at all, until `resume`. Boards keep what they have and go on from there.

A rollout that is paused (`jetfleet rollout pause`) pauses its model's blobs by itself.

Examples:

    jetfleet delivery pause ocr:2

    jetfleet delivery pause all --json
"""
_RESUME = """Go on publishing what `pause` stopped.

Example: jetfleet delivery resume ocr:2
"""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="delivery", help="What the host publishes, and what holds it back.", no_args_is_help=True)
    group.command("status", help=_STATUS)(status)
    group.command("pause", help=_PAUSE)(pause)
    group.command("resume", help=_RESUME)(resume)
    app.add_typer(group)


def status(folder: Path = _DIR, as_json: bool = _JSON) -> None:
    from jetfleet_host.store import deliveries

    with closing(open_database(_project(folder))) as database, database.reading() as session:
        told = deliveries.status(session) or deliveries.DeliveryStatus()
        asked = deliveries.pauses(session)
    _print(as_json, _view(told, asked), _lines(told, asked))


def pause(what: str = _WHAT, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    from jetfleet_host.store import deliveries

    project = _project(folder)
    name = _named(project, what)
    with closing(open_database(project)) as database:
        with database.session() as session:
            deliveries.pause(session, name, f"paused: {what}"[:200], time.time())
        obeyed = _obeyed(database, name, paused=True)
    _answer(as_json, what, "paused", obeyed)


def resume(what: str = _WHAT, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    from jetfleet_host.store import deliveries

    project = _project(folder)
    name = _named(project, what)
    with closing(open_database(project)) as database:
        with database.session() as session:
            gone = deliveries.resume(session, (name,))
            rollout = deliveries.paused_rollouts(session).get(name, "")
        if not gone:
            remedy = f"its rollout is paused: jetfleet rollout resume {rollout}" if rollout else "jetfleet delivery status lists what is"
            raise InputError("delivery.not-paused", f"{what[:80]} is not paused by hand", where=str(project.dir), remedy=remedy)
        obeyed = _obeyed(database, name, paused=False)
    _answer(as_json, what, "resumed", obeyed)


def _project(folder: Path) -> Project:
    from jetfleet_host.project import Project

    return Project.load(folder)


def _named(project: Project, what: str) -> str:
    """What a pause is kept by: `*`, a blob, or the manifest's blob of a model."""
    from jetfleet_contract.topics import check_blob
    from jetfleet_host.publish import find_bundle
    from jetfleet_host.store.deliveries import EVERYTHING

    if what == "all":
        return EVERYTHING
    name, colon, version = what.partition(":")
    return find_bundle(project, name, version).manifest if colon else check_blob(what)


def _obeyed(database: Database, name: str, *, paused: bool) -> bool:
    """Whether `serve` has said within a while that it follows."""
    from jetfleet_host.store import deliveries

    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        with database.reading() as session:
            told = deliveries.status(session)
        if told is not None and (name in told.paused) is paused:
            return True
        time.sleep(POLL_S)
    return False


def _answer(as_json: bool, what: str, done: str, obeyed: bool) -> None:
    later = "" if obeyed else " No jetfleet serve has answered; it will follow when it runs."
    _print(as_json, {"what": what, "done": done, "obeyed": obeyed}, [f"{what} is {done}.{later}"])


def _view(told: DeliveryStatus, asked: dict[str, str]) -> dict[str, Any]:
    import msgspec

    return {**msgspec.structs.asdict(told), "paused": asked, "blobs": [msgspec.structs.asdict(line) for line in told.blobs]}


def _lines(told: DeliveryStatus, asked: dict[str, str]) -> list[str]:
    if not told.at:
        return ["No jetfleet serve has run on this project yet."]
    bound = f" of {told.mb_per_day} MB" if told.mb_per_day else ""
    hours = f", {', '.join(f'{begin:02d}-{end:02d}' for begin, end in told.hours)} UTC" if told.hours else ""
    today = f"; today {told.today_bytes / 1e6:.1f} MB{bound}{hours}" if bound or hours else ""
    lines = [f"{_clock(told.at)}: {told.bytes_s / 1e6:.1f} MB/s{today}"]
    if told.held:
        lines.append(f"  HELD until {_clock(told.held_until)}: {told.why} [{told.held}]")
    lines += [f"  paused: {'everything' if what == '*' else what[:12]} ({why})" for what, why in asked.items()]
    lines += [_blob_line(line) for line in told.blobs if line.wanters or line.published]
    lines += [f"  refused {count} x {code}" for code, count in sorted(told.refused.items())]
    return lines


def _blob_line(line: BlobLine) -> str:
    text = (f"  {line.blob[:12]}  {line.what:<24} {line.size / 1e6:9.1f} MB  {line.wanters:4d} want {line.missing / 1e6:9.1f} MB  "
            f"published {line.published / 1e6:9.1f} MB ({line.unicast / 1e6:.1f} to one alone)")
    lanes = f"  {line.lanes} lanes" if line.lanes > 1 else ""
    return text + lanes + (f"  PAUSED, {line.paused}" if line.paused else "")


def _clock(wall: float) -> str:
    return datetime.fromtimestamp(wall, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
