"""Commands `experiment start/status/observe/promote/abort`. The rows that they leave are taken up by `serve`."""

from __future__ import annotations

import json
import math
import secrets
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jetfleet_contract.errors import InputError, MalformedError, OrderError, TransportError

from .database import open_database

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from jetfleet_contract.experiments import Experiment, Plan, Version
    from jetfleet_contract.trust import BundleTarget
    from jetfleet_host.project import Project

ANSWER_S = 15.0
POLL_S = 0.1
MAX_OBSERVATIONS = 1_000_000

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_JSON = typer.Option(False, "--json", help="Print JSON.")
_ID = typer.Argument(..., metavar="EXPERIMENT", help="Id, as `experiment start` and `experiment status` print it.")
_A = typer.Option(..., "--a", metavar="MODEL", help="NAME:VERSION or NAME@TAG of arm a, usually what runs now.")
_B = typer.Option(..., "--b", metavar="MODEL", help="NAME:VERSION or NAME@TAG of arm b.")
_FILE = typer.Option(None, "--file", help='JSON lines of {"device": "...", "value": 0.93}, or - for standard input.')

_START = """Compare two published versions on two halves of the boards that run an app, and promote the better one.

Boards are drawn by lot, each device class by itself. Both versions are rolled out to their boards and stay there until the test
decides or its time is over. The test looks several times and keeps its false-alarm rate all the same; a board counts once, however
many frames it saw.

Examples:

    jetfleet experiment start --app reader --a ocr:1 --b ocr:2 --split 50 --metric p99 --hours 24

    jetfleet experiment start --app reader --a ocr@production --b ocr:2 --metric f1 --if-undecided keep
"""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="experiment", help="Compare two versions on the fleet, by lot.", no_args_is_help=True)
    group.command("start", help=_START)(start)
    group.command("status")(status)
    group.command("observe")(observe)
    group.command("promote")(promote)
    group.command("abort")(abort)
    app.add_typer(group)


def start(
    app: str = typer.Option(..., "--app", help="The app whose versions are compared; its boards must run it already."),
    a: str = _A,
    b: str = _B,
    split: float = typer.Option(50.0, min=1.0, max=99.0, help="Percent of the boards that get b."),
    metric: str = typer.Option("p99", help="p50, p95, p99 (frame to result, ms), or a figure that is observed: f1, a KPI."),
    better: str = typer.Option("", help="lower or higher is better (default: lower for p50, p95, p99, else higher)."),
    hours: float = typer.Option(24.0, min=0.001, help="How long to look at most."),
    looks: int = typer.Option(10, min=1, max=100, help="How often to look, evenly."),
    alpha: float = typer.Option(0.05, help="False-alarm rate over all looks together."),
    min_boards: int = typer.Option(3, min=1, help="Boards with a value in each arm before a look may judge."),
    if_undecided: str = typer.Option("a", help="a, b or keep: what to do when the last look shows no difference."),
    promotes: str = typer.Option("verdict", help="verdict: the winner is rolled out by itself; operator: by `experiment promote`."),
    device_class: str = typer.Option("", "--class", help="Only boards of this device class."),
    folder: Path = _DIR,
    as_json: bool = _JSON,
) -> None:
    import msgspec

    from jetfleet_contract import cohorts, experiments
    from jetfleet_host import registry
    from jetfleet_host.store import experiments as rows

    project = _project(folder)
    with closing(open_database(project)) as database, database.session() as session:
        arms = [registry.resolve(project, session, text, where=where) for text, where in ((a, "--a"), (b, "--b"))]
        strata = _boards(session, app, device_class)
        other = rows.on_boards(session, app, strata)
        if other is not None:
            raise InputError("experiment.busy", f"experiment {other.plan.id} compares versions of {app} on these boards", where="--app",
                             remedy=f"wait for it, or: jetfleet experiment abort {other.plan.id}")
        made = f"{app[:24]}-ab-{secrets.token_hex(3)}"
        wanted = {
            "id": made, "app": app, "a": _version(arms[0]), "b": _version(arms[1]), "arms": cohorts.draw(strata, split / 100.0, made),
            "strata": strata, "metric": metric, "better": better or ("lower" if metric in experiments.LATENCIES else "higher"),
            "alpha": alpha, "looks": looks, "duration_s": hours * 3600.0, "min_boards": min_boards, "if_undecided": if_undecided,
            "promotes": promotes}
        plan = _checked(wanted)
        rows.add(session, experiments.Experiment(plan), time.time())
    sizes = {arm: len(plan.cohort(arm)) for arm in cohorts.ARMS}
    _print(as_json, {"experiment": plan.id, "arms": plan.arms, "a": msgspec.to_builtins(plan.a), "b": msgspec.to_builtins(plan.b)},
           [f"Experiment {plan.id}: {a} on {sizes['a']} boards, {b} on {sizes['b']}, by {plan.metric}, {plan.better} is better.",
            f"A running `jetfleet serve` takes it up. Follow it: jetfleet experiment status {plan.id} --dir {folder}"])


