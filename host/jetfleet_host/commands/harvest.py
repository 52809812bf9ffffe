"""Commands: harvest. The hard-example set: what boards were not sure of, listed, counted, exported for the next build, deleted."""

from __future__ import annotations

import calendar
import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jetfleet_contract.errors import InputError

from .database import open_database

if TYPE_CHECKING:
    from jetfleet_host.project import Project
    from jetfleet_host.store.models import HardExample

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_APP = typer.Option("", "--app", "-a", help="Only this app's.")
_DEVICE = typer.Option("", "--device", help="Only this board's.")
_SINCE = typer.Option("", "--since", help="Only from this day on (UTC), as 2026-11-24.")
_BEFORE = typer.Option("", "--before", help="Only what came before this day (UTC), as 2026-11-24.")
DAY_S = 86_400.0


def register(app: typer.Typer) -> None:
    """Add the group `harvest`."""
    group = typer.Typer(name="harvest", help="Pictures of what boards were not sure of, for the next build.", no_args_is_help=True)
    for name, command in (("list", list_examples), ("stats", stats), ("export", export_examples), ("purge", purge), ("key", key)):
        group.command(name)(command)
    app.add_typer(group)


def list_examples(app: str = _APP, device: str = _DEVICE, since: str = _SINCE, before: str = _BEFORE,
                  limit: int = typer.Option(50, min=1, max=10_000, help="At most so many, the newest."), folder: Path = _DIR,
                  as_json: bool = _JSON) -> None:
    """List what is kept: when, where from, what the board said and what the host's model said.

    Example: jetfleet harvest list --app reader --since 2026-11-01
    """
    rows = _chosen(_project(folder), app, device, since, before, limit)
    if as_json:
        typer.echo(json.dumps([_as_json(row) for row in rows], indent=2))
        return
    for row in rows:
        told = _words(row.said) if row.answered else "not answered"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.at))
        typer.echo(f"{when} {row.digest[:12]} {row.device:<16} {row.app:<12} {row.source:<12} {_words(row.edge, 1):<20} -> {told}".rstrip())
    if not rows:
        typer.echo("Nothing is kept. Boards give something once an app's privacy policy allows the purpose harvest.")


def stats(folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Count what is kept, by app and version.

    Example: jetfleet harvest stats --dir fleet
    """
    from jetfleet_host.store import harvest

    project = _project(folder)
    with closing(open_database(project)) as database, database.reading() as session:
        found = harvest.by_app(session)
    names = ("app", "version", "examples", "answered", "bytes", "first", "last")
    if as_json:
        typer.echo(json.dumps({"keep_mb": project.settings.harvest.keep_mb, "apps": [dict(zip(names, row, strict=True)) for row in found]},
                              indent=2))
        return
    for name, version, count, answered, size, first, last in found:
        span = " to ".join(time.strftime("%Y-%m-%d", time.localtime(at)) for at in (first, last))
        typer.echo(f"{name:<16} {version:<12} {count:>7} examples, {answered:>7} answered, {size / 1e6:>9.2f} MB, {span}")
    typer.echo(f"{sum(row[4] for row in found) / 1e6:.2f} of {project.settings.harvest.keep_mb} MB are used.")


def export_examples(out: Path = typer.Option(..., "--out", "-o", help="A new or empty folder."),  # noqa: B008 - typer's way
                    app: str = _APP, device: str = _DEVICE, since: str = _SINCE, before: str = _BEFORE,
                    least: float = typer.Option(0.5, "--least-score", min=0.0, max=1.0,
                                                help="What the host's model said with less is no label."),
                    folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Write pictures and labels.json as `jetfleet build --data` takes them; the labels are the host's model's: look at them first.

    Example: jetfleet harvest export --app reader --out hard && jetfleet build model.onnx --data hard
    """
    from jetfleet_host.harvest import HarvestFiles, export

    project = _project(folder)
    rows = _chosen(project, app, device, since, before, 0)
    done = export(HarvestFiles(project.dir / "harvest"), rows, out, least)
    if as_json:
        typer.echo(json.dumps({"out": done.folder, "images": done.images, "labels": done.labels, "skipped": done.skipped}, indent=2))
        return
    skipped = "".join(f", {count} left out: {why}" for why, count in sorted(done.skipped.items()))
    typer.echo(f"{done.images} pictures with {done.labels} labels are in {out}{skipped}")


def purge(before: str = _BEFORE, device: str = _DEVICE, app: str = _APP,
          everything: bool = typer.Option(False, "--all", help="All of it."), folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Delete pictures and what is known of them, for good: a board's, an app's, what is older than a day, or all.

    Example: jetfleet harvest purge --device dock-1

    Example: jetfleet harvest purge --before 2026-10-01
    """
    from jetfleet_host.harvest import HarvestFiles
    from jetfleet_host.store import harvest

    if not (before or device or app or everything):
        raise InputError("harvest.purge", "nothing says what to delete", remedy="give --before, --device, --app, or --all")
    project = _project(folder)
    until = _day(before)
    with closing(open_database(project)) as database:
        with database.session() as session:
            rows = harvest.find(session, app=app, device=device, before=until)
            gone = harvest.remove(session, rows)
        HarvestFiles(project.dir / "harvest").remove(gone)
    typer.echo(json.dumps({"examples": len(rows), "pictures": len(gone)}) if as_json
               else f"{len(rows)} examples with {len(gone)} pictures are deleted.")


def key(new: bool = typer.Option(False, "--new", help="Make another key; boards use it from their next deployment on."),
        folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """Show the key to which boards seal pictures: its first digits stand in their audit logs.

    Example: jetfleet harvest key --dir fleet
    """
    from jetfleet_host.crop_keys import CropKeys

    keys = CropKeys(_project(folder).keys_dir)
    public = keys.create() if new else keys.receiver()
    typer.echo(json.dumps({"receiver": public, "held": sorted(keys.files())}, indent=2) if as_json else public)


# --- shared ----------------------------------------------------------------------------------------------------


def _chosen(project: Project, app: str, device: str, since: str, before: str, limit: int) -> list[HardExample]:
    from jetfleet_host.store import harvest

    with closing(open_database(project)) as database, database.reading() as session:
        return harvest.find(session, app=app, device=device, since=_day(since), before=_day(before), limit=limit)


def _day(text: str) -> float:
    """Seconds since 1970 of a UTC day's beginning; 0 for an empty text. InputError `harvest.day`."""
    if not text:
        return 0.0
    try:
        return float(calendar.timegm(time.strptime(text, "%Y-%m-%d")))
    except (ValueError, OverflowError):
        raise InputError("harvest.day", f"{text[:40]!r} is no day", remedy="give it as 2026-11-24") from None


def _words(detections: str, most: int = 4) -> str:
    from jetfleet_host.intake import clean

    found: Sequence[Any] = json.loads(detections)
    told = ", ".join(f"{clean(str(item[0]), 40)} {item[1]:.2f}" for item in found[:most])
    return told or "nothing"


def _as_json(row: HardExample) -> dict[str, Any]:
    names = ("device", "app", "source", "frame", "bundle", "version", "candidate", "task", "digest", "size", "model", "taken", "at")
    return {**{name: getattr(row, name) for name in names}, "answered": bool(row.answered), "canvas": [row.canvas_w, row.canvas_h],
            "window": [row.x0, row.y0, row.x1, row.y1], "edge": json.loads(row.edge), "said": json.loads(row.said)}


def _project(folder: Path) -> Project:
    from jetfleet_host.project import Project

    return Project.load(folder)
