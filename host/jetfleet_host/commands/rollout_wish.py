"""From a plan file and the options over it to what a rollout is asked for; and the commands `rollout plan` and `rollout plan check`."""

from __future__ import annotations

import getpass
import json
import secrets
import socket
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from jetfleet_contract.errors import InputError

from .database import open_database

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from jetfleet_contract.trust import BundleTarget
    from jetfleet_host.plan_files import PlanFile
    from jetfleet_host.project import Project
    from jetfleet_host.rollout_plans import AppEntry, Wish
    from jetfleet_host.store.journal import StartRequest

_DIR = typer.Option(Path(), "--dir", "-d", help="Project folder, made by `jetfleet init`.")
_FILE = typer.Argument(..., metavar="FILE", help="The plan.")
_JSON = typer.Option(False, "--json", help="Print JSON.")

_PLAN = """Write and check plans of rollouts.

Examples:

    jetfleet rollout plan --example > plan.toml

    jetfleet rollout plan check plan.toml
"""
_CHECK = """Show what a plan would do, without doing it: its waves, who is in them, when, under which gates, and at most how many bytes.

Examples:

    jetfleet rollout plan check plan.toml --dir fleet

    jetfleet rollout plan check plan.toml --json
"""


def register(rollout: typer.Typer) -> None:
    """Add `plan` to the group `rollout`."""
    group = typer.Typer(name="plan", help=_PLAN, invoke_without_command=True)
    group.callback()(plan)
    group.command("check", help=_CHECK)(check)
    rollout.add_typer(group)


def plan(context: typer.Context, example: bool = typer.Option(False, "--example", help="Print a plan with every key."),
         as_json: bool = _JSON) -> None:
    if context.invoked_subcommand is not None:
        return
    from jetfleet_host.plan_files import EXAMPLE

    if not example:
        typer.echo(context.get_help())
        return
    typer.echo(json.dumps({"plan": EXAMPLE}) if as_json else EXAMPLE, nl=as_json)


def check(file: Path = _FILE, folder: Path = _DIR,
          allow_downgrade: bool = typer.Option(False, "--allow-downgrade", help="Boards may go back to an older release."),
          as_json: bool = _JSON) -> None:
    from jetfleet_host.deployments import check_deployable, check_releases
    from jetfleet_host.plan_files import read_plan
    from jetfleet_host.project import Project
    from jetfleet_host.publish import published
    from jetfleet_host.rollout_plans import request_for

    project = Project.load(folder)
    said = read_plan(file)
    releases = {target.manifest: (target.name, target.release) for target in published(project)}
    with closing(open_database(project)) as database, database.reading() as session:
        request = request_for(session, wish_of(project, session, said, downgrade=allow_downgrade), "check")
        for wave in request.plan.waves:
            for device in wave:
                check_deployable(session, request, device)
        check_releases(session, request, lambda bundle: releases.get(bundle, ("", 0)))
    typer.echo(json.dumps(_view(request), indent=2) if as_json else "\n".join(_lines(request)))


def with_options(said: PlanFile, options: dict[str, Any]) -> PlanFile:
    """The plan with the options that were given (not None) over it. `gates.KEY` and `select.KEY` go into these sections."""
    given = {key: value for key, value in options.items() if value is not None}
    for section in ("gates", "select"):
        inner = {key.partition(".")[2]: value for key, value in given.items() if key.startswith(f"{section}.")}
        said = msgspec.structs.replace(said, **{section: msgspec.structs.replace(getattr(said, section), **inner)})
    return msgspec.structs.replace(said, **{key: value for key, value in given.items() if "." not in key})


def wish_of(project: Project, session: Session, said: PlanFile, *, downgrade: bool) -> Wish:
    """What the plan asks for, with the published bundle that it names.

    Raises:
        InputError: `rollout.app`, `rollout.model`, `models.unknown`, `apps.*`.
    """
    from jetfleet_host import plan_files
    from jetfleet_host.rollout_plans import Bundle, Wish

    if not said.app:
        raise InputError("rollout.app", "no app is named", where="--app", remedy="give --app, or app = in the plan")
    target = _target(project, session, said.model)
    return Wish(
        said.app, Bundle(target.name, target.version, target.manifest), devices=said.select.devices, select=plan_files.selector_of(said),
        follow=said.select.follow, entry=_entry(said), canary=said.canary, waves=said.waves, wave_size=said.wave_size,
        gates=plan_files.gates_of(said), holds=plan_files.holds_of(said), on_breach=said.on_breach, windows=plan_files.windows_of(said),
        budget=plan_files.budget_of(said), overrides=plan_files.overrides_of(said), downgrade=downgrade, by=operator(),
        board_bytes=_board_bytes(project, target))


