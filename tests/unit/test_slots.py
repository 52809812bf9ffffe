"""The A/B machine: every transition legal and illegal, who is blamed, what is reported, and what survives a restart."""

from __future__ import annotations

import msgspec
import pytest
from slot_worlds import BUNDLES, CANDIDATE, GOOD, POLICY, World, target, updating, weights_of

from jetfleet_contract import slot_records as r
from jetfleet_contract.errors import OrderError
from jetfleet_contract.messages import TrialPolicy
from jetfleet_contract.slots import MAX_ATTEMPTS, MAX_STORES, app_state, blobs_in_use, legal, live_slot, next_tick, step
from jetfleet_contract.trials import TrialNumbers, WatchNumbers

A, B, C = BUNDLES["a"], BUNDLES["b"], BUNDLES["c"]

OF_CHALLENGER = {
    "fetching": {r.Fetched, r.Faulted}, "choosing": {r.Chosen, r.Faulted}, "probing": {r.Probed, r.Faulted},
    "trial": {r.Compared, r.Faulted, r.Ran}, "keeping": {r.TookOver, r.Faulted, r.Ran, r.Watched}, "idle": set(),
}
ALWAYS = {r.Resume, r.Deploy, r.Undeploy, r.Crashed, r.Ran, r.TookOver, r.Rechosen, r.Tick}


def sample(kind: type, bundle: str) -> r.Event:
    samples: dict[type, r.Event] = {
        r.Resume: r.Resume(), r.Deploy: r.Deploy(target(9, "c")), r.Undeploy: r.Undeploy(9), r.Fetched: r.Fetched(bundle, "manifest", ()),
        r.Chosen: r.Chosen(bundle, CANDIDATE, weights_of(bundle)), r.Probed: r.Probed(bundle, 1.0), r.Compared: r.Compared(bundle, GOOD),
        r.Ran: r.Ran(bundle), r.TookOver: r.TookOver(bundle),
        r.Watched: r.Watched(bundle, WatchNumbers()), r.Faulted: r.Faulted(bundle, "x"), r.Crashed: r.Crashed(), r.Tick: r.Tick(),
        r.Rechosen: r.Rechosen(bundle, CANDIDATE, weights_of(bundle)),
    }
    return samples[kind]




@pytest.mark.parametrize("phase", r.PHASES)
@pytest.mark.parametrize("kind", r.EVENTS)
def test_table(phase: str, kind: type) -> None:
    world = updating(phase)
    before = world.state
    allowed = kind in ALWAYS | OF_CHALLENGER[phase]
    assert legal(before.phase, kind) == allowed
    event = sample(kind, B)
    if allowed or before.challenger is None:
        world.send(event)
        world.check()
        return
    with pytest.raises(OrderError) as caught:
        step(before, event, world.now())
    assert caught.value.code == "slots.order"
    assert world.state == before


@pytest.mark.parametrize("phase", r.PHASES)
@pytest.mark.parametrize("kind", [r.Fetched, r.Chosen, r.Probed, r.Compared, r.TookOver, r.Watched, r.Faulted])
def test_news_of_another_bundle_changes_nothing(phase: str, kind: type) -> None:
    world = updating(phase)
    assert step(world.state, sample(kind, C), world.now()) == (world.state, ())


@pytest.mark.parametrize("phase", r.PHASES)
@pytest.mark.parametrize("kind", r.EVENTS)
def test_persist_is_first_and_only_when_the_state_changed(phase: str, kind: type) -> None:
    world = updating(phase)
    if kind not in ALWAYS | OF_CHALLENGER[phase]:
        return
    world.mono += 5
    after, effects = step(world.state, sample(kind, B), world.now())
    stores = [effect for effect in effects if isinstance(effect, r.Persist)]
    if after == world.state:
        assert not stores
    else:
        assert effects[0] == r.Persist(after)
        assert len(stores) == 1


