"""From what a user asks (`rollout start`) to a plan that the rollout machine can run: boards, waves, apps.toml.

Everything that can be wrong with the request is found here, before anything is signed.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from jetfleet_contract import topics
from jetfleet_contract.errors import InputError, MalformedError
from jetfleet_contract.gates import Gates
from jetfleet_contract.messages import AppConfig, AppSpec, Source, TrialPolicy
from jetfleet_contract.rollout_plan import Budget, OnBreach, Plan, Selector, Window, sized_waves, waves_of
from jetfleet_contract.sink_rules import check_sinks

from .plan_files import Size, boards_of
from .store import journal, tags
from .store.journal import Overrides, StartRequest
from .store.models import Device

MAX_APPS_FILE = 256 * 1024
_CREDENTIALS = re.compile(r"://[^/@\s]*@")


class AppEntry(AppConfig, frozen=True):
    """One table of apps.toml: all of an app but its model, its settings among the rest."""

    sources: tuple[Source, ...] = ()
    input_from: str = ""
    runner: Literal["builtin", "exec"] = "builtin"
    trial: TrialPolicy = TrialPolicy()

    @property
    def config(self) -> AppConfig:
        """The settings alone."""
        return AppConfig(**{name: getattr(self, name) for name in AppConfig.__struct_fields__})


class Bundle(msgspec.Struct, frozen=True):
    """A published model: `manifest` is its 64 hex digits."""

    name: str
    version: str
    manifest: str


def read_apps(path: Path) -> dict[str, AppEntry]:
    """Read apps.toml: one table an app.

    Raises:
        InputError: `apps.unreadable`, `apps.syntax`, `apps.value` (unknown keys too), `apps.secret`, and as `check_sinks`.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_APPS_FILE:
            raise InputError("apps.syntax", f"{path.name} is over the limit of {MAX_APPS_FILE} bytes", where=str(path))
        tables = tomllib.loads(data.decode())
    except OSError as error:
        raise InputError("apps.unreadable", f"cannot read {path}: {error.strerror}", where="--apps",
                         remedy="give the path of a file that names each app's sources") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError("apps.syntax", f"{path.name} is no TOML: {error}", where=str(path),
                         remedy="correct the line that it names; each app is a table: [reader]") from None
    return {app: _read_entry(app, table, path) for app, table in tables.items()}


def _read_entry(app: str, table: object, path: Path) -> AppEntry:
    known = ", ".join(AppEntry.__struct_fields__)
    try:
        topics.check_name("app", app)
        entry = msgspec.convert(table, AppEntry)
        for source in entry.sources:
            topics.check_name("source", source.name)
        if entry.input_from:
            topics.check_name("app", entry.input_from)
        check_sinks(entry.sinks)
    except (msgspec.ValidationError, MalformedError) as error:
        raise InputError("apps.value", f"app {app[:63]!r}: {getattr(error, 'what', error)}", where=str(path),
                         remedy=f"an app has: {known}") from None
    if any(_CREDENTIALS.search(source.uri) for source in entry.sources):
        raise InputError("apps.secret", f"app {app}: a source's uri carries a password", where=str(path),
                         remedy="name it local:NAME here, and keep the real address in each board's own config")
    return entry


class Wish(msgspec.Struct, frozen=True):
    """What is asked: the content of a plan file, with options over it.

    `devices` are named boards in the order of the waves, else `select` finds them. `entry`: the app's table of apps.toml; None keeps what
    each board has. `downgrade`: boards may go back to an older release, which `by` allows. `board_bytes`: what a board is planned to
    receive.
    """

    app: str
    bundle: Bundle
    devices: tuple[str, ...] = ()
    select: Selector | None = None
    follow: bool = False
    entry: AppEntry | None = None
    canary: Size = 1
    waves: tuple[Size, ...] = ()
    wave_size: Size = 0
    gates: Gates = Gates()
    holds: tuple[float, ...] = ()
    on_breach: OnBreach = "rollback"
    windows: tuple[Window, ...] = ()
    budget: Budget = Budget()
    overrides: Overrides = Overrides()
    downgrade: bool = False
    by: str = ""
    board_bytes: int = 0


