"""Command: device bench. A board measures a bundle that it has; what it found becomes a file for `jetfleet matrix --record`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from jetfleet_contract.bench_orders import MAX_LIMIT_S, MIN_LIMIT_S, USUAL_LIMIT_S
from jetfleet_contract.errors import InputError, MalformedError

from .database import open_database

if TYPE_CHECKING:
    from jetfleet_contract.bench_records import BenchRecord
    from jetfleet_host.project import Project
    from jetfleet_host.store.database import Database
    from jetfleet_host.store.models import CommandRow

GRACE_S = 30.0
"""For the way there and back, and an upload."""

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_NAME = typer.Argument(..., metavar="DEVICE", help="The board's name.")
_RECORD = typer.Option(None, "--record", metavar="FILE", help="Also write the record, for `jetfleet matrix --record FILE`.")

_BENCH = """Have a board measure a bundle that it has, beside its running apps: every candidate whose weights are there.

It needs `jetfleet serve`. The board does it in processes of least priority, on made-up frames, within the share of time that its apps give
to a trial. A board that is hot, in an update or at another bench refuses (device.busy), and ends a bench when it gets so. Ctrl-C ends the
waiting; the board ends by itself.

Examples:

    jetfleet device bench dock-1 --app reader --dir fleet

    jetfleet device bench dock-1 --model text:3 --wait 1200 --record dock-1.json
"""


def add_commands(device: typer.Typer) -> None:
    """Add it to the group `device`."""
    device.command("bench", help=_BENCH)(bench)


def bench(device: str = _NAME, app: str = typer.Option("", "--app", help="Measure the bundle that this app runs."),
          model: str = typer.Option("", "--model", metavar="NAME:VERSION", help="Measure this one, which an app runs or ran before."),
          wait: float = typer.Option(USUAL_LIMIT_S, "--wait", min=MIN_LIMIT_S, max=MAX_LIMIT_S,
                                     help="Seconds that the board may take; what it has measured by then counts."),
          record: Path | None = _RECORD, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    from jetfleet_contract.bench_orders import arguments_of
    from jetfleet_contract.messages import encode
    from jetfleet_host.commands.device import ask_board
    from jetfleet_host.durable import write_file
    from jetfleet_host.project import Project

    args = arguments_of(app, model, wait)
    if record is not None and (record.is_dir() or not record.absolute().parent.is_dir()):
        raise InputError("bench.record", f"no file can be written at {record}", where=str(record),
                         remedy="give a file in a folder that is there")
    project = Project.load(folder)
    with closing(open_database(project)) as database:
        with _waiting(f"{device} measures", quiet=as_json) as tell:
            answered = ask_board(database, project, device, "bench", args, wait + GRACE_S, tell)
        found = _record_of(database, project, answered, quiet=as_json)
    if model and f"{found.model}:{found.version}" != model:
        raise MalformedError("bench.other", f"the board was asked for {model} and answered for {found.model}:{found.version}", where=device)
    if record is not None:
        write_file(record.absolute(), encode(found))
    if as_json:
        typer.echo(json.dumps({"device": device, "command": answered.seq, "out": str(record) if record else None,
                               "record": found.to_tree()}, indent=2))
        return
    _show(device, found)
    if record is not None:
        typer.echo(f"the record is in {record}: jetfleet matrix --record {record}")


def _record_of(database: Database, project: Project, answered: CommandRow, *, quiet: bool) -> BenchRecord:
    """What the answer holds, or the upload that it names. MalformedError `bench.answer`, `message.*`: a board's bytes are not trusted."""
    from jetfleet_contract.bench_orders import BenchAnswer, check_answer
    from jetfleet_contract.bench_records import MAX_RECORD_BYTES, BenchRecord
    from jetfleet_contract.messages import decode
    from jetfleet_host.commands.device import awaited_upload
    from jetfleet_host.upload_files import UploadFiles

    answer = check_answer(decode(answered.body.encode(), BenchAnswer))
    if answer.record is not None:
        return answer.record
    row = awaited_upload(database, answered, GRACE_S, quiet=quiet)
    if row.blob != answer.blob:
        raise MalformedError("bench.answer", f"the board named another record than it gave: {row.blob[:12]}", where=row.device)
    return decode(UploadFiles(project.dir / "uploads").path(row.device, row.blob).read_bytes(), BenchRecord, limit=MAX_RECORD_BYTES)


def _show(device: str, record: BenchRecord) -> None:
    """A board must not steer this terminal."""
    from jetfleet_contract.bench_records import why_unusable
    from jetfleet_host.intake import clean

    typer.echo(clean(f"{record.model}:{record.version} on {device}: {record.board}, {record.cpu or record.arch}, {record.cores} cores, "
                     f"{record.conditions.text or 'power mode not told'}"))
    typer.echo(f"{'candidate':<36} {'p50 ms':>9} {'p95 ms':>9} {'runs':>5}  ran")
    for row in record.rows:
        why = why_unusable(record, row)
        figures = f"{row.p50_ms:>9.2f} {row.p95_ms:>9.2f} {row.runs:>5}" if row.runs else f"{'-':>9} {'-':>9} {'-':>5}"
        ran = f"{row.ran_in} on {row.provider}" if row.ran_in else ""
        typer.echo(clean(f"{row.candidate.name:<36} {figures}  {ran}{'; ' if ran and why else ''}{why}").rstrip())


@contextmanager
def _waiting(what: str, *, quiet: bool) -> Iterator[Callable[[], None] | None]:
    """A spinner with the time on a terminal's stderr, as what is called at each look."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(what, total=None)
        yield bar.refresh
