"""Who builds an engine and who tries it: elections, deaths, late results, and the rules that hold whatever comes in whichever order."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jetfleet_contract.engine_work import (
    BARRED_S,
    GRACE_S,
    MAX_TRIES,
    SILENCE_S,
    AskToBuild,
    AskToTry,
    Built,
    Certify,
    Effect,
    Event,
    Failed,
    Fit,
    Heard,
    Needed,
    Seen,
    Tick,
    Unfit,
    Withdraw,
    Work,
    step,
    wanted_anew,
)
from jetfleet_contract.engines import Footing, Passport, Recipe, key_of

PASSPORT = Passport(Footing("openvino", "2026.4.1", "x86_64", "cpu"), Recipe("ab" * 32, "int8", (1, 3, 64, 64)), "5b" * 32, "int8", "b1")
BLOB = "e0" * 32
NAMES = ("b1", "b2", "c1", "c2")


def boards(*online: str) -> list[Seen]:
    return [Seen(name, name in online, name.startswith("b")) for name in NAMES]


class Key:
    """One key, everybody online unless told otherwise."""

    def __init__(self) -> None:
        self.work = Work("cpu", key_of(PASSPORT), PASSPORT)
        self.now = 1000.0
        self.online: tuple[str, ...] = NAMES
        self.effects: list[Effect] = []

    def send(self, event: Event, after: float = 0.0) -> tuple[Effect, ...]:
        self.now += after
        self.work, effects = step(self.work, event, boards(*self.online), self.now)
        self.effects += effects
        return effects


def test_an_engine_that_is_much_slower_on_a_second_board_is_refused_by_name() -> None:
    for p50_ms, under, fits in ((8.0, "MAXN", True), (8.1, "MAXN", False), (30.0, "15W", True)):
        key = Key()
        key.send(Needed("c1"))
        key.send(Heard("b1", 100.0, 4.0, "MAXN"))
        key.send(Built("b1", BLOB, PASSPORT))
        key.send(Heard("b1", 100.0, 4.0, "MAXN"))  # it may come after the metadata
        assert key.work.built_ms == 4.0
        assert key.send(Fit("c1", 1.0, p50_ms, under)) == ((Certify(),) if fits else (Withdraw(),)), "another power mode compares nothing"
        assert (key.work.state, key.work.code) == (("certified", "") if fits else ("given-up", "engine.slow"))
        assert fits or "8.10 ms, b1 saw 4.00 ms" in key.work.detail


def test_a_quick_engine_may_wobble_and_one_of_unknown_speed_is_not_judged() -> None:
    for heard, p50_ms, fits in ((0.1, 2.0, True), (0.1, 2.2, False), (0.0, 500.0, True)):
        key = Key()
        key.send(Needed("c1"))
        key.send(Heard("b1", 100.0, heard))
        key.send(Built("b1", BLOB, PASSPORT))
        assert key.send(Fit("c1", 1.0, p50_ms)) == ((Certify(),) if fits else (Withdraw(),))
    other = Key()
    other.send(Needed("c1"))
    other.send(Heard("b1", 50.0, 4.0))
    other.send(Built("b2", BLOB, PASSPORT))
    assert other.work.built_ms == 0.0, "that was another's"


def test_other_bytes_under_a_certified_key_are_tried_anew() -> None:
    key = Key()
    key.send(Needed("c1"))
    key.send(Built("b1", BLOB, PASSPORT))
    key.send(Fit("c1", 1.0, 8.0))
    assert key.send(Built("b1", BLOB, PASSPORT)) == ()
    assert key.work.state == "certified"
    assert key.send(Built("b2", "e1" * 32, PASSPORT)) == (AskToTry("c1"),)
    assert (key.work.state, key.work.by, key.work.blob) == ("certifying", "b2", "e1" * 32)


def test_one_builds_for_all_that_want_it() -> None:
    key = Key()
    assert key.send(Needed("c1")) == (AskToBuild("b1"),)
    assert key.send(Needed("b2")) == key.send(Needed("c2")) == key.send(Needed("c1")) == ()
    assert key.send(Built("b1", BLOB, PASSPORT)) == (AskToTry("b2"),)
    assert key.send(Fit("b2", 0.99, 8.0)) == (Certify(),)
    assert (key.work.state, key.work.by, key.work.second, key.work.p50_ms) == ("certified", "b1", "b2", 8.0)
    assert key.send(Needed("late")) == key.send(Tick(), 9999.0) == ()


def test_a_builder_that_wants_it_itself_has_the_model_already() -> None:
    key = Key()
    key.work = msgspec.structs.replace(key.work, wanted_by=("b2", "c1"))
    assert key.send(Tick()) == (AskToBuild("b2"),)


def test_a_dead_builder_gives_way_after_a_moments_grace_and_is_not_asked_again_at_once() -> None:
    key = Key()
    key.send(Needed("c1"))
    key.online = ("b2", "c1", "c2")
    assert key.send(Tick()) == ()
    key.online = NAMES
    assert key.send(Tick(), GRACE_S * 2) == (), "it came back: nothing is lost"
    key.online = ("b2", "c1", "c2")
    key.send(Tick())
    assert key.send(Tick(), GRACE_S) == (AskToBuild("b2"),)
    assert key.send(Failed("b2", "store.full", "no room")) == ()
    assert (key.work.state, key.work.code) == ("wanted", "store.full")
    key.online = NAMES
    assert key.send(Tick(), BARRED_S + 1) == (AskToBuild("b1"),)


def test_silence_is_death_and_progress_is_life() -> None:
    key = Key()
    key.send(Needed("c1"))
    for percent in range(0, 100, 10):
        key.send(Heard("b1", float(percent)), SILENCE_S - 1)
        assert key.send(Tick()) == ()
    assert key.send(Tick(), SILENCE_S) == (AskToBuild("b2"),)
    assert key.send(Heard("b1", 99.0)) == ()
    assert key.work.percent == 0.0


def test_a_late_engine_of_the_builder_before_counts() -> None:
    key = Key()
    key.send(Needed("c1"))
    key.send(Failed("b1", "device.silent"))
    assert key.work.by == "b2"
    assert key.send(Built("b1", BLOB, PASSPORT)) == (AskToTry("c1"),)
    assert key.send(Built("b2", "f0" * 32, PASSPORT)) == (AskToTry("c1"),), "the metadata names these bytes now"
    assert (key.work.blob, key.work.by) == ("f0" * 32, "b2")


def test_without_a_second_board_it_waits_for_one() -> None:
    key = Key()
    key.send(Needed("b1"))
    assert key.send(Built("b1", BLOB, PASSPORT)) == ()
    assert (key.work.state, key.work.code) == ("uncertified", "engine.uncertified")
    assert key.send(Needed("c2")) == (AskToTry("c2"),)


def test_a_second_board_that_dies_convicts_nobody_and_one_that_says_no_does() -> None:
    key = Key()
    for name in ("c1", "c2"):
        key.send(Needed(name))
    key.send(Built("b1", BLOB, PASSPORT))
    assert key.send(Failed("c1", "store.full")) == (AskToTry("c2"),)
    assert key.send(Unfit("c2", "engine.agreement", "0.4 is under 0.9")) == (Withdraw(),)
    assert key.work.state == "given-up"
    assert key.send(Tick(), 9999.0) == ()
    key.work = wanted_anew(key.work)
    assert key.send(Tick()) == (AskToBuild("b1"),)


def test_nobody_named_and_nobody_there_say_so() -> None:
    alone, _ = step(Key().work, Needed("c1"), [Seen("c1", online=True, builder=False)], 0.0)
    assert alone.code == "engine.nobody"
    assert "jetfleet keys delegate cpu" in alone.detail
    away, _ = step(Key().work, Needed("c1"), boards("c1"), 0.0)
    assert away.code == "engine.away"


def test_builds_that_all_fail_end() -> None:
    key = Key()
    key.send(Needed("c1"))
    for _ in range(100):
        if key.work.state == "building":
            key.send(Failed(key.work.by, "engine.build", "no memory"))
        key.send(Tick(), BARRED_S + 1)
    assert key.work.state == "given-up"
    assert sum(isinstance(effect, AskToBuild) for effect in key.effects) == MAX_TRIES


def test_what_passes_by_itself_is_no_try_and_is_asked_ever_more_seldom() -> None:
    key = Key()
    key.online = ("b1", "c1")
    key.send(Needed("c1"))
    asked_at = []
    for _ in range(4 * 900):
        if key.work.state == "building":
            asked_at.append(key.now)
            key.send(Failed("b1", "engine.no-weights", "on its way"))
        key.send(Tick(), 1.0)
    gaps = [round(later - before) for before, later in itertools.pairwise(asked_at)]
    assert gaps[:8] == [15, 15, 15, 15, 15, 15, 30, 60]
    assert gaps == sorted(gaps)
    assert max(gaps) <= BARRED_S + 1
    assert key.work.tries <= 1
    assert key.work.state != "given-up"


class AnyOrder(RuleBasedStateMachine):
    """Whatever comes: one builder at a time, nothing runs that nobody tried, what was certified stays, and asking twice is once."""

    def __init__(self) -> None:
        super().__init__()
        self.key = Key()

    @rule(name=st.sampled_from(NAMES))
    def needed(self, name: str) -> None:
        self.send(Needed(name))

    @rule(name=st.sampled_from(NAMES), percent=st.floats(-10, 200))
    def heard(self, name: str, percent: float) -> None:
        assert self.send(Heard(name, percent)) == ()

    @rule(name=st.sampled_from(NAMES))
    def built(self, name: str) -> None:
        self.send(Built(name, BLOB, PASSPORT))

    @rule(name=st.sampled_from(NAMES), code=st.sampled_from(["store.full", "engine.build"]))
    def failed(self, name: str, code: str) -> None:
        self.send(Failed(name, code))

    @rule(name=st.sampled_from(NAMES))
    def tried(self, name: str) -> None:
        before = self.key.work
        effects = self.send(Fit(name, 1.0, 5.0))
        assert (effects == (Certify(),)) == (before.state == "certifying" and before.second == name)

    @rule(name=st.sampled_from(NAMES))
    def refused(self, name: str) -> None:
        self.send(Unfit(name, "engine.agreement"))

    @rule(online=st.sets(st.sampled_from(NAMES)), seconds=st.sampled_from([0.0, 5.0, 20.0, 100.0, 1000.0]))
    def time(self, online: set[str], seconds: float) -> None:
        self.key.online = tuple(sorted(online))
        self.send(Tick(), seconds)

    @rule()
    def restart(self) -> None:
        stored = msgspec.json.decode(msgspec.json.encode(self.key.work), type=Work)
        assert stored == self.key.work

    def send(self, event: Event, after: float = 0.0) -> tuple[Effect, ...]:
        before = self.key.work
        effects = self.key.send(event, after)
        if before.state == "certified":
            assert self.key.work.state == "certified"
        if any(isinstance(effect, AskToBuild) for effect in effects):
            assert self.key.work.state == "building"
            assert [effect for effect in effects if isinstance(effect, AskToBuild)] == [AskToBuild(self.key.work.by)]
            assert self.key.work.by in self.key.online
        assert len(effects) <= 1
        return effects

    @invariant()
    def sound(self) -> None:
        work = self.key.work
        assert (work.state == "building") <= bool(work.by)
        assert (work.state == "certifying") <= (bool(work.second) and work.second != work.by and bool(work.blob))
        assert (work.state == "certified") <= (work.agreement == 1.0)
        assert work.tries <= MAX_TRIES
        assert 0.0 <= work.percent <= 100.0


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
