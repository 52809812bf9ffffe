"""When a second transport, a web server with the same blobs, is used beside MQTT, and which ranges it is asked for. Pure.

    fallback   MQTT first; the mirror once nothing has come for `PATIENCE_S`, for the rest of that blob
    prefer     the mirror first; MQTT while the mirror is out of use
    only       the mirror alone

A mirror that fails is out of use for a while that doubles; one whose chunks are not what the signed table says costs those chunks only, and
after `MAX_WRONG` of them it is out of use for `DROPPED_S`. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from .chunks import Bitmap
from .policy import backoff

Mode = Literal["fallback", "prefer", "only"]

PATIENCE_S = 15.0
RETRY_BASE_S = 5.0
RETRY_CAP_S = 300.0
MAX_WRONG = 3
DROPPED_S = 3600.0
RANGE_BYTES = 4 << 20
_NEVER = float("-inf")


class Health(msgspec.Struct, frozen=True):
    """Of the mirror as a whole. It is out of use until `retry_at`; `code` says why."""

    retry_at: float = _NEVER
    failures: int = 0
    wrong: int = 0
    code: str = ""

    def usable(self, now: float) -> bool:
        return now >= self.retry_at


def worked(health: Health) -> Health:
    """A right chunk came."""
    return msgspec.structs.replace(health, failures=0, code="") if health.failures or health.code else health


def failed(health: Health, code: str, now: float, unit: float) -> Health:
    """A request failed with a stable code. `unit`: a random number in 0..1."""
    wait = backoff(health.failures, unit, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
    return msgspec.structs.replace(health, retry_at=now + wait, failures=health.failures + 1, code=code)


def spoiled(health: Health, now: float) -> Health:
    """A chunk came that is not what the table says."""
    wrong = health.wrong + 1
    if wrong < MAX_WRONG:
        return msgspec.structs.replace(health, wrong=wrong)
    return Health(retry_at=now + DROPPED_S, code="mirror.wrong")


class Turn(msgspec.Struct, frozen=True):
    """Whose turn it is with one blob. `left` chunks were missing when that last changed, at `moved_at`; not before `retry_at` again, when
    the mirror does not have it."""

    left: int
    moved_at: float
    mirror: bool = False
    retry_at: float = _NEVER
    misses: int = 0


def judge(mode: Mode, turn: Turn, left: int, health: Health, now: float) -> Turn:
    """The turn now that `left` chunks are missing."""
    if left != turn.left:
        turn = msgspec.structs.replace(turn, left=left, moved_at=now)
    usable = health.usable(now) and now >= turn.retry_at
    mirror = usable and (mode != "fallback" or turn.mirror or now - turn.moved_at >= PATIENCE_S)
    if mirror == turn.mirror:
        return turn
    return msgspec.structs.replace(turn, mirror=mirror, moved_at=now)


def absent(turn: Turn, now: float, unit: float) -> Turn:
    """The mirror does not have this blob (yet)."""
    wait = backoff(turn.misses, unit, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S)
    return msgspec.structs.replace(turn, mirror=False, moved_at=now, retry_at=now + wait, misses=turn.misses + 1)


def holds_mqtt(mode: Mode, turn: Turn) -> bool:
    """True while nothing is asked for over MQTT."""
    return mode == "only" or turn.mirror


def ranges(missing: Bitmap, chunk_size: int, most: int = RANGE_BYTES) -> Iterator[tuple[int, int]]:
    """Runs of missing chunks as (first, count), none longer than `most` bytes (at least one chunk each)."""
    step = max(1, most // chunk_size)
    for first, length in missing.runs():
        for at in range(first, first + length, step):
            yield at, min(step, first + length - at)