def _checked(wanted: dict[str, Any]) -> Plan:
    import msgspec

    from jetfleet_contract.experiments import Plan, check_plan

    try:
        return check_plan(msgspec.convert(msgspec.to_builtins(wanted), Plan))
    except msgspec.ValidationError as error:
        raise InputError("experiment.plan", f"an option does not fit: {error}", where="experiment start",
                         remedy="--better is lower or higher; --if-undecided is a, b or keep; --promotes is verdict or operator") from None
    except MalformedError as error:
        raise InputError(error.code, error.what, where="experiment start",
                         remedy=error.remedy or "give more boards, or other options") from None


def _boards(session: Session, app: str, device_class: str) -> dict[str, str]:
    """Class of each board whose deployment has the app. InputError `experiment.no-boards`."""
    from sqlalchemy import select

    from jetfleet_host.store import journal
    from jetfleet_host.store.models import Device

    boards = {}
    for row in session.scalars(select(Device).order_by(Device.device)):
        deployment = journal.deployment_of(session, row.device)
        has = deployment is not None and any(spec.app == app for spec in deployment.apps)
        if has and device_class in ("", row.device_class):
            boards[row.device] = row.device_class
    if not boards:
        raise InputError("experiment.no-boards", f"no board{f' of class {device_class[:63]}' if device_class else ''} has app {app[:63]!r}",
                         where="--app", remedy="roll it out first: jetfleet rollout start")
    return boards


def _version(target: BundleTarget) -> Version:
    from jetfleet_contract.experiments import Version

    return Version(target.name, target.version, target.manifest)


def status(experiment: str = typer.Argument("", metavar="[EXPERIMENT]", help="Id; without it, all of them."), folder: Path = _DIR,
           as_json: bool = _JSON) -> None:
    """Show all experiments, or one with its looks.

    Example: jetfleet experiment status reader-ab-1f0c2a --dir fleet
    """
    from jetfleet_host.store import experiments as rows

    with closing(open_database(_project(folder))) as database, database.reading() as session:
        states = [_known(session, experiment)] if experiment else rows.newest(session)
    if experiment:
        _print(as_json, _view(states[0]), _lines(states[0]))
        return
    _print(as_json, [_view(state) for state in states], [_line(state) for state in states] or ["No experiment yet."])


def observe(
    name: str = typer.Argument(..., metavar="NAME", help="The figure's name: f1, or your KPI's."),
    app: str = typer.Option(..., "--app", help="The app that it is about."),
    device: str = typer.Option("", "--device", help="The board, with --value."),
    value: float | None = typer.Option(None, "--value", help="One value."),
    file: Path | None = _FILE,
    folder: Path = _DIR,
    as_json: bool = _JSON,
) -> None:
    """Tell jetfleet a figure that it cannot measure: the F1 of a labelled hour, rejects a shift.

    Examples:

        jetfleet experiment observe f1 --app reader --device dock-1 --value 0.93 --dir fleet

        jetfleet experiment observe rejects --app reader --file shift.jsonl --dir fleet
    """
    from jetfleet_contract.topics import check_name
    from jetfleet_host.store import experiments as rows
    from jetfleet_host.store.models import Device

    try:
        check_name("figure", name)
        check_name("app", app)
    except MalformedError as error:
        raise InputError(error.code, error.what, remedy=error.remedy) from None
    if (file is None) == (value is None or not device):
        raise InputError("observe.values", "give --device and --value, or --file", where="experiment observe", remedy="see --help")
    values = _read_values(file) if file is not None else [(device, float(value or 0.0))]
    with closing(open_database(_project(folder))) as database, database.session() as session:
        for board, figure in values:
            if session.get(Device, board) is None:
                raise InputError("device.unknown", f"no board {board[:80]!r} has introduced itself", remedy="jetfleet devices lists them")
            if not math.isfinite(figure):
                raise InputError("observe.values", f"the value of {board} is not finite", where=str(file or "--value"),
                                 remedy="give a number; nothing was stored")
            rows.observe(session, board, app, name, figure, time.time())
    _print(as_json, {"name": name, "values": len(values)}, [f"{len(values)} values of {name} are stored."])


