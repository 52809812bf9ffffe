"""What an operator decides before a rollout begins: which boards, in which waves, when, under which gates and within which budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from .errors import OrderError
from .gates import Gates
from .messages import Message

MAX_WAVES = 1000
DAY_S = 86400.0

OnBreach = Literal["stop", "abort", "pause", "rollback"]
"""`stop` is the older name of `abort`: no further wave, the boards keep what they have."""


class Window(Message, frozen=True):
    """When a wave may open, in UTC. `hours` is [from, to), from > to spans midnight and belongs to the day on which it began;
    `days` counts from Monday = 0, empty means every day. Boards that are under way go on outside of it."""

    hours: tuple[int, int] = (0, 24)
    days: tuple[int, ...] = ()

    def holds(self, wall: float) -> bool:
        """Whether this moment (seconds since 1970) is within."""
        day, hour = int(wall // DAY_S), wall % DAY_S / 3600.0
        first, last = self.hours
        if first < last:
            return first <= hour < last and self._on(day)
        return (hour >= first and self._on(day)) or (hour < last and self._on(day - 1))

    def _on(self, day: int) -> bool:
        return not self.days or (day + 3) % 7 in self.days  # 1970 began on a Thursday


class Budget(Message, frozen=True):
    """Bytes that all boards of a rollout together may receive; 0: no bound. A day is a UTC day."""

    max_bytes: int = 0
    max_bytes_per_day: int = 0


class Selector(Message, frozen=True):
    """Boards by what is known of them. Each field lists globs, one of which must fit; every field that is not empty must fit.

    `exclude` takes boards out again: a glob of the name, or ``class=GLOB``, or ``TAG=GLOB``. A board's site is its tag `site`.
    """

    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    tags: dict[str, tuple[str, ...]] = {}
    exclude: tuple[str, ...] = ()

    def matches(self, name: str, device_class: str, tags: Mapping[str, str]) -> bool:
        """Whether this board is meant."""
        if any(_excludes(rule, name, device_class, tags) for rule in self.exclude):
            return False
        wanted = ((name, self.names), (device_class, self.classes), *((tags.get(key), globs) for key, globs in self.tags.items()))
        return all(not globs or (value is not None and _fits(value, globs)) for value, globs in wanted)


def _fits(value: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(value, glob) for glob in globs)


def _excludes(rule: str, name: str, device_class: str, tags: Mapping[str, str]) -> bool:
    key, equals, glob = rule.partition("=")
    if not equals:
        return fnmatchcase(name, rule)
    value = device_class if key == "class" else tags.get(key)
    return value is not None and fnmatchcase(value, glob)


class Plan(Message, frozen=True):
    """What goes where. `before` maps each board to the version it ran of this app, absent when it had none.

    `holds` are the seconds that each wave is watched, the last of them for all further waves; empty: `gates.hold_s`. `windows`: a wave
    opens in any of them, or at any time when there are none. `board_bytes` is what one board is planned to receive. With `follow`, boards
    that `select` fits join while the rollout is under way. `approved_by` names who allowed boards to go back to an older release.
    """

    id: str
    app: str
    bundle: str
    name: str
    version: str
    waves: tuple[tuple[str, ...], ...]
    before: dict[str, str] = {}
    gates: Gates = Gates()
    on_breach: OnBreach = "rollback"
    holds: tuple[float, ...] = ()
    windows: tuple[Window, ...] = ()
    budget: Budget = Budget()
    board_bytes: int = 0
    select: Selector = Selector()
    follow: bool = False
    approved_by: str = ""

    def hold_s(self, wave: int) -> float:
        """How long this wave is watched, in seconds."""
        return self.holds[min(wave, len(self.holds) - 1)] if self.holds else self.gates.hold_s

    def open_at(self, wall: float) -> bool:
        """Whether a wave may open at this moment (seconds since 1970)."""
        return not self.windows or any(window.holds(wall) for window in self.windows)


def check_plan(plan: Plan) -> None:
    """Raises OrderError `rollout.plan` when a board appears twice, or a wave is empty."""
    every = [device for wave in plan.waves for device in wave]
    if not plan.waves or not all(plan.waves) or len(set(every)) != len(every):
        raise OrderError("rollout.plan", "a plan needs waves with boards in them, each board once", where=plan.id)


def waves_of(devices: Sequence[str], *, canary: int, wave_size: int = 0) -> tuple[tuple[str, ...], ...]:
    """Cut boards into waves, in the order given: `canary` boards first, then `wave_size` each (0: all the rest)."""
    rest = max(0, len(devices) - max(1, canary))
    size = max(wave_size if wave_size > 0 else rest, -(-rest // (MAX_WAVES - 1)))
    return sized_waves(devices, (max(1, canary), *[size] * (rest // size if size else 0)))


def sized_waves(devices: Sequence[str], sizes: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Cut boards into waves of these sizes, in the order given; what is left over is one last wave."""
    waves, at = [], 0
    for size in (*sizes, len(devices)):
        waves.append(tuple(devices[at : at + size]))
        at += size
    return tuple(wave for wave in waves if wave)
