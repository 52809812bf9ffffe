"""A live source's rhythm: how far apart its frames come and how old they are on arrival; from it, how long each one is worth waiting for.

A source's own `max_age_ms` counts from the moment that the scene was taken. Without one a frame may wait *here* for two frame periods
(and for `LEAST_WAIT_S`), counted from its arrival: a camera that is always 200 ms late must not lose every frame for it.
"""

from __future__ import annotations

import math

from jetfleet_agent.ipc import Raised
from jetfleet_contract.ages import PERIODS, AgeAlarm, age_budget_ms
from jetfleet_contract.messages import Series
from jetfleet_contract.sketch import Sketch

AGE_HIGH = "age.high"
LEAST_WAIT_S = 0.05  # a fast camera's two periods may be less than a busy scheduler takes for a thread's turn
_WEIGHT = 1 / 16  # of the newest interval in the running mean
_PAUSE = 4.0  # an interval of that many periods is a pause, not a period


class Rhythm:
    """One source's. Written by its capture thread."""

    def __init__(self, max_age_ms: float = 0.0) -> None:
        self.max_age_ms = max_age_ms
        self.period_s = 0.0
        self.delay_s = math.inf
        self._arrived = 0.0

    def deadline(self, captured: float, arrived: float) -> float:
        """One more frame, its times in monotonic seconds; when it will be too old. `inf` until a period is known."""
        if self._arrived:
            interval = arrived - self._arrived
            if not self.period_s:
                self.period_s = interval
            else:
                self.period_s += _WEIGHT * (min(interval, _PAUSE * self.period_s) - self.period_s)
        self._arrived = arrived
        self.delay_s = min(self.delay_s, max(0.0, arrived - captured))
        if self.max_age_ms:
            return captured + self.max_age_ms / 1e3
        return arrived + max(PERIODS * self.period_s, LEAST_WAIT_S) if self.period_s else math.inf


class AgeWatch:
    """Tells when a live source's results stay too old, and when that is over. Controller's thread only."""

    def __init__(self) -> None:
        self._alarms: dict[str, AgeAlarm] = {}

    @property
    def standing(self) -> int:
        """How many sources' results are too old now."""
        return sum(alarm.high for alarm in self._alarms.values())

    def window(self, series: tuple[Series, ...], rhythms: dict[str, Rhythm], duration_s: float) -> list[Raised]:
        """Judge one window; what changed. A source that left ends its alarm."""
        told = [Raised(name, False, AGE_HIGH, "the source left") for name, alarm in self._alarms.items()
                if alarm.high and name not in rhythms]
        self._alarms = {name: alarm for name, alarm in self._alarms.items() if name in rhythms}
        ages: dict[str, Sketch] = {}
        for part in series:
            rhythm = rhythms.get(part.source)
            if rhythm is not None and rhythm.period_s and "age" in part.stages:  # a file has no rhythm: every frame counts
                ages[part.source] = ages.get(part.source, Sketch()).merged(part.stages["age"])
        for name, age in ages.items():
            told += self._judge(name, age, rhythms[name], duration_s)
        return told

    def _judge(self, name: str, age: Sketch, rhythm: Rhythm, duration_s: float) -> list[Raised]:
        delay_ms = rhythm.delay_s * 1e3 if rhythm.delay_s < math.inf else 0.0
        budget = age_budget_ms(rhythm.max_age_ms, delay_ms, rhythm.period_s * 1e3, duration_s * 1e3 / age.count)
        before = self._alarms.get(name, AgeAlarm())
        p95 = age.quantile(0.95)
        after = self._alarms[name] = before.after(p95, budget)
        if after.high == before.high:
            return []
        return [Raised(name, after.high, AGE_HIGH, f"p95 of its results' age is {p95:.0f} ms, the budget {budget:.0f} ms")]
