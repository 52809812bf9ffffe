"""Policies, gates, windows and budgets of a rollout, boards that join, and plans of the first release."""

from __future__ import annotations

import msgspec
import pytest
from rollout_steps import FAST, NONE, SLOW, at, committed, plan, run, shown

from jetfleet_contract.gates import BoardEvidence, Gates
from jetfleet_contract.messages import decode, encode
from jetfleet_contract.rollout import planned, step
from jetfleet_contract.rollout_plan import Budget, Selector, Window
from jetfleet_contract.rollout_records import (
    Evidence,
    Issue,
    Joined,
    Outcome,
    Persist,
    Resume,
    Rollout,
    Spending,
    Spent,
    Start,
    Tick,
)
from jetfleet_contract.sketch import sketch_of


def test_policy_pause_waits_for_a_person_who_may_accept() -> None:
    begun, _ = run(planned(plan(("a",), ("b",), on_breach="pause")), (Start(), 0), (Outcome("a", "refused", "trial.probe"), 1))
    assert (begun.phase, begun.code, begun.resume_to) == ("paused", "rollout.install", "running")
    again, _ = run(begun, (Resume(), 2))
    assert again.phase == "paused"  # nothing has changed
    accepted, _ = run(begun, (Resume(accept=True, by="ada"), 2))
    assert (accepted.phase, accepted.accepted) == ("holding", 0)
    state, effects = run(accepted, (Tick(), 40))
    assert Issue("b") in effects
    assert [v.why for v in state.verdicts if "accepted" in v.why]
    state, _ = run(state, (Outcome("b", "refused"), 41))
    assert state.phase == "paused"  # the next wave is judged again


def test_one_flaky_board_of_five_neither_blocks_nor_passes() -> None:
    boards = ("a", "b", "c", "d", "e")
    gates = Gates(max_bad=-1, min_success=0.9)
    state, _ = run(planned(plan(boards, gates=gates)), (Start(), 0), *((committed(d), 1) for d in "abcd"), (Outcome("e", "failed"), 2))
    assert (state.phase, state.code) == ("paused", "rollout.undecided")
    lenient = msgspec.structs.replace(gates, on_undecided="pass")
    state, _ = run(planned(plan(boards, gates=lenient)), (Start(), 0), *((committed(d), 1) for d in "abcd"), (Outcome("e", "failed"), 2))
    assert (state.phase, state.verdicts[0].undecided) == ("holding", True)
    assert state.verdicts[0].numbers["high"] == pytest.approx(0.99, abs=0.01)
    many = tuple(f"d{n}" for n in range(40))
    state, _ = run(planned(plan(many, gates=gates)), (Start(), 0), *((Outcome(d, "failed"), 1) for d in many[:9]))
    assert state.phase == "reverting"  # 31 of 40 cannot be 90 % by chance, whatever the others will say


def test_a_silent_board_may_still_decide() -> None:
    gates = Gates(min_success=0.9, wave_timeout_s=100, evidence_s=50)
    state, _ = run(planned(plan(("a", "b"), gates=gates)), (Start(), 0), (committed("a"), 1), (Tick(), 101))
    assert (state.phase, state.standing[0].undecided) == ("running", True)
    late, _ = run(state, (committed("b"), 120))
    assert late.phase == "holding"
    assert (late.devices["b"].code, late.devices["b"].status) == ("rollout.late", "committed")
    state, _ = run(state, (Tick(), 151))
    assert (state.phase, state.code) == ("paused", "rollout.undecided")


def held(**changes: object) -> Rollout:
    """A canary and a second wave; the canary has committed at second 1 and is held until 31."""
    return run(planned(plan(("a",), ("b",), **changes)), (Start(), 0), (committed("a"), 1))[0]


def test_too_little_evidence_is_undecided_until_it_suffices() -> None:
    few = sketch_of([10.0] * 40)
    state, effects = run(held(), (shown(FAST, few), 40))
    assert (state.phase, state.looks) == ("holding", 1)
    assert effects == [Persist(state)]
    assert step(state, shown(FAST, few), at(45)) == (state, ())  # between two looks
    passed, _ = run(state, (shown(FAST, FAST), 65))
    assert (passed.phase, passed.wave) == ("running", 1)
    assert {"ratio", "low", "high", "frames"} <= set(passed.verdicts[1].numbers)
    for policy, phase in (("pause", "paused"), ("pass", "running"), ("breach", "reverting")):
        state = held(gates=Gates(on_undecided=policy))  # type: ignore[arg-type]
        state, _ = run(state, *((shown(FAST, few), second) for second in (40, 70, 100, 130, 160)))
        assert state.phase == phase


@pytest.mark.parametrize(("gates", "bad", "good"), [
    (Gates(min_agreement=0.9), {"agreement": 0.7}, {"agreement": 0.95}),
    (Gates(min_probe_agreement=0.9), {"probe_agreement": 0.7}, {"probe_agreement": 0.95}),
    (Gates(max_crashes=0), {"crashes": 1.0}, {"crashes": 0.0}),
    (Gates(max_temperature_c=85.0), {"temperature_c": 91.0}, {"temperature_c": 60.0}),
    (Gates(max_throttled=0.2), {"throttled": 0.5}, {"throttled": 0.1}),
])
def test_what_boards_told_is_a_gate_and_silence_is_no_pass(gates: Gates, bad: dict[str, float], good: dict[str, float]) -> None:
    state, _ = run(held(gates=gates), (shown(FAST, FAST, **bad), 2))
    assert state.phase == "reverting"  # at once: it has happened
    state, _ = run(held(gates=gates), (shown(FAST, FAST, **good), 40))
    assert state.wave == 1
    state, _ = run(held(gates=gates), *((shown(FAST, FAST), second) for second in (40, 70, 100, 130, 160)))
    assert (state.phase, state.code) == ("paused", "rollout.undecided")


