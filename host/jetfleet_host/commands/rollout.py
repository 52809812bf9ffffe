"""Commands `rollout start/status/pause/resume/abort`: they leave a request in the database, and `serve` carries it out."""

from __future__ import annotations

import json
import re
import secrets
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jetfleet_contract.errors import InputError, JetfleetError, OrderError, TransportError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from jetfleet_contract.rollout_records import Rollout
    from jetfleet_host.project import Project
    from jetfleet_host.store.database import Database
    from jetfleet_host.store.journal import Request

ANSWER_S = 15.0
POLL_S = 0.2

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_ID = typer.Argument(..., metavar="ROLLOUT", help="Id, as `rollout start` and `rollout status` print it.")
_APP = typer.Option(..., "--app", help="The app whose model is replaced.")
_MODEL = typer.Option(..., "--model", metavar="NAME:VERSION", help="A published model.")
_APPS = typer.Option(None, "--apps", help="apps.toml: sources, options, trial of each app. Needed for boards that have no such app yet.")
_DEVICES = typer.Option("", "--devices", help="Boards by name, with commas; the first ones are the canaries.")
_CLASS = typer.Option("", "--class", help="All boards of this device class.")
_WAIT = typer.Option(False, "--wait", help="Stay until it is over, with a progress bar; exit status 1 when it did not succeed.")

_START = """Bring a published model to boards, in waves, the canary first.

A wave is open until its boards have answered; then two gates decide: how many committed, and whether the new model is
slower than the old one was on the same boards. A breach stops the waves and gives the touched boards their old model again.

Examples:

    jetfleet rollout start --app reader --model ocr:1 --apps apps.toml --all --wait

    jetfleet rollout start --app reader --model ocr:2 --class cpu-x86 --canary 1 --wave 10 --hold 60

    jetfleet rollout start --app reader --model ocr:2 --devices dock-1,dock-2 --on-breach stop --json
"""
_STATUS = """Show all rollouts, or one with its boards and gates.

Examples:

    jetfleet rollout status

    jetfleet rollout status reader-2-1f0c --json
"""
_PAUSE = """Open no further wave until `resume`.

Example: jetfleet rollout pause reader-2-1f0c
"""
_RESUME = """Go on with a paused rollout.

Example: jetfleet rollout resume reader-2-1f0c
"""
_ABORT = """End a rollout; with --rollback its boards get what they had before.

Example: jetfleet rollout abort reader-2-1f0c --rollback
"""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="rollout", help="Bring models to boards in gated waves.", no_args_is_help=True)
    group.command("start", help=_START)(start)
    group.command("status", help=_STATUS)(status)
    group.command("pause", help=_PAUSE)(pause)
    group.command("resume", help=_RESUME)(resume)
    group.command("abort", help=_ABORT)(abort)
    app.add_typer(group)


