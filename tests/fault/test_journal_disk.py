"""Disks that fill up, fail, tear and lie, below the journal and the outbox of an update."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from supervised_lives import APP, Life, Shelf

from jetfleet_agent.supervisor.journal import BoardRecord, Journal, RealDisk
from jetfleet_contract import slot_records as r
from jetfleet_contract.errors import StorageError
from jetfleet_contract.policy import Candidate

CHAMPION = r.Slot("a" * 64, "m", "1", candidate=Candidate("v", "onnxruntime", "fp32"), weights="b" * 64)


class FaultyDisk(RealDisk):
    """Operation number `at` (of those that write) and the `width` - 1 after it fail as `how` says."""

    def __init__(self, at: int, how: str, width: int = 1) -> None:
        self._at = range(at, at + width)
        self._how = how
        self.count = 0
        self.faults = 0

    def _faulty(self) -> bool:
        self.count += 1
        bad = self.count - 1 in self._at
        self.faults += bad
        return bad

    def put(self, path: Path, data: bytes) -> None:
        if not self._faulty():
            super().put(path, data)
            return
        if self._how == "lies":
            super().put(path, data[: len(data) // 2])
            return
        if self._how == "torn":
            super().put(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC if self._how == "full" else errno.EIO, "simulated")

    def _other(self, work: Callable[[], None]) -> None:
        if self._faulty() and self._how != "lies":
            raise OSError(errno.ENOSPC if self._how == "full" else errno.EIO, "simulated")
        work()

    def move(self, old: Path, new: Path) -> None:
        self._other(lambda: RealDisk.move(self, old, new))

    def link(self, old: Path, new: Path) -> None:
        self._other(lambda: RealDisk.link(self, old, new))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    """These faults are simulated above the medium, so waiting for it proves nothing."""
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"), ("1", "2"))


def writes_of_a_life(folder: Path, shelf: Shelf) -> int:
    disk = FaultyDisk(10**9, "none")
    Life(folder, shelf, disk=disk).live((shelf.deployment(1, "1"), shelf.deployment(2, "2")))
    return disk.count


@pytest.mark.parametrize("how", ["full", "io", "torn", "lies"])
def test_a_fault_at_any_write_delays_the_update_and_loses_nothing(tmp_path: Path, shelf: Shelf, how: str) -> None:
    count = writes_of_a_life(tmp_path / "count", shelf)
    assert count > 30
    for at in range(0, count, 2):
        disk = FaultyDisk(at, how, width=2)
        life = Life(tmp_path / f"{how}-{at}", shelf, disk=disk)
        state = life.live((shelf.deployment(1, "1"), shelf.deployment(2, "2")))
        assert state.champion is not None
        assert (state.champion.version, life.running) == ("2", shelf.bundles["2"])
        assert [report.outcome for report in life.reports if report.outcome] == ["committed", "committed"]
        assert disk.faults


def test_nothing_runs_before_its_state_is_durable(tmp_path: Path, shelf: Shelf) -> None:
    life = Life(tmp_path, shelf, disk=FaultyDisk(0, "full", width=10_000))
    life.updater.resume()
    life.updater.deploy(shelf.deployment(1, "1"))
    for _ in range(20):
        life.mono += 10
        life.updater.tick()
    assert (life.pending, life.running, life.reports) == ([], "", [])
    assert life.updater.states[APP] == r.AppSlots(APP)
    assert life.updater.storage_errors > 10


def test_a_committed_model_runs_on_when_the_disk_has_filled_up(tmp_path: Path, shelf: Shelf) -> None:
    Life(tmp_path, shelf).live((shelf.deployment(1, "1"),))
    life = Life(tmp_path, shelf, disk=FaultyDisk(0, "full", width=10_000))
    life.updater.resume()
    assert life.running == shelf.bundles["1"]
    life.updater.deploy(shelf.deployment(2, "2"))
    for _ in range(5):
        life.mono += 10
        life.updater.tick()
    assert life.running == shelf.bundles["1"]


def test_a_crash_is_answered_also_while_the_disk_is_full(tmp_path: Path, shelf: Shelf) -> None:
    disk = FaultyDisk(10_000, "full")
    life = Life(tmp_path, shelf, disk=disk)
    life.live((shelf.deployment(1, "1"),))
    life.updater.deploy(shelf.deployment(2, "2"))
    while life.updater.states[APP].phase != "keeping":
        life.updater.answered(life.events.popleft()) if life.events else life.pending.pop(0)()
    disk._at = range(10**6)
    life.running = ""
    life.updater.event(APP, r.Crashed("", "pipeline.killed"))
    assert life.running == shelf.bundles["1"], "with no way to count the crash, the committed model runs"


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"jfj1 deadbeef\n{}", b"{", None])
def test_a_record_that_is_damaged_is_not_believed(tmp_path: Path, damage: bytes | None) -> None:
    journal = Journal(tmp_path)
    old = r.AppSlots("app", seq=1, champion=CHAMPION)
    journal.save_app(old)
    journal.save_app(r.AppSlots("app", seq=2, champion=CHAMPION))
    path = tmp_path / "app-app.json"
    if damage is None:
        data = bytearray(path.read_bytes())
        data[-10] ^= 0x10
        damage = bytes(data)
    path.write_bytes(damage)
    assert journal.app("app") == old, "the record before speaks"
    (tmp_path / "app-app.json.prev").write_bytes(b"?")
    assert journal.app("app") == r.AppSlots("app"), "the safe default"
    assert journal.apps() == ("app",)


def test_a_damaged_record_does_not_push_out_the_good_one_before_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.save_app(r.AppSlots("app", seq=1))
    journal.save_app(r.AppSlots("app", seq=2))
    (tmp_path / "app-app.json").write_bytes(b"broken")
    journal.save_app(r.AppSlots("app", seq=3))
    (tmp_path / "app-app.json").write_bytes(b"broken again")
    assert journal.app("app").seq == 1


def test_a_medium_that_lies_is_found_out_before_the_record_is_replaced(tmp_path: Path) -> None:
    Journal(tmp_path).save_app(r.AppSlots("app", seq=1))
    lying = Journal(tmp_path, FaultyDisk(0, "lies"))
    with pytest.raises(StorageError) as caught:
        lying.save_app(r.AppSlots("app", seq=2))
    assert caught.value.code == "journal.write"
    assert lying.app("app").seq == 1


def test_what_a_kill_left_behind_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "app-gate.json.new").write_bytes(b"half")
    (tmp_path / "app-..json").write_bytes(b"no app has this name")
    assert Journal(tmp_path).apps() == ()


@pytest.mark.parametrize(("number", "code"), [
    (errno.ENOSPC, "journal.full"), (errno.EDQUOT, "journal.full"), (errno.EROFS, "journal.write"),
])
def test_errors_name_the_file_and_the_remedy(tmp_path: Path, number: int, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = RealDisk()

    def put(path: Path, data: bytes) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(disk, "put", put)
    with pytest.raises(StorageError) as caught:
        Journal(tmp_path, disk).save_board(BoardRecord(1))
    assert caught.value.code == code
    assert "board.json" in caught.value.where
    assert caught.value.remedy


def test_a_lost_session_counter_goes_on_higher_than_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.board(lost_session=5).session == 0
    journal.save_board(BoardRecord(session=41))
    assert journal.board(lost_session=1_800_000_000).session == 41
    (tmp_path / "board.json").write_bytes(b"broken")
    assert journal.board(lost_session=1_800_000_000).session == 1_800_000_000


def test_records_are_private(tmp_path: Path) -> None:
    Journal(tmp_path / "journal").save_board(BoardRecord(1))
    assert (tmp_path / "journal" / "board.json").stat().st_mode & 0o777 == 0o600
