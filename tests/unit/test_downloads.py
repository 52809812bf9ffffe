"""What an app waits for, the space that takes, what rot costs, and garbage that never takes what a slot holds."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from supervised_lives import APP, Life, Shelf

from jetfleet_agent.supervisor.store import RESERVE_BYTES
from jetfleet_contract import slot_records as r
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.messages import DeliveryPolicy
from jetfleet_contract.slots import blobs_in_use

VERSIONS = ("1", "2", "3")
STRAYS = tuple(digit * 64 for digit in "def")
NO_SPACE, PLENTY = 0, 1 << 40


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"), VERSIONS)


@pytest.fixture
def life(tmp_path: Path, shelf: Shelf) -> Life:
    return Life(tmp_path, shelf)


def free(life: Life, monkeypatch: pytest.MonkeyPatch, amount: int) -> None:
    """The disk has `amount` bytes for blobs, beside the reserve; what the store holds counts."""
    monkeypatch.setattr(life.store, "_free", lambda: RESERVE_BYTES + amount - held(life))


def set_free(life: Life, amount: int) -> None:
    life.store._free = lambda: RESERVE_BYTES + amount  # type: ignore[method-assign]


def held(life: Life) -> int:
    return sum(path.stat().st_size for path in life.store.folder.iterdir())


def whole(shelf: Shelf, version: str) -> int:
    target = shelf.targets[shelf.bundles[version]]
    return sum(info.size for info in target.every().values())


# --- space -------------------------------------------------------------------------------------------------


def test_weights_that_will_not_fit_are_told_before_the_parts_are_fetched(life: Life, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    life.updater.resume()
    free(life, monkeypatch, whole(shelf, "1") - 500)
    life.updater.deploy(shelf.deployment(1, "1"))
    life.settle(1)
    last = life.updater.states[APP].last
    assert last is not None
    assert (last.outcome, last.code, last.phase) == ("failed", "store.full", "fetching")
    assert list(life.store.folder.iterdir()) == [], "the manifest alone was fetched, and it is garbage now"


def test_what_is_here_already_needs_no_room(life: Life, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    for blob, path in shelf.paths.items():
        life.store.put_bytes(blob, path.read_bytes())
    monkeypatch.setattr(life.store, "_free", lambda: RESERVE_BYTES)
    assert life.live((shelf.deployment(1, "1"),)).champion is not None


def test_garbage_goes_when_that_makes_room(life: Life, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    life.live((shelf.deployment(1, "1"),))
    garbage = life.store.folder / STRAYS[0]
    garbage.write_bytes(bytes(1 << 20))
    free(life, monkeypatch, held(life) + whole(shelf, "2") - (1 << 19))
    state = life.live((shelf.deployment(2, "2"),))
    assert state.champion is not None
    assert state.champion.version == "2"
    assert not garbage.exists()


def test_a_full_disk_takes_nothing_from_the_slots(life: Life, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    before = life.live((shelf.deployment(1, "1"), shelf.deployment(2, "2")))
    free(life, monkeypatch, NO_SPACE)
    after = life.live((shelf.deployment(3, "3"),))
    assert after.last is not None
    assert (after.champion, after.last.code) == (before.champion, "store.full")
    assert blobs_in_use(after) <= {path.name for path in life.store.folder.iterdir()}


def test_what_the_fetcher_holds_is_no_garbage(life: Life, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    life.updater.resume()
    for stray in STRAYS[:2]:
        (life.store.folder / stray).write_bytes(b"a page of a chunk table")
    monkeypatch.setattr(Life, "held", {STRAYS[0]})
    life.runner.run(APP, r.AppSlots(APP), r.CollectGarbage())
    life.updater.tick()
    assert [path.name for path in life.store.folder.iterdir()] == [STRAYS[0]]


def test_two_apps_that_share_blobs_lose_nothing_when_one_goes(life: Life, shelf: Shelf) -> None:
    both = shelf.deployment(1, "1")
    twin = msgspec.structs.replace(both.apps[0], app="twin")
    life.updater.resume()
    life.updater.deploy(msgspec.structs.replace(both, apps=(*both.apps, twin)))
    life.work(300)
    assert {state.champion.version for state in life.updater.states.values() if state.champion} == {"1"}
    life.updater.deploy(msgspec.structs.replace(both, seq=2, apps=(twin,)))
    life.updater.tick()
    assert life.updater.states[APP].champion is None
    assert blobs_in_use(life.updater.states["twin"]) == {path.name for path in life.store.folder.iterdir()}


# --- rot ---------------------------------------------------------------------------------------------------


def rot(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_rot_in_the_committed_model_is_named_and_repaired_before_it_runs(tmp_path: Path, shelf: Shelf) -> None:
    state = Life(tmp_path, shelf).live((shelf.deployment(1, "1"),))
    assert state.champion is not None
    life = Life(tmp_path, shelf)
    rot(life.store.path(state.champion.weights))
    life.updater.resume()
    assert life.running == "", "a damaged model is never started"
    assert [(report.code, report.outcome) for report in life.reports if report.code] == [("store.rotten", "")]
    assert state.champion.weights in life.reports[0].detail
    while life.pending and not life.running:
        life.pending.pop(0)()
    assert life.running == shelf.bundles["1"]
    assert life.store.sound(state.champion.weights)


def test_rot_in_the_model_before_is_found_when_it_is_rolled_out_again(tmp_path: Path, shelf: Shelf) -> None:
    state = Life(tmp_path, shelf).live((shelf.deployment(1, "1"), shelf.deployment(2, "2")))
    assert state.previous is not None
    life = Life(tmp_path, shelf)
    rot(life.store.path(state.previous.weights))
    asked: list[str] = []
    want = life.want

    def noted(blob: str, info: BlobInfo) -> None:
        asked.append(blob)
        want(blob, info)

    life.want = noted  # type: ignore[method-assign]
    assert life.live((shelf.deployment(3, "1"),)).last is not None
    assert (asked, life.running) == ([state.previous.weights], shelf.bundles["1"])


def test_a_crash_has_the_model_read_again(life: Life, shelf: Shelf) -> None:
    state = life.live((shelf.deployment(1, "1"),))
    assert state.champion is not None
    path = life.store.path(state.champion.weights)
    times = path.stat()
    rot(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    life.running = ""
    life.updater.event(APP, r.Crashed(state.champion.bundle, "runtime.crash"))
    assert life.running == ""
    life.pending.pop(0)()
    assert life.running == shelf.bundles["1"]


def test_a_repair_that_ends_after_another_model_was_committed_does_not_bring_the_old_one_back(tmp_path: Path, shelf: Shelf) -> None:
    state = Life(tmp_path, shelf).live((shelf.deployment(1, "1"),))
    assert state.champion is not None
    life = Life(tmp_path, shelf)
    life.store.path(state.champion.weights).unlink()
    life.updater.resume()
    repair = life.pending.pop(0)
    life.updater.deploy(shelf.deployment(2, "2"))
    life.settle_unchecked(2)
    assert life.running == shelf.bundles["2"]
    repair()
    assert life.running == shelf.bundles["2"]


# --- garbage -----------------------------------------------------------------------------------------------

ACTIONS = st.one_of(
    st.tuples(st.just("deploy"), st.sampled_from(VERSIONS)), st.tuples(st.just("work"), st.integers(1, 12)),
    st.tuples(st.just("undeploy"), st.none()), st.tuples(st.just("power cut"), st.none()),
    st.tuples(st.just("stray"), st.sampled_from(STRAYS)), st.tuples(st.just("part"), st.sampled_from(STRAYS)),
    st.tuples(st.just("space"), st.sampled_from([NO_SPACE, 6000, PLENTY])), st.tuples(st.just("collect"), st.none()),
)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTIONS, min_size=4, max_size=40))
def test_garbage_never_takes_what_a_slot_holds(shelf: Shelf, memory: Path, actions: list[tuple[str, object]]) -> None:
    """Both slots, the one before, the parts of what is fetched, and everything that is not the store's own outlive any sequence."""
    root = Path(tempfile.mkdtemp(dir=memory))
    uploads = root / "uploads" / STRAYS[0]
    uploads.parent.mkdir()
    uploads.write_bytes(b"a snapshot that the host has not got yet")
    life, space, seq = Life(root, shelf), PLENTY, 0
    life.updater.resume()
    had: set[str] = set()
    for action, value in actions:
        if action == "deploy":
            seq += 1
            life.updater.deploy(shelf.deployment(seq, str(value)))
        elif action == "undeploy":
            seq += 1
            life.updater.deploy(shelf.empty(seq))
        elif action == "work":
            life.work(int(str(value)))
        elif action == "power cut":
            life = Life(root, shelf)
            set_free(life, space)
            life.updater.resume()
        elif action in ("stray", "part"):
            (life.store.folder / (str(value) + (".part" if action == "part" else ""))).write_bytes(bytes(3000))
        elif action == "space":
            space = int(str(value))
            set_free(life, space)
        else:
            life.runner.run(APP, r.AppSlots(APP), r.CollectGarbage())
            life.updater.tick()
        state = life.updater.states.get(APP, r.AppSlots(APP))
        here = {path.name.removesuffix(".part") for path in life.store.folder.iterdir()}
        assert had & blobs_in_use(state) <= here, f"after {action} {value}: a slot's blobs are gone"
        assert uploads.exists()
        had = here
    life.work(500)
    life.runner.run(APP, r.AppSlots(APP), r.CollectGarbage())
    life.updater.tick()
    state = life.updater.states.get(APP, r.AppSlots(APP))
    if state.phase == "idle":
        assert {path.name for path in life.store.folder.iterdir()} <= blobs_in_use(state), "garbage stays behind"


# --- delivery policy ---------------------------------------------------------------------------------------


def test_the_policy_of_an_app_governs_its_blobs_and_every_byte_is_reported(life: Life, shelf: Shelf) -> None:
    made = shelf.deployment(1, "1")
    policy = DeliveryPolicy(hours=((22, 6),), bytes_per_day=1_000_000)
    life.updater.resume()
    life.updater.deploy(msgspec.structs.replace(made, apps=(msgspec.structs.replace(made.apps[0], delivery=policy),)))
    manifest = shelf.bundles["1"]
    assert not life.meter.admit(manifest, manifest, 1, 65536, life.now()).free  # 8 o'clock in the morning
    told = life.reports[-1]
    assert (told.code, told.phase, told.outcome, told.bundle) == ("delivery.hours", "fetching", "", manifest)
    assert "22-06 UTC" in told.detail
    life.meter.count(manifest, manifest, 777, "broadcast", life.now())
    life.settle(1)
    done = life.reports[-1]
    assert done.outcome == "committed"
    assert done.metrics["bytes_received"] == 777
    assert 0 < done.metrics["bytes"] <= whole(shelf, "1")