def start(
    app: str = _APP,
    model: str = _MODEL,
    folder: Path = _DIR,
    apps: Path | None = _APPS,
    devices: str = _DEVICES,
    device_class: str = _CLASS,
    everybody: bool = typer.Option(False, "--all", help="Every board that has introduced itself."),
    canary: int = typer.Option(1, min=1, help="Boards in the first wave."),
    wave: int = typer.Option(0, min=0, help="Boards in each later wave; 0: all the rest at once."),
    max_bad: int = typer.Option(0, min=0, help="Boards of a wave that may refuse, roll back or fail."),
    min_success: float = typer.Option(1.0, min=0.0, max=1.0, help="Share of a wave that must commit."),
    max_latency_ratio: float = typer.Option(2.0, min=0.0, help="New p95 over old p95 that is still good; 0: no latency gate."),
    hold: float = typer.Option(30.0, min=0.0, help="Seconds to watch a wave before the next."),
    evidence: float = typer.Option(120.0, min=0.0, help="Seconds after the hold within which the gates must have come to a verdict."),
    on_undecided: str = typer.Option("pause", help="pause, pass or breach: what follows when they have not."),
    timeout: float = typer.Option(3600.0, min=1.0, help="Seconds until a board that does not answer counts as silent."),
    on_breach: str = typer.Option("rollback", help="rollback: touched boards get their old model again; stop: leave them."),
    wait: bool = _WAIT,
    as_json: bool = _JSON,
) -> None:
    from jetfleet_contract.gates import Gates
    from jetfleet_host.publish import find_bundle
    from jetfleet_host.rollout_plans import Bundle, Selection, read_apps, request_for

    if on_breach not in ("rollback", "stop"):
        raise InputError("rollout.policy", f"{on_breach[:40]!r} is no policy", where="--on-breach", remedy="rollback or stop")
    project = _project(folder)
    name, _, version = model.partition(":")
    if not version:
        raise InputError("rollout.model", f"{model[:80]!r} is no NAME:VERSION", where="--model", remedy="jetfleet models lists them")
    target = find_bundle(project, name, version)
    table = read_apps(apps) if apps else {}
    if apps and app not in table:
        raise InputError("apps.no-app", f"{apps} has no table [{app}]", where="--apps", remedy=f"it has: {', '.join(table) or 'nothing'}")
    if on_undecided not in ("pause", "pass", "breach"):
        raise InputError("rollout.policy", f"{on_undecided[:40]!r} is no policy", where="--on-undecided", remedy="pause, pass or breach")
    gates = Gates(max_bad=max_bad, min_success=min_success, max_p95_ratio=max_latency_ratio, hold_s=hold, wave_timeout_s=timeout,
                  evidence_s=evidence, on_undecided=on_undecided)  # type: ignore[arg-type]
    selection = Selection(tuple(d.strip() for d in devices.split(",") if d.strip()), device_class, everybody)
    with closing(_open(project)) as database:
        with database.reading() as session:
            request = request_for(
                session, app=app, bundle=Bundle(target.name, target.version, target.manifest), selection=selection, entry=table.get(app),
                canary=canary, wave_size=wave, gates=gates, on_breach=on_breach, nonce=secrets.token_hex(3))
        _ask(database, project, request.plan.id, request)
        if wait:
            _wait(database, request.plan.id, as_json)
            return
        sizes = " + ".join(str(len(w)) for w in request.plan.waves)
        _print(as_json, {"rollout": request.plan.id, "waves": [list(w) for w in request.plan.waves]},
               [f"Rollout {request.plan.id} has begun: {sizes} boards.", f"Follow it: jetfleet rollout status {request.plan.id}"])


def status(rollout: str = typer.Argument("", metavar="[ROLLOUT]", help="Id; without it, all of them."), folder: Path = _DIR,
           wait: bool = _WAIT, as_json: bool = _JSON) -> None:
    from jetfleet_host import views

    with closing(_open(_project(folder))) as database:
        if rollout and wait:
            _wait(database, rollout, as_json)
            return
        with database.reading() as session:
            states = [views.rollout(session, rollout)] if rollout else views.rollouts(session)
    if rollout:
        _print(as_json, views.rollout_view(states[0]), _lines(states[0]))
        return
    _print(as_json, [views.rollout_view(state) for state in states], [_line(state) for state in states] or ["No rollout yet."])


