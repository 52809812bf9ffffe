"""Who builds an engine that boards of a class ask for, and what becomes of it: the host's machine for one key. Pure.

    wanted       boards have asked; nobody builds yet, and `code` says why
    building     one builder was elected; its silence, death or failure elects another
    uncertified  built and signed; no second board has tried it, so no other board may run it yet
    certifying   a second board of the same footing tries it
    certified    it fits there too: every board of the class may run it
    given-up     every builder failed, or a second board said that it does not fit

``step(work, event, boards, now) -> (work, effects)``. The state is stored before an effect runs, and every effect may run twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Union

import msgspec

from .engines import Passport
from .messages import Message

SILENCE_S = 90.0
"""A builder that says nothing for so long is taken for dead."""
GRACE_S = 10.0
"""A builder that is offline has so long to come back: a broker that restarts kills nobody."""
BARRED_S = 900.0
AGAIN_S = 15.0
OWN_REASONS = ("store.", "device.", "cuda.", "backend.missing", "backend.memory", "evaluate.stopped", "evaluate.timeout")
"""Codes, or beginnings of them, with which a second board speaks of itself and not of the engine: another one tries it."""
PATIENT = 5
"""So often a key is tried again after `AGAIN_S`; then after twice as long each time."""
SOON = frozenset({"trust.fork", "trust.rollback", "trust.delegation-missing", "trust.no-delegation", "trust.unknown-engine",
                  "engine.not-builder", "engine.busy", "engine.no-weights", "device.offline", "broker.down"})
"""What passes by itself and is no try: the newest metadata or the model is on its way to the board, another builder's came first, or it is
at work. It is asked again soon, then ever more seldom."""
SLOWEST = 2.0
"""The second board may take so many times its builder's median, measured under the same power mode and clocks: more than boards of one
footing differ by, and less than an engine that was tuned for another machine costs."""
SLACK_MS = 2.0
"""So much longer is never too slow: other processes, and a clock's ticks."""
MAX_TRIES = 6
CERTIFY_S = 180.0
MAX_WANTED = 256

State = Literal["wanted", "building", "uncertified", "certifying", "certified", "given-up"]
STATES: tuple[State, ...] = ("wanted", "building", "uncertified", "certifying", "certified", "given-up")


class Seen(msgspec.Struct, frozen=True):
    """A board of the class as the host sees it now. `builder`: its key is among those that vouch for the class; `busy`: another engine of
    the class is being built, and builders sign one after the other, each on top of the other's version."""

    device: str
    online: bool
    builder: bool
    busy: bool = False


class Barred(Message, frozen=True):
    """A board that is left out of elections until then (seconds since 1970), and why."""

    device: str
    until: float
    code: str


class Work(Message, frozen=True):
    """One key. Times are seconds since 1970 by the host's clock. `passport` is the builder's from `uncertified` on, else that of the first
    board that asked. `by` builds or built it, `second` tries or tried it; `heard` is the last sign of life of whoever works, `offline`
    since when that one is offline (0: it is not). `tries` counts builds that run or came to nothing, `soon` what passed by itself.
    `agreement` and `p50_ms` are what the second board saw, `built_ms` what its builder did, `built_under` its power mode and clocks."""

    device_class: str
    key: str
    passport: Passport
    state: State = "wanted"
    wanted_by: tuple[str, ...] = ()
    by: str = ""
    second: str = ""
    since: float = 0.0
    heard: float = 0.0
    offline: float = 0.0
    percent: float = 0.0
    tries: int = 0
    soon: int = 0
    barred: tuple[Barred, ...] = ()
    blob: str = ""
    code: str = ""
    detail: str = ""
    agreement: float = 0.0
    p50_ms: float = 0.0
    built_ms: float = 0.0
    built_under: str = ""


# --- events ------------------------------------------------------------------------------------------------


class Needed(Message, frozen=True):
    """A board would run this engine."""

    device: str


class Heard(Message, frozen=True):
    """A builder is at work, or has done it: then `p50_ms` is the session's median there, `under` its power mode and clocks."""

    device: str
    percent: float
    p50_ms: float = 0.0
    under: str = ""


class Built(Message, frozen=True):
    """The engine and the metadata that names it are here and verified, whoever was elected since."""

    device: str
    blob: str
    passport: Passport


class Failed(Message, frozen=True):
    """A builder cannot, or the second board does not take it for a reason of its own (a full disk)."""

    device: str
    code: str
    detail: str = ""


class Fit(Message, frozen=True):
    """The second board ran it: agreement 0..1 with the bundle's reference answers, median of the session in ms and what it was under."""

    device: str
    agreement: float
    p50_ms: float
    under: str = ""


class Unfit(Message, frozen=True):
    """The second board ran it, or tried, and it is not good."""

    device: str
    code: str
    detail: str = ""


