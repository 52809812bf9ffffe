"""Commands `rollout start/status/pause/resume/abort`: they leave a request in the database, and `serve` carries it out."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from jetfleet_contract.errors import InputError, JetfleetError, OrderError, TransportError

from . import rollout_wish
from .database import open_database
from .rollout_text import bytes_lines, line_of, lines_of
from .rollout_wish import bundle_blobs, new_id, operator, wish_of, with_options

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
_APP = typer.Option("", "--app", help="The app whose model is replaced.")
_MODEL = typer.Option("", "--model", metavar="MODEL", help="A published model: NAME:VERSION or NAME@TAG.")
_PLAN = typer.Option(None, "--plan", help="plan.toml: see `rollout plan --example`. Other options go over it.")
_APPS = typer.Option(None, "--apps", help="apps.toml: sources, options, trial of each app. Needed for boards that have no such app yet.")
_DEVICES = typer.Option("", "--devices", help="Boards by name, with commas; the first ones are the canaries.")
_CLASS = typer.Option([], "--class", metavar="GLOB", help="Boards of this device class; may be given again.")
_TAG = typer.Option([], "--tag", metavar="KEY=GLOB", help="Boards with this tag; given for several keys, all must fit.")
_SITE = typer.Option([], "--site", metavar="GLOB", help="Boards whose tag `site` fits.")
_NAME = typer.Option([], "--name", metavar="GLOB", help="Boards whose name fits.")
_EXCLUDE = typer.Option([], "--exclude", metavar="GLOB", help="But not these: a name, class=GLOB or TAG=GLOB.")
_DOWNGRADE = typer.Option(False, "--allow-downgrade", help="Boards may go back to an older release; who said so is recorded.")
_ACCEPT = typer.Option(False, "--accept", help="Overrule the gates of this wave, or the budget; who said so is recorded.")
_WAIT = typer.Option(False, "--wait", help="Stay until it is over, with a progress bar; exit status 1 when it did not succeed.")

_START = """Bring a published model to boards, in waves, the canary first.

A wave is open until its boards have answered; then gates decide: how many committed, whether the new model is slower than the old one
was on the same boards, and what else the plan asks. Each is judged at a stated confidence. A breach stops the waves and gives the touched
boards their old model again, or does what the plan says.

Examples:

    jetfleet rollout start --plan plan.toml --wait

    jetfleet rollout start --app reader --model ocr:1 --apps apps.toml --all --wait

    jetfleet rollout start --app reader --model ocr:2 --class cpu-x86 --canary 1 --wave 10 --hold 60

    jetfleet rollout start --app reader --model ocr:2 --devices dock-1,dock-2 --on-breach pause --json

    jetfleet rollout start --app reader --model ocr@production --site 'berlin*' --tag line=3 --exclude dock-9 --canary 5% --follow
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

It may have paused by itself: the gates were undecided or breached, or the budget was used up. Then it is judged again, unless --accept
says that a person has judged it.

Examples:

    jetfleet rollout resume reader-2-1f0c

    jetfleet rollout resume reader-2-1f0c --accept
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
    rollout_wish.register(group)
    app.add_typer(group)


def start(
    app: str = _APP,
    model: str = _MODEL,
    folder: Path = _DIR,
    plan: Path | None = _PLAN,
    apps: Path | None = _APPS,
    devices: str = _DEVICES,
    device_class: list[str] = _CLASS,
    tag: list[str] = _TAG,
    site: list[str] = _SITE,
    name: list[str] = _NAME,
    exclude: list[str] = _EXCLUDE,
    everybody: bool = typer.Option(False, "--all", help="Every board that has introduced itself."),
    follow: bool = typer.Option(False, "--follow", help="Boards that come later and fit join the last wave."),
    canary: str = typer.Option("", metavar="N|N%", help="Boards in the first wave; 1 unless said.", show_default=False),
    wave: str = typer.Option("", metavar="N|N%", help="Boards in each later wave; all the rest at once unless said.", show_default=False),
    max_bad: int | None = typer.Option(None, min=0, help="Boards of a wave that may refuse, roll back or fail; 0, unless "
                                       "--min-success allows for some."),
    min_success: float | None = typer.Option(None, min=0.0, max=1.0, help="Share of a wave that must commit; 1 unless said."),
    max_latency_ratio: float | None = typer.Option(None, min=0.0, help="New p95 over old p95 that is still good, 2 unless said; 0: no such "
                                                   "gate."),
    hold: float | None = typer.Option(None, min=0.0, help="Seconds to watch a wave before the next; 30 unless said."),
    evidence: float | None = typer.Option(None, min=0.0, help="Seconds after the hold within which the gates must have come to a verdict; "
                                          "120 unless said."),
    on_undecided: str | None = typer.Option(None, help="pause (unless said), pass or breach: what follows when they have not."),
    timeout: float | None = typer.Option(None, min=1.0, help="Seconds until a board that does not answer counts as silent; 3600 unless "
                                         "said."),
    on_breach: str | None = typer.Option(None, help="rollback (unless said): touched boards get their old model again; abort: they keep "
                                         "what they have; pause: a person decides."),
    allow_downgrade: bool = _DOWNGRADE,
    wait: bool = _WAIT,
    as_json: bool = _JSON,
) -> None:
    from jetfleet_host.plan_files import PlanFile, read_plan
    from jetfleet_host.rollout_plans import request_for

    _check_word(on_breach, ("rollback", "abort", "pause", "stop"), "--on-breach")
    _check_word(on_undecided, ("pause", "pass", "breach"), "--on-undecided")
    said = with_options(read_plan(plan) if plan else PlanFile(), {
        "app": app or None, "model": model or None, "apps": str(apps) if apps else None, "canary": _size(canary, "--canary"),
        "wave_size": _size(wave, "--wave"), "waves": () if wave else None, "hold": hold, "timeout": timeout, "on_breach": on_breach,
        "gates.max_bad": max_bad, "gates.min_success": min_success, "gates.max_p95_ratio": max_latency_ratio, "gates.evidence": evidence,
        "gates.on_undecided": on_undecided, "select.follow": follow or None,
        **_selection(devices, device_class, tag, site, name, exclude, everybody)})
    project = _project(folder)
    with closing(open_database(project)) as database:
        with database.reading() as session:
            request = request_for(session, wish_of(project, session, said, downgrade=allow_downgrade), new_id())
        _ask(database, project, request.plan.id, request)
        if wait:
            _wait(database, request.plan.id, as_json)
            return
        sizes = " + ".join(str(len(w)) for w in request.plan.waves)
        _print(as_json, {"rollout": request.plan.id, "waves": [list(w) for w in request.plan.waves]},
               [f"Rollout {request.plan.id} has begun: {sizes} boards.", f"Follow it: jetfleet rollout status {request.plan.id}"])


