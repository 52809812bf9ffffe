"""The blob store under full disks, torn writes, bit rot and kills: nothing wrong ever gets a name, nothing right is lost."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_contract.chunks import MIN_CHUNK_BYTES, ChunkTable, open_table, table_of
from jetfleet_contract.errors import MalformedError, StorageError, UntrustedError

SIZE = MIN_CHUNK_BYTES
DATA = random.Random(4).randbytes(SIZE * 20 + 99)
PARTS = [DATA[at : at + SIZE] for at in range(0, len(DATA), SIZE)]
TABLED = table_of(PARTS, SIZE)
BLOB = TABLED.blob
TABLE: ChunkTable = open_table(BLOB, TABLED.info, [TABLED.pages[0][1]])


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def names(store: BlobStore) -> list[str]:
    return sorted(entry.name for entry in store.folder.iterdir())


def fill(store: BlobStore, indices: range) -> None:
    with store.open_partial(BLOB, TABLE) as partial:
        for index in indices:
            assert partial.write(index, PARTS[index])


def test_chunks_in_any_order_make_the_blob(store: BlobStore) -> None:
    order = list(range(len(PARTS)))
    random.Random(1).shuffle(order)
    with store.open_partial(BLOB, TABLE) as partial:
        for index in order:
            assert not store.has(BLOB)
            assert partial.write(index, memoryview(PARTS[index]))
        path = partial.finish()
    assert path == store.path(BLOB)
    assert path.read_bytes() == DATA
    assert names(store) == [BLOB]


def test_a_wrong_chunk_is_not_written(store: BlobStore) -> None:
    with store.open_partial(BLOB, TABLE) as partial:
        assert not partial.write(3, PARTS[4])
        assert not partial.write(3, PARTS[3][:-1])
        assert not partial.write(999, PARTS[3])
    assert not any(store.part(BLOB).read_bytes())


def test_a_restart_finds_by_hashing_what_is_there(store: BlobStore) -> None:
    fill(store, range(3, 9))
    with store.open_partial(BLOB, TABLE) as partial:
        assert set(range(len(PARTS))) - set(partial.missing()) == set(range(3, 9))


def test_a_torn_chunk_is_missing_again(store: BlobStore) -> None:
    fill(store, range(5))
    with store.part(BLOB).open("r+b") as file:
        file.seek(SIZE * 2 + 7)
        file.write(b"torn")
    with store.open_partial(BLOB, TABLE) as partial:
        assert 2 in set(partial.missing())
        assert 1 not in set(partial.missing())


def test_rot_before_the_end_is_caught_by_reading_back(store: BlobStore) -> None:
    fill(store, range(len(PARTS)))
    with store.open_partial(BLOB, TABLE) as partial:
        with store.part(BLOB).open("r+b") as file:
            file.seek(SIZE * 7)
            file.write(b"\xff\x00\xff")
        with pytest.raises(UntrustedError, match=r"blob\.digest"):
            partial.finish()
        assert not store.has(BLOB)
        assert list(partial.missing()) == [7]
        assert partial.write(7, PARTS[7])
        partial.finish()
    assert store.path(BLOB).read_bytes() == DATA


def test_settling_on_the_way_gives_the_same_blob_and_still_catches_rot(store: BlobStore) -> None:
    with store.open_partial(BLOB, TABLE) as partial:
        for index in range(len(PARTS)):
            partial.write(index, PARTS[index])
            if index in (4, 11):
                partial.settle(SIZE * (index + 1))
        with store.part(BLOB).open("r+b") as file:
            file.seek(SIZE * 15)
            file.write(b"rot")
        with pytest.raises(UntrustedError):
            partial.finish()
        assert list(partial.missing()) == [15]
        partial.write(15, PARTS[15])
        partial.settle(SIZE * 16)
        assert partial.finish().read_bytes() == DATA


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_before_the_download_leaves_nothing_behind(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_bytes(table_of([b"old"]).blob, b"old")
    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(StorageError) as caught:
        store.open_partial(BLOB, TABLE)
    assert caught.value.code == "store.full"
    assert caught.value.remedy
    assert names(store) == [table_of([b"old"]).blob]


def test_a_disk_that_fills_up_keeps_what_was_written(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    with store.open_partial(BLOB, TABLE) as partial:
        for index in range(6):
            partial.write(index, PARTS[index])
        monkeypatch.setattr(os, "pwrite", no_space)
        with pytest.raises(StorageError) as caught:
            partial.write(6, PARTS[6])
    assert caught.value.code == "store.full"
    monkeypatch.setattr(os, "pwrite", real)
    with store.open_partial(BLOB, TABLE) as partial:
        assert list(partial.missing()) == list(range(6, len(PARTS)))


@pytest.mark.parametrize("call", ["fsync", "preadv"])
def test_a_disk_that_fails_while_finishing_gives_no_name(store: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    fill(store, range(len(PARTS)))

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with store.open_partial(BLOB, TABLE) as partial:
        monkeypatch.setattr(os, call, broken)
        with pytest.raises(StorageError) as caught:
            partial.finish()
    assert caught.value.code == "store.io"
    assert not store.has(BLOB)


def test_short_writes_are_continued(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data[:100]), at))
    fill(store, range(2))
    assert store.part(BLOB).read_bytes()[: SIZE * 2] == DATA[: SIZE * 2]


def test_space_is_asked_for_with_a_reserve(store: BlobStore) -> None:
    store.check_space(1)
    with pytest.raises(StorageError) as caught:
        store.check_space(1 << 62)
    assert caught.value.code == "store.full"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_really_full_file_system(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        small = BlobStore(mount)
        small.check_space = lambda bytes_needed: None  # type: ignore[method-assign]  # the reserve alone is larger than this disk
        kept = small.put_bytes(table_of([b"kept"]).blob, b"kept")
        big = [os.urandom(65536) for _ in range(8)]
        tabled = table_of(big)
        with pytest.raises(StorageError) as caught:
            small.open_partial(tabled.blob, open_table(tabled.blob, tabled.info, [tabled.pages[0][1]]))
        assert caught.value.code == "store.full"
        assert kept.read_bytes() == b"kept"
        assert names(small) == [kept.name]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


WRITER = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from test_store import BLOB, PARTS, TABLE
    from jetfleet_agent.supervisor import store as module

    calls, last = 0, int(sys.argv[2])
    def counted(name):
        real = getattr(os, name)
        def call(*args):
            global calls
            calls += 1
            if calls == last and name == "pwrite":
                real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            if calls == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)
        setattr(module.os, name, call)
    store = module.BlobStore(Path(sys.argv[1]))
    for name in ("posix_fallocate", "pwrite", "fsync"):
        counted(name)
    with store.open_partial(BLOB, TABLE) as partial:
        for index in partial.missing():
            partial.write(index, PARTS[index])
        partial.finish()
"""