class Tick(Message, frozen=True):
    """Time has passed, or boards came and went."""


Event = Union[Needed, Heard, Built, Failed, Fit, Unfit, Tick]


# --- effects -----------------------------------------------------------------------------------------------


class AskToBuild(Message, frozen=True):
    """Send this board the signed command."""

    device: str


class AskToTry(Message, frozen=True):
    """Send this board the signed command to try the engine."""

    device: str


class Certify(Message, frozen=True):
    """The snapshot says that the engine may be run."""


class Withdraw(Message, frozen=True):
    """Nobody runs it any more."""


Effect = Union[AskToBuild, AskToTry, Certify, Withdraw]
Step = tuple[Work, tuple[Effect, ...]]


def step(work: Work, event: Event, boards: Sequence[Seen], now: float) -> Step:
    """One transition; an event that says nothing new changes nothing."""
    match event:
        case Needed():
            return _go_on(_wanted(work, event.device), boards, now)
        case Heard():
            return _heard(work, event, now), ()
        case Built():
            return _built(work, event, boards, now)
        case Failed():
            return _failed(work, event, boards, now)
        case Fit():
            return _fit(work, event, now)
        case Unfit():
            return _unfit(work, event, now)
        case Tick():
            return _go_on(work, boards, now)


def _wanted(work: Work, device: str) -> Work:
    if device in work.wanted_by or len(work.wanted_by) >= MAX_WANTED:
        return work
    return msgspec.structs.replace(work, wanted_by=(*work.wanted_by, device))


def _heard(work: Work, event: Heard, now: float) -> Work:
    if event.p50_ms and event.device == work.by and work.state in ("building", "uncertified", "certifying"):
        work = msgspec.structs.replace(work, built_ms=event.p50_ms, built_under=event.under)
    if work.state != "building" or event.device != work.by:
        return work
    return msgspec.structs.replace(work, heard=now, percent=max(work.percent, min(event.percent, 100.0)), offline=0.0)


def _built(work: Work, event: Built, boards: Sequence[Seen], now: float) -> Step:
    """The engine counts also when its builder's turn was over: it is signed and verified like any other. Other bytes under a key that was
    built already have been tried by nobody: they begin anew, whatever was said of the bytes before."""
    if work.state not in ("wanted", "building", "given-up") and event.blob == work.blob:
        return work, ()
    if event.device != work.by:
        work = msgspec.structs.replace(work, built_ms=0.0, built_under="")
    done = msgspec.structs.replace(work, state="uncertified", by=event.device, blob=event.blob, passport=event.passport, percent=100.0,
                                   since=now, heard=now, offline=0.0, code="", detail="", second="")
    return _go_on(done, boards, now)


def _failed(work: Work, event: Failed, boards: Sequence[Seen], now: float) -> Step:
    if work.state == "building" and event.device == work.by:
        return _elect(_bar(work, event.device, event.code, event.detail, now), boards, now)
    if work.state == "certifying" and event.device == work.second:
        back = _bar(msgspec.structs.replace(work, state="uncertified", second=""), event.device, event.code, event.detail, now)
        return _go_on(back, boards, now)
    return work, ()


def _fit(work: Work, event: Fit, now: float) -> Step:
    if work.state != "certifying" or event.device != work.second:
        return work, ()
    bound = max(work.built_ms * SLOWEST, work.built_ms + SLACK_MS)
    if work.built_ms and event.under == work.built_under and event.p50_ms > bound:
        detail = f"p50 {event.p50_ms:.2f} ms, {work.by} saw {work.built_ms:.2f} ms: more than {SLOWEST:.1f} times and {SLACK_MS:.0f} ms"
        return _unfit(work, Unfit(event.device, "engine.slow", detail), now)
    done = msgspec.structs.replace(work, state="certified", agreement=event.agreement, p50_ms=event.p50_ms, code="", detail="", barred=())
    return done, (Certify(),)


def _unfit(work: Work, event: Unfit, now: float) -> Step:
    if work.state != "certifying" or event.device != work.second:
        return work, ()
    out = msgspec.structs.replace(work, state="given-up", since=now, code=event.code, detail=f"{event.device}: {event.detail}"[:300])
    return out, (Withdraw(),)


# --- what time and boards change ---------------------------------------------------------------------------


def _go_on(work: Work, boards: Sequence[Seen], now: float) -> Step:
    if work.state == "wanted":
        return _elect(work, boards, now)
    if work.state == "building":
        return _watch(work, work.by, SILENCE_S, boards, now)
    if work.state == "certifying":
        return _watch(work, work.second, CERTIFY_S, boards, now)
    if work.state == "uncertified":
        return _second(work, boards, now)
    return work, ()


