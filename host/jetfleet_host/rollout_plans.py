"""From what a user asks (`rollout start`) to a plan that the rollout machine can run: boards, waves, apps.toml.

Everything that can be wrong with the request is found here, before anything is signed.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from jetfleet_contract import topics
from jetfleet_contract.errors import InputError, MalformedError
from jetfleet_contract.gates import Gates
from jetfleet_contract.messages import AppConfig, AppSpec, Source, TrialPolicy
from jetfleet_contract.rollout_plan import Plan, waves_of

from .store import journal
from .store.journal import StartRequest
from .store.models import Device

MAX_APPS_FILE = 256 * 1024
_CREDENTIALS = re.compile(r"://[^/@\s]*@")


class AppEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of apps.toml: all of an app but its model."""

    sources: tuple[Source, ...] = ()
    options: dict[str, float | str | bool] = {}
    input_from: str = ""
    publish_results: bool = True
    trial: TrialPolicy = TrialPolicy()


class Selection(msgspec.Struct, frozen=True):
    """Which boards: exactly one of the three."""

    devices: tuple[str, ...] = ()
    device_class: str = ""
    everybody: bool = False


class Bundle(msgspec.Struct, frozen=True):
    """A published model: `manifest` is its 64 hex digits."""

    name: str
    version: str
    manifest: str


def read_apps(path: Path) -> dict[str, AppEntry]:
    """Read apps.toml: one table an app.

    Raises:
        InputError: `apps.unreadable`, `apps.syntax`, `apps.value` (unknown keys too), `apps.secret`.
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
        raise InputError("apps.syntax", f"{path.name} is no TOML: {error}", where=str(path)) from None
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
    except (msgspec.ValidationError, MalformedError) as error:
        raise InputError("apps.value", f"app {app[:63]!r}: {getattr(error, 'what', error)}", where=str(path),
                         remedy=f"an app has: {known}") from None
    if any(_CREDENTIALS.search(source.uri) for source in entry.sources):
        raise InputError("apps.secret", f"app {app}: a source's uri carries a password", where=str(path),
                         remedy="name it local:NAME here, and keep the real address in each board's own config")
    return entry


def request_for(session: Session, *, app: str, bundle: Bundle, selection: Selection, entry: AppEntry | None, canary: int,
                wave_size: int, gates: Gates, on_breach: str, nonce: str) -> StartRequest:
    """Build the request of a rollout.

    Args:
        entry: the app's table of apps.toml; None keeps what each board has. nonce: makes the rollout's id unique.

    Raises:
        InputError: `rollout.devices`, `rollout.unknown-device`, `rollout.no-device`, `rollout.no-settings`, `name.bad`.
    """
    _check_app(app)
    devices = _select(session, selection)
    before = {device.device: _version_of(session, device.device, app) for device in devices}
    if entry is None:
        _check_settings(app, [name for name, version in before.items() if version is None])
    spec = AppSpec(app, bundle.manifest, bundle.name, bundle.version)
    if entry is not None:
        config = AppConfig(options=entry.options, publish_results=entry.publish_results)
        spec = msgspec.structs.replace(spec, config=config, sources=entry.sources, input_from=entry.input_from, trial=entry.trial)
    ordered = in_order(devices, nonce) if not selection.devices else list(dict.fromkeys(selection.devices))
    plan = Plan(id=f"{app[:24]}-{bundle.version[:20].lower()}-{nonce}", app=app, bundle=bundle.manifest, name=bundle.name,
                version=bundle.version, waves=waves_of(ordered, canary=canary, wave_size=wave_size),
                before={name: version for name, version in before.items() if version is not None}, gates=gates,
                on_breach="stop" if on_breach == "stop" else "rollback")
    return StartRequest(plan, spec, keep=entry is None)


def in_order(devices: Sequence[Device], salt: str) -> list[str]:
    """Boards that are online first, then one of each class in turn, so that a small canary sees many classes; else by lot."""
    lot = sorted(devices, key=lambda d: hashlib.sha256(f"{salt}/{d.device}".encode()).digest())
    rank: dict[str, int] = {}
    turn: dict[str, int] = {}
    for device in sorted(lot, key=lambda d: not d.online):
        turn[device.device] = rank[device.device_class] = rank.get(device.device_class, -1) + 1
    return [d.device for d in sorted(lot, key=lambda d: (not d.online, turn[d.device]))]


def _select(session: Session, selection: Selection) -> list[Device]:
    chosen = [bool(selection.devices), bool(selection.device_class), selection.everybody]
    if sum(chosen) != 1:
        raise InputError("rollout.devices", "say which boards: one of --devices, --class and --all", remedy="for instance --all")
    every = list(session.scalars(select(Device).order_by(Device.device)))
    if selection.devices:
        known = {device.device: device for device in every}
        for name in selection.devices:
            if name not in known:
                raise InputError("rollout.unknown-device", f"no board {name[:80]!r} has introduced itself", where="--devices",
                                 remedy=_near(name, known, "jetfleet devices lists them"))
        return [known[name] for name in dict.fromkeys(selection.devices)]
    if selection.device_class:
        found = [device for device in every if device.device_class == selection.device_class]
        if not found:
            classes = {device.device_class for device in every}
            raise InputError("rollout.no-device", f"no board is of class {selection.device_class[:80]!r}", where="--class",
                             remedy=_near(selection.device_class, classes, "jetfleet devices lists them"))
        return found
    if not every:
        raise InputError("rollout.no-device", "no board has introduced itself yet", remedy="start jetfleet-agent on one")
    return every


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
