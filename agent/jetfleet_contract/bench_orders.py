"""The command `bench`: which bundle the board shall measure, when it may, and how the answer travels. Pure.

One at a time, of a bundle that the board keeps anyway, and as a guest: it takes no more of the time than the strictest running app gives
to a trial, and none while the board is hot or an app is in an update.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from msgspec import Meta

from .bench_records import BenchRecord
from .errors import IncompatibleError, InputError, MalformedError, StorageError, TransportError
from .messages import Message
from .slot_records import AppSlots, Slot
from .topics import check_blob, check_name

MIN_LIMIT_S = 5.0
MAX_LIMIT_S = 3600.0
USUAL_LIMIT_S = 600.0
HOT_HEADROOM_C = 5.0
"""A board that is nearer than that to where it slows down is not heated up any further."""


class BenchOrder(Message, frozen=True):
    """Command number `command`: measure the bundle that `app` runs, or the one of model `name`, `version`, for `limit_s` at most."""

    command: int
    app: str = ""
    name: str = ""
    version: str = ""
    limit_s: Annotated[float, Meta(ge=MIN_LIMIT_S, le=MAX_LIMIT_S)] = USUAL_LIMIT_S

    @property
    def text(self) -> str:
        return f"app {self.app}" if self.app else f"{self.name}:{self.version}"


class BenchAnswer(Message, frozen=True):
    """The body of the answer: the record, or where it was too large for a reply the blob that the board offers as an upload."""

    record: BenchRecord | None = None
    blob: str = ""


def check_answer(answer: BenchAnswer) -> BenchAnswer:
    """An answer that has one of both. Raises MalformedError `bench.answer`, `blob.*`."""
    if (answer.record is None) != bool(answer.blob):
        raise MalformedError("bench.answer", "the board's answer has neither a record nor the name of one, or both")
    if answer.blob:
        check_blob(answer.blob)
    return answer


def arguments_of(app: str, model: str, limit_s: float) -> dict[str, str]:
    """The arguments of the command. `model` is ``NAME:VERSION``.

    Raises:
        InputError: `bench.order` when not exactly one of both is given, or one is no name.
    """
    name, _, version = model.partition(":")
    args = {"app": app} if app else {"name": name, "version": version}
    if bool(app) == bool(model):
        raise InputError("bench.order", "say which bundle: the one of an app, or a model", remedy="--app APP, or --model NAME:VERSION")
    try:
        order_of(0, {**args, "limit_s": f"{limit_s:g}"})
    except MalformedError as error:
        raise InputError("bench.order", error.what, remedy="--app APP, or --model NAME:VERSION") from None
    return {**args, "limit_s": f"{limit_s:g}"}


def order_of(command: int, args: Mapping[str, str]) -> BenchOrder:
    """What the arguments of a command ask for. Raises MalformedError `bench.order`, `name.bad`."""
    app, name, version = (args.get(key, "") for key in ("app", "name", "version"))
    if bool(app) == bool(name) or bool(name) != bool(version):
        raise MalformedError("bench.order", "a bench is of an app, or of a model's name and version")
    for what, text in (("app", app), ("model", name), ("version", version)):
        if text:
            check_name(what, text)
    return BenchOrder(command, app, name, version, _limit(args.get("limit_s", f"{USUAL_LIMIT_S:g}")))


def _limit(text: str) -> float:
    try:
        seconds = float(text[:32])
    except ValueError:
        seconds = -1.0
    if not MIN_LIMIT_S <= seconds <= MAX_LIMIT_S:
        raise MalformedError("bench.order", f"{text[:32]!r} is no time limit from {MIN_LIMIT_S:g} to {MAX_LIMIT_S:g} s")
    return seconds


def slot_of(order: BenchOrder, states: Mapping[str, AppSlots]) -> Slot:
    """The bundle on this board that the order means: what an app runs, or what it ran before.

    Raises:
        InputError: `app.unknown`. StorageError: `bench.no-bundle`. IncompatibleError: `bench.runner`: a program of its own runs it.
    """
    if order.app and order.app not in states:
        raise InputError("app.unknown", f"there is no app {order.app} on this board")
    asked = [states[order.app].champion] if order.app else [
        slot for state in states.values() for slot in (state.champion, state.previous)
        if slot is not None and (slot.name, slot.version) == (order.name, order.version)]
    found = next((slot for slot in asked if slot is not None), None)
    if found is None:
        raise StorageError("bench.no-bundle", f"the bundle of {order.text} is not on this board",
                           remedy="only what an app runs, or ran before, can be measured: roll it out first")
    if found.setup.runner != "builtin":
        raise IncompatibleError("bench.runner", f"{found.name}:{found.version} is run by a program of its own, which no bench measures")
    return found


def share_of(states: Iterable[AppSlots]) -> float:
    """Of all time that a bench may take, over 0 to 1: the least that a running app gives to a trial.

    Raises:
        IncompatibleError: `bench.share` when one gives none.
    """
    shares = {state.app: state.target.spec.trial.share for state in states if state.target is not None and state.champion is not None}
    strictest = min(shares, key=lambda app: shares[app], default="")
    if strictest and shares[strictest] <= 0.0:
        raise IncompatibleError("bench.share", f"app {strictest} gives a second model no time at all",
                                remedy="raise share in the app's trial policy")
    return shares[strictest] if strictest else 1.0


def check_free(states: Iterable[AppSlots], *, slowed: Iterable[str], headroom_c: float | None, held: Mapping[str, str],
               building: bool) -> None:
    """Let a bench begin, or go on.

    Args:
        slowed: what the kernel slows down now. headroom_c: degrees to where it begins; None where nothing tells. held: by app why the
            governor holds it back, empty when it does not. building: an engine is being built.

    Raises:
        TransportError: `device.busy`, with the reason.
    """
    updating = next((f"app {state.app} is in an update ({state.phase})" for state in states if state.phase != "idle"), "")
    slow = ", ".join(slowed)
    governed = next((f"app {app} is held back [{reason}]" for app, reason in sorted(held.items()) if reason), "")
    hot = f"it is {headroom_c:.0f} degrees below where it slows down" if headroom_c is not None and headroom_c < HOT_HEADROOM_C else ""
    reason = updating or (f"it is slowed down: {slow}" if slow else "") or governed or hot or ("it builds an engine" if building else "")
    if reason:
        raise TransportError("device.busy", f"this board measures nothing now: {reason}", remedy="ask again later")
