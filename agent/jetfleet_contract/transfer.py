"""One-to-many transfer of blobs: what travels, and the receiver's machine (the sender's is in `rounds`).

    opening -> offline <-> asking <-> receiving -> checking -> done        (any) -> failed
                  held <-> (offline, asking, receiving)

A receiver publishes what it lacks; the sender merges what it hears into a round, publishes each chunk once for all, and marks the
round's beginning, every 64 chunks, and its end. At a mark receivers answer, after a random part of the spread that the mark names,
with what they still lack and with the number of the mark. What was sent before that mark and is still missing was lost: that steers
pacing, and is sent again in the next round. What was sent after it is under way and asked for by nobody. MQTT keeps the order of one topic
only, and the embedded broker was seen to let a mark overtake its chunks; so no answer is given before `SETTLE_S` have passed.

Chunks for everybody come on the shared topics of a lane, those that only one device lacks on that device's own. All begin in lane 0. When
some readers are much slower than the others, a mark of kind `move` takes the others to a new lane, where they ask again: the slow ones get
no more than they can take, and hold nobody. A device that must count every byte is *apart*: it listens to its own topic only, and is
served alone, with the marks there too. One that may not receive now (`held`) listens to nothing and asks for nothing.

A mark on the own topic of a device that is not apart asks it alone: it fell silent, and shall say what it lacks.

Machines are pure: ``step(state, event, now) -> (state, effects)``, `now` in monotonic seconds. Every pair of phase and event that
is not in the table raises OrderError and changes nothing. Nothing here persists: a restart asks again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Literal, Union

import msgspec

from .chunks import MAX_CHUNK_BYTES, MAX_CHUNKS, Bitmap
from .errors import MalformedError, OrderError
from .messages import Message, decode, encode

FIRST_SPREAD_S = 0.01
SETTLE_S = 0.03
QUIET_S = 2.0
MAX_ASK_S = 60.0
MAX_SPREAD_S = 60.0
MAX_LANE = 255
MAX_STAY = 16
MAX_CHECKS = 3
NEVER = float("inf")

_CHUNK = struct.Struct(">II")
CHUNK_HEADER_BYTES = _CHUNK.size
_WANT = struct.Struct(">BBBxIIII")
_WANT_VERSION = 1
_APART = 1
_MARK_INDEX = 0xFFFFFFFF
_MAX_MARK_BYTES = 2048


# --- what travels -------------------------------------------------------------------------------------------


class RoundMark(Message, frozen=True):
    """On a lane's round topic, JSON. `mark` counts from 0 (begin) in each round; `chunks` are still to come; answer within `spread_s`.
    `move`: ask again in `lane`, except the devices in `stay`."""

    round: int
    mark: int
    kind: Literal["begin", "sync", "end", "move"]
    chunks: int
    spread_s: float = 0.0
    lane: int = 0
    stay: tuple[str, ...] = ()


class Want(msgspec.Struct, frozen=True):
    """On ``b/{blob}/want/{device}``: what a device lacks; empty when nothing has to be sent for it. `round` and `mark` are the last it
    saw, or 0. It listens to the shared topics of `lane`, or, when `apart`, to its own only."""

    chunk_size: int
    missing: Bitmap
    round: int = 0
    mark: int = 0
    apart: bool = False
    lane: int = 0


def encode_chunk(round_: int, index: int, data: bytes) -> bytes:
    """Round and index, 4 bytes each, big-endian, then the chunk."""
    return _CHUNK.pack(round_, index) + data


def decode_chunk(payload: bytes) -> tuple[int, int, memoryview]:
    """Round, index, data (a view, not a copy). Raises MalformedError `chunk.bad`."""
    if not _CHUNK.size < len(payload) <= _CHUNK.size + MAX_CHUNK_BYTES:
        raise MalformedError("chunk.bad", f"chunk message of {len(payload)} bytes")
    round_, index = _CHUNK.unpack_from(payload)
    return round_, index, memoryview(payload)[_CHUNK.size :]


def encode_want(want: Want) -> bytes:
    """Version, flags, lane, chunk size, count, round, mark (20 bytes), then the bitmap."""
    flags = _APART if want.apart else 0
    head = _WANT.pack(_WANT_VERSION, flags, want.lane, want.chunk_size, want.missing.count, want.round, want.mark)
    return head + want.missing.encode()


def decode_want(payload: bytes, count: int) -> Want:
    """A want for a blob that really has `count` chunks. Raises MalformedError `want.bad` or `bitmap.bad`."""
    if not _WANT.size < len(payload) <= _WANT.size + 2 + MAX_CHUNKS // 8:
        raise MalformedError("want.bad", f"want of {len(payload)} bytes")
    version, flags, lane, chunk_size, claimed, round_, mark = _WANT.unpack_from(payload)
    if version != _WANT_VERSION or flags & ~_APART or claimed != count:
        raise MalformedError("want.bad", f"want of version {version}.{flags} for {claimed} chunks, not {_WANT_VERSION} for {count}")
    return Want(chunk_size, Bitmap.decode(payload[_WANT.size :], count), round_, mark, bool(flags & _APART), lane)


def encode_own_mark(mark: RoundMark) -> bytes:
    """A mark for one device alone, on its own topic: a chunk message with the index that no chunk can have."""
    return _CHUNK.pack(mark.round, _MARK_INDEX) + encode(mark)


def own_mark(payload: bytes) -> RoundMark | None:
    """The mark that a message on a device's own topic is, or None when it is a chunk. Raises as `decode_mark` does."""
    if len(payload) <= _CHUNK.size or _CHUNK.unpack_from(payload)[1] != _MARK_INDEX:
        return None
    return decode_mark(payload[_CHUNK.size : _CHUNK.size + _MAX_MARK_BYTES + 1])


