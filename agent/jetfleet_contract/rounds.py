"""The sender's machine of one blob: merges wants into rounds and sends each chunk once for all. See `transfer`.

    idle -> gathering -> sending -> draining -> idle | gathering

Pacing has three parts. Marks are answered, so that at most `WINDOW_MARKS` marks are under way to the slowest receiver (brokers drop
QoS 0 silently beyond their queue, 1000 messages on mosquitto). When most have caught up and some owe a whole window for `HURRY_S`, the
others move to a lane of their own (`Move`): the slow ones stay behind with a small window. Who is silent for `PATIENCE_S` while others
wait is not waited for until it answers again; when none is left who answers, the sender rests. What went to the silent is remembered, and
not sent again before they told what of it they lack (`under_way`). The caller grants no more than its
token bucket (`pacing`) and its outbox allow.

A chunk that no more than `few` devices lack goes to each of these alone, while others take part, so that nobody pays for bytes that only
a late joiner or another one's bad link needs; with `few` at 1 the sender pays nothing for that. Which chunks these are is reckoned once a
round and kept as sets: `lacked[n]` is what more than `n` devices lack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from .charges import Charges, allowance, charged, credited, refunded
from .chunks import Bitmap
from .errors import OrderError
from .round_events import Announce, Grant, Left, Lost, Move, Observe, Refuse, Send, SenderEffect, SenderEvent, Wanted
from .transfer import MAX_STAY, RoundMark
from .under_way import MOVED_S, Moved, UnderWay, is_told, still, unanswered
from .wanters import (
    PATIENCE_S,
    WINDOW_MARKS,
    Wanter,
    Wanters,
    held_up,
    lacked_by,
    lagging,
    owing,
    patience_s,
    slowest,
    spread_s,
    too_slow,
)

__all__ = ["Announce", "Grant", "Left", "Lost", "Move", "Observe", "Refuse", "Send", "Sender", "SenderEffect", "SenderEvent", "Wanted",
           "handed_over", "held_back", "sender", "step_sender"]

GATHER_S = 0.03
GATHER_LARGE_S = 0.08
LARGE_CHUNKS = 64
MAX_GATHER_S = 1.0
MAX_GATHER_LARGE_S = 1.5
MARK_EVERY = 64
FIRST_MARK = 8
FEW = 1
MAX_WANTERS = 10_000

SenderPhase = Literal["idle", "gathering", "sending", "draining"]


class Sender(msgspec.Struct, frozen=True):
    """One blob of `count` chunks on its way to many. `queue` is this round's rest, `sent` what went out in it, to anybody; `marks` what
    had gone out before each mark."""

    count: int
    few: int = FEW
    mark_every: int = MARK_EVERY
    phase: SenderPhase = "idle"
    round: int = 0
    mark: int = 0
    queue: Bitmap = Bitmap(0)
    sent: Bitmap = Bitmap(0)
    lacked: tuple[Bitmap, ...] = ()
    since_mark: int = 0
    marks: dict[int, Bitmap] = {}
    began: float = 0.0
    granted_at: float = 0.0
    heard_at: float = 0.0
    until: float = 0.0
    gather_end: float = 0.0
    wanters: Wanters = {}
    charges: Charges = {}
    under_way: UnderWay = {}
    moved: dict[str, Moved] = {}


SenderStep = tuple[Sender, tuple[SenderEffect, ...]]


def sender(count: int, first_round: int, few: int = FEW) -> Sender:
    """An idle sender. `first_round` in 1..2^31 should differ between runs of the host, so that old marks mean nothing."""
    return Sender(count=count, few=few, round=first_round, queue=Bitmap(count), sent=Bitmap(count))


def handed_over(old: Sender, new: Sender, device: str, now: float) -> tuple[Sender, SenderStep]:
    """`device` leaves `old` and is served by `new` from now on: its charge goes along. The new one, and a step of the old one."""
    state, effects = step_sender(old, Left(device), now)
    if device in state.charges:
        new = _with(new, charges={**new.charges, device: state.charges[device]})
    charges = {name: charge for name, charge in state.charges.items() if name != device}
    return new, (_with(state, charges=charges), effects)


def step_sender(state: Sender, event: SenderEvent, now: float) -> SenderStep:
    """One step. Raises OrderError `transfer.order` for what is not in the table; `state` is never changed."""
    handler = _SENDER.get((state.phase, type(event)))
    if handler is None:
        raise OrderError("transfer.order", f"a sender that is {state.phase} cannot take {type(event).__name__}")
    return handler(state, event, now)


def gather_s(state: Sender) -> float:
    """How long after the last new want a round waits for more: who comes later costs what was sent before it."""
    return GATHER_S if state.count < LARGE_CHUNKS else GATHER_LARGE_S


def mark_distance(state: Sender) -> int:
    """Chunks from the last mark to the next: 8, 16, 32, then `mark_every`. A slow reader meets the first ones soon and sees that it is."""
    return min(state.mark_every, FIRST_MARK << min(state.mark, 16))


def held_back(state: Sender) -> bool:
    """True when the window is full: marks that the slowest answering receiver owes."""
    return state.phase == "sending" and state.mark - slowest(state.wanters, state.mark) >= WINDOW_MARKS


def _with(state: Sender, **changes: object) -> Sender:
    return msgspec.structs.replace(state, **changes)


# --- wants --------------------------------------------------------------------------------------------------


def _wanted(state: Sender, event: Wanted, now: float) -> SenderStep:
    """What a device lacks, without what may be under way to it: of that it is asked again."""
    device, want = event.device, event.want
    moved = state.moved.get(device)
    if moved is not None and want.missing and moved.overtakes(want, now):
        return state, ()
    state = _with(state, charges=credited(state.charges, device, len(want.missing)))
    entry = state.under_way.get(device)
    if entry is None:
        return _WANTED[state.phase](state, event, now)
    if now >= entry.until or device in state.wanters or is_told(entry, want, state.round):
        state = _with(state, under_way={name: other for name, other in state.under_way.items() if name != device})
        return _WANTED[state.phase](state, event, now)
    reminder = Announce(entry.reminder, device)
    lost = want.missing.minus(entry.chunks)
    if not lost:
        return state, (reminder,)
    state, effects = _WANTED[state.phase](state, Wanted(device, msgspec.structs.replace(want, missing=lost)), now)
    return state, (*effects, reminder)


def _wanted_first(state: Sender, event: Wanted, now: float) -> SenderStep:
    if not event.want.missing:
        return state, ()
    end = now + (MAX_GATHER_S if state.count < LARGE_CHUNKS else MAX_GATHER_LARGE_S)
    state = _with(state, phase="gathering", began=now, until=now + gather_s(state), gather_end=end, wanters={})
    return _put(state, event.device, Wanter(event.want.missing)), ()


def _wanted_gathering(state: Sender, event: Wanted, now: float) -> SenderStep:
    if event.device not in state.wanters:
        until = now + gather_s(state) + (now - state.began) / 2  # the further apart they come, the longer the next may take
        state = _with(state, until=min(state.gather_end, max(state.until, until)))
    return _put(state, event.device, Wanter(event.want.missing)), ()


def _wanted_sending(state: Sender, event: Wanted, now: float) -> SenderStep:
    want = event.want
    if want.round == state.round and event.device in state.wanters:
        return _followed(state, event, now)
    known = state.wanters.get(event.device)
    fresh = want.missing.minus(state.sent)  # the rest is for the next round
    state, effects, granted = _charge(state, event.device, fresh.minus(known.missing) if known else fresh, len(want.missing), now)
    state = _with(state, queue=state.queue.union(granted), lacked=lacked_by(state.lacked, granted))
    return _put(state, event.device, _entered(state, event)), (*effects, *_reminded(state, known, event.device))


def _wanted_draining(state: Sender, event: Wanted, now: float) -> SenderStep:
    if event.want.round == state.round and event.device in state.wanters:
        state, effects = _followed(state, event, now)
    else:
        known = state.wanters.get(event.device)
        state, effects = _put(state, event.device, _entered(state, event)), _reminded(state, known, event.device)
    state, more = _close_round(state, now)
    return state, (*effects, *more)


def _entered(state: Sender, event: Wanted) -> Wanter:
    """The entry of a device that does not speak of this round. Of a new one everything sent so far is lost; one that already takes part
    only crossed with chunks that are under way (or began anew): what it still lacks is told by its answer to the next mark."""
    known = state.wanters.get(event.device)
    if known is None:
        return Wanter(event.want.missing, state.mark, asked=event.want.missing, first=state.mark + 1)
    return msgspec.structs.replace(known, missing=known.missing.union(event.want.missing), asked=known.asked.union(event.want.missing))


def _followed(state: Sender, event: Wanted, now: float) -> SenderStep:
    """A device that follows this round says what it lacks. One that says nothing new fell silent: it is reminded of the newest mark."""
    before = state.wanters[event.device]
    state, effects = _answer(state, event, now)
    return state, (*effects, *_reminded(state, before, event.device)) if event.want.missing and event.want.mark <= before.mark else effects


def _reminded(state: Sender, known: Wanter | None, device: str) -> tuple[Announce, ...]:
    """The newest mark for a device alone that takes part and has not answered it: the answer tells what is lost and what only late."""
    if known is None or known.mark == state.mark:
        return ()
    return (Announce(_mark(state, "end" if state.phase == "draining" else "sync"), device),)


def _answer(state: Sender, event: Wanted, now: float) -> SenderStep:
    """A device that follows this round answers a mark: holes before that mark are losses, the rest is under way."""
    want = event.want
    before = state.wanters[event.device]
    then, earlier = state.marks.get(want.mark), state.marks.get(max(before.mark, before.first))
    effects: tuple[SenderEffect, ...] = ()
    if then is not None and want.mark > before.mark:
        part = (then.minus(earlier) if earlier is not None else then).both(before.asked)
        effects = (Observe(event.device, len(part), len(want.missing.both(part))),) if part else ()
        state = _with(state, heard_at=now)
    mark = max(before.mark, min(want.mark, state.mark))
    still = before.lagging and state.mark - mark >= WINDOW_MARKS
    state = _put(state, event.device, msgspec.structs.replace(before, missing=want.missing, mark=mark, lagging=still))
    return _forget_marks(state), effects


def _left(state: Sender, event: Left, now: float) -> SenderStep:
    """Nobody pays for what was still in the queue, and nobody waits for who left."""
    if event.device not in state.wanters:
        return state, ()
    state = _put(_refunded(state, (event.device,)), event.device, Wanter(Bitmap(state.count)))
    return _close_round(state, now) if state.phase == "draining" else (state, ())


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
    if min(state.marks, default=oldest) >= oldest:
        return state
    return _with(state, marks={mark: sent for mark, sent in state.marks.items() if mark >= oldest})


# --- budget -------------------------------------------------------------------------------------------------


def _charge(state: Sender, device: str, bits: Bitmap, lacks: int, now: float) -> tuple[Sender, tuple[SenderEffect, ...], Bitmap]:
    """Charge `device` for `bits`; what does not fit its allowance is left out of the returned set."""
    allowed = allowance(state.charges, state.count, device, now)
    wanted = len(bits)
    granted = bits if wanted <= allowed else _first(bits, allowed)[1]
    state = _with(state, charges=charged(state.charges, state.count, device, len(granted), now, lacks))
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
    if now < _gathered_at(state, event.expected):
        return state, ()
    effects: list[SenderEffect] = []
    nothing = Bitmap(state.count)
    lacked = (nothing,) * (state.few + 1)
    for device, wanter in state.wanters.items():
        state, refusals, granted = _charge(state, device, wanter.missing, len(wanter.missing), now)
        effects += refusals
        lacked = lacked_by(lacked, granted)
    if not lacked[0]:
        return _idle(state), tuple(effects)
    wanters = {device: Wanter(wanter.missing, asked=wanter.missing) for device, wanter in state.wanters.items()}
    state = _with(state, phase="sending", round=state.round % 0xFFFFFFFF + 1, mark=0, queue=lacked[0], sent=nothing, lacked=lacked,
                  since_mark=0, marks={0: nothing}, began=now, granted_at=now, heard_at=now, wanters=wanters, moved={})
    effects.append(Announce(_mark(state, "begin")))
    state, more = _grant_sending(state, event, now)
    return state, (*effects, *more)


def _gathered_at(state: Sender, expected: int) -> float:
    """When a round begins: at once when all who are expected have asked; of a large blob later, while some of them have not."""
    if 0 < expected <= len(state.wanters):
        return state.began
    return state.gather_end if expected and state.count >= LARGE_CHUNKS else state.until


def _grant_sending(state: Sender, event: Grant, now: float) -> SenderStep:
    effects: list[SenderEffect] = []
    if held_back(state):
        state, effects = _look_at_the_slow(state, now)
    state = _with(state, granted_at=now)
    if all(wanter.lagging for wanter in state.wanters.values()):
        return _idle(_remember(_refunded(state, state.wanters), now)), tuple(effects)  # they ask again when they hear the marks
    left = event.chunks
    while left > 0 and state.queue and not held_back(state):
        state, sends = _take(state, min(left, max(1, mark_distance(state) - state.since_mark)))
        effects += sends
        left -= sum(len(send.indices) for send in sends)
        if state.since_mark >= mark_distance(state) and state.queue:
            state = _next_mark(state, now)
            effects.append(Announce(_mark(state, "sync")))
    if state.queue:
        return state, tuple(effects)
    return _end(state, effects, now)


def _take(state: Sender, most: int) -> tuple[Sender, list[Send]]:
    """The next chunks: first those for everybody, then those that few lack, for each of these. What nobody lacks any more is dropped."""
    shared = state.queue if len(state.wanters) == 1 else state.queue.both(state.lacked[state.few])
    indices, taken = _first(shared or state.queue, most)
    if shared:
        sends = [Send(state.round, indices)]
    else:
        wants = ((device, wanter.missing.both(taken)) for device, wanter in state.wanters.items())
        sends = [Send(state.round, tuple(mine), device) for device, mine in wants if mine]
    gone = sum(len(send.indices) for send in sends)
    return _with(state, queue=state.queue.minus(taken), sent=state.sent.union(taken), since_mark=state.since_mark + gone), sends


def _end(state: Sender, effects: list[SenderEffect], now: float) -> SenderStep:
    state = _next_mark(state, now)
    state = _with(state, phase="draining", queue=Bitmap(state.count), until=now + spread_s(len(state.wanters)) + PATIENCE_S)
    effects.append(Announce(_mark(state, "end")))
    state, more = _close_round(state, now)
    return state, (*effects, *more)


def _next_mark(state: Sender, now: float) -> Sender:
    mark = state.mark + 1
    return _with(state, mark=mark, since_mark=0, marks={**state.marks, mark: state.sent}, heard_at=now)


def _look_at_the_slow(state: Sender, now: float) -> tuple[Sender, list[SenderEffect]]:
    """The window is full. Those that hold most others up for too long are left behind; those that say nothing at all lag."""
    state = _with(state, wanters=held_up(state.wanters, state.mark, now - state.granted_at))
    slow = too_slow(state.wanters, state.mark, now - state.began)
    if 0 < len(slow) < len(state.wanters):  # once those alone are left, nobody moves
        return _leave_behind(state, slow, now)
    patience = patience_s(state.wanters, state.mark)
    if patience >= PATIENCE_S and now >= state.heard_at + patience:
        state = _with(state, wanters=lagging(state.wanters, owing(state.wanters, state.mark)))
    return state, []


def _leave_behind(state: Sender, slow: tuple[str, ...], now: float) -> tuple[Sender, list[SenderEffect]]:
    """The slow ones stay here, with a small window; the others move on, and are not charged for what was not sent."""
    movers = tuple(device for device in state.wanters if device not in set(slow))
    state = _refunded(state, movers)
    wanters = {device: state.wanters[device] for device in slow}
    queue = Bitmap(state.count)
    for wanter in wanters.values():
        queue = queue.union(state.queue.both(wanter.missing))
    gone = dict.fromkeys(movers, Moved(state.round, state.mark, now + MOVED_S))
    state = _with(state, wanters=wanters, queue=queue, mark_every=FIRST_MARK, moved={**state.moved, **gone})
    return state, [Move(state.round, slow[:MAX_STAY], len(movers))]


def _mark(state: Sender, kind: Literal["begin", "sync", "end"]) -> RoundMark:
    return RoundMark(state.round, state.mark, kind, len(state.queue), spread_s(len(state.wanters)))


def _grant_draining(state: Sender, _event: Grant, now: float) -> SenderStep:
    if now < state.until:
        return state, ()
    heard = {device: wanter for device, wanter in state.wanters.items() if wanter.mark == state.mark}
    return _close_round(_with(_remember(state, now), wanters=heard), now)  # the silent ask again by themselves


def _remember(state: Sender, now: float) -> Sender:
    """What may be under way to those that owe an answer, before they are forgotten."""
    found = unanswered(state.wanters, state.round, state.mark, state.marks, state.sent, now)
    return _with(state, under_way={**still(state.under_way, now), **found})


def _close_round(state: Sender, now: float) -> SenderStep:
    """When everybody has answered the end mark: the next round from what they lack, or rest."""
    if any(wanter.mark != state.mark for wanter in state.wanters.values()):
        return state, ()
    if not state.wanters:
        return _idle(state), ()
    return _with(state, phase="gathering", until=now, gather_end=now, marks={}), ()


def _idle(state: Sender) -> Sender:
    nothing = Bitmap(state.count)
    return _with(state, phase="idle", mark_every=MARK_EVERY, queue=nothing, sent=nothing, lacked=(), marks={}, wanters={})


def _lost(state: Sender, _event: Lost, _now: float) -> SenderStep:
    """Nobody pays for what was still in the queue; nothing is under way any more."""
    return _with(_idle(_refunded(state, state.wanters)), under_way={}, moved={}), ()


def _refunded(state: Sender, devices: Iterable[str]) -> Sender:
    unsent = {device: len(state.queue.both(state.wanters[device].missing)) for device in devices}
    return _with(state, charges=refunded(state.charges, unsent))


def _nothing(state: Sender, _event: object, _now: float) -> SenderStep:
    return state, ()


_WANTED: dict[str, Callable[..., SenderStep]] = {"idle": _wanted_first, "gathering": _wanted_gathering, "sending": _wanted_sending,
                                                 "draining": _wanted_draining}
_SENDER: dict[tuple[str, type], Callable[..., SenderStep]] = {
    ("idle", Wanted): _wanted,
    ("idle", Grant): _nothing,
    ("idle", Left): _nothing,
    ("idle", Lost): _nothing,
    ("gathering", Wanted): _wanted,
    ("gathering", Grant): _grant_gathering,
    ("gathering", Left): _left,
    ("gathering", Lost): _lost,
    ("sending", Wanted): _wanted,
    ("sending", Grant): _grant_sending,
    ("sending", Left): _left,
    ("sending", Lost): _lost,
    ("draining", Wanted): _wanted,
    ("draining", Grant): _grant_draining,
    ("draining", Left): _left,
    ("draining", Lost): _lost,
}

