"""The fleet's machine: each transition by example, then everything at once by Hypothesis."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rollout_steps import FAST, NONE, SLOW, at, committed, plan, run, shown

from jetfleet_contract.errors import OrderError
from jetfleet_contract.gates import Gates
from jetfleet_contract.messages import Instant, decode, encode
from jetfleet_contract.rollout import _TABLE, elapsed_s, planned, step
from jetfleet_contract.rollout_plan import Budget, Window, sized_waves, waves_of
from jetfleet_contract.rollout_records import (
    BAD,
    FINAL,
    Abort,
    Effect,
    Event,
    Issue,
    Joined,
    Outcome,
    Pause,
    Persist,
    Restored,
    Resume,
    Revert,
    Rollout,
    Spending,
    Spent,
    Start,
    Tick,
)
from jetfleet_contract.sketch import sketch_of


def test_canary_goes_first_and_alone() -> None:
    state, effects = run(planned(plan(("a",), ("b", "c"))), (Start(), 0))
    assert effects == [Persist(state, ("a",)), Issue("a")]
    assert state.devices["b"].status == "waiting"


def test_the_next_wave_needs_both_gates() -> None:
    state, _ = run(planned(plan(("a",), ("b",))), (Start(), 0), (committed("a"), 1))
    assert state.phase == "holding"
    early, none = run(state, (shown(FAST, FAST), 2))
    assert early == state
    assert none == []
    state, effects = run(state, (shown(FAST, FAST), 40))
    assert Issue("b") in effects
    assert [(v.wave, v.gate, v.passed) for v in state.verdicts] == [(0, "install", True), (0, "latency", True)]


def test_a_refusal_stops_everything_and_gives_the_old_version_back() -> None:
    state, _ = run(planned(plan(("a", "b"), ("c",))), (Start(), 0), (committed("a"), 1))
    state, effects = run(state, (Outcome("b", "refused", "trial.probe"), 2))
    assert state.phase == "reverting"
    assert [e for e in effects if not isinstance(e, Persist)] == [Revert("a"), Revert("b")]
    assert "trial.probe" in state.reason
    state, _ = run(state, (Outcome("a", "committed", back=True), 3))
    assert state.phase == "reverted"
    assert state.devices["c"].status == "waiting"


def test_policy_stop_leaves_the_boards_alone() -> None:
    state, effects = run(planned(plan(("a",), ("b",), on_breach="stop")), (Start(), 0), (Outcome("a", "failed", "x.y"), 1))
    assert state.phase == "stopped"
    assert not [e for e in effects if isinstance(e, Revert)]


def test_a_slower_bundle_is_a_breach() -> None:
    state, _ = run(planned(plan(("a",), ("b",))), (Start(), 0), (committed("a"), 1), (shown(FAST, SLOW), 40))
    assert (state.phase, state.code) == ("reverting", "rollout.latency")


def test_no_samples_of_the_new_bundle_is_a_breach_when_the_old_one_had_some() -> None:
    state, _ = run(planned(plan(("a",), ("b",))), (Start(), 0), (committed("a"), 1), (shown(FAST, NONE), 40))
    assert state.phase == "holding"
    state, _ = run(state, (shown(FAST, NONE), 400))
    assert state.code == "rollout.no-evidence"


def test_a_first_install_has_nothing_to_compare_with() -> None:
    state, _ = run(planned(plan(("a",), before={})), (Start(), 0), (committed("a"), 1), (shown(NONE, NONE), 40))
    assert state.phase == "done"


def test_a_board_that_never_answers_is_silent_and_counts() -> None:
    state, _ = run(planned(plan(("a", "b"))), (Start(), 0), (committed("a"), 1), (Tick(), 3601))
    assert (state.devices["b"].status, state.devices["b"].code) == ("reverting", "rollout.silent")
    assert "1 silent" in state.reason
    lenient = plan(("a", "b"), gates=Gates(min_success=0.5))
    state, _ = run(planned(lenient), (Start(), 0), (committed("a"), 1), (Tick(), 3601))
    assert state.phase == "holding"


def test_a_rollback_after_the_commit_is_a_breach_too() -> None:
    state, _ = run(planned(plan(("a",), ("b",))), (Start(), 0), (committed("a"), 1), (Outcome("a", "rolled_back", "crash.loop"), 5))
    assert state.phase == "reverting"


def test_pause_opens_no_wave_and_resume_goes_on() -> None:
    state, effects = run(planned(plan(("a",), ("b",))), (Start(), 0), (Pause(), 1), (committed("a"), 2), (Tick(), 9999))
    assert state.phase == "paused"
    assert effects.count(Issue("b")) == 0
    state, _ = run(state, (Resume(), 10000))
    assert state.phase == "holding"


def test_abort_with_and_without_the_way_back() -> None:
    begun, _ = run(planned(plan(("a",), ("b",))), (Start(), 0))
    assert run(begun, (Abort(), 1))[0].phase == "aborted"
    state, effects = run(begun, (Abort(rollback=True), 1))
    assert Revert("a") in effects
    assert Revert("b") not in effects
    assert (state.phase, state.code) == ("reverting", "rollout.aborted")


def test_way_back_without_an_old_version_waits_for_nobody() -> None:
    state, _ = run(planned(plan(("a",), before={})), (Start(), 0), (Abort(rollback=True), 1))
    assert state.phase == "reverting"  # until a tick, so that a restart repeats the effects
    assert run(state, (Restored(), 2))[1] == [Revert("a")]
    assert run(state, (Tick(), 2))[0].phase == "reverted"


def test_a_restart_repeats_only_what_may_be_lost() -> None:
    state, _ = run(planned(plan(("a", "b"), ("c",))), (Start(), 0), (committed("a"), 1))
    assert step(state, Restored(), at(2)) == (state, (Issue("b"),))


def test_duplicates_change_nothing() -> None:
    state, _ = run(planned(plan(("a", "b"))), (Start(), 0), (committed("a"), 1))
    assert step(state, committed("a"), at(2)) == (state, ())


def test_an_illegal_event_raises_and_names_it() -> None:
    with pytest.raises(OrderError, match=r"rollout\.order"):
        step(planned(plan(("a",))), Resume(), at(0))
    begun, _ = run(planned(plan(("a",))), (Start(), 0))
    with pytest.raises(OrderError, match=r"rollout\.stranger"):
        step(begun, committed("zz"), at(0))


def test_every_illegal_pair_raises() -> None:
    events: list[Event] = [Start(), committed("a"), shown(FAST, FAST), Tick(), Spent(Spending(1)), Joined({"z": ""}),
                           Pause(), Resume(), Abort(), Restored()]
    phases = ("planned", "waiting", "running", "holding", "paused", "reverting", *sorted(FINAL))
    for phase in phases:
        state = msgspec.structs.replace(planned(plan(("a",))), phase=phase)
        for event in events:
            if (phase, type(event)) not in _TABLE:
                with pytest.raises(OrderError):
                    step(state, event, at(0))


def test_a_plan_names_each_board_once() -> None:
    with pytest.raises(OrderError):
        planned(plan(("a",), ("a",)))
    with pytest.raises(OrderError):
        planned(plan())
    assert sized_waves(list("abcdef"), (1, 2)) == (("a",), ("b", "c"), ("d", "e", "f"))


def test_waves() -> None:
    assert waves_of(["a", "b", "c", "d"], canary=1) == (("a",), ("b", "c", "d"))
    assert waves_of(["a", "b", "c", "d"], canary=1, wave_size=2) == (("a",), ("b", "c"), ("d",))
    assert waves_of(["a"], canary=3) == (("a",),)
    assert waves_of([], canary=1) == ()


def test_elapsed_survives_a_boot() -> None:
    before = Instant(500.0, "one", 1000.0, True)
    assert elapsed_s(before, Instant(510.0, "one", 5.0, False)) == 10.0
    assert elapsed_s(before, Instant(3.0, "two", 1060.0, True)) == 60.0
    assert elapsed_s(before, Instant(3.0, "two", 900.0, True)) == 0.0


def test_the_state_survives_its_own_codec() -> None:
    state, _ = run(planned(plan(("a",), ("b",))), (Start(), 0), (committed("a"), 1))
    assert decode(encode(state), Rollout) == state


class Host(RuleBasedStateMachine):
    """A host that may die anywhere, and boards that answer anything in any order."""

    @initialize(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), first=st.booleans(),
                on_breach=st.sampled_from(["stop", "abort", "pause", "rollback"]), max_bad=st.integers(-1, 2),
                success=st.sampled_from([0.0, 0.5, 1.0]), ratio=st.sampled_from([0.0, 2.0]), windows=st.booleans(),
                undecided=st.sampled_from(["pause", "pass", "breach"]), budget=st.sampled_from([0, 3, 100]))
    def begin(self, sizes: list[int], first: bool, on_breach: str, max_bad: int, success: float, ratio: float, windows: bool,
              undecided: str, budget: int) -> None:
        waves = tuple(tuple(f"d{w}-{i}" for i in range(size)) for w, size in enumerate(sizes))
        gates = Gates(max_bad=max_bad, min_success=success, max_p95_ratio=ratio, hold_s=10, evidence_s=20, wave_timeout_s=100,
                      on_undecided=undecided)  # type: ignore[arg-type]
        before = {} if first else {d: "1" for wave in waves for d in wave}
        self.now = 0.0
        self.bytes = 0
        self.accepted: set[int] = set()
        self.durable = planned(plan(*waves, before=before, gates=gates, on_breach=on_breach, board_bytes=1,
                                    windows=(Window((1, 2)), Window((3, 4))) if windows else (), budget=Budget(budget)))
        self.state = self.durable
        self.issued: list[str] = []
        self.reverted: list[str] = []
        self.send(Start())

    def send(self, event: Event, *, die_after: int | None = None) -> None:
        """Run the effects in order; a host that dies after `die_after` of them loads its journal and repeats."""
        before = self.state
        self.state, effects = step(self.state, event, at(self.now))
        if not isinstance(event, Restored):
            assert not any(isinstance(e, Persist) for e in effects[1:])
            assert not effects or effects[0] == Persist(self.state, effects[0].changed)  # type: ignore[union-attr]
            assert effects or self.state == before
        for done, effect in enumerate(effects):
            if done == die_after:
                self.state = self.durable
                self.send(Restored())
                return
            self.perform(effect)

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, Persist):
            differing = {d for d, p in effect.state.devices.items() if p != self.durable.devices.get(d)}
            assert differing <= set(effect.changed)
            self.durable = effect.state
        elif isinstance(effect, Issue):
            assert self.durable.devices[effect.device].status == "issued"
            self.check_gates(self.durable.devices[effect.device].wave)
            budget = self.durable.plan.budget.max_bytes
            assert not budget or self.durable.waived or effect.device in self.issued or self.durable.spent.total < budget
            if effect.device not in self.issued:  # what the journal's unique key does
                self.issued.append(effect.device)
        else:
            assert effect.device in self.issued or self.durable.devices[effect.device].status in BAD | {"reverting", "reverted", "stuck"}
            if effect.device not in self.reverted:
                self.reverted.append(effect.device)

    def check_gates(self, wave: int) -> None:
        for earlier in range(wave):
            passed = {v.gate for v in self.durable.verdicts if v.wave == earlier and v.passed}
            assert passed == {"install", "latency"} or earlier in self.accepted

    @rule(board=st.integers(0, 11), outcome=st.sampled_from(["committed"] * 5 + sorted(BAD)), die=st.none() | st.integers(0, 3))
    def answer(self, board: int, outcome: str, die: int | None) -> None:
        device = list(self.state.devices)[board % len(self.state.devices)]
        if device in self.issued:
            self.send(Outcome(device, outcome, "some.code"), die_after=die)  # type: ignore[arg-type]

    @rule(board=st.integers(0, 11), outcome=st.sampled_from(["committed", "failed"]))
    def answer_the_way_back(self, board: int, outcome: str) -> None:
        device = list(self.state.devices)[board % len(self.state.devices)]
        if device in self.reverted:
            self.send(Outcome(device, outcome, back=True))  # type: ignore[arg-type]

    @precondition(lambda self: not self.state.final)
    @rule(seconds=st.sampled_from([1.0, 11.0, 40.0, 101.0]), die=st.none() | st.integers(0, 3))
    def time_passes(self, seconds: float, die: int | None) -> None:
        self.now += seconds
        self.send(Tick(), die_after=die)

    @precondition(lambda self: self.state.phase == "holding")
    @rule(slow=st.booleans(), frames=st.sampled_from([0, 40, 200]), die=st.none() | st.integers(0, 3))
    def evidence(self, slow: bool, frames: int, die: int | None) -> None:
        new = sketch_of([50.0 if slow else 10.0] * frames)
        self.send(shown(FAST, new, *self.state.wave_devices(self.state.wave)), die_after=die)

    @precondition(lambda self: self.state.phase in ("waiting", "running", "holding", "paused"))
    @rule(more=st.integers(0, 3))
    def bytes_come(self, more: int) -> None:
        self.bytes += more
        self.send(Spent(Spending(self.bytes, self.bytes, 0)))

    @precondition(lambda self: self.state.phase in ("waiting", "running", "holding", "paused") and len(self.state.devices) < 16)
    @rule(number=st.integers(0, 3), known=st.booleans())
    def a_board_joins(self, number: int, known: bool) -> None:
        self.send(Joined({f"late-{number}": "1" if known else ""}))

    @precondition(lambda self: self.state.phase in ("waiting", "running", "holding"))
    @rule()
    def pause(self) -> None:
        self.send(Pause())
        opened = len(self.issued)
        self.send(Tick())
        assert len(self.issued) == opened

    @precondition(lambda self: self.state.phase == "paused")
    @rule(accept=st.booleans(), die=st.none() | st.integers(0, 3))
    def resume(self, accept: bool, die: int | None) -> None:
        if accept:
            self.accepted.add(self.state.wave)
        self.send(Resume(accept, "ada"), die_after=die)

    @precondition(lambda self: self.state.phase in ("waiting", "running", "holding", "paused"))
    @rule(back=st.booleans())
    def abort(self, back: bool) -> None:
        self.send(Abort(back))

    @invariant()
    def every_touched_board_was_issued_by_an_open_wave(self) -> None:
        for device, progress in getattr(self, "state", planned(plan(("x",)))).devices.items():
            assert (progress.status == "waiting") == (progress.wave > self.state.wave), device
            assert (progress.status == "waiting") == (device not in self.issued), f"the issue to {device} was lost"

    @invariant()
    def a_breach_stops_until_somebody_resumes(self) -> None:
        state = getattr(self, "state", planned(plan(("x",))))
        last = {(v.wave, v.gate): v.passed for v in state.verdicts}  # what was judged again after a pause counts as it came out then
        failed = [wave for (wave, _), passed in last.items() if not passed and wave not in self.accepted]
        if failed and state.wave not in self.accepted:
            assert state.phase in FINAL | {"reverting", "paused"} or state.resume_to == state.phase

    def teardown(self) -> None:
        """Whatever happened, time and an operator who accepts end it, and no board was issued to twice."""
        if not hasattr(self, "state"):
            return
        for _ in range(8 * len(self.state.plan.waves) + 8):
            if self.state.final:
                break
            if self.state.phase == "paused":
                self.accepted.add(self.state.wave)
                self.send(Resume(accept=True))
            elif self.state.phase == "waiting":
                self.now += 3600
                self.send(Tick())
            else:
                self.now += 200
                self.send(Tick())
        assert self.state.final
        assert len(set(self.issued)) == len(self.issued)
        if self.state.phase == "done":
            passed = {v.wave for v in self.state.verdicts if v.gate == "latency" and v.passed}
            assert passed | self.accepted >= set(range(len(self.state.plan.waves)))
        if self.state.phase == "reverted":
            assert set(self.reverted) == set(self.issued)


Host.TestCase.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
TestHost = Host.TestCase