def _read_values(file: Path) -> list[tuple[str, float]]:
    import sys

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
        rows = [json.loads(line) for line in text.splitlines()[:MAX_OBSERVATIONS] if line.strip()]
        return [(str(row["device"]), float(row["value"])) for row in rows]
    except OSError as error:
        raise InputError("observe.values", f"cannot read {file}: {error.strerror}", where="--file",
                         remedy="give the path of a file of JSON lines, or - for standard input") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("observe.values", f"a line of {file} is wrong: {type(error).__name__} {error}", where="--file",
                         remedy='each line is {"device": "NAME", "value": NUMBER}; nothing was stored') from None


def promote(experiment: str = _ID, arm: str = typer.Option(..., "--arm", help="a or b."), folder: Path = _DIR,
            as_json: bool = _JSON) -> None:
    """Decide by hand: the other boards get this arm's version.

    Example: jetfleet experiment promote reader-ab-1f0c2a --arm b --dir fleet
    """
    if arm not in ("a", "b"):
        raise InputError("experiment.arm", f"{arm[:40]!r} is no arm", where="--arm", remedy="a or b")
    _ask(folder, experiment, f"promote {arm}", as_json)


def abort(experiment: str = _ID, folder: Path = _DIR, as_json: bool = _JSON) -> None:
    """End an experiment; every board stays as it is.

    Example: jetfleet experiment abort reader-ab-1f0c2a --dir fleet
    """
    _ask(folder, experiment, "abort", as_json)


def _ask(folder: Path, experiment: str, what: str, as_json: bool) -> None:
    """Leave a request and wait until `serve` has answered it. TransportError `serve.silent`; OrderError when it does not fit."""
    from jetfleet_host.store import experiments as rows

    project = _project(folder)
    with closing(open_database(project)) as database:
        with database.session() as session:
            _known(session, experiment)
            rows.ask(session, experiment, what)
        deadline, answer = time.monotonic() + ANSWER_S, None
        while answer is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
            with database.reading() as session:
                answer = rows.answer_of(session, experiment)
        if answer is None:
            with database.session() as session:
                rows.answer(session, experiment, "")
            raise TransportError("serve.silent", "jetfleet serve did not answer; the request was withdrawn", where=str(project.dir),
                                 remedy=f"start it: jetfleet serve --dir {project.dir}")
        if answer:
            code, _, sentence = answer.partition("\n")
            raise OrderError(code, sentence, where=experiment, remedy="see: jetfleet experiment status")
        with database.reading() as session:
            state = _known(session, experiment)
    _print(as_json, _view(state), [_line(state)])


def _known(session: Session, experiment: str) -> Experiment:
    from jetfleet_host.store import experiments as rows

    state = rows.load(session, experiment)
    if state is None:
        raise InputError("experiment.unknown", f"there is no experiment {experiment[:80]!r}",
                         remedy="jetfleet experiment status lists them")
    return state


def _view(state: Experiment) -> dict[str, Any]:
    import msgspec

    view: dict[str, Any] = msgspec.to_builtins(state)
    return {**view, "experiment": state.plan.id, "final": state.final}


def _line(state: Experiment) -> str:
    plan = state.plan
    versions = f"{plan.a.name}:{plan.a.version} | {plan.b.name}:{plan.b.version}"
    return (f"{plan.id:<30} {plan.app:<14} {versions:<30} {plan.metric:<8} {state.phase:<10} "
            f"{len(plan.cohort('a'))} | {len(plan.cohort('b'))} boards, look {len(state.looks)}/{plan.looks}"
            f"{f', winner {state.winner}' if state.winner else ''}")


def _lines(state: Experiment) -> list[str]:
    lines = [_line(state)]
    if state.reason:
        lines.append(f"  {state.reason}{f' [{state.code}]' if state.code else ''}")
    lines.append(f"  {'look':>4} {'hours':>7} {'boards a | b':>13} {'b against a':>12} {'p':>8} {'needed':>8}  winner")
    lines += [f"  {look.number:>4} {look.at_s / 3600:>7.2f} {f'{look.boards_a} | {look.boards_b}':>13} {look.effect:>12.4f} {look.p:>8.4f} "
              f"{look.needed:>8.4f}  {look.winner or ('-' if look.needed else 'too few boards')}" for look in state.looks]
    return lines


def _project(folder: Path) -> Project:
    from jetfleet_host.project import Project

    return Project.load(folder)


def _print(as_json: bool, value: Any, lines: list[str]) -> None:
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(lines))