def _check_word(word: str | None, known: tuple[str, ...], where: str) -> None:
    if word is not None and word not in known:
        raise InputError("rollout.policy", f"{word[:40]!r} is no policy", where=where, remedy=" or ".join(known[:3]))


def _size(text: str, where: str) -> int | str | None:
    """A count or a share; None when the option was not given."""
    from jetfleet_host.plan_files import boards_of

    if not text:
        return None
    size: int | str = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
    try:
        boards_of(size, 1)
    except ValueError as error:
        raise InputError("rollout.size", str(error), where=where, remedy="for instance 5, or 10%") from None
    return size


def _selection(devices: str, classes: list[str], words: list[str], site: list[str], name: list[str], exclude: list[str],
               everybody: bool) -> dict[str, Any]:
    """The boards that options mean; options that choose boards take the place of the plan's choice."""
    named = tuple(d.strip() for d in devices.split(",") if d.strip())
    chosen = bool(named), bool(classes or words or site or name), everybody
    if sum(chosen) > 1:
        raise InputError("rollout.devices", "say which boards in one way: by --devices, or by what they are, or --all", where="--devices",
                         remedy="for instance --all")
    tags: dict[str, list[str]] = {}
    for word in words:
        key, equals, glob = word.partition("=")
        if not (key and equals and glob):
            raise InputError("rollout.tag", f"{word[:80]!r} is no KEY=GLOB", where="--tag", remedy="for instance --tag line=3")
        tags.setdefault(key, []).append(glob)
    options: dict[str, Any] = {"select.exclude": tuple(exclude) or None}
    if any(chosen):
        options |= {"select.devices": named, "select.classes": tuple(classes), "select.site": tuple(site), "select.names": tuple(name),
                    "select.tags": {key: tuple(globs) for key, globs in tags.items()}, "select.everybody": everybody}
    return options


def status(rollout: str = typer.Argument("", metavar="[ROLLOUT]", help="Id; without it, all of them."), folder: Path = _DIR,
           wait: bool = _WAIT, as_json: bool = _JSON) -> None:
    from jetfleet_host import views

    project = _project(folder)
    with closing(open_database(project)) as database:
        if rollout and wait:
            _wait(database, rollout, as_json)
            return
        with database.reading() as session:
            if not rollout:
                states = views.rollouts(session)
                lines = [line_of(state) for state in states] or ["No rollout yet."]
                _print(as_json, [views.rollout_view(state) for state in states], lines)
                return
            state = views.rollout(session, rollout)
            counted = views.rollout_bytes(session, state, bundle_blobs(project, state.plan.bundle))
    _print(as_json, {**views.rollout_view(state), "bytes": msgspec.to_builtins(counted)}, [*lines_of(state), *bytes_lines(state, counted)])


def pause(rollout: str = _ID, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    _control(folder, rollout, as_json, "pause")


def resume(rollout: str = _ID, folder: Path = _DIR, as_json: bool = _JSON, accept: bool = _ACCEPT) -> None:
    _control(folder, rollout, as_json, "resume", accept=accept, by=operator())


def abort(rollout: str = _ID, folder: Path = _DIR, as_json: bool = _JSON,
          rollback: bool = typer.Option(False, "--rollback", help="Give the touched boards what they had before.")) -> None:
    _control(folder, rollout, as_json, "abort", rollback=rollback)


def _control(folder: Path, rollout: str, as_json: bool, op: str, **more: Any) -> None:
    from jetfleet_host import views
    from jetfleet_host.store.journal import ControlRequest

    project = _project(folder)
    with closing(open_database(project)) as database:
        with database.reading() as session:
            views.rollout(session, rollout)
        _ask(database, project, rollout, ControlRequest(op, **more))
        with database.reading() as session:
            state = views.rollout(session, rollout)
    _print(as_json, views.rollout_view(state), [line_of(state)])


# --- talking to serve --------------------------------------------------------------------------------------------


def _project(folder: Path) -> Project:
    from jetfleet_host.project import Project

    return Project.load(folder)


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
    _print(as_json, views.rollout_view(state), lines_of(state))
    if state.phase != "done":
        raise typer.Exit(1)


def _advance(bar: Any, task: TaskID, state: Rollout) -> None:
    done = state.count({"committed", "refused", "rolled_back", "failed", "silent", "reverted", "stuck"})
    bar.update(task, total=len(state.devices), completed=done,
               description=f"{state.plan.id} {state.phase}, wave {state.wave + 1} of {len(state.plan.waves)}")


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
