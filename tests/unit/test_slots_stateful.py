"""The A/B machine under everything at once: random events, and the board dying before or after any single effect."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from slot_worlds import BUNDLES, CANDIDATE, POLICY, World, target, weights_of

from jetfleet_contract import slot_records as r
from jetfleet_contract.slot_phases import policy_of
from jetfleet_contract.trials import Need, Room, TrialNumbers, WatchNumbers, judge_watch

LETTERS = st.sampled_from("abcd")
DEATHS = st.one_of(st.none(), st.none(), st.integers(0, 6))
RELEASES = {BUNDLES[letter]: number for number, letter in enumerate("abcdfe", 1)}
ROOMS = {"none known": Room(), "both fit": Room(Need(100.0, 200.0), 500.0, 300.0), "one fits": Room(Need(600.0, 700.0), 500.0, 300.0),
         "none fits": Room(Need(900.0, 1000.0), 500.0, 300.0)}
WATCHED = (WatchNumbers(20, 9.0, 11.0, 10.0, 10, 0.97), WatchNumbers(3), WatchNumbers(20, 9.0, 11.0, 10.0, 10, 0.1),
           WatchNumbers(20, 30.0, 31.0, 10.0), WatchNumbers(throttled_s=9.0), WatchNumbers(rise_c=40.0))
CODES = st.sampled_from(["", "runtime.crash", "source.gone"])


class Board(RuleBasedStateMachine):
    """One app on one board. `die` kills the supervisor after so many effects of the step; it then starts again."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.seq = 0
        self.ever_committed = False
        self.champion: r.Slot | None = None
        self.challenger = ""
        self.gates: dict[str, float] = {}  # those that the challenger has passed, and when
        self.clock = 0.0

    @initialize()
    def boot(self) -> None:
        self.world.releases = RELEASES
        self.world.restart()

    def passed(self, gate: str) -> None:
        """News that the challenger passed a gate is on its way; whether the board survives it is another matter."""
        self.gates.setdefault(gate, self.clock)

    @property
    def under_way(self) -> str:
        challenger = self.world.state.challenger
        return challenger.bundle if challenger else ""

    @rule(letter=LETTERS, config=st.integers(1, 2), known=st.booleans(), approved=st.booleans(), die=DEATHS)
    def deploy(self, letter: str, config: int, known: bool, approved: bool, die: int | None) -> None:
        """`known`: the metadata came before the deployment. `approved`: an operator wants it even if it is older."""
        self.seq += 1
        release = RELEASES[BUNDLES[letter]] if known else 0
        event = r.Deploy(target(self.seq, letter, config=config, release=release, downgrade=approved))
        self.world.send(event, die_after=die)
        self.world.send(event)  # the supervisor applies the stored deployment again after a restart

    @rule(die=DEATHS)
    def same_again(self, die: int | None) -> None:
        if self.world.state.target is not None:
            self.world.send(r.Deploy(self.world.state.target), die_after=die)

    @precondition(lambda self: isinstance(self.world.work, r.Fetch))
    @rule(die=DEATHS)
    def fetched(self, die: int | None) -> None:
        work = self.world.work
        assert isinstance(work, r.Fetch)
        self.world.fetch_step()
        self.die_between(die)

    def die_between(self, die: int | None) -> None:
        if die is not None:
            self.world.restart()

    @precondition(lambda self: self.world.state.phase == "choosing")
    @rule(found=st.booleans() | st.just(True), die=DEATHS)
    def chosen(self, found: bool, die: int | None) -> None:
        bundle = self.under_way
        self.world.send(r.Chosen(bundle, CANDIDATE if found else None, weights_of(bundle) if found else ""), die_after=die)

    @precondition(lambda self: self.world.state.phase == "probing")
    @rule(agreement=st.sampled_from([0.2, 0.99, 0.99, 0.99]), room=st.sampled_from(sorted(ROOMS)), die=DEATHS)
    def probed(self, agreement: float, room: str, die: int | None) -> None:
        if agreement > 0.9 and (room != "none fits" or self.world.state.paused):
            self.passed("probe set")
        event = r.Probed(self.under_way, agreement, bound=0.9, room=ROOMS[room], champion_p99_ms=10.0)
        self.world.send(event, die_after=die)

    @precondition(lambda self: self.world.state.phase == "trial" and not self.world.state.alone)
    @rule(agreement=st.sampled_from([0.2, 0.95, 0.95]), frames=st.sampled_from([0, 3, 30, 30]), die=DEATHS)
    def compared(self, agreement: float, frames: int, die: int | None) -> None:
        numbers = TrialNumbers(live_frames=frames, live_agreement=agreement, champion_p99_ms=10.0, challenger_p99_ms=11.0)
        if agreement > 0.9 and frames:
            self.passed("comparison")
        self.world.send(r.Compared(self.under_way, numbers), die_after=die)

    @precondition(lambda self: self.world.running is not None)
    @rule(die=DEATHS)
    def runs(self, die: int | None) -> None:
        if self.world.running == self.under_way:
            self.passed("comparison" if self.world.state.alone else "switch")
            self.passed("switch")
        self.world.send(r.Ran(self.world.running or ""), die_after=die)

    @precondition(lambda self: self.world.state.phase == "keeping" and self.world.running == self.under_way)
    @rule(die=DEATHS)
    def took_over(self, die: int | None) -> None:
        self.passed("switch")
        self.world.send(r.TookOver(self.under_way, 5.0, 0, 9.0), die_after=die)

    @precondition(lambda self: self.world.state.phase == "probing")
    @rule(room=st.sampled_from(sorted(ROOMS)), die=DEATHS)
    def not_even_probed(self, room: str, die: int | None) -> None:
        """The throw-away process does not fit beside the champion: it pauses, or the challenger is out."""
        event = r.Probed(self.under_way, 0.0, "backend.memory", "predicted", room=ROOMS[room], unstarted=True)
        self.world.send(event, die_after=die)

    @precondition(lambda self: self.world.state.phase == "keeping" and self.world.running == self.under_way)
    @rule(numbers=st.sampled_from(WATCHED), die=DEATHS)
    def watched(self, numbers: WatchNumbers, die: int | None) -> None:
        before = self.world.state
        self.world.send(r.Watched(self.under_way, numbers), die_after=die)
        counts = before.switched and before.champion is not None
        if counts and die is None and not judge_watch(policy_of(before), numbers)[0]:
            assert before.champion is not None
            assert (self.world.state.phase, self.world.reports[-1].outcome) == ("idle", "rolled_back")
            assert self.world.running == before.champion.bundle

    @rule(code=CODES, by_champion=st.booleans(), die=DEATHS)
    def crash(self, code: str, by_champion: bool, die: int | None) -> None:
        champion = self.world.state.champion
        self.world.running, self.world.loaded = None, set()
        self.world.send(r.Crashed(champion.bundle if champion and by_champion else "", code), die_after=die)

    @precondition(lambda self: self.world.state.challenger is not None)
    @rule(model=st.booleans(), die=DEATHS)
    def fault(self, model: bool, die: int | None) -> None:
        self.world.send(r.Faulted(self.under_way, "some.fault", "", model), die_after=die)

    @rule(kind=st.sampled_from([r.Fetched(BUNDLES["f"], "weights"), r.Chosen(BUNDLES["f"], None), r.Probed(BUNDLES["f"], 0.0),
                                r.Faulted(BUNDLES["f"], "x", "", True), r.TookOver(BUNDLES["f"]),
                                r.Watched(BUNDLES["f"], WATCHED[4])]))
    def late_news(self, kind: Any) -> None:
        assert self.world.send(kind) == ()

    @rule(seconds=st.sampled_from([1.0, 31.0, 61.0, 700.0]), die=DEATHS)
    def time_passes(self, seconds: float, die: int | None) -> None:
        self.world.mono += seconds
        self.clock += seconds
        self.world.send(r.Tick(), die_after=die)

    @rule(letter=LETTERS, known=st.booleans(), approved=st.booleans())
    def rolls_out(self, letter: str, known: bool, approved: bool) -> None:
        self.deploy(letter, 1, known, approved, None)
        self.goes_well(12)

    @precondition(lambda self: self.world.state.challenger is not None)
    @rule(steps=st.integers(1, 8))
    def goes_well(self, steps: int) -> None:
        """Most updates do: without this, few would ever be committed and stand in the way of an older one."""
        bundle = self.under_way
        for _ in range(steps):
            if bundle and self.under_way == bundle:
                self.one_good_step(bundle)

    @rule(reboot=st.booleans())
    def power_cut(self, reboot: bool) -> None:
        self.world.restart(reboot=reboot)

    @rule(die=DEATHS)
    def undeploy(self, die: int | None) -> None:
        self.seq += 1
        self.world.send(r.Undeploy(self.seq), die_after=die)
        self.world.send(r.Undeploy(self.seq))
        self.ever_committed = False

    @invariant()
    def memory_is_what_is_on_disk_and_it_can_run(self) -> None:
        self.world.check()

    @invariant()
    def a_committed_model_is_always_there(self) -> None:
        self.ever_committed = self.ever_committed or self.world.state.champion is not None
        if self.ever_committed:
            assert self.world.state.champion is not None
            assert self.world.running is not None or self.world.state.paused, "a board with a committed model runs none"

    @invariant()
    def what_becomes_champion_has_passed_every_gate_and_is_no_downgrade(self) -> None:
        """Nobody tells the board to commit: it does so at the end of keeping, if and only if its own gates passed."""
        before, after = self.champion, self.world.state.champion
        if after is not None and (before is None or before.bundle != after.bundle):
            assert set(self.gates) == {"probe set", "comparison", "switch"}, f"committed after {set(self.gates)}"
            assert self.clock - self.gates["switch"] >= POLICY.keep_s
            wanted = self.world.state.target
            older = before is not None and RELEASES[after.bundle] < RELEASES[before.bundle]
            assert not older or (wanted is not None and wanted.spec.downgrade), "a downgrade that nobody approved"
        if self.under_way != self.challenger:
            self.challenger, self.gates = self.under_way, {}
        self.champion = after

    @invariant()
    def both_slots_and_the_one_before_keep_their_files(self) -> None:
        for slot in (self.world.state.champion, self.world.state.previous):
            assert slot is None or {slot.bundle, slot.weights, *slot.blobs} <= self.world.store

    @invariant()
    def nothing_of_a_champion_is_changed_but_by_commit(self) -> None:
        state = self.world.state
        assert state.challenger is None or state.phase != "idle"
        assert r.restore("app", msgspec.json.encode(state)) == state

    def teardown(self) -> None:
        """Whatever happened: a good model that is deployed now gets committed, with restarts in between."""
        world = self.world
        self.seq += 1
        bundle = BUNDLES["e"]
        world.send(r.Deploy(target(self.seq, "e")))
        for _ in range(60):
            self.one_good_step(bundle)
            if world.state.phase == "idle":
                break
        assert world.state.champion is not None
        assert world.state.champion.bundle == bundle == world.running
        assert world.reports[-1].outcome == "committed"

    def one_good_step(self, bundle: str) -> None:
        world = self.world
        phase = world.state.phase
        if phase == "fetching":
            world.fetch_step()
        elif phase == "choosing":
            world.send(r.Chosen(bundle, CANDIDATE, weights_of(bundle)))
        elif phase == "probing":
            self.passed("probe set")
            world.send(r.Probed(bundle, 1.0))
        elif phase == "trial" and not world.state.alone:
            self.passed("comparison")
            world.send(r.Compared(bundle, TrialNumbers(live_frames=30, live_agreement=1.0, champion_p99_ms=10.0, challenger_p99_ms=9.0)))
        elif phase in ("trial", "keeping") and not world.state.switched:
            if world.state.alone:
                self.passed("comparison")
            self.passed("switch")
            world.send(r.Ran(bundle))
        else:
            world.mono += 31.0
            self.clock += 31.0
            world.send(r.Tick())


TestBoard = Board.TestCase
TestBoard.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
