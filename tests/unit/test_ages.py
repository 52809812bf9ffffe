"""Age of results: how long a live frame may wait, and an alarm that neither flickers nor misses what lasts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.ipc import Raised
from jetfleet_agent.pipeline.rhythm import AgeWatch, Rhythm
from jetfleet_contract.ages import CLEAR_SHARE, RAISE_AFTER, AgeAlarm, age_budget_ms
from jetfleet_contract.messages import Series
from jetfleet_contract.sketch import sketch_of

ages = st.lists(st.floats(0.0, 1000.0), max_size=60)


@given(ages, st.floats(1.0, 500.0))
def test_the_alarm_changes_only_after_enough_windows_that_agree(p95s: list[float], budget: float) -> None:
    alarm = AgeAlarm()
    for index, p95 in enumerate(p95s):
        before, alarm = alarm, alarm.after(p95, budget)
        if alarm.high == before.high:
            continue
        last = p95s[index + 1 - RAISE_AFTER:index + 1]
        assert len(last) == RAISE_AFTER
        assert all(p > budget for p in last) if alarm.high else all(p < CLEAR_SHARE * budget for p in last)


@given(ages, st.floats(1.0, 500.0))
def test_what_lasts_is_told_and_what_is_over_too(p95s: list[float], budget: float) -> None:
    alarm = AgeAlarm()
    for p95 in p95s:
        alarm = alarm.after(p95, budget)
    for _ in range(RAISE_AFTER):
        alarm = alarm.after(budget * 1.01, budget)
    assert alarm.high
    for _ in range(RAISE_AFTER):
        alarm = alarm.after(budget * CLEAR_SHARE * 0.99, budget)
    assert not alarm.high


@given(st.lists(st.floats(CLEAR_SHARE, 1.0), max_size=40), st.booleans())
def test_between_the_bounds_nothing_changes(shares: list[float], high: bool) -> None:
    alarm = AgeAlarm(high)
    for share in shares:
        alarm = alarm.after(share * 100.0, 100.0)
        assert alarm.high is high


def test_a_budget_leaves_the_cameras_own_delay_out() -> None:
    assert age_budget_ms(150.0, 300.0, 33.0, 33.0) == 150.0
    assert age_budget_ms(0.0, 200.0, 33.0, 20.0) == 266.0
    assert age_budget_ms(0.0, 0.0, 33.0, 50.0) == 100.0, "a model slower than its camera sets the pace"


def test_a_frame_may_wait_two_periods_here_or_its_sources_own_budget() -> None:
    rhythm = Rhythm()
    assert rhythm.deadline(9.8, 10.0) == math.inf, "no period is known yet"
    for index in range(1, 50):
        rhythm.deadline(9.8 + index * 0.04, 10.0 + index * 0.04)
    assert rhythm.period_s == pytest.approx(0.04)
    assert rhythm.delay_s == pytest.approx(0.2)
    assert rhythm.deadline(11.8, 12.0) == pytest.approx(12.08), "counted from its arrival: the camera is always late"
    for index in range(200):
        deadline = rhythm.deadline(20.0 + index * 0.001, 20.0 + index * 0.001)
    assert deadline == pytest.approx(20.199 + 0.05), "a fast camera's frames are not dropped for a busy moment of the board"
    own = Rhythm(100.0)
    assert own.deadline(9.8, 10.0) == pytest.approx(9.9), "counted from the scene"


def test_a_pause_is_no_period() -> None:
    rhythm = Rhythm()
    for index in range(50):
        rhythm.deadline(index * 0.04, index * 0.04)
    rhythm.deadline(60.0, 60.0)
    assert rhythm.period_s < 0.05


def _window(age_ms: float, source: str = "front", count: int = 100) -> tuple[Series, ...]:
    return (Series("a", "b", "1", "c", source, count, count, {}, {"age": sketch_of([age_ms] * count)}),)


def test_creep_is_an_alarm_and_its_end_is_told() -> None:
    watch, rhythm = AgeWatch(), Rhythm()
    for index in range(50):
        rhythm.deadline(index * 0.04, index * 0.04)
    rhythms = {"front": rhythm}
    told: list[Raised] = []
    for age in (50.0, 70.0, 90.0, 200.0, 400.0, 800.0):
        told += watch.window(_window(age), rhythms, 4.0)
    assert [(t.source, t.up, t.code) for t in told] == [("front", True, "age.high")]
    assert "budget 80 ms" in told[0].detail
    assert watch.standing == 1
    told = [t for _ in range(RAISE_AFTER) for t in watch.window(_window(30.0), rhythms, 4.0)]
    assert [t.up for t in told] == [False]
    assert watch.standing == 0


def test_a_file_has_no_age_and_a_source_that_leaves_takes_its_alarm_along() -> None:
    watch, rhythm = AgeWatch(), Rhythm(10.0)
    for _ in range(RAISE_AFTER):
        assert watch.window(_window(5000.0), {"front": Rhythm()}, 4.0) == [], "every frame of a file counts"
    rhythm.deadline(1.0, 1.0)
    rhythm.deadline(1.1, 1.1)
    for _ in range(RAISE_AFTER):
        raised = watch.window(_window(50.0), {"front": rhythm}, 4.0)
    assert [r.up for r in raised] == [True]
    assert watch.window((), {"front": rhythm}, 4.0) == [], "a window without results says nothing"
    assert [r.up for r in watch.window((), {}, 4.0)] == [False]