def operator() -> str:
    """Who sits here, as it is recorded with what they decide."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "somebody"
    return f"{name}@{socket.gethostname()}"[:120]


def _target(project: Project, session: Session, model: str) -> BundleTarget:
    from jetfleet_host import registry
    from jetfleet_host.publish import find_bundle

    if "@" in model:
        return registry.resolve(project, session, model, where="--model")
    name, _, version = model.partition(":")
    if not version:
        raise InputError("rollout.model", f"{model[:80]!r} is no NAME:VERSION or NAME@TAG", where="--model",
                         remedy="jetfleet models lists them")
    return find_bundle(project, name, version)


def _entry(said: PlanFile) -> AppEntry | None:
    from jetfleet_host.rollout_plans import read_apps

    if not said.apps:
        return None
    table = read_apps(Path(said.apps))
    if said.app not in table:
        raise InputError("apps.no-app", f"{said.apps} has no table [{said.app}]", where="--apps",
                         remedy=f"it has: {', '.join(table) or 'nothing'}")
    return table[said.app]


def _board_bytes(project: Project, target: BundleTarget) -> int:
    """What one board is planned to receive at most: all but the weights of the variants that it does not choose. Deltas make it less."""
    from jetfleet_host.publish import read_spec

    weights = [variant.size for variant in read_spec(project, target).variants]
    return sum(info.size for info in target.every().values()) - sum(weights) + max(weights, default=0)


def bundle_blobs(project: Project, manifest: str) -> set[str]:
    """Every blob that boards may be sent for this bundle, its deltas too; empty when it is published no more."""
    from jetfleet_contract.chunks import MAX_CHUNK_BYTES
    from jetfleet_host.assignments import with_pages
    from jetfleet_host.publish import served_blobs

    infos = served_blobs(project).get(manifest, {})
    return set(with_pages(infos, lambda blob: project.blobs.read(blob, 0, MAX_CHUNK_BYTES)))


def new_id() -> str:
    """Makes a rollout's id unique."""
    return secrets.token_hex(3)


def _view(request: StartRequest) -> dict[str, Any]:
    plan = request.plan
    boards = sum(len(wave) for wave in plan.waves)
    return {"app": plan.app, "model": f"{plan.name}:{plan.version}", "waves": [list(wave) for wave in plan.waves],
            "holds_s": [plan.hold_s(wave) for wave in range(len(plan.waves))], "windows": msgspec.to_builtins(plan.windows),
            "on_breach": plan.on_breach, "gates": {name: getattr(plan.gates, name) for name in plan.gates.__struct_fields__},
            "budget": msgspec.to_builtins(plan.budget),
            "board_bytes": plan.board_bytes, "planned_bytes": plan.board_bytes * boards, "follow": plan.follow,
            "overrides": msgspec.to_builtins(request.overrides), "keeps_settings": request.keep, "downgrade": request.spec.downgrade}


def _lines(request: StartRequest) -> list[str]:
    plan = request.plan
    boards = sum(len(wave) for wave in plan.waves)
    size = f"{plan.board_bytes * boards / 1e6:.1f} MB ({plan.board_bytes / 1e6:.2f} MB a board)"
    lines = [f"{plan.name}:{plan.version} as app {plan.app} to {boards} boards, at most {size}; on a breach: {plan.on_breach}"]
    for number, wave in enumerate(plan.waves):
        names = ", ".join(wave[:6]) + (f" ... ({len(wave) - 6} more)" if len(wave) > 6 else "")
        share = 100 * len(wave) / boards
        lines.append(f"  wave {number + 1:<3} {len(wave):>6} boards ({share:.0f} %), held {plan.hold_s(number):g} s: {names}")
    for window in plan.windows:
        days = " ".join(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"][day] for day in window.days) or "every day"
        lines.append(f"  opens  {window.hours[0]:02d}:00 to {window.hours[1]:02d}:00 UTC, {days}")
    if plan.budget.max_bytes or plan.budget.max_bytes_per_day:
        lines.append(f"  budget {plan.budget.max_bytes or 'no bound'} bytes in all, {plan.budget.max_bytes_per_day or 'no bound'} a day")
    if plan.follow:
        lines.append("  boards that come later join the last wave")
    return lines
