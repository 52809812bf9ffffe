"""The sender's machine of one blob: merges wants into rounds and sends each chunk once for all. See `transfer`.

    idle -> gathering -> sending -> draining -> idle | gathering

Pacing has three parts. Marks are answered, so that at most `WINDOW_MARKS` marks are under way to the slowest receiver that still
answers (brokers drop QoS 0 silently beyond their queue, 1000 messages on mosquitto); who stays silent for `PATIENCE_S` is not waited for
until it answers again. The caller grants no more than its token bucket (`pacing`) and its outbox allow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Union

import msgspec

from .chunks import Bitmap
from .errors import OrderError
from .transfer import MAX_SPREAD_S, RoundMark, Want

GATHER_S = 0.03
GATHER_LARGE_S = 0.08
LARGE_CHUNKS = 64
MAX_GATHER_S = 1.0
MARK_EVERY = 64
WINDOW_MARKS = 6
PATIENCE_S = 2.0
BUDGET_BLOBS = 1.5
BUDGET_SLACK = 8
BUDGET_RENEW_S = 600.0
UNHURRIED_WANTERS = 16
SPREAD_PER_WANTER_S = 0.002
MAX_WANTERS = 10_000

SenderPhase = Literal["idle", "gathering", "sending", "draining"]


class Wanter(msgspec.Struct, frozen=True):
    """One device that asked. `missing` is what it said last, `mark` the last of this round that it answered; nobody waits for
    one that is `lagging`."""

    missing: Bitmap
    mark: int = 0
    lagging: bool = False


class Charge(msgspec.Struct, frozen=True):
    """Chunks that were sent for a device, decaying by one blob in `BUDGET_RENEW_S`, and when that was reckoned."""

    chunks: float
    at: float


class Sender(msgspec.Struct, frozen=True):
    """One blob of `missing.count` chunks on its way to many. `queue` is this round's rest, `sent` what went out in it."""

    count: int
    phase: SenderPhase = "idle"
    round: int = 0
    mark: int = 0
    queue: Bitmap = Bitmap(0)
    sent: Bitmap = Bitmap(0)
    since_mark: int = 0
    marks: dict[int, Bitmap] = {}
    marked_at: float = 0.0
    until: float = 0.0
    gather_end: float = 0.0
    wanters: dict[str, Wanter] = {}
    charges: dict[str, Charge] = {}


class Wanted(msgspec.Struct, frozen=True):
    device: str
    want: Want


class Grant(msgspec.Struct, frozen=True):
    """The caller may publish up to `chunks` more now. Zero only lets time pass. When as many ask as were served just before
    (`expected`, 0 for unknown), as after a chunk table, nobody waits for more."""

    chunks: int
    expected: int = 0


class Lost(msgspec.Struct, frozen=True):
    """The host's own link is down: everybody will ask again."""


class Send(msgspec.Struct, frozen=True):
    """Publish these chunks, in order, in this round."""

    round: int
    indices: tuple[int, ...]


class Announce(msgspec.Struct, frozen=True):
    mark: RoundMark


class Observe(msgspec.Struct, frozen=True):
    """A device answered a mark: of `sent` chunks before it `lost` had not come. For pacing."""

    device: str
    sent: int
    lost: int


class Refuse(msgspec.Struct, frozen=True):
    """The device asked for more than its budget; it is served again as the budget renews."""

    device: str
    code: str


SenderEvent = Union[Wanted, Grant, Lost]
SenderEffect = Union[Send, Announce, Observe, Refuse]
SenderStep = tuple[Sender, tuple[SenderEffect, ...]]


def sender(count: int, first_round: int) -> Sender:
    """An idle sender. `first_round` in 1..2^31 should differ between runs of the host, so that old marks mean nothing."""
    return Sender(count=count, round=first_round, queue=Bitmap(count), sent=Bitmap(count))


def step_sender(state: Sender, event: SenderEvent, now: float) -> SenderStep:
    """One step. Raises OrderError `transfer.order` for what is not in the table; `state` is never changed."""
    handler = _SENDER.get((state.phase, type(event)))
    if handler is None:
        raise OrderError("transfer.order", f"a sender that is {state.phase} cannot take {type(event).__name__}")
    return handler(state, event, now)


def spread_s(wanters: int) -> float:
    """How long answers are spread: nothing for few, 2 ms a device beyond; devices cannot hear each other."""
    return 0.0 if wanters <= UNHURRIED_WANTERS else min(MAX_SPREAD_S, wanters * SPREAD_PER_WANTER_S)


def gather_s(state: Sender) -> float:
    """How long after the last new want a round waits for more: who comes later costs what was sent before it."""
    return GATHER_S if state.count < LARGE_CHUNKS else GATHER_LARGE_S


def held_back(state: Sender) -> bool:
    """True when the window is full: marks that the slowest answering receiver owes."""
    return state.phase == "sending" and state.mark - _slowest(state) >= WINDOW_MARKS


def _slowest(state: Sender) -> int:
    return min((wanter.mark for wanter in state.wanters.values() if not wanter.lagging), default=state.mark)


