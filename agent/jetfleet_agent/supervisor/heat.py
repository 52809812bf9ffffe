"""Watches the board's heat while a challenger is tried or kept: pipelines shadow nothing on a throttled board, and a model that heats it up
after the switch is rolled back.

What counts is the difference to the moment before the switch, so a hot day convicts nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jetfleet_contract.slot_records import AppSlots, Event, Watched
from jetfleet_contract.trials import WatchNumbers

PERIOD_S = 1.0
IDLE_S = 3600.0


class Heat(NamedTuple):
    """One reading: the hottest sensor in degrees Celsius, and whether the kernel slows the board down; None where nothing tells."""

    temperature_c: float | None = None
    throttled: bool | None = None


class HeatWatch:
    """See the module. All methods belong to the control thread.

    Args:
        read: reads the sensors.
        states: the durable state of each app.
        throttled: told whether the board is slowed down, whenever that changes.
        event: takes what an app's slot machine must hear.
        clock: monotonic seconds.
    """

    def __init__(self, read: Callable[[], Heat], states: Callable[[], Mapping[str, AppSlots]], throttled: Callable[[bool], None],
                 event: Callable[[str, Event], object], clock: Callable[[], float]) -> None:
        self._read = read
        self._states = states
        self._throttled = throttled
        self._event = event
        self._clock = clock
        self._due = 0.0
        self._slowed = False
        self._slowed_since = 0.0
        self._now = Heat()
        self._before: dict[tuple[str, str], Heat] = {}

    def tick(self) -> float:
        """Read, when it is time and somebody is on trial. Seconds until the next call is wanted."""
        trials = {app: state for app, state in self._states().items() if state.phase in ("trial", "keeping")}
        if not trials:
            self._before.clear()
            return IDLE_S
        now = self._clock()
        if now >= self._due:
            self._due = now + PERIOD_S
            self._take(now, trials)
        return self._due - now

    def since(self, app: str, bundle: str) -> tuple[float, float]:
        """Degrees above, and seconds throttled unlike, the last reading before that bundle took over; 0 where nothing tells."""
        before, now = self._before.get((app, bundle), self._now), self._now
        rise = now.temperature_c - before.temperature_c if now.temperature_c is not None and before.temperature_c is not None else 0.0
        throttled_s = self._clock() - self._slowed_since if now.throttled and not before.throttled else 0.0
        return rise, throttled_s

    def _take(self, now: float, trials: Mapping[str, AppSlots]) -> None:
        self._now = self._read()
        slowed = bool(self._now.throttled)
        if slowed != self._slowed:
            self._slowed, self._slowed_since = slowed, now
            self._throttled(slowed)
        for app, state in trials.items():
            if state.challenger is None:
                continue
            key = (app, state.challenger.bundle)
            if not state.switched:
                self._before[key] = self._now
                continue
            self._before.setdefault(key, self._now)
            rise, throttled_s = self.since(*key)
            if rise > 0 or throttled_s:
                self._event(app, Watched(key[1], WatchNumbers(rise_c=rise, throttled_s=throttled_s)))
