"""Commands that look at the fleet: devices, device show, top, latency, events. They only read the database."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from jetfleet_contract.errors import InputError

from . import board_tags
from .database import open_database, reading
from .device import add_commands

if TYPE_CHECKING:
    from rich.table import Table

    from jetfleet_host.store.database import Database
    from jetfleet_host.views import TopRow

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_NAME = typer.Argument(..., metavar="DEVICE", help="The board's name.")
_BY = typer.Option("device", "--by", help="device, class or version.")

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

_DEVICES = """List the boards: class, state, apps and what they run.

Examples:

    jetfleet devices --dir fleet

    jetfleet devices --json
"""
_SHOW = """Show all that is known of one board: inventory, what it should run, reports, alarms.

Example: jetfleet device show dock-1 --json
"""
_TOP = """Watch every app of every board: version, variant, frame rate, latency, age, drops, heat. Ctrl-C ends it.

Latency is the stage `total` (frame captured to result), merged exactly over the last --span seconds.

Examples:

    jetfleet top --dir fleet

    jetfleet top --once --json
"""
_LATENCY = """Latency distributions by board, class or version. Quantiles come from merged sketches, within 1 % of the exact ones.

Examples:

    jetfleet latency --by class

    jetfleet latency --by version --stage infer --since 1h --json
"""
_EVENTS = """What happened: reports of updates, alarms, rollouts, refused messages. The newest come last.

Examples:

    jetfleet events --since 1h

    jetfleet events --follow
"""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    device = typer.Typer(name="device", help="One board.", no_args_is_help=True)
    device.callback()(_device_group)
    device.command("show", help=_SHOW)(show)
    add_commands(device)
    group = typer.Typer(name="devices", help=_DEVICES, invoke_without_command=True)
    group.callback()(devices)
    board_tags.register(group)
    app.add_typer(group)
    app.add_typer(device)
    app.command("top", help=_TOP)(top)
    app.command("latency", help=_LATENCY)(latency)
    app.command("events", help=_EVENTS)(events)


def _device_group() -> None:
    """Keep `show` a subcommand: typer would make a group's only command the group itself."""


