"""Commands to one board: device logs, explain, restart, bench; and device uploads, what it gave. `serve` sends and verifies, this asks."""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, TransportError
from jetfleet_host.commands import device_bench, secrets

from .database import open_database

if TYPE_CHECKING:
    from jetfleet_host.project import Project
    from jetfleet_host.store.database import Database
    from jetfleet_host.store.models import CommandRow, UploadRow

TAKEN_S = 10.0
POLL_S = 0.05
MAX_LOG_BYTES = 32 << 20
_PASSING = ("device.offline", "device.silent", "device.busy", "bench.interrupted", "broker.down")
"""Codes of what may be otherwise the next time."""

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_NAME = typer.Argument(..., metavar="DEVICE", help="The board's name.")
_WAIT = typer.Option(30.0, "--timeout", min=1.0, max=3600.0, help="Seconds to wait for the board.")

_LOGS = """Fetch the last lines of a board's log. It needs `jetfleet serve`.

Examples:

    jetfleet device logs dock-1 --dir fleet

    jetfleet device logs dock-1 --lines 2000 --out dock-1.log
"""
_EXPLAIN = """Ask a board why each of its apps runs the way it does: every candidate and the reason for its row.

Example: jetfleet device explain dock-1 --json
"""
_RESTART = """Restart one app's pipeline on a board; the model stays.

Example: jetfleet device restart dock-1 --app reader
"""
_UPLOADS = """List what a board gave to the host, newest first: logs, engines; and what was refused, with its code.

Example: jetfleet device uploads dock-1 --json
"""


def add_commands(device: typer.Typer) -> None:
    """Add these to the group `device`."""
    device.command("logs", help=_LOGS)(logs)
    device.command("explain", help=_EXPLAIN)(explain)
    device.command("restart", help=_RESTART)(restart)
    device.command("uploads", help=_UPLOADS)(uploads)
    device_bench.add_commands(device)
    secrets.add_commands(device)


def logs(device: str = _NAME, lines: int = typer.Option(500, "--lines", "-n", min=1, max=2000, help="How many, the newest."),
         out: Path | None = typer.Option(None, "--out", "-o", help="Write them to this file instead."),  # noqa: B008 - typer's way
         wait: float = _WAIT, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    from jetfleet_host.durable import write_file
    from jetfleet_host.intake import clean
    from jetfleet_host.upload_files import UploadFiles

    project = _project(folder)
    with closing(open_database(project)) as database:
        answered = ask_board(database, project, device, "logs", {"lines": str(lines)}, wait)
        row = awaited_upload(database, answered, wait, quiet=as_json)
    text = unpacked(UploadFiles(project.dir / "uploads").path(row.device, row.blob).read_bytes())
    if out is not None:
        write_file(out.absolute(), text.encode())
    if as_json:
        told = {"device": device, "command": answered.seq, "blob": row.blob, "bytes": row.size, "out": str(out) if out else None}
        typer.echo(json.dumps(told if out else {**told, "lines": text.splitlines()}, indent=2))
    elif out is not None:
        typer.echo(f"{len(text.splitlines())} lines of {device} are in {out}")
    else:
        typer.echo("\n".join(clean(line, 4000) for line in text.splitlines()))  # a board must not steer this terminal


def explain(device: str = _NAME, wait: float = _WAIT, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    import msgspec

    from jetfleet_contract.messages import decode
    from jetfleet_contract.policy import Explanation
    from jetfleet_host.intake import clean

    project = _project(folder)
    with closing(open_database(project)) as database:
        answered = ask_board(database, project, device, "explain", {}, wait)
    told = decode(answered.body.encode(), Explanation)
    if as_json:
        typer.echo(json.dumps({"device": device, **msgspec.to_builtins(told)}, indent=2))
        return
    for name, app in sorted(told.apps.items()):
        typer.echo(clean(f"{name}: {app.name} {app.version or '-'} {app.candidate} {app.phase} {app.reason}").rstrip())
        if name in told.engines:
            typer.echo(clean(f"  engine: {told.engines[name]}"))
        for other in told.judged:
            if other.app == name and other.act == "leave":
                typer.echo(clean(f"  engine {other.key[:12]} of {other.variant}, for {other.made_for}: not used: {other.detail} "
                                 f"[{other.code}]"))
        for row in told.choices[name].rows if name in told.choices else ():
            typer.echo(clean(f"  {row.candidate.name:<40} {row.verdict:<9} {row.reason}").rstrip())
    if not told.apps:
        typer.echo(f"{device} runs no app.")


def restart(device: str = _NAME, app: str = typer.Option(..., "--app", help="The app whose pipeline restarts."), wait: float = _WAIT,
            folder: Path = _DIR, as_json: bool = _JSON) -> None:
    project = _project(folder)
    with closing(open_database(project)) as database:
        answered = ask_board(database, project, device, "restart", {"app": app}, wait)
    typer.echo(json.dumps({"device": device, "app": app, "command": answered.seq, "detail": answered.detail}, indent=2)
               if as_json else answered.detail)


def uploads(device: str = _NAME, limit: int = typer.Option(50, min=1, max=1000, help="At most so many."), folder: Path = _DIR,
            as_json: bool = _JSON) -> None:
    from jetfleet_host.store import uploads as rows

    with closing(open_database(_project(folder))) as database, database.reading() as session:
        found = rows.newest(session, device, limit)
    if as_json:
        shown = ("at", "kind", "name", "state", "code", "size", "received", "command", "blob")
        typer.echo(json.dumps([{name: getattr(row, name) for name in shown} for row in found], indent=2))
        return
    for row in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.at))
        typer.echo(f"{when} {row.kind:<9} {row.name:<32} {row.received:>12} of {row.size:<12} {row.state} {row.code}".rstrip())
    if not found:
        typer.echo(f"{device} has given nothing yet.")


