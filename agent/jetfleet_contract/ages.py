"""When results of a camera are too old: an alarm with hysteresis, and the budget that it compares with. Pure.

Latency creep (a queue somewhere that grows by a frame a second) is what users of camera pipelines find out last. Here it is a state:
`p95` of a window's ages over the budget for `RAISE_AFTER` windows in a row raises the alarm; under `CLEAR_SHARE` of it for as many in a
row ends it. What lies between the two bounds changes nothing, and neither does a window without results.
"""

from __future__ import annotations

import msgspec

RAISE_AFTER = 3
CLEAR_SHARE = 0.8
PERIODS = 2.0


class AgeAlarm(msgspec.Struct, frozen=True):
    """`high`: it stands. `streak`: windows in a row that spoke for a change."""

    high: bool = False
    streak: int = 0

    def after(self, p95_ms: float, budget_ms: float) -> AgeAlarm:
        """The state after one more window with results; `budget_ms` is positive."""
        speaks_for_change = p95_ms < CLEAR_SHARE * budget_ms if self.high else p95_ms > budget_ms
        if not speaks_for_change:
            return AgeAlarm(self.high, 0)
        if self.streak + 1 < RAISE_AFTER:
            return AgeAlarm(self.high, self.streak + 1)
        return AgeAlarm(not self.high, 0)


def age_budget_ms(max_age_ms: float, delay_ms: float, period_ms: float, result_period_ms: float) -> float:
    """What a result's age should stay under.

    Args:
        max_age_ms: the source's own budget; 0 when it has none.
        delay_ms: the least age with which its frames ever arrived here: camera, network and jitter buffer, not ours to mend.
        period_ms: between its frames.
        result_period_ms: between its results; longer than `period_ms` when the model is slower than the camera.
    """
    return max_age_ms or delay_ms + PERIODS * max(period_ms, result_period_ms)