def test_first_install_runs_alone_and_is_kept() -> None:
    world = World().install()
    assert world.state.champion is not None
    assert world.state.champion.bundle == A == world.running
    assert [p.phase for p in world.reports if not p.outcome] == ["fetching", "choosing", "probing", "trial", "keeping"]
    assert not any(isinstance(effect, (r.Try, r.Switch)) for effect in world.log)


def test_update_reports_its_numbers() -> None:
    world = World().install().install("b", 2)
    done = world.reports[-1]
    assert (done.outcome, done.phase, done.version, done.from_version, done.rollout) == ("committed", "keeping", "b", "a", "rollout-2")
    assert done.metrics == {"bytes": 3000.0, "bytes_received": 0.0, "probe_agreement": 0.99, "agreement": 0.99, "frames_compared": 30.0,
                            "champion_p99_ms": 10.0, "challenger_p99_ms": 9.0, "mean_iou": 1.0, "score_distance": 0.0,
                            "gap_ms": 12.5, "frames_lost": 0.0,
                            "steady_gap_p99_ms": 40.0}
    assert done.candidate == CANDIDATE.name
    assert world.state.previous is not None
    assert world.state.previous.bundle == A


def test_switch_is_asked_for_only_after_it_is_durable() -> None:
    world = updating("trial")
    effects = world.send(r.Compared(B, GOOD))
    kinds = [type(effect) for effect in effects]
    assert kinds[0] is r.Persist
    assert r.Switch in kinds
    assert isinstance(effects[0], r.Persist)
    assert effects[0].state.phase == "keeping"
    assert effects[0].state.champion is not None
    assert effects[0].state.champion.bundle == A, "the champion is replaced only at the commit"


@pytest.mark.parametrize(("phase", "event", "outcome", "code"), [
    ("fetching", r.Faulted(B, "bundle.layers", "", model=True), "refused", "bundle.layers"),
    ("fetching", r.Faulted(B, "store.full", ""), "failed", "store.full"),
    ("choosing", r.Chosen(B, None, reason="no backend"), "refused", "choice.none"),
    ("probing", r.Probed(B, 0.4, bound=0.9), "refused", "trial.probe"),
    ("probing", r.Probed(B, 0.0, "evaluate.crash", "SIGSEGV"), "refused", "evaluate.crash"),
    ("probing", r.Faulted(B, "evaluate.disk"), "failed", "evaluate.disk"),
    ("trial", r.Compared(B, TrialNumbers(live_frames=30, live_agreement=0.2, champion_p99_ms=10, challenger_p99_ms=9)), "refused",
     "trial.agreement"),
    ("trial", r.Compared(B, TrialNumbers(live_frames=30, live_agreement=0.99, champion_p99_ms=10, challenger_p99_ms=25)), "refused",
     "trial.latency"),
    ("trial", r.Compared(B, TrialNumbers(), "backend.load", "no such operator"), "refused", "backend.load"),
    ("trial", r.Compared(B, TrialNumbers(), "source.gone", "camera"), "failed", "source.gone"),
    ("keeping", r.Faulted(B, "store.missing"), "rolled_back", "store.missing"),
])
def test_a_failure_leaves_the_champion_and_says_why(phase: str, event: r.Event, outcome: str, code: str) -> None:
    world = updating(phase)
    champion = world.state.champion
    world.send(event)
    world.check()
    assert world.state.phase == "idle"
    assert world.state.champion == champion
    assert world.state.challenger is None
    assert world.running == A
    assert (world.reports[-1].outcome, world.reports[-1].code, world.reports[-1].phase) == (outcome, code, phase)
    assert B not in world.store, "a refused bundle leaves the store"


@pytest.mark.parametrize(("numbers", "code"), [({"mean_iou": 0.4}, "trial.iou"), ({"score_distance": 0.6}, "trial.score"), ({}, "")])
def test_answers_that_lie_far_apart_are_refused_where_the_deployment_bounds_it(numbers: dict[str, float], code: str) -> None:
    policy = msgspec.structs.replace(POLICY, min_iou=0.5, max_score_distance=0.5)
    world = World().install().go("trial", 2, "b", policy=policy)
    world.send(r.Compared(B, msgspec.structs.replace(GOOD, **numbers)))
    assert (world.state.phase, world.reports[-1].code) == ("idle" if code else "keeping", code)