def unpacked(data: bytes) -> str:
    """A gzip of text, at most 32 MiB of it. MalformedError `logs.bad`, `logs.large`: a board's bytes are not trusted to be small."""
    stream = zlib.decompressobj(wbits=31)
    try:
        text = stream.decompress(data, MAX_LOG_BYTES)
    except zlib.error as error:
        raise MalformedError("logs.bad", f"the board's log is no gzip: {error}") from None
    if stream.unconsumed_tail:
        raise MalformedError("logs.large", f"the board's log is larger than {MAX_LOG_BYTES} bytes")
    return text.decode(errors="replace")


# --- talking to serve --------------------------------------------------------------------------------------------


def _project(folder: Path) -> Project:
    from jetfleet_host.project import Project

    return Project.load(folder)


def ask_board(database: Database, project: Project, device: str, op: str, args: dict[str, str], wait: float,
              tell: Callable[[], None] | None = None) -> CommandRow:
    """Leave a request and wait for the board's verified answer; `tell` is called at each look.

    Raises:
        TransportError: `serve.silent`, `device.offline`, `device.silent`, `device.busy`, `bench.interrupted`, `broker.down`.
        InputError: what else the board or `serve` answered.
    """
    from jetfleet_contract.topics import check_name
    from jetfleet_host.store import commands

    try:
        check_name("device", device)
    except MalformedError as error:
        raise InputError(error.code, error.what, remedy=error.remedy) from None
    with database.session() as session:
        number = commands.ask(session, device, op, args, wait, time.time())

    def now() -> CommandRow:
        with database.reading() as session:
            return commands.get(session, number)

    if _until(lambda: now().state != commands.ASKED, TAKEN_S) is None:
        with database.session() as session:
            withdrawn = commands.withdraw(session, number, time.time())
        if withdrawn:
            raise TransportError("serve.silent", "jetfleet serve did not take the request; it was withdrawn", where=str(project.dir),
                                 remedy=f"start it: jetfleet serve --dir {project.dir}")
    _until(lambda: now().state in commands.ENDED, wait + TAKEN_S, tell)
    row = now()
    if row.state == commands.SENT:
        raise TransportError("serve.silent", "jetfleet serve ended while the board was asked", where=str(project.dir),
                             remedy=f"start it again: jetfleet serve --dir {project.dir}")
    if row.code:
        raise _error(row)
    return row


def _error(row: CommandRow) -> JetfleetError:
    remedies = {"device.offline": "jetfleet devices shows who is connected; try again when it is",
                "device.silent": "is its clock right? See jetfleet events; then try again, or with a longer --timeout",
                "device.unknown": "jetfleet devices lists the boards", "app.unknown": "jetfleet device show lists its apps",
                "device.busy": "ask again later", "bench.interrupted": "ask again",
                "bench.timeout": "give it longer: --wait", "bench.no-bundle": "jetfleet device explain tells what it runs",
                "broker.down": "look at what serve says about its broker"}
    kind = TransportError if row.code in _PASSING else InputError
    return kind(row.code, row.detail or f"{row.op} was not done", where=row.device, remedy=remedies.get(row.code, ""))


def awaited_upload(database: Database, command: CommandRow, wait: float, *, quiet: bool) -> UploadRow:
    """Wait until what the command asked for has come.

    Raises:
        TransportError: `upload.silent`. InputError: why the host refused it.
    """
    from jetfleet_host.store import uploads as rows

    def now() -> UploadRow | None:
        with database.reading() as session:
            return rows.answering(session, command.device, command.seq or 0)

    def ended() -> bool:
        row = now()
        return row is not None and row.state != rows.OPEN

    with nullcontext() if quiet or not sys.stderr.isatty() else _bar(now) as tell:
        came = _until(ended, wait, tell)
    row = now()
    if came is None or row is None:
        raise TransportError("upload.silent", f"board {command.device} answered, but its {command.op} did not come in {wait:.0f} s",
                             where=command.device, remedy="it goes on by itself: jetfleet device uploads shows it; or a longer --timeout")
    if row.code:
        raise InputError(row.code, f"what board {row.device} offered was refused", where=row.name, remedy="see jetfleet.toml: [uploads]")
    return row


def _bar(now: Callable[[], UploadRow | None]) -> Any:
    """A progress bar on stderr, as a context whose value is called at each look."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    @contextmanager
    def shown() -> Any:
        with Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("receiving", total=None)

            def tell() -> None:
                row = now()
                if row is not None:
                    bar.update(task, total=row.size, completed=row.received)

            yield tell

    return shown()


def _until(done: Callable[[], bool], wait: float, tell: Callable[[], None] | None = None) -> bool | None:
    """True once `done`, None after `wait` seconds without."""
    deadline = time.monotonic() + wait
    while not done():
        if tell is not None:
            tell()
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_S)
    return True