def request_for(session: Session, wish: Wish, nonce: str) -> StartRequest:
    """Build the request of a rollout; `nonce` makes its id unique.

    Raises:
        InputError: `rollout.devices`, `rollout.unknown-device`, `rollout.no-device`, `rollout.no-settings`, `name.bad`.
    """
    app, bundle, entry = wish.app, wish.bundle, wish.entry
    _check_app(app)
    devices = _select(session, wish)
    before = {device.device: _version_of(session, device.device, app) for device in devices}
    if entry is None:
        _check_settings(app, [name for name, version in before.items() if version is None])
    spec = AppSpec(app, bundle.manifest, bundle.name, bundle.version, downgrade=wish.downgrade)
    if entry is not None:
        spec = msgspec.structs.replace(spec, config=entry.config, sources=entry.sources, input_from=entry.input_from, runner=entry.runner,
                                       trial=entry.trial)
    ordered = in_order(devices, nonce) if not wish.devices else list(dict.fromkeys(wish.devices))
    plan = Plan(id=f"{app[:24]}-{bundle.version[:20].lower()}-{nonce}", app=app, bundle=bundle.manifest, name=bundle.name,
                version=bundle.version, waves=_waves(ordered, wish),
                before={name: version for name, version in before.items() if version is not None}, gates=wish.gates,
                on_breach=wish.on_breach, holds=wish.holds, windows=wish.windows, budget=wish.budget, board_bytes=wish.board_bytes,
                select=wish.select or Selector(), follow=wish.follow, approved_by=wish.by if wish.downgrade else "")
    return StartRequest(plan, spec, keep=entry is None, overrides=wish.overrides)


def _waves(ordered: Sequence[str], wish: Wish) -> tuple[tuple[str, ...], ...]:
    total = len(ordered)
    canary = max(1, boards_of(wish.canary, total))
    if wish.waves:
        return sized_waves(ordered, (canary, *(max(1, boards_of(size, total)) for size in wish.waves)))
    return waves_of(ordered, canary=canary, wave_size=boards_of(wish.wave_size, total))


def in_order(devices: Sequence[Device], salt: str) -> list[str]:
    """Boards that are online first, then one of each class in turn, so that a small canary sees many classes; else by lot."""
    lot = sorted(devices, key=lambda d: hashlib.sha256(f"{salt}/{d.device}".encode()).digest())
    rank: dict[str, int] = {}
    turn: dict[str, int] = {}
    for device in sorted(lot, key=lambda d: not d.online):
        turn[device.device] = rank[device.device_class] = rank.get(device.device_class, -1) + 1
    return [d.device for d in sorted(lot, key=lambda d: (not d.online, turn[d.device]))]


def _select(session: Session, wish: Wish) -> list[Device]:
    if bool(wish.devices) == (wish.select is not None):
        raise InputError("rollout.devices", "say which boards: --devices, or --class, --tag, --site and --name, or --all",
                         remedy="for instance --all")
    if wish.follow and wish.select is None:
        raise InputError("rollout.devices", "boards that are named cannot be followed by others",
                         remedy="select by class, tag, site or name")
    every = list(session.scalars(select(Device).order_by(Device.device)))
    if wish.select is None:
        known = {device.device: device for device in every}
        for name in wish.devices:
            if name not in known:
                raise InputError("rollout.unknown-device", f"no board {name[:80]!r} has introduced itself", where="--devices",
                                 remedy=_near(name, known, "jetfleet devices lists them"))
        return [known[name] for name in dict.fromkeys(wish.devices)]
    if not every:
        raise InputError("rollout.no-device", "no board has introduced itself yet", remedy="start jetfleet-agent on one")
    found = tags.selected(session, wish.select)
    if not found:
        raise _nobody(session, wish.select, every)
    return found


def _nobody(session: Session, selector: Selector, every: Sequence[Device]) -> InputError:
    """Why no board was found: the first rule that fits none."""
    words = tags.every(session)
    kinds = {"class": (selector.classes, {device.device_class for device in every}), "name": (selector.names, {d.device for d in every})}
    kinds |= {f"tag {key}": (globs, {board[key] for board in words.values() if key in board}) for key, globs in selector.tags.items()}
    for kind, (globs, have) in kinds.items():
        if globs and not any(fnmatchcase(value, glob) for value in have for glob in globs):
            return InputError("rollout.no-device", f"no board is of {kind} {globs[0][:80]!r}", where=f"--{kind.partition(' ')[0]}",
                              remedy=_near(globs[0], have, "jetfleet devices lists them"))
    return InputError("rollout.no-device", "no board fits all of this", where="select",
                      remedy="jetfleet devices lists them with their tags")


def _version_of(session: Session, device: str, app: str) -> str | None:
    deployment = journal.deployment_of(session, device)
    spec = next((a for a in deployment.apps if a.app == app), None) if deployment else None
    return spec.version if spec else None


def _check_app(app: str) -> None:
    try:
        topics.check_name("app", app)
    except MalformedError as error:
        raise InputError(error.code, error.what, where="--app", remedy=error.remedy) from None


def _check_settings(app: str, without: Sequence[str]) -> None:
    if without:
        raise InputError("rollout.no-settings", f"board {without[0]} has no app {app} yet, so its sources are unknown",
                         where="--app", remedy="give them with --apps apps.toml, or correct the app's name")


def _near(name: str, known: Iterable[str], otherwise: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}? {otherwise}" if near else otherwise
