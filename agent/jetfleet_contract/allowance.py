"""How many bytes may leave a board: so many in any hour by app and purpose, so many in a UTC day by app. Pure.

The hour is a token bucket that holds half of the hour's bytes and refills at half of them an hour: whatever the moments, no span of an hour
sees more than the whole. What was used is a record that the caller keeps durable, so that a restart forgets nothing.
"""

from __future__ import annotations

import msgspec

from . import budgets
from .budgets import DayCount
from .messages import Instant, Message

HOUR_S = 3600.0


class Allowance(Message, frozen=True):
    """What one app has used. `spent`: bytes that the bucket lacks, as of `mono` seconds in boot `boot_id` or `wall` since 1970."""

    day: DayCount = DayCount()
    spent: float = 0.0
    boot_id: str = ""
    mono: float = 0.0
    wall: float = 0.0


class Grant(msgspec.Struct, frozen=True):
    """Whether bytes may leave: `code` is empty, or `crop.hour-budget`, `crop.day-budget`."""

    allowance: Allowance
    code: str = ""


def ask(allowance: Allowance, size: int, per_hour: int, per_day: int, now: Instant) -> Grant:
    """Take `size` bytes from what is left, or say why not; nothing is taken then."""
    held = _refilled(allowance, per_hour, now)
    day = budgets.counted(held.day, now)
    if day.used + size > per_day:
        return Grant(held, "crop.day-budget")
    if held.spent + size > per_hour / 2.0:
        return Grant(held, "crop.hour-budget")
    return Grant(msgspec.structs.replace(held, spent=held.spent + size, day=budgets.used(day, size, now)))


def _refilled(allowance: Allowance, per_hour: int, now: Instant) -> Allowance:
    """The bucket at `now`. Time that the clocks cannot prove refills nothing: how long we were off nobody knows without a trusted one."""
    if allowance.boot_id == now.boot_id:
        passed = now.mono - allowance.mono
    elif now.wall_trusted and allowance.wall:
        passed = now.wall - allowance.wall
    else:
        passed = 0.0
    spent = max(0.0, allowance.spent - max(0.0, passed) * per_hour / 2.0 / HOUR_S)
    wall = now.wall if now.wall_trusted else 0.0
    return msgspec.structs.replace(allowance, spent=spent, boot_id=now.boot_id, mono=now.mono, wall=wall)