def decode_mark(payload: bytes) -> RoundMark:
    """Raises MalformedError `message.*` or `mark.bad` when a number is out of bounds."""
    mark = decode(payload, RoundMark, limit=_MAX_MARK_BYTES)
    numbers_fit = 0 < mark.round < 1 << 32 and 0 <= mark.mark < 1 << 32 and 0 <= mark.chunks <= MAX_CHUNKS
    if not numbers_fit or not 0.0 <= mark.spread_s <= MAX_SPREAD_S or not 0 <= mark.lane <= MAX_LANE or len(mark.stay) > MAX_STAY:
        raise MalformedError("mark.bad", "round mark has a number out of bounds")
    return mark


# --- the receiver -------------------------------------------------------------------------------------------

ReceiverPhase = Literal["opening", "held", "offline", "asking", "receiving", "checking", "done", "failed"]


class Receiver(msgspec.Struct, frozen=True):
    """One blob on its way to one device. `ask_at` ends a silence, `answer_at` answers a mark; both monotonic seconds. `allowed` chunks
    may still come before it is held (None: any number)."""

    chunk_size: int
    missing: Bitmap
    phase: ReceiverPhase = "opening"
    online: bool = False
    round: int = 0
    mark: int = 0
    ask_at: float = NEVER
    answer_at: float = NEVER
    asks: int = 0
    checks: int = 0
    repeated: int = 0
    spoiled: int = 0
    code: str = ""
    apart: bool = False
    allowed: int | None = None
    lane: int = 0

    @property
    def shared_lane(self) -> int | None:
        """The lane whose topics it should be subscribed to."""
        return self.lane if self.listens and not self.apart else None

    @property
    def listens(self) -> bool:
        """Whether it should be subscribed to its own topic: before the disk was looked at, or with all here, bytes would be wasted."""
        return self.phase in ("offline", "asking", "receiving")

    @property
    def wake_at(self) -> float:
        """When the next Tick is due."""
        return min(self.ask_at, self.answer_at)


class Opened(msgspec.Struct, frozen=True):
    """The disk was looked at: `missing` is what it lacks. `draw` in [0, 1) is a random number, here and below. `held`: as by Hold."""

    missing: Bitmap
    draw: float
    held: bool = False


class Hold(msgspec.Struct, frozen=True):
    """Nothing may be received now: it is not the hour, or today's bytes are used up."""


class Release(msgspec.Struct, frozen=True):
    """Go on, with at most `allowed` chunks (None: any number); `apart` when they must be counted to the last."""

    draw: float
    allowed: int | None = None
    apart: bool = False


class Up(msgspec.Struct, frozen=True):
    draw: float


class Down(msgspec.Struct, frozen=True):
    pass


class Stored(msgspec.Struct, frozen=True):
    """A chunk came, fitted the table and was written, or was there already (and then was not looked at)."""

    round: int
    index: int


class Spoiled(msgspec.Struct, frozen=True):
    """A chunk came that is not what the table says: damaged or forged. It was not written."""

    round: int
    index: int


class Marked(msgspec.Struct, frozen=True):
    mark: RoundMark
    draw: float


class Tick(msgspec.Struct, frozen=True):
    draw: float


class Checked(msgspec.Struct, frozen=True):
    """The whole blob was read again, hashed and named."""


