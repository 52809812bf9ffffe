"""The governor against a simple model of a heated board: it acts before the trip point, gives back, and does not oscillate."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetfleet_contract.app_config import Governor
from jetfleet_contract.governor import (
    HYSTERESIS_C,
    SHARES,
    UP_WAIT_S,
    GovernorState,
    Heat,
    Load,
    Means,
    Paced,
    Rung,
    caps,
    foreseen_c,
    lowest,
    standing,
    step,
)

LIMIT = 95.0
FPS = 30.0
RULE = Governor(least_fps=1.5)


class Board:
    """One thermal resistance and one capacity: dT/dt = (ambient + full * work - T) / tau, `work` 0..1 of the apps' full frame rate."""

    def __init__(self, full_c: float, tau_s: float, ambient: Callable[[float], float], rules: dict[str, Governor] | None = None,
                 quantum: float = 0.5, means: Means | None = None) -> None:
        self.means = means or Means()
        self.full_c, self.tau_s, self.ambient, self.quantum = full_c, tau_s, ambient, quantum
        self.rules = rules or {"gate": RULE}
        self.cost = dict.fromkeys(self.rules, 1.0)
        self.caps: dict[str, dict[str, float]] = {app: {} for app in self.rules}
        self.state = GovernorState()
        self.changes: list[tuple[float, Paced]] = []
        self.hottest = -1e9
        self.temperature = ambient(0.0)

    def fps(self, app: str) -> float:
        return min(self.caps[app].get("cam", FPS), FPS)

    def run(self, seconds: int) -> Board:
        for second in range(seconds):
            now = 1000.0 + second
            loads = tuple(Load(app, rule, {"cam": self.fps(app)}, 10.0 * self.fps(app), self.means) for app, rule in self.rules.items())
            told = round(self.temperature / self.quantum) * self.quantum
            self.state, effects = step(self.state, Heat(told, LIMIT, "soc", throttled=told >= LIMIT), loads, now)
            for paced in effects:
                self.caps[paced.app] = dict(paced.fps)
                self.cost[paced.app] = (0.7 if paced.eco else 1.0) * (0.6 if paced.lean else 1.0) * (0.2 if paced.whole else 1.0)
                self.changes.append((now, paced))
            work = sum(self.cost[app] * self.fps(app) for app in self.rules) / (FPS * len(self.rules))
            for _ in range(10):
                self.temperature += 0.1 * (self.ambient(second) + self.full_c * work - self.temperature) / self.tau_s
            self.hottest = max(self.hottest, self.temperature)
        return self


def reversals(changes: list[tuple[float, Paced]]) -> list[float]:
    """When an app that had just got a rung back gave it up again, or the other way round."""
    turned, last = [], 0
    for (_, before), (at, after) in pairwise(changes):
        way = after.rung - before.rung
        if last and way and way != last:
            turned.append(at)
        last = way or last
    return turned


def test_it_acts_before_the_trip_point_and_gives_back() -> None:
    board = Board(full_c=45.0, tau_s=40.0, ambient=lambda s: 30.0 + min(max(s - 60, 0) * 0.25, 40.0) - min(max(s - 900, 0) * 0.25, 40.0))
    board.run(600)
    assert board.hottest < LIMIT
    assert board.changes[0][1].reason == "governor.heat"
    assert board.fps("gate") < FPS / 2
    hot = len(board.changes)
    board.run(0)
    assert all(not paced.fps or paced.hot for _, paced in board.changes)
    board = Board(full_c=45.0, tau_s=40.0, ambient=lambda s: 70.0 if s < 600 else 30.0).run(2400)
    assert board.fps("gate") == FPS
    assert board.state.apps["gate"].rung == 0
    assert board.changes[-1][1].fps == {}
    assert len(board.changes) >= hot


