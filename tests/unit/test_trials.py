"""What a trial may cost and what its numbers mean: the budget of shadow runs, predicted memory, and the rules of both judges."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.messages import AppSpec, TrialPolicy, decode, encode
from jetfleet_contract.trials import (
    WATCH_FRAMES,
    Need,
    Room,
    ShadowBudget,
    TrialNumbers,
    WatchNumbers,
    judge_trial,
    judge_watch,
    plan_trial,
    predict_memory,
)

SHARES = st.floats(0.01, 1.0)
STEPS = st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.0005, 0.3)), min_size=1, max_size=80)


@given(share=SHARES, steps=STEPS)
def test_over_any_window_shadow_runs_take_their_share_and_one_run_at_most(share: float, steps: list[tuple[float, float]]) -> None:
    """Each step: so long passes until the next frame, and a run on it would take so long."""
    budget, now, runs = ShadowBudget(share), 100.0, []
    for wait, cost in steps:
        now += wait
        if budget.may_run(now):
            runs.append((now, cost))
            now += cost
            budget.spend(now, cost)
    for first in range(len(runs)):
        spent = 0.0
        for start, cost in runs[first:]:
            window = start - runs[first][0]
            assert spent <= share * window + runs[first][1] + 1e-9, "before the last run of the window the debt was paid"
            spent += cost


@given(share=SHARES, cost=st.floats(0.001, 0.1))
def test_a_steady_stream_gets_the_share_that_it_may_have(share: float, cost: float) -> None:
    """Else a trial on a busy board would never end: the budget is used, not only kept."""
    budget, now = ShadowBudget(share), 0.0
    budget.may_run(now)
    while now < 400 * cost / share:
        now += cost  # the champion's own frame
        if budget.may_run(now):
            now += cost
            budget.spend(now, cost)
    least = share / (1 + share)  # a run waits for a whole frame of the champion
    assert least * 0.9 <= budget.share_spent(now) <= share + 0.01


def test_no_share_is_no_run_and_all_of_it_is_every_frame() -> None:
    assert not ShadowBudget(0.0).may_run(1.0)
    budget = ShadowBudget(1.0)
    for frame in range(5):
        assert budget.may_run(frame * 0.01)
        budget.spend(frame * 0.01 + 0.01, 0.01)


def test_a_clock_that_stands_still_or_steps_back_gives_no_credit() -> None:
    budget = ShadowBudget(0.5)
    assert budget.may_run(10.0)
    budget.spend(10.0, 1.0)
    assert not budget.may_run(10.0)
    assert not budget.may_run(3.0)
    assert not budget.may_run(11.9)
    assert budget.may_run(12.1)


# --- memory -----------------------------------------------------------------------------------------------


def test_memory_is_predicted_from_what_the_board_measured_and_by_size_when_it_did_not() -> None:
    measured = predict_memory(10_000_000, 640 * 480, peak_mb=300.0, empty_mb=200.0)
    assert (measured.origin, round(measured.beside_mb), round(measured.alone_mb)) == ("measured", 110, 330)
    whole = predict_memory(10_000_000, 640 * 480, peak_mb=300.0)
    assert whole.beside_mb == whole.alone_mb == pytest.approx(330.0), "without the empty process: the safe side"
    by_size = predict_memory(102_000_000, 224 * 224)
    assert (by_size.origin, round(by_size.beside_mb), round(by_size.alone_mb)) == ("size", 374, 474)
    assert predict_memory(4_700_000, 640 * 480).beside_mb == pytest.approx(120, abs=5), "a small file with a large input"


@given(need=st.floats(0, 4000), free=st.floats(0, 4000), held=st.floats(0, 2000), mode=st.sampled_from(["auto", "beside", "stop-start"]),
       champion=st.booleans())
def test_a_plan_never_loads_what_does_not_fit_and_always_says_why(need: float, free: float, held: float, mode: str,
                                                                 champion: bool) -> None:
    room = Room(Need(need * 0.8, need, "measured"), free, held)
    plan = plan_trial(TrialPolicy(mode=mode), room, champion=champion)  # type: ignore[arg-type]
    known = need > 0 and free > 0
    if plan.mode == "beside" and known:
        assert need * (0.8 if champion else 1.0) <= free
        assert mode != "stop-start" or not champion
    elif plan.mode == "stop-start":
        assert champion
        assert mode != "beside"
        assert not known or need <= free + held
        assert plan.reason
    elif not plan.mode:
        assert known
        assert "predicted" in plan.reason


# --- gates ------------------------------------------------------------------------------------------------

FINE = TrialNumbers(live_frames=30, live_agreement=0.95, champion_p99_ms=10.0, challenger_p99_ms=11.0, mean_iou=0.9, score_distance=0.02)
STRICT = TrialPolicy(min_iou=0.8, max_score_distance=0.1, max_p99_ms=100.0)


@pytest.mark.parametrize(("change", "code", "says"), [
    ({}, "", "agreement 0.950, IoU 0.900, score distance 0.020 over 30 frames, p99 1.10x"),
    ({"probe_agreement": 0.5, "probe_bound": 0.9}, "trial.probe", "0.500 is under 0.900"),
    ({"live_agreement": 0.4}, "trial.agreement", "0.400 is under 0.700"),
    ({"mean_iou": 0.7}, "trial.iou", "0.700 is under 0.800"),
    ({"score_distance": 0.2}, "trial.score", "differ by 0.200"),
    ({"challenger_p99_ms": 21.0}, "trial.latency", "2.10x"),
    ({"challenger_p99_ms": 101.0, "champion_p99_ms": 90.0}, "trial.latency", "over 100.0 ms"),
])
def test_the_comparison_names_the_gate_that_failed(change: dict[str, float], code: str, says: str) -> None:
    passed, found, sentence = judge_trial(STRICT, msgspec.structs.replace(FINE, **change))
    assert (passed, found) == (not code, code)
    assert says in sentence


@pytest.mark.parametrize(("numbers", "code"), [
    (WatchNumbers(), ""),
    (WatchNumbers(WATCH_FRAMES - 1, 500.0, 500.0, 10.0), ""),
    (WatchNumbers(WATCH_FRAMES, 9.0, 99.0, 10.0), ""),
    (WatchNumbers(WATCH_FRAMES, 21.0, 99.0, 10.0), "trial.keep-latency"),
    (WatchNumbers(100, 9.0, 19.9, 10.0), ""),
    (WatchNumbers(100, 9.0, 20.1, 10.0), "trial.keep-latency"),
    (WatchNumbers(500, 500.0, 500.0, 0.0), "trial.keep-latency"),
    (WatchNumbers(500, 50.0, 90.0, 0.0), ""),
    (WatchNumbers(compared=WATCH_FRAMES - 1, agreement=0.0), ""),
    (WatchNumbers(compared=WATCH_FRAMES, agreement=0.69), "trial.keep-agreement"),
    (WatchNumbers(compared=WATCH_FRAMES, mean_iou=0.5), "trial.keep-agreement"),
    (WatchNumbers(compared=WATCH_FRAMES, score_distance=0.5), "trial.keep-agreement"),
    (WatchNumbers(rise_c=15.1), "trial.heat"), (WatchNumbers(throttled_s=2.0), "trial.heat"), (WatchNumbers(throttled_s=1.9), ""),
])
def test_what_is_watched_convicts_by_name_and_only_on_enough_frames(numbers: WatchNumbers, code: str) -> None:
    passed, found, sentence = judge_watch(STRICT, numbers)
    assert (passed, found, bool(sentence)) == (not code, code, bool(code))


def test_heat_can_be_left_out() -> None:
    assert judge_watch(msgspec.structs.replace(STRICT, max_rise_c=0.0), WatchNumbers(rise_c=60.0))[0]


# --- what travels ------------------------------------------------------------------------------------------


def test_a_policy_of_before_still_decodes_and_one_that_uses_nothing_new_is_the_same_bytes() -> None:
    """A board that was not updated yet refuses unknown fields: it must not meet them unless an operator asked for them."""
    old = b'{"app":"a","bundle":"b","name":"n","version":"1","trial":{"frames":20,"keep_s":2.0}}'
    spec = decode(old, AppSpec)
    assert spec.trial == TrialPolicy(frames=20, keep_s=2.0)
    assert b"share" not in encode(spec)
    with pytest.raises(Exception, match="share"):
        decode(b'{"app":"a","bundle":"b","name":"n","version":"1","trial":{"share":1.5}}', AppSpec)
