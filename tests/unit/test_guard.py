"""The guard's paired test: its verdicts, its bounds against exact and simulated truth, and what it says of samples that are missing."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.errors import InputError
from jetfleet_contract.predictions import MatchCount
from jetfleet_host.compress.gentler import MAX_TRIES, Tried, at_strength, next_strength
from jetfleet_host.compress.guard import MAX_NEEDED, frame_scores, judge_paired, least_samples
from jetfleet_host.compress.recipe_file import Distil, FloatStageConfig, Prune, Qat, Separate, Sparsify, Tune


def _answers(n: int, lost: int = 0, won: int = 0, wrong: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Right-or-wrong scores of `n` samples; the base is wrong on the first `wrong`."""
    base = np.ones(n)
    base[:wrong] = 0.0
    candidate = base.copy()
    candidate[:won] = 1.0
    candidate[n - lost:] = 0.0
    return base, candidate


def test_the_same_answers_pass_only_on_enough_samples() -> None:
    enough = least_samples(0.5)
    assert enough == 539  # 1.645^2 * 0.995 / 0.005
    assert judge_paired(*_answers(enough), 0.5).outcome == "pass"
    few = judge_paired(*_answers(200), 0.5)
    assert few.outcome == "undecided"
    assert few.needed == pytest.approx(enough, abs=1)
    assert "339 more samples would tell" in few.reason or "338 more" in few.reason


def test_a_plain_loss_fails_and_a_gain_passes_on_few_samples() -> None:
    assert judge_paired(*_answers(300, lost=30), 0.5).outcome == "fail"
    assert judge_paired(*_answers(300, won=40), 0.5).outcome == "pass"
    assert judge_paired(*_answers(5000, lost=25, won=20), 0.5).outcome == "pass"


def test_a_bare_difference_within_the_limit_may_be_noise() -> None:
    verdict = judge_paired(*_answers(500, lost=12, won=10), 0.5)
    assert (verdict.outcome, verdict.drop, verdict.changed) == ("undecided", 0.4, 22)
    times = verdict.needed / 500 * 1.01
    scaled = [int(count * times) for count in (500, 12, 10, 100)]
    assert judge_paired(*_answers(*scaled), 0.5).outcome == "pass"


def test_a_drop_on_the_limit_is_said_to_stay_there() -> None:
    verdict = judge_paired(*_answers(1000, lost=15, won=10), 0.5)
    assert (verdict.outcome, verdict.needed) == ("undecided", MAX_NEEDED)
    assert "no number of samples" in verdict.reason


@pytest.mark.parametrize(("n", "lost", "won"), [(44, 1, 0), (100, 9, 3), (500, 12, 10), (50, 0, 0)])
def test_bounds_of_paired_shares_are_where_the_score_test_stops_excluding(n: int, lost: int, won: int) -> None:
    """Oracle: the likelihood of the trinomial, maximised by search under each hypothesis (Tango 1998, section 3)."""
    verdict = judge_paired(*_answers(n, lost, won, wrong=n // 2), 5.0)
    for drop in (verdict.low / 100, verdict.high / 100):
        shares = np.linspace(max(0.0, -drop) + 1e-9, (1.0 - abs(drop)) / 2.0 + max(0.0, -drop) - 1e-9, 400_001)
        likelihood = np.log(1.0 - 2.0 * shares - drop) * (n - lost - won)
        likelihood += (lost * np.log(shares + drop + 1e-12) if lost else 0.0) + (won * np.log(shares) if won else 0.0)
        share = shares[np.nanargmax(likelihood)]
        statistic = (lost - won - n * drop) / np.sqrt(n * (2.0 * share + drop - drop * drop))
        assert abs(statistic) == pytest.approx(1.645, abs=0.01)


def test_verdicts_are_wrong_as_seldom_as_they_say() -> None:
    """A candidate that truly loses just more than the limit passes in at most 5 % of data sets (6.5 % with the simulation's own noise)."""
    rng = np.random.default_rng(5)
    passed = 0
    for _ in range(1000):
        kind = rng.random(2000)
        base, candidate = np.ones(2000), np.ones(2000)
        candidate[kind < 0.030] = 0.0
        base[(kind >= 0.030) & (kind < 0.0549)] = 0.0  # a true drop of 0.51 points
        passed += judge_paired(base, candidate, 0.5).outcome == "pass"
    assert passed <= 65


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40), st.floats(0.1, 20))
def test_bounds_hold_the_drop_and_decide_the_verdict(pairs: list[tuple[float, float]], limit: float) -> None:
    base, candidate = (np.array(column) for column in zip(*pairs, strict=True))
    verdict = judge_paired(base, candidate, limit)
    assert verdict.low <= verdict.drop <= verdict.high
    assert (verdict.outcome == "undecided") == (verdict.needed > 0)
    assert verdict.needed == 0 or verdict.needed > len(pairs)
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=type(verdict)) == verdict


def test_bad_scores_are_named() -> None:
    with pytest.raises(InputError, match="same samples twice"):
        judge_paired(np.ones(3), np.ones(4), 0.5)
    with pytest.raises(InputError, match="NaN"):
        judge_paired(np.ones(3), np.array([1.0, np.nan, 0.0]), 0.5)


def test_frames_add_up_to_the_pooled_f1() -> None:
    counts = [MatchCount(3, 1, 0), MatchCount(0, 0, 0), MatchCount(1, 0, 2), MatchCount(5, 2, 1)]
    total = MatchCount()
    for count in counts:
        total = total.plus(count)
    assert frame_scores(counts).mean() == pytest.approx(total.f1)
    assert frame_scores([MatchCount(1, 0, 0), MatchCount(0, 1, 1)]).tolist() == [1.0, 0.0]
    assert frame_scores([MatchCount()] * 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("config", "gentler"), [
    (Prune(ratio=0.6), Prune(ratio=0.3)),
    (Sparsify(pattern="unstructured", ratio=0.8), Sparsify(pattern="unstructured", ratio=0.4)),
    (Sparsify(), None),
    (Separate(share=0.5), Separate(share=0.25)),
    (Tune(), Tune(learning_rate=0.001)),
    (Qat(learning_rate=1e-4), Qat(learning_rate=5e-5)),
    (Distil(alpha=0.8), Distil(alpha=0.4)),
    (Distil(student="m:f"), None),
])
def test_half_the_strength_of_each_stage(config: FloatStageConfig, gentler: FloatStageConfig | None) -> None:
    assert at_strength(config, 0.5, learning_rate=2e-3) == gentler
    assert at_strength(config, 1.0) == config


def _search(passes_below: float) -> list[float]:
    tried: list[Tried] = []
    while (strength := next_strength(tried)) is not None:
        tried.append(Tried(strength, "pass" if strength <= passes_below else "fail"))
    return [entry.strength for entry in tried]


def test_bisection_finds_the_strongest_setting_that_passes() -> None:
    assert _search(1.0) == [1.0]
    assert _search(0.7) == [1.0, 0.5, 0.75, 0.625]
    assert _search(0.0) == [1.0, 0.5, 0.25, 0.125]
    assert max(len(_search(limit / 50)) for limit in range(51)) == MAX_TRIES