@pytest.mark.parametrize("last", [1, 2, 9, 22, 23, 24])
def test_killed_at_any_call_it_resumes(tmp_path: Path, last: int) -> None:
    """Calls are: 1 fallocate, 2..22 pwrite, 23 fsync of the file, 24 fsync of the folder (after the rename)."""
    here = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), str(last), here], check=False)
    assert killed.returncode == -signal.SIGKILL
    store = BlobStore(tmp_path)
    assert store.has(BLOB) == (last == 24)
    if not store.has(BLOB):
        with store.open_partial(BLOB, TABLE) as partial:
            lacks = list(partial.missing())
            assert lacks == list(range(max(0, last - 2), len(PARTS)))
            for index in lacks:
                partial.write(index, PARTS[index])
            partial.finish()
    assert store.path(BLOB).read_bytes() == DATA


def test_small_blobs_and_empty_ones(store: BlobStore) -> None:
    for data in (b"", b"x", b"y" * 100_000):
        blob = table_of([data[at : at + 65536] for at in range(0, len(data), 65536)]).blob
        assert store.put_bytes(blob, data).read_bytes() == data
        assert store.read(blob, 1 << 20) == data
    with pytest.raises(UntrustedError):
        store.put_bytes("0" * 64, b"x")
    with pytest.raises(StorageError) as caught:
        store.read(blob, 10)
    assert caught.value.code == "store.large"


def test_a_blob_that_rotted_is_dropped_when_it_is_read(store: BlobStore) -> None:
    blob = table_of([b"page"]).blob
    store.put_bytes(blob, b"page").write_bytes(b"pagE")
    with pytest.raises(UntrustedError):
        store.read(blob, 100)
    assert not store.has(blob)


