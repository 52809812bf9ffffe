"""Experiments: fair cohorts, a test that keeps its false-alarm rate however often it looks, and a machine that repeats itself."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetfleet_contract import cohorts
from jetfleet_contract import experiments as ex
from jetfleet_contract.errors import MalformedError, OrderError
from jetfleet_contract.messages import Instant, decode, encode

A = ex.Version("ocr", "1", "11" * 32)
B = ex.Version("ocr", "2", "22" * 32)


def at(seconds: float, boot: str = "boot") -> Instant:
    return Instant(seconds, boot, 1e9 + seconds, True)


def plan_of(boards: int = 12, **changes: object) -> ex.Plan:
    strata = {f"b{n:03}": ("orin-nano", "cpu-x86")[n % 2] for n in range(boards)}
    made = ex.Plan("exp", "reader", A, B, cohorts.draw(strata, 0.5, "exp"), strata, "p99", "lower", duration_s=1000.0)
    return ex.check_plan(msgspec.structs.replace(made, **changes))


def running(plan: ex.Plan) -> ex.Experiment:
    state, _ = ex.step(ex.Experiment(plan), ex.Start(), at(0))
    for arm in cohorts.ARMS:
        state, _ = ex.step(state, ex.Installed(arm), at(1))
    assert state.phase == "running"
    return state


def values(plan: ex.Plan, rng: random.Random, *, ratio: float = 1.0, noise: float = 0.1) -> dict[str, float]:
    """Latencies by board: classes differ threefold, boards by `noise`, arm b by `ratio`."""
    base = {"orin-nano": 30.0, "cpu-x86": 10.0}
    return {d: base[plan.strata[d]] * (ratio if plan.arms[d] == "b" else 1.0) * rng.lognormvariate(0, noise) for d in sorted(plan.arms)}


@given(st.dictionaries(st.text("abcdef0123", min_size=1, max_size=5), st.sampled_from(["x", "y", "z"]), min_size=2, max_size=60),
       st.floats(0.05, 0.95), st.text(max_size=8))
def test_cohorts_are_shares_of_every_class_and_do_not_change(strata: dict[str, str], share: float, salt: str) -> None:
    arms = cohorts.draw(strata, share, salt)
    assert arms.keys() == strata.keys()
    assert arms == cohorts.draw(dict(reversed(strata.items())), share, salt)
    for kind in set(strata.values()):
        members = [d for d in strata if strata[d] == kind]
        chosen = sum(arms[d] == "b" for d in members)
        if len(members) > 1:
            assert 1 <= chosen <= len(members) - 1
            assert abs(chosen - share * len(members)) <= 1


def test_every_board_is_drawn_with_the_same_chance() -> None:
    strata = {f"b{n}": "one" for n in range(10)}
    counts = {device: sum(cohorts.draw(strata, 0.3, f"salt{n}")[device] == "b" for n in range(2000)) for device in strata}
    assert all(480 < count < 720 for count in counts.values()), counts  # 600 expected, 6 standard deviations are 123


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=7), st.integers(0, 2**20))
def test_p_is_a_probability_and_does_not_depend_on_names_of_arms(numbers: list[float], seed: int) -> None:
    rng = random.Random(seed)
    seen = {f"b{n}": value for n, value in enumerate(numbers)}
    arms: dict[str, cohorts.Arm] = {device: rng.choice(cohorts.ARMS) for device in seen}
    strata = dict.fromkeys(seen, "one")
    swapped: dict[str, cohorts.Arm] = {device: "a" if arm == "b" else "b" for device, arm in arms.items()}
    p = cohorts.randomisation_p(seen, arms, strata, "s")
    assert 0.0 < p <= 1.0
    assert p == pytest.approx(cohorts.randomisation_p(seen, swapped, strata, "s"))


def test_exact_p_of_three_against_three() -> None:
    seen = {"a1": 1.0, "a2": 2.0, "a3": 3.0, "b1": 4.0, "b2": 5.0, "b3": 6.0}
    arms: dict[str, cohorts.Arm] = {device: "a" if device.startswith("a") else "b" for device in seen}
    assert cohorts.randomisation_p(seen, arms, dict.fromkeys(seen, "one"), "s") == pytest.approx(2 / 20)


def test_random_draws_agree_with_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(14)
    seen = values(plan, random.Random(3), ratio=1.15)
    exact = cohorts.randomisation_p(seen, plan.arms, plan.strata, "s")
    monkeypatch.setattr(cohorts, "MAX_DRAWS", 1000)
    assert cohorts.randomisation_p(seen, plan.arms, plan.strata, "s") == pytest.approx(exact, abs=0.04)


def test_many_boards_agree_with_random_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(240)
    for run, ratio in enumerate((1.0, 1.02, 1.03, 1.04)):
        seen = {device: value ** 0.5 for device, value in values(plan, random.Random(run), ratio=ratio).items()}
        normal = cohorts.randomisation_p(seen, plan.arms, plan.strata, "s")
        with monkeypatch.context() as patched:
            patched.setattr(cohorts, "MANY_BOARDS", 1000)
            assert cohorts.randomisation_p(seen, plan.arms, plan.strata, "s") == pytest.approx(normal, abs=0.03)


def test_many_boards_that_are_all_alike_show_nothing() -> None:
    plan = plan_of(300)
    assert cohorts.randomisation_p(dict.fromkeys(plan.arms, 3.0), plan.arms, plan.strata, "s") == 1.0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9, 1.0])
def test_spending_grows_to_alpha(share: float) -> None:
    assert 0.0 <= cohorts.spent_alpha(share / 2, 0.05) <= cohorts.spent_alpha(share, 0.05) <= 0.05
    assert cohorts.spent_alpha(1.0, 0.05) == pytest.approx(0.05)
    assert cohorts.spent_alpha(0.5, 0.05) == pytest.approx(0.00557, abs=1e-4)  # Lan and DeMets 1983: 2 - 2 Phi(1.96 / sqrt(1/2))


def _verdicts(ratio: float, times: int) -> list[str]:
    winners: list[str] = []
    for run in range(times):
        rng = random.Random(run)
        plan = plan_of(12, id=f"exp{run}", looks=5, promotes="operator", if_undecided="keep")
        plan = msgspec.structs.replace(plan, arms=cohorts.draw(plan.strata, 0.5, f"{run}"))
        state, base = running(plan), values(plan, rng, ratio=ratio)
        for look in range(1, 6):  # boards keep their own character; each look adds some noise
            seen = {device: value * rng.lognormvariate(0, 0.03) for device, value in base.items()}
            state, _ = ex.step(state, ex.Seen(seen), at(1 + 200.0 * look))
            if state.final:
                break
        winners.append(state.winner)
    return winners


def test_five_looks_keep_the_false_alarm_rate() -> None:
    alarms = sum(winner != "" for winner in _verdicts(1.0, 300))
    assert alarms <= 20  # 15 expected at alpha 0.05; unguarded, five looks give 35


def test_a_slower_arm_is_found() -> None:
    winners = _verdicts(1.3, 60)
    assert winners.count("a") >= 54
    assert "b" not in winners


def test_the_whole_way_persists_first_and_promotes_the_winner() -> None:
    plan = plan_of(16)
    state, effects = ex.step(ex.Experiment(plan), ex.Start(), at(0))
    assert [type(effect) for effect in effects] == [ex.Persist, ex.Install, ex.Install]
    state, _ = ex.step(state, ex.Installed("b"), at(5))
    state, effects = ex.step(state, ex.Installed("b"), at(6))
    assert effects == ()
    state, _ = ex.step(state, ex.Installed("a"), at(10))
    assert not ex.look_due(state, at(100))
    assert ex.look_due(state, at(111))
    for look in range(1, 11):
        state, effects = ex.step(state, ex.Seen(values(plan, random.Random(look), ratio=0.5)), at(10 + 100.0 * look))
        if state.phase != "running":
            break
    assert state.phase == "promoting"
    assert state.winner == "b"
    assert effects == (ex.Persist(state), ex.Promote("b"))
    assert ex.step(state, ex.Restored(), at(0, "next boot")) == (state, (ex.Promote("b"),))
    state, _ = ex.step(state, ex.Promoted(), at(3000))
    assert state.final
    assert decode(encode(state), ex.Experiment) == state


def test_too_few_boards_never_decide() -> None:
    plan = plan_of(12, looks=3)
    state = running(plan)
    some = dict.fromkeys(sorted(plan.arms)[:2], 1.0)
    for look in range(1, 4):
        state, _ = ex.step(state, ex.Seen(some), at(1 + 334.0 * look))
    assert [look.needed for look in state.looks] == [0.0] * 3
    assert (state.phase, state.winner) == ("promoting", "a")
    assert "no difference was shown" in state.reason


def test_undecided_keeps_both_until_an_operator_decides() -> None:
    plan = plan_of(12, looks=1, if_undecided="keep")
    state, effects = ex.step(running(plan), ex.Seen(dict.fromkeys(plan.arms, 5.0)), at(1001))
    assert (state.phase, effects) == ("kept", (ex.Persist(state),))
    state, effects = ex.step(state, ex.PromoteArm("b"), at(1002))
    assert effects[1:] == (ex.Promote("b"),)


def test_a_failed_arm_ends_it_and_cancels_the_other() -> None:
    state, _ = ex.step(ex.Experiment(plan_of()), ex.Start(), at(0))
    state, effects = ex.step(state, ex.ArmFailed("b", "stopped: boards refused"), at(1))
    assert (state.phase, effects[1:]) == ("failed", (ex.Cancel(),))
    with pytest.raises(OrderError, match=r"experiment\.order"):
        ex.step(state, ex.Seen({}), at(2))


@settings(max_examples=200)
@given(st.lists(st.sampled_from([ex.Start(), ex.Installed("a"), ex.Installed("b"), ex.ArmFailed("a", "x"), ex.Seen({}), ex.PromoteArm("a"),
                                 ex.Promoted(), ex.Abort(), ex.Restored()]), max_size=25))
def test_any_order_persists_every_change_first_and_ends_for_good(events: list[ex.Event]) -> None:
    state = ex.Experiment(plan_of(looks=3))
    for number, event in enumerate(events):
        try:
            after, effects = ex.step(state, event, at(number * 200.0))
        except OrderError:
            continue
        assert (after != state) == (bool(effects) and effects[0] == ex.Persist(after))
        assert not state.final or isinstance(event, ex.PromoteArm)
        state = after


@pytest.mark.parametrize(("changes", "words"), [
    ({"b": A}, "same bundle"), ({"alpha": 0.7}, "alpha"), ({"looks": 0}, "looks"), ({"duration_s": float("inf")}, "duration"),
    ({"min_boards": 50}, "arm a has 6 boards"), ({"strata": {}}, "without a class")])
def test_impossible_plans_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        plan_of(**changes)  # type: ignore[arg-type]
