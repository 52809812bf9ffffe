"""What a fleet's engines are: who built each, who tried it and what came out, and what an operator may change.

The database tells how an engine came about; the class's metadata, signed by its builder, tells its size; the snapshot whether boards may
run it. An operator's change is both: it is stored only if the snapshot could be signed.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jetfleet_contract.engine_work import Work, tried_by, wanted_anew, withdrawn
from jetfleet_contract.engines import Passport
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import encode

from .delegations import certify, engines_of, uncertified_of
from .project import Project
from .store import commands
from .store import engines as rows
from .store.models import AppRow, Device

MIN_DIGITS = 6
TRY_WAIT_S = 60.0


class Refusal(msgspec.Struct, frozen=True):
    """A board that could not build the engine, or could not try it, and until when (seconds since 1970) it is not asked again."""

    device: str
    code: str
    until: float


class EngineView(msgspec.Struct, frozen=True):
    """One engine key. `size` is in bytes, 0 before there is one; `agreement` (0..1) and `p50_ms` are what the second board saw, `built_ms`
    its builder; `asked` counts boards that asked for it, `boards` those of the class that run its bundle now; `code` and `detail` say what
    it waits for."""

    device_class: str
    key: str
    backend: str
    version: str
    variant: str
    precision: str
    state: str
    built_by: str
    tried_by: str
    percent: float
    agreement: float
    p50_ms: float
    size: int
    blob: str
    asked: int
    boards: int
    tries: int
    code: str
    detail: str
    changed: float
    passport: Passport
    refusals: tuple[Refusal, ...]
    built_ms: float


def catalogue(project: Project, session: Session, device_class: str = "") -> list[EngineView]:
    """Every engine that boards have asked for, of one class when it is named; the latest changed first."""
    sizes = {(owner, target.blob): target.info.size for owner, target in engines_of(project)}
    return [_view(session, work, sizes.get((work.device_class, work.blob), 0)) for work in rows.every(session, device_class)]


def _view(session: Session, work: Work, size: int) -> EngineView:
    passport = work.passport
    runs = select(func.count(AppRow.device.distinct())).join(Device, Device.device == AppRow.device)
    boards = session.scalar(runs.where(AppRow.bundle == passport.subject, Device.device_class == work.device_class))
    built = work.by if work.blob or work.state == "building" else ""
    return EngineView(work.device_class, work.key, passport.footing.backend, passport.footing.version, passport.variant,
                      passport.recipe.precision, work.state, built, work.second, work.percent, work.agreement, work.p50_ms, size, work.blob,
                      len(work.wanted_by), int(boards or 0), work.tries, work.code, work.detail, work.since, passport,
                      tuple(Refusal(one.device, one.code, one.until) for one in work.barred), work.built_ms)


def find(session: Session, text: str) -> Work:
    """The engine whose key begins so.

    Raises:
        InputError: `engine.unknown`, `engine.ambiguous`.
    """
    remedy = "jetfleet engines list shows the keys"
    found = [work for work in rows.every(session) if len(text) >= MIN_DIGITS and work.key.startswith(text.lower())]
    if not found:
        raise InputError("engine.unknown", f"no engine's key begins with {text[:64]!r}", where="KEY",
                         remedy=f"{remedy}; at least {MIN_DIGITS} digits are needed")
    if len(found) > 1:
        raise InputError("engine.ambiguous", f"{len(found)} engines' keys begin with {text[:64]!r}", where="KEY",
                         remedy=f"give more digits; {remedy}")
    return found[0]


def request(session: Session, text: str, now: float) -> Work:
    """Have it built now, whatever failed before; `serve` elects the builder. InputError `engine.certified`, and as `find`."""
    work = find(session, text)
    anew = wanted_anew(work)
    if work.state == "certified":
        raise InputError("engine.certified", f"engine {work.key[:12]} is built and certified", where="KEY",
                         remedy=f"to have it built again: jetfleet engines withdraw {work.key[:12]}, then request it")
    if anew != work:
        rows.save(session, anew, now)
    return anew


def withdraw(project: Project, session: Session, text: str, now: float) -> Work:
    """No board but its builder runs it any more: the snapshot says so from now on.

    Raises:
        InputError: `engine.unbuilt` when there is nothing to withdraw, `keys.*` when the snapshot cannot be signed here, and as `find`.
    """
    work = find(session, text)
    if not work.blob:
        raise InputError("engine.unbuilt", f"engine {work.key[:12]} is not built: there is nothing to withdraw", where="KEY",
                         remedy="jetfleet engines list shows which are")
    out = withdrawn(work, now)
    rows.save(session, out, now)
    certify(project, work.device_class, rows.untried(session, work.device_class, uncertified_of(project, work.device_class)))
    return out


def try_on(session: Session, text: str, device: str, now: float) -> Work:
    """Have that board fetch the engine, verify it and try it now, whoever is its turn; `serve` sends the command.

    Raises:
        InputError: `engine.unbuilt`, `engine.certified`, `engine.away` when the board is not connected, `engine.class` when it is of
            another class, `engine.builder` when it built the engine itself, and as `find`.
    """
    work = find(session, text)
    if not work.blob:
        raise InputError("engine.unbuilt", f"engine {work.key[:12]} is not built: there is nothing to try", where="KEY",
                         remedy="jetfleet engines list shows which are")
    if work.state == "certified":
        raise InputError("engine.certified", f"engine {work.key[:12]} has been tried by {work.second}: boards fetch it by themselves",
                         where="KEY", remedy=f"to have it tried anew: jetfleet engines withdraw {work.key[:12]} first")
    row = session.get(Device, device)
    if row is None or not row.online:
        raise InputError("engine.away", f"no board {device[:63]!r} is connected", where="--device", remedy="jetfleet devices lists them")
    if row.device_class != work.device_class:
        raise InputError("engine.class", f"{device} is of class {row.device_class}, the engine of {work.device_class}", where="--device",
                         remedy=f"take a board of {work.device_class}")
    if device == work.by:
        raise InputError("engine.builder", f"{device} built the engine, and tried it then", where="--device", remedy="take another board")
    trying = tried_by(work, device, now)
    args = {"key": work.key, "passport": encode(work.passport).decode()}
    rows.save(session, trying, now)
    rows.asked(session, trying, commands.ask(session, device, "engine-certify", args, TRY_WAIT_S, now))
    return trying


def as_json(view: EngineView) -> dict[str, Any]:
    """A view as `--json` prints it."""
    built: dict[str, Any] = msgspec.to_builtins(view)
    return built