def test_sweeping_keeps_what_is_named(store: BlobStore) -> None:
    kept, gone = (store.put_bytes(table_of([text]).blob, text).name for text in (b"kept", b"gone"))
    fill(store, range(2))
    assert set(store.remove_except({kept})) == {gone, BLOB}
    assert names(store) == [kept]


def test_sweeping_goes_on_past_what_cannot_be_removed_and_leaves_strange_names(store: BlobStore) -> None:
    gone = store.put_bytes(table_of([b"gone"]).blob, b"gone").name
    (store.folder / ("0" * 64)).mkdir()
    (store.folder / "lost+found").mkdir()
    (store.folder / "notes.txt").write_text("somebody's")
    assert store.remove_except(set()) == (gone,)
    assert names(store) == ["0" * 64, "lost+found", "notes.txt"]


# --- rot in a blob that was finished long ago --------------------------------------------------------------


def finished(store: BlobStore) -> Path:
    fill(store, range(len(PARTS)))
    with store.open_partial(BLOB, TABLE) as partial:
        return partial.finish()


def rot(path: Path, offset: int) -> None:
    """Change bytes as a bad cell does: neither size nor time of the file shows it."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff\x00\xff\x00")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_rot_is_found_when_the_blob_is_needed_and_only_damaged_chunks_are_missing(store: BlobStore, tmp_path: Path) -> None:
    rot(finished(store), SIZE * 7 + 3)
    later = BlobStore(tmp_path)
    with pytest.raises(UntrustedError) as caught:
        later.verified(BLOB)
    assert (caught.value.code, BLOB in caught.value.what) == ("store.rotten", True)
    assert not later.has(BLOB)
    assert later.needed(BLOB, len(DATA)) == 0, "its space is still reserved"
    with later.open_partial(BLOB, TABLE) as partial:
        assert list(partial.missing()) == [7]
        partial.write(7, PARTS[7])
        assert partial.finish().read_bytes() == DATA
    assert later.verified(BLOB).read_bytes() == DATA


def test_rot_after_the_start_is_found_once_there_is_a_doubt(store: BlobStore) -> None:
    path = finished(store)
    rot(path, 5)
    assert store.sound(BLOB), "read once a start, not before each use"
    store.doubt(BLOB)
    assert not store.sound(BLOB)
    assert not store.has(BLOB)


def test_a_blob_that_was_written_to_or_cut_is_found_without_a_doubt(store: BlobStore) -> None:
    path = finished(store)
    os.truncate(path, SIZE * 3)
    assert not store.sound(BLOB)
    with store.open_partial(BLOB, TABLE) as partial:
        assert list(partial.missing()) == list(range(3, len(PARTS)))


def test_a_sector_that_cannot_be_read_is_rot(store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(store)
    later = BlobStore(tmp_path)

    def unreadable(_path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("jetfleet_agent.supervisor.store._digest_of", unreadable)
    with pytest.raises(UntrustedError, match=r"store\.rotten"):
        later.verified(BLOB)


def test_rot_on_a_disk_that_takes_no_change_is_named_again_each_time(store: BlobStore, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    rot(finished(store), 5)
    later = BlobStore(tmp_path)

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "replace", read_only)
    for _ in range(2):
        assert not later.sound(BLOB)
        assert later.has(BLOB)


def test_what_is_still_needed_counts_parts_as_had(store: BlobStore) -> None:
    assert store.needed(BLOB, len(DATA)) == len(DATA)
    fill(store, range(2))
    assert store.needed(BLOB, len(DATA)) == 0, "reserved when the part was opened"
    finished(store)
    assert store.needed(BLOB, len(DATA)) == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "A" * 64, "", "0" * 63])
def test_no_name_from_the_network_reaches_the_file_system(store: BlobStore, name: str) -> None:
    with pytest.raises(MalformedError):
        store.has(name)
    with pytest.raises(MalformedError):
        store.open_partial(name, TABLE)


def test_a_symlink_in_the_place_of_a_part_is_not_followed(store: BlobStore, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    store.part(BLOB).symlink_to(victim)
    with pytest.raises(StorageError):
        store.open_partial(BLOB, TABLE)
    assert victim.read_bytes() == b"precious"


def test_a_missing_blob_and_a_folder_that_cannot_be(tmp_path: Path, store: BlobStore) -> None:
    with pytest.raises(StorageError) as caught:
        store.path(BLOB)
    assert caught.value.code == "store.missing"
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        BlobStore(tmp_path / "file")
    assert caught.value.code == "store.io"
