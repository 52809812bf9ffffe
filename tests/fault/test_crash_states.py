"""A power cut at any moment of a board's life, in every state that the file system may be left in: promises are kept, and it goes on.

Kills lose nothing that was written; a power cut loses what was not synced, and that is what these states are. What must hold in each:

1. what was promised before the cut is there: the app's state, the accepted deployment, the session, the key, trusted versions, outcomes;
2. nothing under a final name is wrong: no blob with other bytes, no record that is half old and half new;
3. the board starts, and ends with the committed model that was rolled out, verified byte for byte, and the host is told.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from board_lives import Board, Site
from delta_shelves import DeltaShelf
from disk_taps import DiskTap, Op
from fault.crash_states import PowerCut, Recorder, State, digest, materialise
from supervised_lives import APP, Shelf

from jetfleet_agent.supervisor.identity import Identity
from jetfleet_agent.supervisor.journal import BoardRecord, Journal
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract import slot_records as r
from jetfleet_contract.slots import blobs_in_use

Script = Callable[[Board, Site], None]


class Promises:
    """What a life has been told is durable, by the number of changes that were made before."""

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self.made: list[tuple[int, str, Any]] = []

    def note(self, kind: str, value: Any) -> None:
        self.made.append((self._count(), kind, value))

    def last(self, kind: str, upto: int) -> Any:
        return next((value for count, what, value in reversed(self.made) if what == kind and count <= upto), None)

    def next(self, kind: str, after: int) -> Any:
        return next((value for count, what, value in self.made if what == kind and count > after), None)


class Recorded(Board):
    """A board that notes each promise that its disk gave it."""

    def __init__(self, folder: Path, site: Site, promises: Promises, **options: Any) -> None:
        super().__init__(folder, site, **options)
        promises.note("identity", self.identity.public_hex)
        promises.note("board", self.record)
        self._noted(self.journal, "save_app", promises, "app")
        self._noted(self.records, "save_board", promises, "board")
        self._noted(self.trust, "update", promises, "trust", lambda *_: self.trust.versions)
        self._noted(self.outbox, "add", promises, "outcome", lambda _app, progress, _at: (progress.seq, progress.outcome))

    @staticmethod
    def _noted(part: Any, name: str, promises: Promises, kind: str, value: Callable[..., Any] = lambda *given: given[0]) -> None:
        real = getattr(part, name)

        def call(*given: Any) -> Any:
            outcome = real(*given)
            promises.note(kind, value(*given))
            return outcome

        setattr(part, name, call)


def update(board: Board, site: Site) -> None:
    board.follow(((site.deployment(1, "1"), "idle"), (site.deployment(2, "2"), "idle")))
    board.acknowledge()


def rollback(board: Board, site: Site) -> None:
    board.crashing = {site.shelf.bundles["2"]}
    update(board, site)


LIVES: dict[str, tuple[Script, str, set[str]]] = {
    "delta": (update, "2", {"committed"}),
    "update": (update, "2", {"committed"}),
    "rollback": (rollback, "1", {"rolled_back", "refused"}),
}


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def sites(memory: Path) -> dict[str, Site]:
    """One where version 2 comes as a delta, and one for the rest."""
    (memory / "deltas").mkdir()
    plain = Site(Shelf(memory / "shelf", ("1", "2")))
    return {"delta": Site(DeltaShelf(memory / "deltas")), "update": plain, "rollback": plain}


@pytest.fixture(scope="module")
def site(sites: dict[str, Site]) -> Site:
    return sites["update"]


def record(memory: Path, site: Site, script: Script) -> tuple[list[Op], Promises]:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        recorder = Recorder(Path(folder))
        promises = Promises(lambda: len(recorder.ops))
        with DiskTap(Path(folder), after=recorder):
            script(Recorded(Path(folder), site, promises), site)
        return recorder.ops, promises


def check_promises(folder: Path, site: Site, promises: Promises, cut: int) -> None:
    """Rules 1 and 2 of the module, before anything was repaired."""
    journal = Journal(folder / "journal")
    allowed = [promises.last("app", cut) or r.AppSlots(APP), promises.next("app", cut)]
    state = journal.app(APP)
    assert state in allowed, f"the app is {state.phase} of {state.seq}, which was not promised"
    records = [promises.last("board", cut) or BoardRecord(), promises.next("board", cut)]
    assert journal.board() in records, "the board's record went back"
    identity = promises.last("identity", cut)
    if identity is not None:
        assert Identity.load_or_create(folder / "identity").public_hex == identity, "the board lost its key"
    versions = promises.last("trust", cut)
    if versions is not None:
        found = TrustStore(folder / "trust", site.repository.roots[0]).versions
        assert all(found.get(role, 0) >= version for role, version in versions.items()), "trusted metadata went back"
    if not (folder / "blobs").is_dir():
        assert not blobs_in_use(state)
        return
    for path in (folder / "blobs").iterdir():
        if path.suffix != ".part":
            assert sha256(path.read_bytes()).hexdigest() == path.name, "a blob has its name and other bytes"
    if state.champion is not None:
        assert all((folder / "blobs" / blob).is_file() for blob in state.champion.blobs), "a committed model lost a file"


def check_outcomes(board: Board, promises: Promises, cut: int) -> None:
    made = {value for count, kind, value in promises.made if kind == "outcome" and count <= cut and value[1]}
    lost = made - board.told() - {(1, "committed")}  # of an app the host is told the last one again; the first may be acknowledged
    assert not lost, f"the host is never told of {lost}"


def survive(state: State, memory: Path, site: Site, promises: Promises, cut: int, life: str) -> str:
    """Rules 1 to 3; how the board ended."""
    script, version, outcomes = LIVES[life]
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        materialise(state, Path(folder))
        check_promises(Path(folder), site, promises, cut)
        board = Board(Path(folder), site)
        script(board, site)
        check_outcomes(board, promises, cut)
        assert board.verify() == version
        last = board.updater.states[APP].last
        assert last is not None
        assert last.outcome in outcomes
        return last.outcome


def cut_power(memory: Path, site: Site, life: str, stride: int) -> tuple[int, int, Counter[str]]:
    """Cut the power before every `stride`-th change. Changes, distinct states, and how the boards ended."""
    ops, promises = record(memory, site, LIVES[life][0])
    disk, seen, ends = PowerCut(), set(), Counter[str]()
    for cut, op in enumerate([*ops, None]):
        for state in disk.states() if cut % stride == 0 else ():
            mark = digest(state) + repr(promises.last("app", cut)).encode() + repr(promises.last("board", cut)).encode()
            if mark in seen:
                continue
            seen.add(mark)
            try:
                ends[survive(state, memory, site, promises, cut, life)] += 1
            except AssertionError as error:
                raise AssertionError(f"power cut before change {cut} of {len(ops)}, {op}, after {ops[max(cut - 3, 0):cut]}, with "
                                     f"{ {path: None if data is None else len(data) for path, data in state.items()} }: {error}") from error
        if op is not None:
            disk.apply(op)
    return len(ops), len(seen), ends


@pytest.mark.parametrize("life", sorted(LIVES))
def test_a_power_cut_here_and_there_loses_nothing_that_was_promised(memory: Path, sites: dict[str, Site], life: str) -> None:
    _, states, _ = cut_power(memory, sites[life], life, 11)
    assert states > 40


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("life", sorted(LIVES))
def test_a_power_cut_at_any_change_loses_nothing_that_was_promised(memory: Path, sites: dict[str, Site], life: str,
                                                                   capsys: pytest.CaptureFixture[str]) -> None:
    changes, states, ends = cut_power(memory, sites[life], life, 1)
    with capsys.disabled():
        print(f"\npower cuts, {life}: {changes} changes of the disk, {states} distinct states after a cut, 0 boards lost; "
              f"ended {dict(ends)}")


# --- the model itself: it must find what is known to be wrong ----------------------------------------------------


def replayed(ops: list[Op]) -> list[State]:
    disk = PowerCut()
    for op in ops:
        disk.apply(op)
    return list(disk.states())


def test_what_was_synced_with_its_folder_is_in_every_state() -> None:
    ops = [Op("create", "new"), Op("write", "new", data=b"body"), Op("sync", "new", data=b"body"), Op("rename", "new", "name"),
           Op("sync folder", ".")]
    assert replayed(ops) == [{"name": b"body"}]


def test_a_rename_without_a_sync_of_the_file_may_leave_an_empty_or_torn_one() -> None:
    body = bytes(range(256)) * 40
    ops = [Op("create", "name"), Op("sync", "name", data=b"old"), Op("sync folder", "."), Op("create", "new"),
           Op("write", "new", data=body), Op("rename", "new", "name"), Op("sync folder", ".")]
    contents = {state["name"] for state in replayed(ops)}
    assert {b"", body, bytes(len(body)), body[:512], body[:4096]} <= contents
    assert b"old" not in contents


def test_a_rename_without_a_sync_of_the_folder_may_be_lost_and_either_name_may_be_there() -> None:
    ops = [Op("create", "name"), Op("sync", "name", data=b"old"), Op("sync folder", "."), Op("create", "new"),
           Op("write", "new", data=b"body"), Op("sync", "new", data=b"body"), Op("rename", "new", "name")]
    assert {state["name"] for state in replayed(ops)} == {b"old", b"body"}


def test_what_lies_in_a_folder_that_was_never_synced_may_be_gone() -> None:
    ops = [Op("mkdir", "a"), Op("create", "a/b"), Op("sync", "a/b", data=b"x"), Op("sync folder", "a")]
    assert replayed(ops) == [{}, {"a": None, "a/b": b"x"}]


@pytest.mark.parametrize("broken", ["file", "folder"])
def test_a_journal_that_forgets_a_sync_is_found_out(memory: Path, site: Site, broken: str) -> None:
    """The states are worth something: without one kind of fsync of the shipped code they show a broken promise."""
    ops, promises = record(memory, site, update)
    kept = [op for op in ops if op.kind != ("sync" if broken == "file" else "sync folder") or "journal" not in op.path]
    assert len(kept) < len(ops)
    disk = PowerCut()
    for op in kept:
        disk.apply(op)
    caught = 0
    for state in disk.states():
        with tempfile.TemporaryDirectory(dir=memory) as folder:
            materialise(state, Path(folder))
            try:
                check_promises(Path(folder), site, promises, len(ops))
            except AssertionError:
                caught += 1
    assert caught