def test_a_refused_bundle_is_not_tried_again_under_the_same_number_but_under_the_next() -> None:
    world = updating("probing")
    world.send(r.Probed(B, 0.1, bound=0.9))
    assert world.send(r.Deploy(target(2, "b"))) == ()
    world.restart()
    assert world.send(r.Deploy(target(2, "b"))) == ()
    assert world.state.phase == "idle"
    world.send(r.Deploy(target(3, "b")))
    assert (world.state.phase, world.state.seq) == ("fetching", 3)


def test_an_older_deployment_is_refused() -> None:
    world = World().install().install("b", 5)
    with pytest.raises(OrderError, match="older") as caught:
        step(world.state, r.Deploy(target(4, "a")), world.now())
    assert caught.value.code == "slots.seq"
    with pytest.raises(OrderError):
        step(world.state, r.Undeploy(4), world.now())


@pytest.mark.parametrize("phase", ["fetching", "choosing", "probing", "trial", "keeping"])
def test_a_newer_deployment_takes_over_cleanly(phase: str) -> None:
    world = updating(phase)
    world.send(r.Deploy(target(3, "c")))
    world.check()
    assert world.state.phase == "fetching"
    assert world.state.challenger is not None
    assert world.state.challenger.bundle == C
    assert world.running == A
    superseded = next(p for p in world.reports if p.code == "slots.superseded")
    assert (superseded.seq, superseded.bundle, superseded.outcome) == (2, B, "failed")


@pytest.mark.parametrize("phase", ["fetching", "choosing", "probing", "trial", "keeping"])
def test_a_newer_deployment_of_the_champion_gives_the_challenger_up(phase: str) -> None:
    world = updating(phase)
    world.send(r.Deploy(target(3, "a")))
    world.check()
    assert (world.state.phase, world.running) == ("idle", A)
    assert [(p.seq, p.outcome) for p in world.reports[-2:]] == [(2, "failed"), (3, "committed")]


@pytest.mark.parametrize("phase", r.PHASES)
def test_an_app_that_is_taken_away_in_any_phase_leaves_nothing_and_may_come_back(phase: str) -> None:
    world = updating(phase)
    world.send(r.Undeploy(3))
    assert (world.state.phase, world.running, world.store, world.work if phase != "idle" else None) == ("idle", None, set(), None)
    world.restart()
    assert world.running is None
    world.install("b", 4)
    assert world.running == B


@pytest.mark.parametrize("phase", ["fetching", "choosing", "probing", "trial", "keeping"])
def test_the_same_bundle_under_a_new_number_goes_on(phase: str) -> None:
    world = updating(phase)
    world.send(r.Deploy(target(3, "b")))
    assert (world.state.phase, world.state.seq) == (phase, 3)
    assert world.reports[-1].rollout == "rollout-3"


def test_a_change_of_config_needs_no_trial() -> None:
    world = World().install()
    effects = world.send(r.Deploy(target(2, "a", config=2)))
    assert [type(e) for e in effects] == [r.Persist, r.Configure, r.SendReport]
    assert world.setup is not None
    assert world.setup.config.version == 2
    assert world.reports[-1].outcome == "committed"
    assert [type(e) for e in world.send(r.Deploy(target(3, "a", config=2)))] == [r.Persist, r.SendReport]


def test_another_feeding_app_restarts_the_pipeline() -> None:
    world = World().install()
    assert r.StartPipeline in [type(e) for e in world.send(r.Deploy(target(2, "a", input_from="other")))]


def test_new_config_comes_with_the_new_model_and_goes_back_with_it() -> None:
    world = World().install()
    world.go("trial", 2, "b", config=7)
    assert world.setup is not None
    assert world.setup.config.version == 1, "the champion keeps its config while the challenger is tried"
    world.send(r.Compared(B, GOOD))
    world.send(r.TookOver(B))
    assert world.setup.config.version == 7
    world.send(r.Faulted(B, "x"))
    assert world.setup.config.version == 1