def _with(state: Sender, **changes: object) -> Sender:
    return msgspec.structs.replace(state, **changes)


# --- wants --------------------------------------------------------------------------------------------------


def _wanted_first(state: Sender, event: Wanted, now: float) -> SenderStep:
    if not event.want.missing:
        return state, ()
    state = _with(state, phase="gathering", until=now + gather_s(state), gather_end=now + MAX_GATHER_S, wanters={})
    return _put(state, event.device, Wanter(event.want.missing)), ()


def _wanted_gathering(state: Sender, event: Wanted, now: float) -> SenderStep:
    if event.device not in state.wanters:
        state = _with(state, until=min(state.gather_end, now + gather_s(state)))
    return _put(state, event.device, Wanter(event.want.missing)), ()


def _wanted_sending(state: Sender, event: Wanted, now: float) -> SenderStep:
    want = event.want
    if want.round == state.round and event.device in state.wanters:
        return _answer(state, event)
    known = state.wanters.get(event.device)
    fresh = want.missing.minus(state.sent)  # the rest is for the next round
    state, effects, granted = _charge(state, event.device, fresh.minus(known.missing) if known else fresh, now)
    state = _with(state, queue=state.queue.union(granted))
    return _put(state, event.device, _entered(state, event)), effects


def _wanted_draining(state: Sender, event: Wanted, now: float) -> SenderStep:
    if event.want.round == state.round and event.device in state.wanters:
        state, effects = _answer(state, event)
    else:
        state, effects = _put(state, event.device, _entered(state, event)), ()
    state, more = _close_round(state, now)
    return state, (*effects, *more)


def _entered(state: Sender, event: Wanted) -> Wanter:
    """The entry of a device that does not speak of this round. Of a new one everything sent so far is lost; one that already takes part
    only crossed with chunks that are under way (or began anew): what it still lacks is told by its answer to the next mark."""
    known = state.wanters.get(event.device)
    if known is None:
        return Wanter(event.want.missing, state.mark)
    return msgspec.structs.replace(known, missing=known.missing.union(event.want.missing))


def _answer(state: Sender, event: Wanted) -> SenderStep:
    """A device that follows this round answers a mark: holes before that mark are losses, the rest is under way."""
    want = event.want
    before = state.wanters[event.device]
    then, earlier = state.marks.get(want.mark), state.marks.get(before.mark)
    effects: tuple[SenderEffect, ...] = ()
    if then is not None and want.mark > before.mark:
        part = then.minus(earlier) if earlier is not None else then
        effects = (Observe(event.device, len(part), len(Bitmap(state.count, want.missing.bits & part.bits))),)
    mark = max(before.mark, min(want.mark, state.mark))
    state = _put(state, event.device, Wanter(want.missing, mark, lagging=before.lagging and state.mark - mark >= WINDOW_MARKS))
    return _forget_marks(state), effects


def _put(state: Sender, device: str, wanter: Wanter) -> Sender:
    wanters = dict(state.wanters)
    if not wanter.missing:
        wanters.pop(device, None)
    elif device in wanters or len(wanters) < MAX_WANTERS:
        wanters[device] = wanter
    return _with(state, wanters=wanters)


def _forget_marks(state: Sender) -> Sender:
    oldest = min((wanter.mark for wanter in state.wanters.values()), default=state.mark)
    oldest = max(oldest, state.mark - 4 * WINDOW_MARKS)
    if all(mark >= oldest for mark in state.marks):
        return state
    return _with(state, marks={mark: sent for mark, sent in state.marks.items() if mark >= oldest})


# --- budget -------------------------------------------------------------------------------------------------


def allowance(state: Sender, device: str, now: float) -> int:
    """Chunks that may still be sent for `device`: 1.5 blobs and 8 chunks, less what was sent, renewed by one blob in ten minutes."""
    charge = state.charges.get(device)
    spent = 0.0 if charge is None else max(0.0, charge.chunks - (now - charge.at) * state.count / BUDGET_RENEW_S)
    return int(state.count * BUDGET_BLOBS + BUDGET_SLACK - spent)


def _charge(state: Sender, device: str, bits: Bitmap, now: float) -> tuple[Sender, tuple[SenderEffect, ...], Bitmap]:
    """Charge `device` for `bits`; what does not fit its allowance is left out of the returned set."""
    allowed = allowance(state, device, now)
    wanted = len(bits)
    granted = bits if wanted <= allowed else _first(bits, allowed)[1]
    spent = state.count * BUDGET_BLOBS + BUDGET_SLACK - allowed + len(granted)
    state = _with(state, charges={**state.charges, device: Charge(spent, now)})
    return state, (Refuse(device, "delivery.budget"),) if wanted > allowed else (), granted


def _first(bits: Bitmap, count: int) -> tuple[tuple[int, ...], Bitmap]:
    """The lowest `count` members, as numbers and as a set."""
    rest = bits.bits
    taken: list[int] = []
    while rest and len(taken) < count:
        low = rest & -rest
        taken.append(low.bit_length() - 1)
        rest ^= low
    return tuple(taken), Bitmap(bits.count, bits.bits ^ rest)


# --- rounds -------------------------------------------------------------------------------------------------