class Unchecked(msgspec.Struct, frozen=True):
    """The whole digest was wrong; `missing` is what the disk really lacks."""

    missing: Bitmap
    draw: float


class Broken(msgspec.Struct, frozen=True):
    """The storage failed with a stable code."""

    code: str


class Ask(msgspec.Struct, frozen=True):
    """Publish this want."""

    want: Want


class Check(msgspec.Struct, frozen=True):
    """Read the whole blob again, then say Checked, Unchecked or Broken."""


class Finish(msgspec.Struct, frozen=True):
    """The blob is in the store."""


class GiveUp(msgspec.Struct, frozen=True):
    code: str


ReceiverEvent = Union[Opened, Hold, Release, Up, Down, Stored, Spoiled, Marked, Tick, Checked, Unchecked, Broken]
ReceiverEffect = Union[Ask, Check, Finish, GiveUp]
ReceiverStep = tuple[Receiver, tuple[ReceiverEffect, ...]]


def receiver(count: int, chunk_size: int) -> Receiver:
    """A receiver that has not looked at its disk yet."""
    return Receiver(chunk_size, Bitmap.full(count))


def step_receiver(state: Receiver, event: ReceiverEvent, now: float) -> ReceiverStep:
    """One step. Raises OrderError `transfer.order` for a pair that is not in the table; `state` is never changed."""
    handler = _RECEIVER.get((state.phase, type(event)))
    if handler is None:
        raise OrderError("transfer.order", f"a receiver that is {state.phase} cannot take {type(event).__name__}")
    return handler(state, event, now)


def _with(state: Receiver, **changes: object) -> Receiver:
    return msgspec.structs.replace(state, **changes)


def _ask(state: Receiver, **changes: object) -> ReceiverStep:
    state = _with(state, **changes)
    missing = state.missing if state.allowed is None else state.missing.lowest(state.allowed)
    return state, (Ask(Want(state.chunk_size, missing, state.round, state.mark, state.apart, state.lane)),)


def _look_for(state: Receiver, missing: Bitmap, draw: float, now: float) -> ReceiverStep:
    if not missing:
        return _with(state, missing=missing, phase="checking", ask_at=NEVER, answer_at=NEVER), (Check(),)
    state = _with(state, missing=missing, round=0, mark=0, asks=0, answer_at=NEVER)
    if not state.online:
        return _with(state, phase="offline", ask_at=NEVER), ()
    return _with(state, phase="asking", ask_at=now + draw * FIRST_SPREAD_S), ()


def _opened(state: Receiver, event: Opened, now: float) -> ReceiverStep:
    if event.held and event.missing:
        return _with(state, missing=event.missing, phase="held"), ()
    return _look_for(state, event.missing, event.draw, now)


def _hold(state: Receiver, _event: Hold, _now: float) -> ReceiverStep:
    held = _with(state, phase="held", ask_at=NEVER, answer_at=NEVER)
    if state.phase == "offline" or not (state.asks or state.round):
        return held, ()  # the host does not think that we want anything
    return held, _stop_sending(state)


def _stop_sending(state: Receiver) -> tuple[Ask, ...]:
    return (Ask(Want(state.chunk_size, Bitmap(state.missing.count), state.round, state.mark, state.apart, state.lane)),)


def _allowed(state: Receiver, event: Release, _now: float) -> ReceiverStep:
    return _with(state, allowed=event.allowed, apart=event.apart), ()


def _release(state: Receiver, event: Release, now: float) -> ReceiverStep:
    return _look_for(_allowed(state, event, now)[0], state.missing, event.draw, now)


def _up(state: Receiver, event: Up, now: float) -> ReceiverStep:
    return _look_for(_with(state, online=True, lane=0), state.missing, event.draw, now)


def _online(state: Receiver, _event: Up, _now: float) -> ReceiverStep:
    return _with(state, online=True), ()


def _offline(state: Receiver, _event: Down, _now: float) -> ReceiverStep:
    return _with(state, online=False), ()


def _down(state: Receiver, _event: Down, _now: float) -> ReceiverStep:
    return _with(state, online=False, phase="offline", ask_at=NEVER, answer_at=NEVER), ()


def _stored(state: Receiver, event: Stored, now: float) -> ReceiverStep:
    if state.allowed is not None:
        state = _with(state, allowed=max(0, state.allowed - 1))
    if not state.missing.has(event.index):  # nobody looked at its bytes: it must not keep us from asking
        return _used_up(_with(state, repeated=state.repeated + 1), (), now)
    if event.round != state.round:  # its begin mark was lost
        state = _with(state, round=event.round, mark=0)
    missing = state.missing.without(event.index)
    if missing:
        return _used_up(_heard(state, now, missing=missing), (), now)
    state = _with(state, missing=missing, phase="checking", ask_at=NEVER, answer_at=NEVER)
    done, asked = _ask(state)  # nothing more has to be sent for us, whatever the check says
    return done, (*asked, Check()) if state.online else (Check(),)