def test_crashes_of_the_challenger_roll_back_without_a_network() -> None:
    world = updating("keeping")
    for _ in range(MAX_ATTEMPTS - 1):
        world.send(r.Crashed(B, "runtime.crash"))
        assert (world.state.phase, world.running) == ("keeping", B)
        world.send(r.Ran(B))
    world.send(r.Crashed(B, "runtime.crash"))
    assert (world.state.phase, world.running) == ("idle", A)
    assert (world.reports[-1].outcome, world.reports[-1].code) == ("rolled_back", "trial.crash")


def test_crashes_count_over_trial_and_keeping_together() -> None:
    world = updating("trial")
    world.send(r.Crashed())
    assert world.tried == B
    world.send(r.Compared(B, GOOD))
    world.send(r.Crashed())
    world.send(r.Crashed())
    assert (world.state.phase, world.running) == ("idle", A)


def test_a_first_install_that_crashes_leaves_nothing_running() -> None:
    world = World().go("trial")
    for _ in range(MAX_ATTEMPTS):
        world.send(r.Crashed(A, "runtime.crash"))
    assert (world.state.phase, world.running, world.state.champion) == ("idle", None, None)
    assert world.reports[-1].outcome == "refused"


def test_a_camera_never_convicts() -> None:
    world = updating("keeping")
    for _ in range(MAX_ATTEMPTS * 3):
        world.send(r.Crashed(B, "source.gone", "no camera"))
    assert world.state.phase == "keeping"
    assert world.state.attempt == 0
    world = updating("trial")
    for _ in range(MAX_ATTEMPTS * 3):
        world.send(r.Crashed(A, "source.gone", "no camera"))
    assert world.state.phase == "trial"


def test_too_few_frames_try_again_until_the_lease_ends() -> None:
    world = updating("trial")
    few = TrialNumbers(live_frames=2, live_agreement=0.0, champion_p99_ms=10, challenger_p99_ms=9)
    for _ in range(MAX_STORES + 1):
        assert [type(e) for e in world.send(r.Compared(B, few))] == [r.Try]
    world.mono += POLICY.lease_s
    world.send(r.Tick())
    assert (world.reports[-1].outcome, world.reports[-1].code, world.running) == ("failed", "trial.lease", A)


def test_a_trial_that_sees_no_frames_has_not_passed() -> None:
    world = updating("trial")
    blind = TrialNumbers(live_frames=0, live_agreement=0.0, champion_p99_ms=0.0, challenger_p99_ms=0.0)
    assert [type(e) for e in world.send(r.Compared(B, blind))] == [r.Try]
    world.mono += POLICY.lease_s
    world.send(r.Tick())
    assert (world.reports[-1].outcome, world.reports[-1].code, world.running) == ("failed", "trial.lease", A)
    unwatched = World().install().go("trial", 2, "b", policy=TrialPolicy(frames=0))
    unwatched.send(r.Compared(B, blind))
    assert unwatched.state.phase == "keeping", "a deployment may do without live frames"


def test_a_champion_that_cannot_stay_up_does_not_keep_its_successor_out() -> None:
    world = updating("trial")
    for _ in range(MAX_ATTEMPTS):
        world.send(r.Crashed(A, "runtime.crash"))
    assert (world.state.phase, world.state.alone, world.running) == ("trial", True, B)
    world.send(r.Ran(B))
    assert world.state.phase == "keeping"
    world.send(r.Faulted(B, "x"))
    assert world.running == A


def test_the_lease_is_elapsed_time_over_reboots_and_wrong_clocks() -> None:
    world = updating("trial")
    world.mono += 400
    world.send(r.Tick())
    world.restart(reboot=True)
    assert world.state.spent_s == pytest.approx(400)
    due = next_tick(world.state, world.now())
    assert due is not None
    world.mono += 199
    world.send(r.Tick())
    assert world.state.phase == "trial"
    world.mono += 2
    world.send(r.Tick())
    assert (world.state.phase, world.reports[-1].code) == ("idle", "trial.lease")