def _grant_gathering(state: Sender, event: Grant, now: float) -> SenderStep:
    everybody = 0 < event.expected <= len(state.wanters)
    if now < state.until and not everybody:
        return state, ()
    effects: list[SenderEffect] = []
    queue = Bitmap(state.count)
    for device, wanter in state.wanters.items():
        state, refusals, granted = _charge(state, device, wanter.missing, now)
        effects += refusals
        queue = queue.union(granted)
    if not queue:
        return _idle(state), tuple(effects)
    wanters = {device: Wanter(wanter.missing) for device, wanter in state.wanters.items()}
    nothing = Bitmap(state.count)
    state = _with(state, phase="sending", round=state.round % 0xFFFFFFFF + 1, mark=0, queue=queue, sent=nothing, since_mark=0,
                  marks={0: nothing}, marked_at=now, wanters=wanters)
    effects.append(Announce(_mark(state, "begin")))
    state, more = _grant_sending(state, event, now)
    return state, (*effects, *more)


def _grant_sending(state: Sender, event: Grant, now: float) -> SenderStep:
    effects: list[SenderEffect] = []
    left = event.chunks
    if held_back(state) and now >= state.marked_at + PATIENCE_S:
        state = _leave_behind(state)
    if not state.wanters:
        return _end(state, effects, now)
    while left > 0 and state.queue and not held_back(state):
        indices, taken = _first(state.queue, min(left, MARK_EVERY - state.since_mark))
        state = _with(state, queue=state.queue.minus(taken), sent=state.sent.union(taken), since_mark=state.since_mark + len(indices))
        effects.append(Send(state.round, indices))
        left -= len(indices)
        if state.since_mark == MARK_EVERY and state.queue:
            state = _next_mark(state, now)
            effects.append(Announce(_mark(state, "sync")))
    if state.queue:
        return state, tuple(effects)
    return _end(state, effects, now)


def _end(state: Sender, effects: list[SenderEffect], now: float) -> SenderStep:
    state = _next_mark(state, now)
    state = _with(state, phase="draining", queue=Bitmap(state.count), until=now + spread_s(len(state.wanters)) + PATIENCE_S)
    effects.append(Announce(_mark(state, "end")))
    state, more = _close_round(state, now)
    return state, (*effects, *more)


def _next_mark(state: Sender, now: float) -> Sender:
    mark = state.mark + 1
    return _with(state, mark=mark, since_mark=0, marks={**state.marks, mark: state.sent}, marked_at=now)


def _leave_behind(state: Sender) -> Sender:
    owing = {device for device, wanter in state.wanters.items() if state.mark - wanter.mark >= WINDOW_MARKS}
    return _with(state, wanters={device: msgspec.structs.replace(wanter, lagging=wanter.lagging or device in owing)
                                 for device, wanter in state.wanters.items()})


def _mark(state: Sender, kind: Literal["begin", "sync", "end"]) -> RoundMark:
    return RoundMark(round=state.round, mark=state.mark, kind=kind, chunks=len(state.queue), spread_s=spread_s(len(state.wanters)))


def _grant_draining(state: Sender, _event: Grant, now: float) -> SenderStep:
    if now < state.until:
        return state, ()
    heard = {device: wanter for device, wanter in state.wanters.items() if wanter.mark == state.mark}
    return _close_round(_with(state, wanters=heard), now)  # the silent ask again by themselves


def _close_round(state: Sender, now: float) -> SenderStep:
    """When everybody has answered the end mark: the next round from what they lack, or rest."""
    if any(wanter.mark != state.mark for wanter in state.wanters.values()):
        return state, ()
    if not state.wanters:
        return _idle(state), ()
    return _with(state, phase="gathering", until=now, gather_end=now + MAX_GATHER_S, marks={}), ()


def _idle(state: Sender) -> Sender:
    nothing = Bitmap(state.count)
    return _with(state, phase="idle", queue=nothing, sent=nothing, marks={}, wanters={})


def _lost(state: Sender, _event: Lost, _now: float) -> SenderStep:
    """Nobody pays for what was still in the queue."""
    charges = dict(state.charges)
    for device, wanter in state.wanters.items():
        unsent = (state.queue.bits & wanter.missing.bits).bit_count()
        if unsent and device in charges:
            charges[device] = Charge(max(0.0, charges[device].chunks - unsent), charges[device].at)
    return _idle(_with(state, charges=charges)), ()


def _nothing(state: Sender, _event: object, _now: float) -> SenderStep:
    return state, ()


_SENDER: dict[tuple[str, type], Callable[..., SenderStep]] = {
    ("idle", Wanted): _wanted_first,
    ("idle", Grant): _nothing,
    ("idle", Lost): _nothing,
    ("gathering", Wanted): _wanted_gathering,
    ("gathering", Grant): _grant_gathering,
    ("gathering", Lost): _lost,
    ("sending", Wanted): _wanted_sending,
    ("sending", Grant): _grant_sending,
    ("sending", Lost): _lost,
    ("draining", Wanted): _wanted_draining,
    ("draining", Grant): _grant_draining,
    ("draining", Lost): _lost,
}