def _watch(work: Work, worker: str, patience_s: float, boards: Sequence[Seen], now: float) -> Step:
    """Whoever works is alive, or its work goes to another."""
    seen = next((board for board in boards if board.device == worker), None)
    if seen is None or not seen.online:
        if not work.offline:
            return msgspec.structs.replace(work, offline=now), ()
        if now - work.offline >= GRACE_S:
            return _failed(work, Failed(worker, "device.offline", f"{worker} is gone"), boards, now)
        return work, ()
    if now - work.heard >= patience_s:
        return _failed(work, Failed(worker, "device.silent", f"{worker} said nothing for {patience_s:.0f} s"), boards, now)
    return (msgspec.structs.replace(work, offline=0.0) if work.offline else work), ()


def _bar(work: Work, device: str, code: str, detail: str, now: float) -> Work:
    others = tuple(one for one in work.barred if one.device != device and one.until > now)
    soon = work.soon + 1 if code in SOON else work.soon
    until = now + (min(AGAIN_S * 2.0 ** min(max(work.soon - PATIENT, 0), 10), BARRED_S) if code in SOON else BARRED_S)
    barred = (*others, Barred(device, until, code))
    tries = work.tries - 1 if code in SOON and work.state == "building" else work.tries
    return msgspec.structs.replace(work, tries=tries, soon=soon, barred=barred, code=code, detail=f"{device}: {detail}"[:300])


def _free(work: Work, boards: Iterable[Seen], now: float) -> list[Seen]:
    out = {one.device for one in work.barred if one.until > now}
    return [board for board in boards if board.online and board.device not in out]


def _elect(work: Work, boards: Sequence[Seen], now: float) -> Step:
    """One builder: of those that are there, first one that wants the engine itself, which has the model already; then by name."""
    if work.tries >= MAX_TRIES:
        what = f"{work.tries} builds came to nothing; the last: {work.detail}"[:300]
        return msgspec.structs.replace(work, state="given-up", by="", since=now, detail=what), ()
    named = [board for board in boards if board.builder]
    able = sorted((board for board in _free(work, named, now) if not board.busy),
                  key=lambda board: (board.device not in work.wanted_by, board.device))
    if able:
        begun = msgspec.structs.replace(work, state="building", by=able[0].device, since=now, heard=now, offline=0.0, percent=0.0,
                                        built_ms=0.0, built_under="",
                                        tries=work.tries + 1)
        return begun, (AskToBuild(able[0].device),)
    code, detail = _why_nobody(work, named)
    idle = msgspec.structs.replace(work, state="wanted", by="", offline=0.0, percent=0.0, code=code, detail=detail)
    return idle, ()


def _why_nobody(work: Work, named: Sequence[Seen]) -> tuple[str, str]:
    if not named:
        return "engine.nobody", (f"nobody builds for class {work.device_class}: jetfleet keys delegate {work.device_class} --device NAME; "
                                 "until then each board builds for itself")
    if any(board.busy for board in named):
        return "engine.queue", f"another engine of class {work.device_class} is being built first"
    if work.barred:
        return work.code or "engine.failed", work.detail
    return "engine.away", f"no builder of class {work.device_class} is connected: {', '.join(board.device for board in named)[:200]}"


def _second(work: Work, boards: Sequence[Seen], now: float) -> Step:
    """A second board that wants the engine tries it; without one it waits."""
    able = sorted(board.device for board in _free(work, boards, now) if board.device in work.wanted_by and board.device != work.by)
    if not able:
        waits = "waits for a second board to try it" + (f"; not {work.barred[-1].device} [{work.barred[-1].code}]" if work.barred else "")
        if (work.code, work.detail) == ("engine.uncertified", waits):
            return work, ()
        return msgspec.structs.replace(work, code="engine.uncertified", detail=waits), ()
    tried = msgspec.structs.replace(work, state="certifying", second=able[0], since=now, heard=now, offline=0.0)
    return tried, (AskToTry(able[0]),)


def wanted_anew(work: Work) -> Work:
    """An operator asks for a build now: failures are forgotten."""
    if work.state in ("building", "certifying", "certified"):
        return work
    state: State = "uncertified" if work.state == "uncertified" else "wanted"
    return msgspec.structs.replace(work, state=state, tries=0, soon=0, barred=(), code="", detail="")


def tried_by(work: Work, device: str, now: float) -> Work:
    """An operator has that board try what was built; what it says counts as a second board's. The caller asks it."""
    return msgspec.structs.replace(work, state="certifying", second=device, since=now, heard=now, offline=0.0, code="", detail="",
                                   barred=tuple(one for one in work.barred if one.device != device))


def withdrawn(work: Work, now: float) -> Work:
    """An operator takes it back: nobody but its builder runs it; `wanted_anew` has it built again."""
    return msgspec.structs.replace(work, state="given-up", second="", since=now, offline=0.0, code="engine.withdrawn",
                                   detail="withdrawn by an operator")
