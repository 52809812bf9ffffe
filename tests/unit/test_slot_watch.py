"""The A/B machine after the switch and on boards that cannot hold two models: the watch, room, the lease's end."""

from __future__ import annotations

import msgspec
import pytest
from slot_worlds import BUNDLES, GOOD, POLICY, World, target, updating

from jetfleet_contract import slot_records as r
from jetfleet_contract.slots import MAX_ATTEMPTS, MAX_STORES
from jetfleet_contract.trials import Need, Room, WatchNumbers

A, B, C = BUNDLES["a"], BUNDLES["b"], BUNDLES["c"]


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