@settings(max_examples=60, deadline=None)
@given(means=st.builds(Means, st.booleans(), st.booleans(), st.booleans()),
       full=st.floats(5.0, 50.0), tau=st.floats(20.0, 120.0), quantum=st.sampled_from([0.1, 0.5, 1.0]),
       points=st.lists(st.floats(-10.0, 84.0), min_size=3, max_size=8), every=st.integers(60, 240))
def test_over_any_ambient_it_stays_under_the_trip_point_where_the_lowest_rung_can_hold_it(
        means: Means, full: float, tau: float, quantum: float, points: list[float], every: int) -> None:
    """Ambient: straight lines between points, so no steeper than 94 C in a minute. The lowest rung holds 84 C + 50 C x 0.05 < 95 C."""
    def ambient(second: float) -> float:
        index = min(int(second // every), len(points) - 2)
        share = min((second - index * every) / every, 1.0)
        return points[index] + share * (points[index + 1] - points[index])

    board = Board(full, tau, ambient, quantum=quantum, means=means)
    board.temperature = min(ambient(0.0) + full * 0.5, LIMIT - 12.0)
    board.run(every * (len(points) - 1))
    assert board.hottest < LIMIT
    turned = reversals(board.changes)
    assert all(later - earlier >= UP_WAIT_S for earlier, later in zip(turned, turned[2:], strict=False)), "two turns never within the wait"
    for start, _ in board.changes:
        assert sum(start <= at < start + 60 for at, _ in board.changes) <= len(SHARES) + 5


@pytest.mark.parametrize("level", [60.0, 65.0, 70.0, 75.0, 80.0])
def test_a_steady_heat_is_answered_once_and_then_tried_ever_less_often(level: float) -> None:
    board = Board(full_c=40.0, tau_s=40.0, ambient=lambda _s: level).run(3600)
    assert board.hottest < LIMIT
    late = [at for at, _ in board.changes if at > 1000.0 + 1800]
    assert len(late) <= 10, "half an hour later it has all but settled"


def test_the_least_important_gives_way_first_and_gets_back_last() -> None:
    rules = {"door": Governor(least_fps=10.0, importance=9), "count": Governor(least_fps=5.0, importance=1)}
    board = Board(full_c=45.0, tau_s=40.0, ambient=lambda s: 76.0 if s < 900 else 20.0, rules=rules).run(3000)
    order = [(paced.app, paced.rung) for _, paced in board.changes]
    first_door = order.index(("door", 1))
    assert order[first_door - 1] == ("count", lowest(rules["count"], {"cam": FPS})), "all of it before the other's first"
    back = [app for at, (app, _) in zip((at for at, _ in board.changes), order, strict=True) if at > 1000.0 + 930]
    assert back == sorted(back, reverse=True), "door's rungs before count's"
    assert board.caps == {"door": {}, "count": {}}


def test_among_equals_the_costliest_gives_way_first() -> None:
    loads = (Load("a", RULE, {"cam": 10.0}, 50.0), Load("b", RULE, {"cam": 10.0}, 500.0))
    _, (paced,) = step(GovernorState(), Heat(90.0, LIMIT), loads, 0.0)
    assert paced.app == "b"


@pytest.mark.parametrize(("heat", "reason"), [
    (Heat(50.0, LIMIT, throttled=True), "governor.throttled"), (Heat(None, None, throttled=True), "governor.throttled"),
    (Heat(50.0, LIMIT, over_current=True), "governor.power"), (Heat(94.0, LIMIT), "governor.heat")])
def test_reasons(heat: Heat, reason: str) -> None:
    state, (paced,) = step(GovernorState(), heat, (Load("a", RULE, {"cam": FPS}),), 0.0)
    assert (paced.rung, paced.reason, paced.hot) == (1, reason, True)
    assert state.apps["a"].reason == reason
    assert paced.fps == {"cam": FPS * SHARES[1], "": FPS * SHARES[1]}


def test_a_board_that_tells_nothing_changes_nothing_and_frees_what_was_capped_for_power() -> None:
    loads = (Load("a", RULE, {"cam": FPS}),)
    assert step(GovernorState(), Heat(), loads, 0.0)[1] == ()
    state, _ = step(GovernorState(), Heat(over_current=True), loads, 0.0)
    state, effects = step(state, Heat(), loads, UP_WAIT_S - 1)
    assert effects == ()
    _, (paced,) = step(state, Heat(), loads, UP_WAIT_S)
    assert (paced.rung, paced.fps, paced.reason) == (0, {}, "")


def test_the_slope_is_looked_ahead_along() -> None:
    state = GovernorState()
    for second in range(60):
        state, effects = step(state, Heat(40.0 + second, LIMIT), (Load("a", RULE, {"cam": FPS}),), float(second))
        if effects:
            break
    assert 70 < 40.0 + second < LIMIT - RULE.margin_c - HYSTERESIS_C, "well before the margin itself is reached"
    foreseen = foreseen_c(state)
    assert foreseen is not None
    assert foreseen > LIMIT - RULE.margin_c


def test_ladders_end_at_the_least_rate() -> None:
    assert lowest(Governor(least_fps=10.0), {"cam": 30.0}) == 4
    assert lowest(Governor(least_fps=30.0), {"cam": 30.0}) == 0
    assert lowest(Governor(least_fps=0.1), {"cam": 30.0}) == len(SHARES) - 1
    assert caps(Governor(least_fps=10.0), {"fast": 30.0, "slow": 12.0}, 3) == {"fast": 10.5, "slow": 10.0, "": 10.5}


@given(eco=st.booleans(), lean=st.booleans(), tiled=st.booleans(), whole=st.booleans(),
       least=st.floats(0.1, 40.0), rate=st.floats(1.0, 60.0))
def test_each_rung_is_less_work_and_the_order_is_frugal_cheaper_frames_whole(
        eco: bool, lean: bool, tiled: bool, whole: bool, least: float, rate: float) -> None:
    rule, means, rates = Governor(least_fps=least, whole=whole), Means(eco, tiled, lean), {"cam": rate}
    ladder = [standing(rule, Rung(rung, rates=rates, means=means)) for rung in range(lowest(rule, rates, means) + 1)]
    assert (ladder[0].fps, ladder[0].eco, ladder[0].whole, ladder[0].hot) == ({}, False, False, False)
    gives = [(at.eco, at.lean, -at.fps.get("cam", 1e9), at.whole) for at in ladder]
    assert all(before < after for before, after in pairwise(gives)), "each gives more than the one before"
    frugal = int(eco) + int(lean)
    assert [at.eco for at in ladder] == [eco and rung >= 1 for rung in range(len(ladder))]
    assert [at.lean for at in ladder] == [lean and rung >= frugal for rung in range(len(ladder))]
    assert [at.fps == {} for at in ladder] == [rung <= frugal for rung in range(len(ladder))] or rate <= least
    assert [at.whole for at in ladder] == [False] * (len(ladder) - 1) + [tiled and whole] if len(ladder) > 1 else not ladder[0].whole


def test_what_an_app_can_give_is_learnt_while_it_is_free() -> None:
    """A ladder that changed under an app's feet would make it give what nobody told it to."""
    hot, frugal = Heat(90.0, LIMIT), Load("a", RULE, {"cam": FPS}, means=Means(eco=True, tiled=True))
    state, (paced,) = step(GovernorState(), hot, (frugal,), 0.0)
    assert (paced.rung, paced.of, paced.eco, paced.fps) == (1, len(SHARES) + 1, True, {})
    state, (paced,) = step(state, hot, (Load("a", RULE, {"cam": FPS}),), 60.0)
    assert (paced.rung, paced.of, paced.eco, paced.fps["cam"]) == (2, len(SHARES) + 1, True, FPS * SHARES[1])
