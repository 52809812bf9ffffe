"""The A/B machine: every transition legal and illegal, who is blamed, what is reported, and what survives a restart."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from slot_worlds import BUNDLES, CANDIDATE, GOOD, POLICY, World, target, weights_of

from jetfleet_contract import slot_records as r
from jetfleet_contract.errors import OrderError
from jetfleet_contract.messages import TrialPolicy
from jetfleet_contract.slots import MAX_ATTEMPTS, MAX_STORES, app_state, blobs_in_use, legal, live_slot, next_tick, step
from jetfleet_contract.trials import Need, Room, TrialNumbers, WatchNumbers

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


def updating(phase: str) -> World:
    world = World().install()
    return world if phase == "idle" else world.go(phase, 2, "b")


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


# --- downgrades -------------------------------------------------------------------------------------------


def refusal(world: World) -> tuple[str, str, str]:
    last = world.reports[-1]
    return last.outcome, last.code, last.version


def test_an_older_release_is_refused_before_a_byte_is_fetched() -> None:
    world = World().install("b", release=2)
    champion = world.state.champion
    effects = world.send(r.Deploy(target(2, "a", release=1)))
    assert [type(effect) for effect in effects] == [r.Persist, r.SendReport]
    assert refusal(world) == ("refused", "slots.downgrade", "a")
    assert (world.state.phase, world.state.seq, world.state.champion, world.running) == ("idle", 2, champion, B)
    world.restart()
    assert world.send(r.Deploy(target(2, "a", release=1))) == ()
    assert refusal(world) == ("refused", "slots.downgrade", "a"), "told again after a restart"


def test_an_older_release_is_refused_once_its_signed_target_is_known() -> None:
    world = World().install("b", release=2)
    world.releases[A] = 1
    world.send(r.Deploy(target(2, "a")))
    assert world.state.phase == "fetching"
    world.fetch_step()
    assert (world.state.phase, world.running) == ("idle", B)
    assert refusal(world) == ("refused", "slots.downgrade", "a")
    assert A not in world.store


def test_an_approved_downgrade_goes_and_lowers_what_is_remembered() -> None:
    world = World().install("b", release=2).install("a", 2, release=1, downgrade=True)
    assert world.state.champion is not None
    assert (world.running, world.state.champion.release) == (A, 1)
    world.install("c", 3, release=2)
    assert world.running == C


@pytest.mark.parametrize(("runs", "wanted", "name"), [(0, 1, "model"), (2, 0, "model"), (2, 2, "model"), (2, 1, "other")])
def test_what_is_not_known_to_be_older_goes(runs: int, wanted: int, name: str) -> None:
    world = World().install("b", release=runs)
    world.send(r.Deploy(target(2, "a", release=wanted, name=name)))
    assert world.state.phase == "fetching"


@pytest.mark.parametrize("phase", ["fetching", "choosing", "probing", "trial", "keeping"])
def test_a_downgrade_whose_approval_is_taken_back_ends(phase: str) -> None:
    world = World().install("b", release=2).go(phase, 2, "a", release=1, downgrade=True)
    world.send(r.Deploy(target(3, "a", release=1)))
    world.check()
    assert (world.state.phase, world.running) == ("idle", B)
    assert [report.code for report in world.reports[-2:]] == ["slots.superseded", "slots.downgrade"]


def test_a_downgrade_goes_on_being_one_when_the_metadata_is_not_at_hand_for_a_moment() -> None:
    world = World().install("b", release=2)
    world.releases[A] = 1
    world.go("trial", 2, "a", downgrade=True)
    world.send(r.Deploy(target(3, "a")))
    assert refusal(world) == ("refused", "slots.downgrade", "a")


def test_a_release_learned_late_stays_with_the_model() -> None:
    world = World()
    world.releases[B] = 7
    world.install("b")
    assert world.state.champion is not None
    assert world.state.champion.release == 7
    world.send(r.Deploy(target(2, "b", config=2)))
    assert world.state.champion.release == 7, "a deployment that came before its metadata takes nothing away"


# --- the watch, and boards that cannot hold two models ------------------------------------------------------


def kept(**options: object) -> World:
    world = World().install().go("keeping", 2, "b", **options)
    world.send(r.TookOver(B))
    return world


GOOD_WATCH = WatchNumbers(40, 9.0, 12.0, 10.0, 10, 0.95, memory_mb=120.0)


@pytest.mark.parametrize(("numbers", "code"), [
    (WatchNumbers(20, 25.0, 30.0, 10.0), "trial.keep-latency"),
    (WatchNumbers(200, 9.0, 30.0, 10.0), "trial.keep-latency"),
    (WatchNumbers(20, 9.0, 30.0, 0.0, 10, 0.3), "trial.keep-agreement"),
    (WatchNumbers(throttled_s=2.5), "trial.heat"),
    (WatchNumbers(rise_c=16.0), "trial.heat"),
])
def test_a_breach_while_the_old_model_is_kept_puts_it_back(numbers: WatchNumbers, code: str) -> None:
    world = kept()
    champion = world.state.champion
    assert champion is not None
    effects = world.send(r.Watched(B, numbers))
    assert isinstance(effects[0], r.Persist), "durable before the pipeline is told"
    assert r.Back(champion) in effects
    assert (world.running, world.state.phase, world.state.champion) == (A, "idle", champion)
    assert (world.reports[-1].outcome, world.reports[-1].code) == ("rolled_back", code)
    assert world.reports[-1].metrics["keep_p99_ms" if numbers.p99_ms else "agreement"] > 0
    assert world.send(r.Watched(B, numbers)) == (), "late news of it"


def test_what_is_watched_before_the_switch_or_with_nothing_to_go_back_to_decides_nothing() -> None:
    world = World().install().go("keeping", 2, "b")
    assert world.send(r.Watched(B, WatchNumbers(throttled_s=9.0))) == ()
    first = World().go("keeping")
    assert first.send(r.Watched(A, WatchNumbers(throttled_s=9.0))) == ()


def test_good_news_is_stored_once_and_reported_with_the_commit() -> None:
    world = kept()
    assert world.send(r.Watched(B, GOOD_WATCH)) == (), "the first half of the time"
    world.mono += POLICY.keep_s / 2
    assert world.send(r.Watched(B, WatchNumbers(3))) == (), "too few frames"
    assert [type(effect) for effect in world.send(r.Watched(B, GOOD_WATCH))] == [r.Persist]
    assert world.send(r.Watched(B, WatchNumbers(50, 9.0, 13.0, 10.0))) == ()
    world.mono += POLICY.keep_s / 2
    world.send(r.Tick())
    done = world.reports[-1]
    assert done.outcome == "committed"
    assert {name: done.metrics[name] for name in ("keep_p99_ms", "keep_old_p99_ms", "keep_agreement", "memory_mb")} == {
        "keep_p99_ms": 12.0, "keep_old_p99_ms": 10.0, "keep_agreement": 0.95, "memory_mb": 120.0}


def test_the_lease_of_keeping_is_not_renewed_by_what_is_watched() -> None:
    world = kept()
    world.mono += POLICY.keep_s * 0.6
    world.send(r.Watched(B, GOOD_WATCH))
    world.mono += POLICY.keep_s * 0.4
    world.send(r.Tick())
    assert world.reports[-1].outcome == "committed"


TIGHT = Room(Need(600.0, 700.0, "measured"), 500.0, 300.0)


def probed_with(room: Room, **policy: object) -> World:
    world = World().install().go("probing", 2, "b", policy=msgspec.structs.replace(POLICY, **policy))
    world.send(r.Probed(B, 0.99, room=room, champion_p99_ms=10.0))
    world.check()
    return world


@pytest.mark.parametrize(("room", "mode"), [(TIGHT, "auto"), (Room(), "stop-start")])
def test_a_board_that_cannot_hold_both_stops_one_and_starts_the_other(room: Room, mode: str) -> None:
    world = probed_with(room, mode=mode)
    assert (world.state.phase, world.state.alone, world.running, world.tried) == ("trial", True, B, None)
    assert "stop-start" in world.reports[-1].detail
    world.send(r.Ran(B, gap_ms=1500.0))
    assert world.watched == r.Watch(B, msgspec.structs.replace(POLICY, mode=mode), 10.0)
    world.mono += POLICY.keep_s
    world.send(r.Tick())
    done = world.reports[-1]
    assert (done.outcome, done.metrics["gap_ms"], done.metrics["champion_p99_ms"]) == ("committed", 1500.0, 10.0)
    assert done.metrics.get("memory_predicted_mb", 0.0) == room.need.alone_mb


@pytest.mark.parametrize(("event", "code"), [
    (r.Watched(B, WatchNumbers(20, 25.0, 30.0)), "trial.keep-latency"), (r.Crashed(B, "pipeline.killed", "SIGSEGV"), "trial.crash"),
])
def test_stop_start_starts_the_old_model_again_when_a_gate_fails(event: r.Event, code: str) -> None:
    world = probed_with(TIGHT)
    champion = world.state.champion
    world.send(r.Ran(B, gap_ms=1500.0))
    for _ in range(MAX_ATTEMPTS):
        if world.state.phase == "keeping":
            world.send(event)
            if isinstance(event, r.Crashed) and world.state.phase == "keeping":
                world.send(r.Ran(B))
    assert (world.running, world.state.champion) == (A, champion)
    assert (world.reports[-1].outcome, world.reports[-1].code) == ("rolled_back", code)


@pytest.mark.parametrize(("room", "mode", "says"), [
    (TIGHT, "beside", "predicted: it needs 600 MB (as measured here), 500 MB are free"),
    (Room(Need(900.0, 1000.0), 500.0, 300.0), "auto",
     "predicted: it needs 1000 MB (by the size of its weights), 800 MB are free once the running model is stopped"),
    (Room(Need(900.0, 1000.0), 500.0, 300.0), "stop-start",
     "predicted: it needs 1000 MB (by the size of its weights), 800 MB are free once the running model is stopped"),
])
def test_what_cannot_fit_is_refused_with_the_figures_before_it_is_loaded(room: Room, mode: str, says: str) -> None:
    world = probed_with(room, mode=mode)
    assert (world.state.phase, world.running) == ("idle", A)
    assert (world.reports[-1].outcome, world.reports[-1].code, world.reports[-1].detail) == ("refused", "backend.memory", says)
    assert not any(isinstance(effect, r.Try) for effect in world.log)


NO_ROOM = r.Probed(B, 0.0, "backend.memory", "predicted: it needs 700 MB", room=Room(Need(700.0, 700.0), 500.0, 300.0),
                   champion_p99_ms=10.0, unstarted=True)


def paused(event: r.Probed = NO_ROOM, **policy: object) -> World:
    world = World().install().go("probing", 2, "b", policy=msgspec.structs.replace(POLICY, **policy))
    world.send(event)
    world.check()
    return world


def test_where_not_even_the_probe_fits_the_champion_makes_room_for_it() -> None:
    world = paused()
    assert (world.state.phase, world.running, world.work) == ("probing", None, r.Probe(world.state.challenger))  # type: ignore[arg-type]
    world.send(r.Probed(B, 0.99, room=Room(Need(300.0, 700.0, "measured"), 800.0)))
    world.check()
    assert (world.state.phase, world.state.alone, world.state.paused, world.running) == ("trial", True, False, B)
    world.send(r.Ran(B, gap_ms=9000.0))
    assert world.watched is not None
    assert world.watched.old_p99_ms == 10.0, "it was noted before the champion stopped"
    world.mono += POLICY.keep_s
    world.send(r.Tick())
    assert (world.reports[-1].outcome, world.reports[-1].metrics["gap_ms"]) == ("committed", 9000.0)


@pytest.mark.parametrize(("event", "outcome"), [
    (r.Probed(B, 0.2, bound=0.9), "refused"), (r.Probed(B, 0.0, "evaluate.crash", "SIGSEGV"), "refused"), (NO_ROOM, "refused"),
    (r.Faulted(B, "evaluate.disk"), "failed"), (r.Deploy(target(3, "c")), "failed"),
])
def test_a_champion_that_made_room_is_started_again_whatever_happens(event: r.Event, outcome: str) -> None:
    world = paused()
    world.send(event)
    world.check()
    assert (world.running, world.state.paused) == (A, False)
    assert [report.outcome for report in world.reports if report.seq == 2 and report.outcome] == [outcome]


def test_a_champion_that_made_room_is_started_again_when_the_board_restarts_in_a_loop() -> None:
    world = paused()
    for _ in range(MAX_ATTEMPTS):
        world.restart(reboot=True)
        world.check()
    assert (world.running, world.state.phase, world.reports[-1].code) == (A, "idle", "slots.loop")


@pytest.mark.parametrize("change", [{"mode": "beside"}, {"room": Room(Need(900.0, 900.0), 500.0, 300.0)}])
def test_nobody_makes_room_in_vain_or_against_the_deployment(change: dict[str, object]) -> None:
    room = change.get("room", NO_ROOM.room)
    assert isinstance(room, Room)
    world = paused(msgspec.structs.replace(NO_ROOM, room=room), **{name: value for name, value in change.items() if name == "mode"})
    assert (world.running, world.state.phase, world.reports[-1].code) == (A, "idle", "backend.memory")


def test_beside_says_what_memory_was_predicted_and_what_it_took() -> None:
    world = probed_with(Room(Need(100.0, 200.0), 500.0, 300.0))
    assert world.tried == B
    world.send(r.Compared(B, msgspec.structs.replace(GOOD, memory_mb=130.0, skipped={"share": 70, "age": 2}, spent_share=0.24)))
    metrics = world.state.metrics
    assert (metrics["memory_predicted_mb"], metrics["memory_mb"], metrics["memory_free_mb"]) == (100.0, 130.0, 500.0)
    assert (metrics["skipped_share"], metrics["skipped_age"], metrics["shadow_share"]) == (70.0, 2.0, 0.24)


def test_a_process_that_crashed_while_it_was_kept_is_watched_again_by_what_is_remembered() -> None:
    world = kept()
    world.send(r.Crashed(B, "pipeline.killed", "SIGSEGV"))
    world.send(r.Ran(B))
    assert world.watched == r.Watch(B, POLICY, 10.0)
    world.send(r.Watched(B, WatchNumbers(20, 25.0, 30.0)))
    assert world.reports[-1].code == "trial.keep-latency"


# --- the lease --------------------------------------------------------------------------------------------


def test_at_the_end_of_the_lease_without_a_host_gates_that_passed_commit() -> None:
    world = updating("keeping")
    world.send(r.TookOver(B))
    world.mono += POLICY.keep_s
    world.send(r.Tick())
    assert (world.running, world.reports[-1].outcome) == (B, "committed")


@pytest.mark.parametrize(("phase", "outcome", "code"), [("trial", "failed", "trial.lease"), ("keeping", "rolled_back", "trial.switch")])
def test_at_the_end_of_the_lease_gates_that_did_not_pass_keep_the_champion(phase: str, outcome: str, code: str) -> None:
    world = updating(phase)
    world.mono += POLICY.lease_s
    world.send(r.Tick())
    assert (world.running, world.reports[-1].outcome, world.reports[-1].code) == (A, outcome, code)


def test_a_new_setup_waits_for_its_model_also_after_a_first_install_that_ran_alone() -> None:
    world = World().install()
    world.go("choosing", 2, "b", config=7)
    world.send(r.Deploy(target(3, "b", config=8)))
    assert world.setup is not None
    assert world.setup.config.version == 1, "the champion keeps its own setup"


@pytest.mark.parametrize("phase", ["choosing", "probing", "trial", "keeping"])
def test_a_start_that_ends_a_loop_of_stores_still_runs_the_champion(phase: str) -> None:
    world = updating(phase)
    world.disk = msgspec.structs.replace(world.state, stores=MAX_STORES)
    world.restart()
    world.check()
    assert (world.state.phase, world.running, world.reports[-1].code) == ("idle", A, "slots.stores")


# --- reading a stored state back --------------------------------------------------------------------------


GOLDEN = json.loads((Path(__file__).parent.parent / "vectors/slot_states_v1.json").read_text())


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_a_state_of_an_older_release_of_the_agent_goes_on_where_it_was(name: str) -> None:
    state = r.restore("app", json.dumps(GOLDEN[name]).encode())
    assert state.phase == GOLDEN[name].get("phase", "idle")
    assert json.loads(msgspec.json.encode(state)) == GOLDEN[name]
    world = World()
    world.store = set(blobs_in_use(state))
    world.disk = state
    world.restart()
    world.check()


def test_a_state_of_a_later_release_keeps_the_committed_slot() -> None:
    world = updating("trial")
    assert world.state.champion is not None
    stored = json.loads(msgspec.json.encode(world.state))
    stored["later"] = 1
    stored["champion"]["later"] = {"deep": [1]}
    stored["champion"]["candidate"]["later"] = True
    stored["champion"]["setup"]["sources"][0]["later"] = "x"
    found = r.restore("app", json.dumps(stored).encode())
    assert found == r.AppSlots("app", champion=world.state.champion)


@pytest.mark.parametrize("phase", r.PHASES)
def test_every_phase_is_read_back_as_it_was(phase: str) -> None:
    world = updating(phase)
    assert r.restore("app", msgspec.json.encode(world.state)) == world.state


@pytest.mark.parametrize("change", [
    {"phase": "levitating"}, {"schema": 99}, {"later_field": 1}, {"phase": "keeping", "challenger": None}, {"target": {"seq": "x"}},
])
def test_a_state_that_is_not_understood_keeps_the_committed_slot(change: dict[str, object]) -> None:
    world = updating("trial")
    stored = {**msgspec.json.decode(msgspec.json.encode(world.state)), **change}
    found = r.restore("app", msgspec.json.encode(stored))
    assert (found.phase, found.champion, found.seq) == ("idle", world.state.champion, 0)


@pytest.mark.parametrize("data", [None, b"", b"\xff\x00", b"[]", b"{}", b'{"app":"other"}', b"[" * 100_000])
def test_what_is_no_state_at_all_is_an_empty_one(data: bytes | None) -> None:
    assert r.restore("app", data) == r.AppSlots("app")


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
