"""How fast a sender may go: a token bucket whose rate follows the losses that receivers report.

Additive increase, multiplicative decrease, as TCP does it (Chiu and Jain, 1989). Losses are judged over all receivers together, so
that one board with a bad link does not slow the others, while a broker that drops for everybody does.
"""

from __future__ import annotations

import msgspec

JUDGE_CHUNKS = 256
MAX_LOSS = 0.01
CUT_EVERY_S = 1.0
GROWTH = 1 / 20


class Pace(msgspec.Struct, frozen=True):
    """A token bucket in bytes. `rate` (bytes/s) moves between `floor` and `ceiling`; at most `burst` bytes gather."""

    ceiling: float
    floor: float
    burst: float
    rate: float
    tokens: float
    at: float
    cut_at: float = float("-inf")
    sent: int = 0
    lost: int = 0


def starting(ceiling: float, floor: float, burst: float, now: float) -> Pace:
    """A full bucket at the highest rate."""
    return Pace(ceiling, min(floor, ceiling), burst, ceiling, burst, now)


def refill(pace: Pace, now: float) -> Pace:
    tokens = min(pace.burst, pace.tokens + max(0.0, now - pace.at) * pace.rate)
    return msgspec.structs.replace(pace, tokens=tokens, at=now)


def spend(pace: Pace, size: int) -> Pace:
    return msgspec.structs.replace(pace, tokens=pace.tokens - size)


def observe(pace: Pace, sent: int, lost: int, now: float) -> Pace:
    """A receiver says that `lost` of `sent` chunks did not come. Once 256 are known: more than 1 % lost halves the rate, at most
    once a second; otherwise it grows by a twentieth of the ceiling."""
    sent, lost = pace.sent + sent, pace.lost + lost
    if sent < JUDGE_CHUNKS:
        return msgspec.structs.replace(pace, sent=sent, lost=lost)
    pace = msgspec.structs.replace(pace, sent=0, lost=0)
    if lost <= sent * MAX_LOSS:
        return msgspec.structs.replace(pace, rate=min(pace.ceiling, pace.rate + pace.ceiling * GROWTH))
    if now - pace.cut_at < CUT_EVERY_S:
        return pace
    return msgspec.structs.replace(pace, rate=max(pace.floor, pace.rate / 2), cut_at=now)