def _heard(state: Receiver, now: float, **changes: object) -> Receiver:
    """The host speaks: the silence begins anew. An ask that was never made stays due: nobody knows yet what we lack."""
    state = _with(state, **changes)
    if state.phase in ("offline", "held") or (state.phase == "asking" and not state.asks):
        return state
    return _with(state, phase="receiving", asks=0, ask_at=now + QUIET_S)


def _used_up(state: Receiver, effects: tuple[ReceiverEffect, ...], now: float) -> ReceiverStep:
    """Held when nothing more may come."""
    if state.allowed != 0 or state.phase == "held":
        return state, effects
    state, more = _hold(state, Hold(), now)
    return state, (*effects, *more)


def _spoiled(state: Receiver, _event: Spoiled, _now: float) -> ReceiverStep:
    return _with(state, spoiled=state.spoiled + 1), ()  # forged chunks must not keep us from asking: the silence runs on


def _marked(state: Receiver, event: Marked, now: float) -> ReceiverStep:
    mark = event.mark
    if mark.kind == "begin":
        return _heard(state, now, round=mark.round, mark=0), ()
    due = now + SETTLE_S + event.draw * mark.spread_s
    if mark.kind == "move":
        return _with(state, phase="asking", lane=mark.lane, round=0, mark=0, answer_at=NEVER, ask_at=due), ()
    answer_at = due if mark.kind == "end" else min(state.answer_at, due)  # an answer that is due is not put off by the next mark
    return _with(state, phase="receiving", round=mark.round, mark=mark.mark, answer_at=answer_at, ask_at=answer_at + QUIET_S), ()


def _tick(state: Receiver, event: Tick, now: float) -> ReceiverStep:
    if now >= state.answer_at:
        return _ask(state, answer_at=NEVER, ask_at=now + QUIET_S)
    if now < state.ask_at:
        return state, ()
    wait = min(MAX_ASK_S, QUIET_S * 2.0 ** min(state.asks, 10)) * (0.5 + event.draw)
    return _ask(state, phase="asking", asks=state.asks + 1, ask_at=now + wait)


def _checked(state: Receiver, _event: Checked, _now: float) -> ReceiverStep:
    return _with(state, phase="done"), (Finish(),)


def _unchecked(state: Receiver, event: Unchecked, now: float) -> ReceiverStep:
    if state.checks + 1 >= MAX_CHECKS:
        return _broken(state, Broken("blob.unverifiable"), now)
    return _look_for(_with(state, checks=state.checks + 1), event.missing, event.draw, now)


def _broken(state: Receiver, event: Broken, _now: float) -> ReceiverStep:
    return _with(state, phase="failed", code=event.code, ask_at=NEVER, answer_at=NEVER), (GiveUp(event.code),)


def _nothing(state: Receiver, _event: object, _now: float) -> ReceiverStep:
    return state, ()  # late: the queue between link and machine may still hold it


_Handler = Callable[..., ReceiverStep]
_LATE: dict[type, _Handler] = {Stored: _nothing, Spoiled: _nothing, Marked: _nothing, Tick: _nothing, Up: _online, Down: _offline,
                               Hold: _nothing}
_OPEN: dict[type, _Handler] = {Stored: _stored, Spoiled: _spoiled, Marked: _marked, Tick: _tick, Up: _up, Down: _down, Hold: _hold,
                               Broken: _broken}
_HELD: dict[type, _Handler] = {**_OPEN, Marked: _nothing, Tick: _nothing, Up: _online, Down: _offline, Hold: _nothing, Release: _release}
_ROWS: dict[str, dict[type, _Handler]] = {
    "opening": {Opened: _opened, Release: _allowed, Up: _online, Down: _offline, Marked: _nothing, Tick: _nothing, Broken: _broken},
    "held": _HELD,
    "offline": {**_OPEN, Marked: _nothing, Down: _nothing},
    "asking": _OPEN,
    "receiving": _OPEN,
    "checking": {**_LATE, Checked: _checked, Unchecked: _unchecked, Broken: _broken},
    "done": _LATE,
    "failed": _LATE,
}
_RECEIVER: dict[tuple[str, type], _Handler] = {(phase, kind): handler for phase, row in _ROWS.items() for kind, handler in row.items()}