def devices(context: typer.Context, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    if context.invoked_subcommand is not None:
        return
    from jetfleet_host import views

    with reading(folder) as session:
        rows = views.devices(session)
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo("No board has introduced itself yet. Start jetfleet-agent on one, with this project's device/root.json.")
        return
    table = table_of("device", "class", "state", "seen", "tags", "apps", "windows", "gaps")
    for row in rows:
        apps = "\n".join(f"{a.app} {a.version or '-'} {a.candidate} {a.phase}".strip() for a in row.apps) or "-"
        words = " ".join(f"{key}={value}" for key, value in row.tags.items())
        table.add_row(row.device, row.device_class, _state(row.online), _ago(row.last_seen), words, apps, str(row.windows), str(row.gaps))
    print_table(table)


def show(device: str = _NAME, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    from jetfleet_host import views

    with reading(folder) as session:
        detail = views.device_detail(session, device)
    if as_json:
        print_json(detail)
        return
    typer.echo(f"{device}  {detail['device_class']}  {'online' if detail['online'] else 'offline'}, seen {_ago(detail['last_seen'])} ago")
    typer.echo(f"  board {detail['board']}, agent {detail['agent_version']}, session {detail['session']}, deployment {detail['wanted']}")
    typer.echo(f"  key   {detail['key']}")
    typer.echo(f"  telemetry: {detail['windows']} windows, {detail['gaps']} missing, {detail['late']} late, {detail['duplicates']} twice")
    for backend in detail["capability"].get("backends", []):
        what = backend.get("version") or f"missing: {backend.get('missing', '')}"
        typer.echo(f"  {backend['name']:<12} {what}  {' '.join(backend.get('precisions', []))}".rstrip())
    for app in detail["apps"]:
        typer.echo(f"  app {app['app']}: {app['version'] or '-'} {app['candidate']} {app['phase']} {app['reason']}".rstrip())
    for report in reversed(detail["reports"]):
        typer.echo(f"  {_clock(report['received'])} {report['app']} {report['from_version'] or '-'} -> {report['version']}: "
                   f"{report['outcome'] or report['phase']} {report['code']} {report['detail']}".rstrip())
    for alarm in detail["alarms"]:
        typer.echo(f"  ALARM {_clock(alarm['last'])} {alarm['code']} x{alarm['count']}: {alarm['what']}")


def top(folder: Path = _DIR, once: bool = typer.Option(False, "--once", help="Print one table and end."),
        span: float = typer.Option(30.0, min=1.0, help="Seconds of telemetry that a row covers."),
        every: float = typer.Option(1.0, min=0.2, help="Seconds between two looks."), as_json: bool = _JSON) -> None:
    from jetfleet_host import views
    from jetfleet_host.project import Project

    with closing(open_database(Project.load(folder))) as database:
        if once or as_json:
            with database.reading() as session:
                rows = views.top(session, time.time(), span)
            if as_json:
                print_json(rows)
            else:
                print_table(_top_table(rows))
            return
        _watch(database, span, every)


def _watch(database: Database, span: float, every: float) -> None:
    from rich.live import Live

    from jetfleet_host import views

    with Live(auto_refresh=False, screen=False) as live:
        while True:
            with database.reading() as session:
                rows = views.top(session, time.time(), span)
            live.update(_top_table(rows), refresh=True)
            time.sleep(every)


def latency(by: str = _BY, stage: str = typer.Option("total", help="wait, capture, pre, infer, decode, sink, total or age."),
            since: str = typer.Option("10m", help="How far back: 30s, 10m, 2h, 1d."), app: str = typer.Option("", help="Only this app."),
            folder: Path = _DIR, as_json: bool = _JSON) -> None:
    from jetfleet_host import views

    grouping = next((known for known in get_args(views.By) if known == by), None)
    if grouping is None:
        raise InputError("latency.by", f"{by[:40]!r} is no grouping", where="--by", remedy="device, class or version")
    began = time.time() - seconds(since)
    with reading(folder) as session:
        rows = views.latency(session, by=grouping, stage=stage, since=began, app=app)
        known = views.stages(session, began)
    if not rows and known and stage not in known:
        raise InputError("latency.stage", f"no board has sent a stage {stage[:40]!r}", where="--stage",
                         remedy=f"there are: {', '.join(known)}")
    if as_json:
        print_json(rows)
        return
    if not rows:
        typer.echo(f"No telemetry in the last {since}.")
        return
    table = table_of(by, "app", "boards", "frames", "p50 ms", "p95 ms", "p99 ms", "mean ms", "max ms")
    for row in rows:
        table.add_row(row.group, row.app, str(row.devices), str(row.frames),
                      *(f"{ms:.2f}" for ms in (row.p50_ms, row.p95_ms, row.p99_ms, row.mean_ms, row.max_ms)))
    print_table(table)


def events(since: str = typer.Option("1h", help="How far back: 30s, 10m, 2h, 1d."), device: str = typer.Option("", help="Only this board."),
           limit: int = typer.Option(200, min=1, max=10_000, help="At most so many, the newest."),
           follow: bool = typer.Option(False, "--follow", "-f", help="Stay, and print what comes."),
           folder: Path = _DIR, as_json: bool = _JSON) -> None:
    from jetfleet_host import views
    from jetfleet_host.project import Project

    began = time.time() - seconds(since)
    with closing(open_database(Project.load(folder))) as database:
        with database.reading() as session:
            found = views.events(session, began, limit, device)
        if as_json and not follow:
            print_json(found)
            return
        while True:
            for event in found:
                began = max(began, event.at)
                code = f" [{event.code}]" if event.code else ""
                line = f"{_clock(event.at)} {event.kind:<8} {event.device:<20} {event.what}{code}"
                typer.echo(json.dumps(_plain(event)) if as_json else line)
            if not follow:
                return
            time.sleep(0.5)
            with database.reading() as session:
                found = views.events(session, began, limit, device)


def seconds(text: str) -> float:
    """``30s``, ``10m``, ``2h``, ``1d`` in seconds. InputError `time.bad`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd])", text.strip())
    if not match:
        raise InputError("time.bad", f"{text[:40]!r} is no length of time", where="--since", remedy="for instance 30s, 10m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


# --- reading and printing ----------------------------------------------------------------------------------------


def _top_table(rows: Sequence[TopRow]) -> Table:
    table = table_of("device", "class", "app", "version", "variant", "fps", "p50", "p95", "p99", "age", "drops", "cpu %", "MB", "C")
    for row in rows:
        measured = [f"{ms:.1f}" if row.done else "-" for ms in (row.p50_ms, row.p95_ms, row.p99_ms, row.age_p95_ms)]
        drops = " ".join(f"{cause} {count}" for cause, count in sorted(row.drops.items()) if count) or "0"
        style = "" if row.online else "dim"
        table.add_row(row.device, row.device_class, row.app or "-", row.version or "-", row.candidate or row.phase or "-", f"{row.fps:.1f}",
                      *measured, drops, *(_figure(value) for value in (row.cpu_pct, row.rss_mb, row.temperature_c)), style=style)
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def table_of(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "default", overflow="fold")
    return table


def print_table(table: Table) -> None:
    from rich.console import Console

    console = Console()
    width = None if console.is_terminal else 200  # a pipe has no width: do not cut what a script or a log should show
    Console(width=width).print(table)


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(_plain(value), indent=2))


def _state(online: bool) -> str:
    return "[green]online[/]" if online else "[red]offline[/]"


def _ago(at: float) -> str:
    passed = max(0.0, time.time() - at)
    unit, size = next((u, s) for u, s in (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0)) if passed >= s or u == "s")
    return f"{passed / size:.0f}{unit}"


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