def test_evidence_counts_from_boards_that_committed() -> None:
    lenient = Gates(max_bad=1, min_success=0.5)
    state, _ = run(planned(plan(("a", "b"), ("c",), gates=lenient)), (Start(), 0), (committed("a"), 1), (Outcome("b", "rolled_back"), 1))
    both = Evidence((BoardEvidence("a", FAST, FAST), BoardEvidence("b", FAST, SLOW), BoardEvidence("stranger", FAST, SLOW)))
    state, _ = run(state, (both, 40))
    assert state.wave == 1


def test_a_wave_opens_in_its_window_only() -> None:
    # second 0 of these tests is 2001-09-09 01:46:40 UTC, a Sunday
    night = (Window((22, 4), (6,)),)
    state, effects = run(planned(plan(("a",), ("b",), windows=(Window((2, 5)),))), (Start(), 0))
    assert (state.phase, state.code, state.wave) == ("waiting", "rollout.window", -1)
    assert step(state, Tick(), at(60)) == (state, ())
    state, effects = run(state, (Tick(), 14 * 60))
    assert Issue("a") in effects
    assert plan(("a",), windows=night).open_at(1e9 + 21 * 3600)  # Sunday night
    assert plan(("a",), windows=night).open_at(1e9 + 24 * 3600)  # its morning after
    assert not plan(("a",), windows=night).open_at(1e9)  # Saturday's night
    assert not plan(("a",), windows=night).open_at(1e9 + 48 * 3600)


def test_each_wave_has_its_own_hold() -> None:
    state, _ = run(planned(plan(("a",), ("b",), ("c",), holds=(5.0, 100.0))), (Start(), 0), (committed("a"), 1), (shown(NONE, NONE), 7))
    assert state.wave == 1
    state, _ = run(state, (committed("b"), 8), (shown(NONE, NONE, "b"), 50))
    assert state.phase == "holding"


def test_budgets() -> None:
    costly = plan(("a",), ("b", "c"), board_bytes=100, budget=Budget(max_bytes=250))
    state, _ = run(planned(costly), (Start(), 0), (Spent(Spending(100, 100, 1)), 0.5), (committed("a"), 1), (shown(NONE, NONE), 40))
    assert (state.phase, state.code) == ("paused", "rollout.budget")
    assert run(state, (Resume(), 50))[0].phase == "paused"
    assert run(state, (Resume(accept=True), 50))[0].phase == "running"
    state, _ = run(planned(costly), (Start(), 0), (Spent(Spending(251, 251, 1)), 0.5))
    assert (state.phase, state.code) == ("paused", "rollout.budget")

    today = int(1e9 // 86400)
    daily = plan(("a",), ("b",), board_bytes=100, budget=Budget(max_bytes_per_day=150))
    state, _ = run(planned(daily), (Start(), 0), (Spent(Spending(100, 100, today)), 0.5), (committed("a"), 1), (shown(NONE, NONE), 40))
    assert (state.phase, state.code) == ("waiting", "rollout.day-budget")
    state, effects = run(state, (Tick(), 86400))
    assert Issue("b") in effects


def test_boards_that_join_come_last() -> None:
    state, effects = run(planned(plan(("a",), ("b",))), (Start(), 0), (Joined({"c": "1", "a": "1"}), 1))
    assert state.plan.waves == (("a",), ("b", "c"))
    assert effects[-1] == Persist(state, ("c",))
    state, _ = run(planned(plan(("a",))), (Start(), 0), (Joined({"c": ""}), 1))
    assert (state.plan.waves, state.plan.before) == ((("a",), ("c",)), {"a": "1"})
    assert decode(encode(state), Rollout) == state


def test_selectors() -> None:
    rule = Selector(classes=("orin-*",), tags={"line": ("3", "4"), "site": ("berlin*",)}, exclude=("gate-9", "line=4", "class=orin-agx"))
    here = {"line": "3", "site": "berlin-2"}
    assert rule.matches("gate-1", "orin-nano", here)
    assert not rule.matches("gate-9", "orin-nano", here)
    assert not rule.matches("gate-1", "orin-agx", here)
    assert not rule.matches("gate-1", "cpu-x86", here)
    assert not rule.matches("gate-1", "orin-nano", {"site": "berlin-2"})
    assert not rule.matches("gate-1", "orin-nano", {"line": "4", "site": "berlin-2"})
    assert Selector().matches("any", "", {})


def test_a_rollout_of_the_first_release_loads() -> None:
    """The journal of a host that is upgraded in the middle of a rollout."""
    old = (b'{"plan":{"id":"r1","app":"reader","bundle":"' + b"b" * 64 + b'","name":"ocr","version":"2","waves":[["a"],["b"]],'
           b'"before":{"a":"1"},"gates":{"max_p95_ratio":1.5},"on_breach":"stop"},"devices":{"a":{"wave":0,"status":"committed"},"b":{"wave":1}},'
           b'"phase":"holding","wave":0,"since":{"mono":5.0,"boot_id":"x","wall":1e9,"wall_trusted":true},'
           b'"verdicts":[{"wave":0,"gate":"install","passed":true,"why":"wave 1 of 1: 1 committed"}]}')
    state = decode(old, Rollout)
    assert (state.phase, state.plan.on_breach, state.plan.gates.max_p95_ratio, state.looks) == ("holding", "stop", 1.5, 0)
    assert run(state, (shown(FAST, SLOW), 100))[0].phase == "stopped"
