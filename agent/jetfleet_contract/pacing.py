"""How fast a sender may go: a token bucket whose rate follows the losses that receivers report.

Additive increase, multiplicative decrease, as TCP does it (Chiu and Jain, 1989). What counts is the loss that
most receivers see: one board with a bad link does not slow the others, while a broker that drops for everybody does.
"""

from __future__ import annotations

import msgspec

JUDGE_CHUNKS = 256
MAX_LOSS = 0.01
CUT_EVERY_S = 1.0
GROWTH = 1 / 20


class Pace(msgspec.Struct, frozen=True):
    """A token bucket in bytes. `rate` (bytes/s) moves between `floor` and `ceiling`; at most `burst` bytes gather.
    `seen` is what each device said since the last judgement: chunks sent and lost."""

    ceiling: float
    floor: float
    burst: float
    rate: float
    tokens: float
    at: float
    cut_at: float = float("-inf")
    seen: dict[str, tuple[int, int]] = {}


def starting(ceiling: float, floor: float, burst: float, now: float) -> Pace:
    """A full bucket at the highest rate."""
    return Pace(ceiling, min(floor, ceiling), burst, ceiling, burst, now)


def refill(pace: Pace, now: float) -> Pace:
    tokens = min(pace.burst, pace.tokens + max(0.0, now - pace.at) * pace.rate)
    return msgspec.structs.replace(pace, tokens=tokens, at=now)


def spend(pace: Pace, size: int) -> Pace:
    return msgspec.structs.replace(pace, tokens=pace.tokens - size)


def observe(pace: Pace, sent: int, lost: int, now: float, device: str = "") -> Pace:
    """`device` says that `lost` of `sent` chunks did not come. Once 256 are known: when half of the receivers lost more than 1 %, the rate
    is halved, at most once a second; otherwise it grows by a twentieth of the ceiling."""
    before = pace.seen.get(device, (0, 0))
    seen = {**pace.seen, device: (before[0] + sent, before[1] + lost)}
    if sum(known for known, _ in seen.values()) < JUDGE_CHUNKS:
        return msgspec.structs.replace(pace, seen=seen)
    pace = msgspec.structs.replace(pace, seen={})
    if _usual_loss(seen) <= MAX_LOSS:
        return msgspec.structs.replace(pace, rate=min(pace.ceiling, pace.rate + pace.ceiling * GROWTH))
    if now - pace.cut_at < CUT_EVERY_S:
        return pace
    return msgspec.structs.replace(pace, rate=max(pace.floor, pace.rate / 2), cut_at=now)


def _usual_loss(seen: dict[str, tuple[int, int]]) -> float:
    """The lower median of the shares that receivers lost."""
    shares = sorted(lost / sent for sent, lost in seen.values() if sent)
    return shares[(len(shares) - 1) // 2] if shares else 0.0