def pause(rollout: str = _ID, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    _control(folder, rollout, "pause", as_json)


def resume(rollout: str = _ID, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    _control(folder, rollout, "resume", as_json)


def abort(rollout: str = _ID, folder: Path = _DIR, as_json: bool = _JSON,
          rollback: bool = typer.Option(False, "--rollback", help="Give the touched boards what they had before.")) -> None:
    _control(folder, rollout, "abort", as_json, rollback=rollback)


def _control(folder: Path, rollout: str, op: str, as_json: bool, *, rollback: bool = False) -> None:
    from jetfleet_host import views
    from jetfleet_host.store.journal import ControlRequest

    project = _project(folder)
    with closing(_open(project)) as database:
        with database.reading() as session:
            views.rollout(session, rollout)
        _ask(database, project, rollout, ControlRequest(op, rollback))
        with database.reading() as session:
            state = views.rollout(session, rollout)
    _print(as_json, views.rollout_view(state), [_line(state)])


# --- talking to serve --------------------------------------------------------------------------------------------


def _project(folder: Path) -> Project:
    from jetfleet_host.project import Project

    return Project.load(folder)


def _open(project: Project) -> Database:
    from jetfleet_host.store.database import Database

    return Database.open(project.database_url)


def _ask(database: Database, project: Project, rollout: str, request: Request) -> None:
    """Leave the request and wait until `serve` has answered it.

    Raises:
        TransportError: `serve.silent`, and the request is withdrawn. JetfleetError: what `serve` answered.
    """
    from jetfleet_host.store import journal

    with database.session() as session:
        number = journal.ask(session, rollout, request, time.time())
    answered = _answer(database, number)
    if answered is None:
        with database.session() as session:
            withdrawn = journal.withdraw(session, number)
        answered = None if withdrawn else _answer(database, number)
    if answered is None:
        raise TransportError("serve.silent", "jetfleet serve did not answer; the request was withdrawn, unless it was being carried out",
                             where=str(project.dir), remedy=f"start it: jetfleet serve --dir {project.dir}; then see rollout status")
    code, text = answered
    if code:
        what, _, remedy = text.partition("\n")
        kind: type[JetfleetError] = OrderError if code == "rollout.order" else InputError
        raise kind(code, what, where=rollout, remedy=remedy)


def _answer(database: Database, request: int) -> tuple[str, str] | None:
    """The answer once it is there, None after a while."""
    from jetfleet_host.store import journal

    deadline = time.monotonic() + ANSWER_S
    while True:
        with database.reading() as session:
            answered = journal.answer_of(session, request)
        if answered is not None or time.monotonic() > deadline:
            return answered
        time.sleep(POLL_S / 4)


def _wait(database: Database, rollout: str, as_json: bool) -> None:
    """Follow a rollout to its end; exit status 1 when it did not reach all its boards."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from jetfleet_host import views

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("boards"),
                  TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(rollout, total=None)
        while True:
            with database.reading() as session:
                state = views.rollout(session, rollout)
            _advance(bar, task, state)
            if state.final:
                break
            time.sleep(POLL_S)
    _print(as_json, views.rollout_view(state), _lines(state))
    if state.phase != "done":
        raise typer.Exit(1)


def _advance(bar: Any, task: TaskID, state: Rollout) -> None:
    done = state.count({"committed", "refused", "rolled_back", "failed", "silent", "reverted", "stuck"})
    bar.update(task, total=len(state.devices), completed=done,
               description=f"{state.plan.id} {state.phase}, wave {state.wave + 1} of {len(state.plan.waves)}")


# --- text --------------------------------------------------------------------------------------------------------


def _line(state: Rollout) -> str:
    plan = state.plan
    counts = {name: state.count({name}) for name in
              ("committed", "issued", "waiting", "refused", "rolled_back", "failed", "silent", "reverting", "reverted", "stuck")}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    model = f"{plan.name}:{plan.version}"
    return f"{plan.id:<34} {plan.app:<14} {model:<22} {state.phase:<10} wave {state.wave + 1}/{len(plan.waves)}  {told}"


def _lines(state: Rollout) -> list[str]:
    lines = [_line(state)]
    if state.reason:
        lines.append(f"  {state.reason} [{state.code}]")
    lines += [f"  gate {v.gate:<8} wave {v.wave + 1}: {'passed' if v.passed else 'FAILED'}, {v.why}" for v in state.verdicts]
    for device, progress in sorted(state.devices.items(), key=lambda item: (item[1].wave, item[0])):
        detail = re.sub(r"\s+", " ", f"{progress.code} {progress.detail}").strip()
        lines.append(f"  {device:<28} wave {progress.wave + 1}  {progress.status:<12} {detail}".rstrip())
    return lines


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
