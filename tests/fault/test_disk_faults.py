"""A whole board on a disk that is full, broken, torn or read-only at any change: it keeps its model, names what is wrong and recovers.

The faults strike the `os` calls themselves, at every create, write, sync, rename, link, unlink and mkdir of store, journal, reports,
trust, identity and uploads, and at every opening of a file to read.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from board_lives import Board, Site
from disk_taps import DiskTap, Fault
from supervised_lives import APP, Shelf

from jetfleet_contract.errors import JetfleetError, StorageError

WIDTHS = {"ENOSPC": 3, "EDQUOT": 1, "EIO": 1, "EROFS": 25, "short": 1}
"""How many changes in a row fail: space comes back after a while, a remount takes longer, a bad sector is hit once."""
NAMED = {"store.write", "store.full", "store.io", "store.missing", "store.rotten", "journal.full", "journal.write", "upload.unreadable",
         "identity.unreadable"}
PARTS = ("blobs/", "journal/", "reports/", "trust/", "identity/", "uploads/")


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def site(memory: Path) -> Site:
    return Site(Shelf(memory / "shelf", ("1", "2", "3")))


class Trouble:
    """One board that lives through a fault. What it said is in `codes`; anything but a named error ends the test."""

    def __init__(self, folder: Path, site: Site, fault: Fault, *, reads: bool = False) -> None:
        self.folder = folder
        self.site = site
        self.fault = fault
        self.reads = reads
        self.codes: list[str] = []
        self.lives: list[Board] = []

    def live(self) -> Board:
        """Starts until one goes through: version 1, then 2, reports acknowledged, an upload given and taken."""
        with DiskTap(self.folder, before=self.fault, reads=self.reads):
            for _ in range(60):
                try:
                    return self._one_life()
                except JetfleetError as error:
                    self.codes.append(error.code)  # the agent ends with this error, and systemd starts it again
        raise AssertionError(f"no start went through: {Counter(self.codes)}")

    def _one_life(self) -> Board:
        board = Board(self.folder, self.site)
        self.lives.append(board)
        board.begin()
        if board.trust_is_old():
            for package in self.site.packages:
                self._insist(partial(board.trust.update, package, board.now()))
        for seq, version in ((1, "1"), (2, "2")):
            if seq >= board.record.seq:
                deployment = self.site.deployment(seq, version)
                self._insist(partial(board.accept, deployment))
                board.settle(seq)
        board.acknowledge()
        if not board.uploads.pending:
            self._insist(partial(board.uploads.add, b"a line\n" * 100, "logs", "agent.log", 4e9))
        for offer in board.uploads.pending:
            board.uploads.drop(offer)
        return board

    def outcomes(self, board: Board) -> set[tuple[int, str]]:
        """All outcomes that any start of this board has signed."""
        return {(report.seq, report.outcome) for life in self.lives for report in life.reports if report.outcome} | board.told()

    def _insist(self, work: Callable[[], object]) -> None:
        """As the supervisor does: what the disk did not take is tried again."""
        for _ in range(60):
            try:
                work()
            except StorageError as error:
                self.codes.append(error.code)
                continue
            return


def check(trouble: Trouble, board: Board, site: Site) -> None:
    """The board runs a verified model or says by name why not; once the disk is well, the next rollout is committed."""
    assert set(trouble.codes) <= NAMED, trouble.codes
    version = board.verify()
    last = board.updater.states[APP].last
    assert last is not None
    if last.outcome != "committed":
        assert last.outcome == "failed"
        assert last.code in NAMED, last.code
    assert version == ("2" if last.outcome == "committed" else "1" if (1, "committed") in trouble.outcomes(board) else "")
    healed = Board(trouble.folder, site)
    healed.follow(((site.deployment(3, "3"), "idle"),))
    assert healed.verify() == "3"
    assert (3, "committed") in healed.told()


def changes(memory: Path, site: Site, *, reads: bool = False) -> int:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        counting = Fault(0, "EIO", width=0)
        Trouble(Path(folder), site, counting, reads=reads).live()
        return counting.count


def strike(memory: Path, site: Site, how: str, stride: int, *, reads: bool = False) -> tuple[Counter[str], Counter[str]]:
    """Strike every `stride`-th change; how often which kind of change and which part of the board was struck."""
    kinds: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for at in range(0, changes(memory, site, reads=reads), stride):
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            trouble = Trouble(Path(folder), site, Fault(at, how, WIDTHS[how]), reads=reads)
            try:
                board = trouble.live()
                check(trouble, board, site)
            except AssertionError as error:
                raise AssertionError(f"{how} at change {at}, {trouble.fault.struck[:1]}: {error}") from error
            kinds.update(op.kind for op in trouble.fault.struck[:1])
            parts.update(part for op in trouble.fault.struck[:1] for part in PARTS if (op.other or op.path).startswith(part))
    return kinds, parts


@pytest.mark.parametrize("how", sorted(WIDTHS))
def test_a_fault_here_and_there_delays_and_loses_nothing(memory: Path, site: Site, how: str) -> None:
    kinds, _ = strike(memory, site, how, 23)
    assert sum(kinds.values()) > 8


def test_a_file_that_cannot_be_opened_here_and_there(memory: Path, site: Site) -> None:
    kinds, _ = strike(memory, site, "EIO", 5, reads=True)
    assert kinds["read"] > 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", sorted(WIDTHS))
def test_a_fault_at_any_change_delays_and_loses_nothing(memory: Path, site: Site, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    kinds, parts = strike(memory, site, how, 1, reads=how == "EIO")
    assert set(parts) == set(PARTS)
    with capsys.disabled():
        print(f"\ndisk faults, {how} for {WIDTHS[how]} changes: {sum(kinds.values())} cases, 0 boards lost; "
              f"by call: {dict(kinds)}; by part: {dict(parts)}")


def test_a_disk_that_takes_seven_bytes_at_a_time_is_only_slow(memory: Path, site: Site) -> None:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        trouble = Trouble(Path(folder), site, Fault(0, "slow", 10**9))
        board = trouble.live()
        assert (board.verify(), trouble.codes) == ("2", [])
