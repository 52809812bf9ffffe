"""The statistics of gates: against known values, and by simulation for how often they err and how often they find what is there."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.gates import LOOKS, BoardEvidence, ratio_bounds
from jetfleet_contract.significance import (
    binomial_at_most,
    dispersion,
    incomplete_beta,
    mean_bounds,
    quantile_bounds,
    share_bounds,
    student_quantile,
)
from jetfleet_contract.sketch import Sketch, sketch_of

ALPHA = 0.05 / LOOKS


@given(st.integers(0, 30), st.integers(0, 30), st.floats(0.0, 1.0))
def test_binomial_is_the_sum_of_its_terms(k: int, more: int, p: float) -> None:
    n = k + more
    exact = math.fsum(math.comb(n, i) * p**i * (1.0 - p) ** (n - i) for i in range(k + 1))
    assert binomial_at_most(k, n, p) == pytest.approx(exact, abs=1e-9)


def test_tables() -> None:
    assert incomplete_beta(2.0, 3.0, 0.4) == pytest.approx(0.5248)
    assert student_quantile(0.975, 4) == pytest.approx(2.776, abs=1e-3)  # any printed t table
    assert student_quantile(0.95, 30) == pytest.approx(1.697, abs=1e-3)
    assert list(share_bounds(4, 5, 0.975)) == pytest.approx([0.2836, 0.9949], abs=1e-4)  # Clopper and Pearson, 95 % two-sided
    assert share_bounds(0, 0, 0.95) == (0.0, 1.0)


@given(st.integers(1, 200), st.data())
def test_share_bounds_hold_the_share_and_shrink_with_confidence(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = share_bounds(k, n, 0.95)
    wide_low, wide_high = share_bounds(k, n, 0.99)
    assert wide_low <= low <= k / n <= high <= wide_high


def test_a_small_sample_bounds_no_tail() -> None:
    low, high = quantile_bounds(sketch_of([10.0] * 40), 0.99, 0.05)
    assert low == pytest.approx(10.0, rel=0.02)
    assert high == math.inf
    assert quantile_bounds(Sketch(), 0.95, 0.05) == (0.0, math.inf)
    assert mean_bounds([1.0], 0.05) == (-math.inf, math.inf)


def test_quantile_bounds_err_as_seldom_as_they_say() -> None:
    chance, wrong = random.Random(1), 0
    exact = math.exp(2.0 + 0.4 * 1.6448536)  # the 95 % quantile of this distribution
    for _ in range(400):
        low, high = quantile_bounds(sketch_of([chance.lognormvariate(2.0, 0.4) for _ in range(150)]), 0.95, 0.05)
        wrong += not low <= exact <= high
    assert wrong <= 400 * 0.1 * 1.3


def test_frames_that_are_slow_together_count_less() -> None:
    chance = random.Random(2)
    alike = [sketch_of([chance.lognormvariate(2.0, 0.3) for _ in range(100)]) for _ in range(20)]
    moods = [chance.gauss(0.0, 0.3) for _ in range(20)]
    moody = [sketch_of([chance.lognormvariate(2.0 + mood, 0.1) for _ in range(100)]) for mood in moods]
    assert dispersion(alike, 0.95) < 2.0
    assert dispersion(moody, 0.95) > 5.0
    assert dispersion(alike[:1], 0.95) == 1.0


def windows(chance: random.Random, level: float, mood: float, count: int, frames: int) -> tuple[Sketch, float]:
    """A board's windows: each has a mood of its own; the merged sketch, and its dispersion."""
    moods = [chance.gauss(0.0, mood) for _ in range(count)]
    parts = [sketch_of([chance.lognormvariate(level + m, 0.15) for _ in range(frames)]) for m in moods]
    whole = Sketch()
    for part in parts:
        whole = whole.merged(part)
    return whole, dispersion(parts, 0.95)


def boards(chance: random.Random, count: int, ratio: float, *, mood: float) -> list[BoardEvidence]:
    """Boards of very different speed, on each of which the new bundle is `ratio` times as slow, give or take the board's own 3 %."""
    made = []
    for number in range(count):
        level = chance.uniform(1.0, 4.0)
        old, old_spread = windows(chance, level, mood, 6, 50)
        new, new_spread = windows(chance, level + math.log(ratio) + chance.gauss(0.0, 0.03), mood, 6, 50)
        made.append(BoardEvidence(f"d{number}", old, new, old_spread, new_spread))
    return made


@pytest.mark.parametrize(("count", "mood"), [(1, 0.0), (1, 0.03), (3, 0.03), (5, 0.05), (12, 0.05)])
def test_false_alarms_are_rare_and_a_loss_of_30_percent_is_found(count: int, mood: float) -> None:
    """Limit 1.1: equal bundles are never convicted of being slower more often than the stated error; 1.3 times is convicted mostly."""
    chance, rounds = random.Random(count * 100 + int(mood * 100)), 60
    alarms = sum(ratio_bounds(boards(chance, count, 1.0, mood=mood), 0.95, ALPHA)[1] > 1.1 for _ in range(rounds))
    at_the_limit = sum(ratio_bounds(boards(chance, count, 1.1, mood=mood), 0.95, ALPHA)[1] > 1.1 for _ in range(rounds))
    assert alarms == 0
    found = sum(ratio_bounds(boards(chance, count, 1.3, mood=mood), 0.95, ALPHA)[1] > 1.1 for _ in range(rounds))
    assert at_the_limit <= 0.05 * rounds
    assert found >= 0.8 * rounds


def test_many_frames_of_few_boards_are_few_observations() -> None:
    """Frame by frame a million frames would prove a difference that is one board's own; board by board they do not."""
    fast, slow = sketch_of([10.0] * 1000), sketch_of([30.0] * 1000)
    one_odd = [BoardEvidence(f"d{n}", fast, slow if n == 0 else fast) for n in range(6)]
    _, low, high = ratio_bounds(one_odd, 0.95, ALPHA)
    assert low < 1.0 < high