def test_the_clock_of_another_boot_counts_for_nothing() -> None:
    world = updating("trial")
    world.boot, world.mono = "boot-9", world.mono + 100_000.0
    due = next_tick(world.state, world.now())
    assert due is not None
    assert due > 0
    world.send(r.Tick())
    assert world.state.phase == "trial"


def test_restarts_in_one_phase_give_up() -> None:
    for phase, outcome in (("choosing", "failed"), ("probing", "failed"), ("trial", "failed"), ("keeping", "rolled_back")):
        world = updating(phase)
        for _ in range(MAX_ATTEMPTS):
            world.restart(reboot=True)
        world.check()
        assert (world.state.phase, world.running, world.reports[-1].outcome) == ("idle", A, outcome), phase
        assert world.reports[-1].code == "slots.loop"


def test_too_many_stores_for_one_deployment_give_up() -> None:
    world = updating("trial")
    world.state = world.disk = msgspec.structs.replace(world.state, stores=MAX_STORES)
    world.send(r.Compared(B, GOOD))
    assert (world.state.phase, world.running, world.reports[-1].code) == ("idle", A, "slots.stores")


def test_a_switch_that_never_happens_ends() -> None:
    world = updating("keeping")
    assert not world.state.switched
    world.mono += POLICY.lease_s + 1
    world.send(r.Tick())
    assert (world.running, world.reports[-1].code, world.reports[-1].outcome) == (A, "trial.switch", "rolled_back")


def test_keeping_starts_when_the_model_answers() -> None:
    world = updating("keeping")
    world.mono += 500
    world.send(r.TookOver(B))
    world.mono += 29
    world.send(r.Tick())
    assert world.state.phase == "keeping"
    world.mono += 2
    world.send(r.Tick())
    assert world.reports[-1].outcome == "committed"


def test_the_way_back_to_the_last_model_needs_no_agreement_with_the_bad_one() -> None:
    world = World().install().install("b", 2).go("trial", 3, "a")
    far = TrialNumbers(live_frames=30, live_agreement=0.1, champion_p99_ms=10, challenger_p99_ms=90)
    world.send(r.Compared(A, far))
    assert world.state.phase == "keeping"


def test_both_slots_and_the_last_one_are_in_use() -> None:
    world = World().install().install("b", 2).go("trial", 3, "c")
    assert {A, B, C, weights_of(A), weights_of(B), weights_of(C)} <= blobs_in_use(world.state)
    world.send(r.Undeploy(4))
    assert blobs_in_use(world.state) == frozenset()
    assert (world.running, live_slot(world.state), world.store) == (None, None, set())


def test_inventory_line() -> None:
    world = World()
    assert app_state(world.state).bundle == ""
    world.install()
    line = app_state(world.state)
    assert (line.bundle, line.version, line.phase, line.candidate) == (A, "a", "committed", CANDIDATE.name)
    world.go("keeping", 2, "b")
    assert (app_state(world.state).version, app_state(world.state).phase) == ("b", "keeping")
    world.send(r.Faulted(B, "x"))
    assert (app_state(world.state).version, app_state(world.state).phase, app_state(world.state).reason) == ("a", "rolled_back", "x")


def test_policy_of_the_deployment_decides() -> None:
    strict = TrialPolicy(probe_tolerance=0.999)
    world = World().install().go("probing", 2, "b", policy=strict)
    world.send(r.Probed(B, 0.99))
    assert world.reports[-1].code == "trial.probe"


def test_the_signed_probe_sets_own_bound_holds_unless_the_deployment_names_another() -> None:
    world = World().install().go("probing", 2, "b")
    world.send(r.Probed(B, 0.85, bound=0.9))
    assert world.reports[-1].code == "trial.probe"
    assert world.reports[-1].outcome == "refused"
    lenient = World().install().go("probing", 2, "b", policy=TrialPolicy(probe_tolerance=0.8))
    lenient.send(r.Probed(B, 0.85, bound=0.9))
    assert lenient.state.phase == "trial"
