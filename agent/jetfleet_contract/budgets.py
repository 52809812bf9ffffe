"""When bytes may flow: hours of the day and bytes a day, in UTC, for a board's app and for the host as a whole.

Pure: what was used today is a record that the caller keeps durable. Without a trusted clock hours are not judged, because a board that
believes to be in 1970 would never fetch the update that cures it; a day then lasts 24 hours of running time.
"""

from __future__ import annotations

import msgspec

from .errors import InputError
from .messages import Instant, Message

HOUR_S = 3600.0
DAY_S = 86400.0

Hours = tuple[tuple[int, int], ...]


class DayCount(Message, frozen=True):
    """Bytes that were used in UTC day `day` (days since 1970). `boot_id` and `mono` say when counting began, for clocks not trusted."""

    day: int = 0
    used: int = 0
    boot_id: str = ""
    mono: float = 0.0


class Verdict(msgspec.Struct, frozen=True):
    """Whether bytes may flow. `code` is empty when they may, `delivery.hours` or `delivery.day-budget` when not; `wait_s` is when to ask
    again. `left` bytes may still come today, None without a bound. `note` says what could not be judged."""

    code: str = ""
    why: str = ""
    wait_s: float = DAY_S
    left: int | None = None
    note: str = ""


def check_hours(hours: Hours, where: str) -> None:
    """Raises InputError `delivery.hours-bad` when an hour is not within 0..24 or an interval is empty."""
    for begin, end in hours:
        if not (0 <= begin <= 23 and 0 <= end <= 24) or begin == end:
            raise InputError("delivery.hours-bad", f"[{begin}, {end}] is no interval of hours", where=where,
                             remedy="give UTC hours as [FROM, TO), FROM 0..23, TO 0..24; [22, 6] spans midnight")


def counted(count: DayCount, now: Instant) -> DayCount:
    """`count` as it stands now: a new one when its day is over."""
    fresh = DayCount(int(now.wall // DAY_S), 0, now.boot_id, now.mono)
    if not now.wall_trusted:
        if count.boot_id != now.boot_id:
            return msgspec.structs.replace(count, boot_id=now.boot_id, mono=now.mono)  # how long we were off nobody knows
        return msgspec.structs.replace(fresh, day=count.day) if now.mono - count.mono >= DAY_S else count
    if fresh.day > count.day:
        return fresh
    return msgspec.structs.replace(count, day=fresh.day)  # an earlier day: the clock was wrong before, the bytes were not


def used(count: DayCount, size: int, now: Instant) -> DayCount:
    """`size` bytes more."""
    count = counted(count, now)
    return msgspec.structs.replace(count, used=count.used + size)


def judge(hours: Hours, bytes_per_day: int, count: DayCount, now: Instant, least: int = 1) -> Verdict:
    """Whether bytes may flow now, `least` of them at least. No hours and 0 bytes mean no bound."""
    note = "the clock is not trusted: hours are not judged" if hours and not now.wall_trusted else ""
    if hours and now.wall_trusted and not _open(hours, now.wall):
        return Verdict("delivery.hours", f"bytes may come at {_shown(hours)} UTC only", _until_open_s(hours, now.wall))
    closes_s = _until_closed_s(hours, now.wall) if hours and now.wall_trusted else DAY_S
    if not bytes_per_day:
        return Verdict(wait_s=closes_s, note=note)
    left = max(0, bytes_per_day - counted(count, now).used)
    if left >= least:
        return Verdict(wait_s=closes_s, left=left, note=note)
    why = f"today's {bytes_per_day} bytes are used up: {left} are left"
    return Verdict("delivery.day-budget", why, _until_tomorrow_s(count, now), left, note)


def _open(hours: Hours, wall: float) -> bool:
    hour = wall % DAY_S / HOUR_S
    return any(begin <= hour < end if begin < end else hour >= begin or hour < end for begin, end in hours)


def _until_open_s(hours: Hours, wall: float) -> float:
    return min((begin * HOUR_S - wall) % DAY_S for begin, _ in hours)


def _until_closed_s(hours: Hours, wall: float) -> float:
    """Until the next end of an interval; what follows it may be open again."""
    return min((end * HOUR_S - wall) % DAY_S or DAY_S for _, end in hours)


def _until_tomorrow_s(count: DayCount, now: Instant) -> float:
    if now.wall_trusted:
        return DAY_S - now.wall % DAY_S
    began = count.mono if count.boot_id == now.boot_id else now.mono
    return max(1.0, DAY_S - (now.mono - began))


def _shown(hours: Hours) -> str:
    return ", ".join(f"{begin:02d}-{end:02d}" for begin, end in hours)
