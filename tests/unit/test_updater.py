"""Updater and effects over simulated ports: deployments checked, downloads, late answers, damaged stores, garbage, chained apps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from supervised_lives import APP, Life, Shelf

from jetfleet_agent import ipc
from jetfleet_agent.supervisor.effects import RunSettings
from jetfleet_agent.supervisor.updater import check_deployment
from jetfleet_contract import slot_records as r
from jetfleet_contract.errors import InputError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import AppConfig, AppSpec, Deployment, Source


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"), ("1", "2", "3"))


@pytest.fixture
def life(tmp_path: Path, shelf: Shelf) -> Life:
    return Life(tmp_path, shelf)


def outcomes(life: Life) -> list[tuple[int, str, str]]:
    return [(report.seq, report.outcome, report.code) for report in life.reports if report.outcome]


def with_spec(deployment: Deployment, **changes: object) -> Deployment:
    return msgspec.structs.replace(deployment, apps=tuple(msgspec.structs.replace(spec, **changes) for spec in deployment.apps))


def test_install_and_update(life: Life, shelf: Shelf) -> None:
    state = life.live((shelf.deployment(1, "1"), shelf.deployment(2, "2")))
    assert outcomes(life) == [(1, "committed", ""), (2, "committed", "")]
    assert state.previous is not None
    assert life.updater.app_states()[0].version == "2"
    assert next(report.metrics for report in life.reports if report.outcome)["bytes"] > 2000


def test_garbage_keeps_both_slots_and_takes_the_rest(life: Life, shelf: Shelf) -> None:
    life.live(tuple(shelf.deployment(n, str(n)) for n in (1, 2, 3)))
    held = {path.name for path in life.store.folder.iterdir()}
    assert shelf.bundles["3"] in held
    assert shelf.bundles["2"] in held, "the last model before stays for a quick way back"
    assert shelf.bundles["1"] not in held


def test_garbage_waits_while_something_is_fetched(life: Life, shelf: Shelf) -> None:
    life.live((shelf.deployment(1, "1"),))
    life.updater.deploy(shelf.deployment(2, "2"))
    stray = life.store.folder / ("d" * 64)
    stray.write_bytes(b"part of a chunk table")
    life.runner.run(APP, life.updater.states[APP], r.CollectGarbage())
    life.updater.tick()
    assert stray.exists()
    life.settle(2)
    assert not stray.exists()


def test_a_bundle_that_nobody_signed_waits_for_the_metadata(life: Life, shelf: Shelf) -> None:
    bundle = shelf.bundles["1"]
    target = shelf.targets.pop(bundle)
    life.updater.resume()
    life.updater.deploy(shelf.deployment(1, "1"))
    assert life.pending == []
    assert (life.reports[-1].phase, life.reports[-1].code, life.reports[-1].outcome) == ("fetching", "trust.unknown-bundle", "")
    life.runner.try_again()
    assert life.pending == []
    shelf.targets[bundle] = target
    life.runner.try_again()
    life.settle(1)
    assert outcomes(life) == [(1, "committed", "")]


def test_metadata_that_comes_late_and_lacks_a_blob_ends_the_update(life: Life, shelf: Shelf) -> None:
    bundle = shelf.bundles["1"]
    target = shelf.targets.pop(bundle)
    life.updater.resume()
    life.updater.deploy(shelf.deployment(1, "1"))
    shelf.targets[bundle] = msgspec.structs.replace(target, name="another")
    try:
        life.runner.try_again()
        life.settle(1)
    finally:
        shelf.targets[bundle] = target
    assert outcomes(life) == [(1, "refused", "trust.mix")]


def test_an_older_release_is_refused_and_the_signed_word_of_an_operator_lets_it_pass(life: Life, shelf: Shelf) -> None:
    older = shelf.bundles["2"]
    life.live((shelf.deployment(1, "1"), shelf.deployment(2, "2")))
    shelf.targets.update({b: msgspec.structs.replace(shelf.targets[b], release=n) for b, n in ((older, 4), (shelf.bundles["3"], 5))})
    try:
        life.live((shelf.deployment(3, "3"), shelf.deployment(4, "2")))
        assert outcomes(life)[-1] == (4, "refused", "slots.downgrade")
        assert life.running == shelf.bundles["3"]
        life.live((with_spec(shelf.deployment(5, "2"), downgrade=True),))
        assert outcomes(life)[-1] == (5, "committed", "")
    finally:
        shelf.targets.update({b: msgspec.structs.replace(shelf.targets[b], release=0) for b in (older, shelf.bundles["3"])})


def test_a_blob_that_the_target_does_not_name_is_refused(life: Life, shelf: Shelf) -> None:
    bundle = shelf.bundles["1"]
    whole = shelf.targets[bundle]
    shelf.targets[bundle] = msgspec.structs.replace(whole, blobs={})
    try:
        life.live((shelf.deployment(1, "1"),))
    finally:
        shelf.targets[bundle] = whole
    assert outcomes(life) == [(1, "refused", "bundle.unsigned")]


@pytest.mark.parametrize(("error", "outcome"), [
    (StorageError("store.full", "no room"), "failed"), (StorageError("store.io", "broken"), "failed"),
    (UntrustedError("chunk.table", "not the table that was signed"), "refused"),
])
def test_a_blob_that_cannot_be_had_ends_the_update(life: Life, shelf: Shelf, error: StorageError, outcome: str) -> None:
    life.live((shelf.deployment(1, "1"),))
    life.updater.deploy(shelf.deployment(2, "2"))
    life.pending.clear()
    life.runner.blob_failed(shelf.bundles["2"], error)
    life.settle(2)
    assert outcomes(life)[-1] == (2, outcome, error.code)
    assert life.running == shelf.bundles["1"]


def test_a_full_disk_is_told_before_anything_is_fetched(life: Life, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_bytes: int) -> None:
        raise StorageError("store.full", "no room")

    monkeypatch.setattr(life.store, "check_space", full)
    life.live((shelf.deployment(1, "1"),))
    assert outcomes(life) == [(1, "failed", "store.full")]


def test_answers_of_work_that_was_given_up_do_not_count(life: Life, shelf: Shelf) -> None:
    life.live((shelf.deployment(1, "1"),))
    life.updater.deploy(shelf.deployment(2, "2"))
    while life.updater.states[APP].phase != "choosing":
        life.updater.answered(life.events.popleft()) if life.events else life.pending.pop(0)()
    old = life.pending.pop(0)
    life.updater.deploy(shelf.deployment(3, "3"))
    life.updater.deploy(shelf.deployment(4, "2"))
    while life.updater.states[APP].phase != "probing":
        life.updater.answered(life.events.popleft()) if life.events else life.pending.pop(0)()
    old()
    life.settle(4)
    assert life.updater.order_errors == 0
    assert life.running == shelf.bundles["2"]


def test_damaged_files_of_the_committed_model_are_fetched_again(tmp_path: Path, shelf: Shelf) -> None:
    first = Life(tmp_path, shelf)
    state = first.live((shelf.deployment(1, "1"),))
    assert state.champion is not None
    first.store.path(state.champion.weights).unlink()
    manifest = first.store.path(state.champion.bundle)
    manifest.write_bytes(manifest.read_bytes()[:-1] + b"?")
    life = Life(tmp_path, shelf)
    life.updater.resume()
    assert life.running == ""
    while life.pending and not life.running:
        life.pending.pop(0)()
    assert life.running == shelf.bundles["1"]


def test_a_repair_that_fails_is_tried_again_when_the_broker_is_back(tmp_path: Path, shelf: Shelf) -> None:
    first = Life(tmp_path, shelf)
    state = first.live((shelf.deployment(1, "1"),))
    assert state.champion is not None
    first.store.path(state.champion.weights).unlink()
    life = Life(tmp_path, shelf)
    life.updater.resume()
    life.pending.clear()
    life.runner.blob_failed(state.champion.weights, StorageError("store.io", "broken"))
    assert life.running == ""
    life.runner.try_again()
    life.pending.pop(0)()
    assert life.running == shelf.bundles["1"]


def test_an_app_that_is_not_named_any_more_goes(life: Life, shelf: Shelf) -> None:
    life.live((shelf.deployment(1, "1"),))
    life.updater.deploy(Deployment("board", 2, 4e9, ()))
    life.updater.tick()
    assert (life.running, list(life.store.folder.iterdir()), life.updater.app_states()) == ("", [], ())


def test_an_unknown_local_source_is_reported_and_the_rest_goes_on(life: Life, shelf: Shelf) -> None:
    life.live((shelf.deployment(1, "1"),))
    bad = with_spec(shelf.deployment(2, "2"), sources=(Source("cam", "local:back"),))
    other = msgspec.structs.replace(shelf.deployment(2, "3").apps[0], app="other")
    life.updater.deploy(msgspec.structs.replace(bad, apps=(*bad.apps, other)))
    assert (life.reports[-2].app, life.reports[-2].outcome, life.reports[-2].code) == (APP, "failed", "source.unknown")
    assert life.updater.states["other"].phase == "fetching"
    assert life.running == shelf.bundles["1"]


def test_a_runner_that_is_not_there_yet_is_reported(life: Life, shelf: Shelf) -> None:
    life.updater.resume()
    life.updater.deploy(with_spec(shelf.deployment(1, "1"), runner="exec"))
    assert outcomes(life) == [(1, "failed", "runner.unsupported")]


def test_local_sources_are_looked_up(life: Life) -> None:
    life.runner._settings = RunSettings({"front": "rtsp://user:secret@10.0.0.9/1"})
    assert life.runner.resolve((Source("cam", "local:front", 25.0),)) == (Source("cam", "rtsp://user:secret@10.0.0.9/1", 25.0),)


def test_a_gstreamer_pipeline_comes_from_the_boards_own_config_only(life: Life) -> None:
    life.runner._settings = RunSettings({"front": "gst:videotestsrc"})
    assert life.runner.resolve((Source("cam", "local:front"),)) == (Source("cam", "gst:videotestsrc"),)
    for uri in ("gst:videotestsrc ! filesink location=/x", " GST:videotestsrc"):
        with pytest.raises(InputError) as caught:
            life.runner.resolve((Source("cam", uri),))
        assert caught.value.code == "source.not-here"


def test_a_pipeline_is_told_where_signed_kernels_lie(life: Life, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[ipc.Run] = []
    start = life.start

    def watched(name: str, run: ipc.Run) -> None:
        orders.append(run)
        start(name, run)

    monkeypatch.setattr(life, "start", watched)
    life.runner._settings = RunSettings(kernels="/var/lib/jetfleet")
    life.live((shelf.deployment(1, "1"),))
    assert orders[-1].model.kernels == "/var/lib/jetfleet"


def test_chained_apps_know_each_other(life: Life, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: dict[str, Any] = {}
    monkeypatch.setattr(life, "start", runs.setdefault)
    spec = shelf.deployment(1, "1").apps[0]
    fed = AppSpec("reader", shelf.bundles["2"], "toy", "2", AppConfig(), (), input_from=APP)
    life.updater.resume()
    life.updater.deploy(Deployment("board", 1, 4e9, (spec, fed)))
    while len(runs) < 2:
        life.updater.answered(life.events.popleft()) if life.events else life.pending.pop(0)()
    assert (runs[APP].feed_to, runs[APP].input_from, runs[APP].feed) == (("reader",), "", "/run/feed")
    assert (runs["reader"].feed_to, runs["reader"].input_from, runs["reader"].feed) == ((), APP, "/run/feed")


def test_events_wait_in_their_order_while_the_disk_is_full(life: Life, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    life.live((shelf.deployment(1, "1"),))
    real = life.journal.save_app

    def full(state: r.AppSlots) -> None:
        raise StorageError("journal.full", "no room")

    monkeypatch.setattr(life.journal, "save_app", full)
    life.updater.deploy(shelf.deployment(2, "2"))
    life.updater.deploy(shelf.deployment(3, "3"))
    assert life.updater.states[APP].seq == 1
    assert 0 < life.updater.tick() <= 5.0
    monkeypatch.setattr(life.journal, "save_app", real)
    life.mono += 6
    life.updater.tick()
    assert life.updater.states[APP].seq == 3
    life.settle(3)
    assert [o for o in outcomes(life) if o[0] > 1] == [(2, "failed", "slots.superseded"), (3, "committed", "")]


@pytest.mark.parametrize("changes", [
    {"app": "../etc"}, {"app": ""}, {"bundle": "a" * 63}, {"bundle": "../" + "a" * 61}, {"version": "a b"}, {"input_from": "nobody"},
    {"input_from": APP}, {"sources": (Source("a/b", "x"),)}, {"sources": (Source("a", "x"), Source("a", "y"))},
    {"sources": tuple(Source(f"s{i}", "x") for i in range(65))},
])
def test_names_and_references_are_checked_before_anything_is_applied(life: Life, shelf: Shelf, changes: dict[str, object]) -> None:
    bad = with_spec(shelf.deployment(1, "1"), **changes)
    with pytest.raises(MalformedError):
        check_deployment(bad)
    life.updater.resume()
    with pytest.raises(MalformedError):
        life.updater.deploy(bad)
    assert (life.updater.states, life.pending) == ({}, [])


def test_two_apps_of_one_name_are_refused(shelf: Shelf) -> None:
    one = shelf.deployment(1, "1")
    with pytest.raises(MalformedError):
        check_deployment(msgspec.structs.replace(one, apps=(*one.apps, *one.apps)))
