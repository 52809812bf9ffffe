"""A real file system that is really full, and one that is really remounted read-only, under a whole board."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from board_lives import Board, Site
from supervised_lives import APP, Shelf

from jetfleet_contract.errors import StorageError

MEBIBYTE = 1 << 20


def missing(what: str) -> None:
    """Skip by name; in CI fail, so that nobody believes this was tested."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must be able to test this: {what}")
    pytest.skip(what)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 40 MiB."""
    if os.geteuid() != 0:
        missing("mounting a small tmpfs needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(mount)], check=False, capture_output=True).returncode:
        missing("this machine does not let root mount a tmpfs")
    yield mount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(Shelf(tmp_path / "shelf", ("1", "2", "3")))


def installed(disk: Path, site: Site) -> Board:
    board = Board(disk / "state", site)
    board.follow(((site.deployment(1, "1"), "idle"),))
    assert board.verify() == "1"
    return board


def fill(ballast: Path) -> None:
    """Write until the file system takes nothing more."""
    with ballast.open("wb", buffering=0) as file:
        for size in (MEBIBYTE, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017


def test_a_file_system_without_room_for_blobs_keeps_the_model_and_takes_the_next_rollout_when_there_is_room(disk: Path, site: Site) -> None:
    board = installed(disk, site)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(24 * MEBIBYTE))  # room for records, less than the reserve for blobs
    board.accept(site.deployment(2, "2"))
    board.settle(2)
    last = board.updater.states[APP].last
    assert last is not None
    assert (last.outcome, last.code, board.verify()) == ("failed", "store.full", "1")
    ballast.unlink()
    board.accept(site.deployment(3, "2"))
    board.settle(3)
    assert board.verify() == "2"


def test_a_file_system_without_one_free_byte_stops_the_update_and_not_the_model(disk: Path, site: Site) -> None:
    board = installed(disk, site)
    ballast = disk / "ballast"
    fill(ballast)
    with pytest.raises(StorageError) as caught:
        board.accept(site.deployment(2, "2"))
    assert caught.value.code == "journal.full"
    restarted = Board(disk / "state", site)
    restarted.begin()
    assert (restarted.verify(), restarted.record.seq) == ("1", 1)
    ballast.unlink()
    restarted.accept(site.deployment(2, "2"))
    restarted.settle(2)
    assert restarted.verify() == "2"


def test_a_file_system_that_fills_up_in_the_middle_of_a_trial_rolls_on_when_there_is_room(disk: Path, site: Site) -> None:
    board = installed(disk, site)
    board.accept(site.deployment(2, "2"))
    board.settle(2, until="trial")
    ballast = disk / "ballast"
    fill(ballast)
    for _ in range(30):
        board._work_once()
        board.check()
    assert board.running == site.shelf.bundles["1"], "a switch that cannot be remembered does not happen"
    assert board.updater.storage_errors > 0
    ballast.unlink()
    board.settle(2)
    assert board.verify() == "2"


def test_a_file_system_that_was_remounted_read_only_still_starts_the_model(disk: Path, site: Site) -> None:
    installed(disk, site)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    board = Board(disk / "state", site)
    board.begin()
    assert board.verify() == "1"
    with pytest.raises(StorageError) as caught:
        board.accept(site.deployment(2, "2"))
    assert (caught.value.code, "Read-only file system" in caught.value.what) == ("journal.write", True)
    board._work_once()
    assert board.verify() == "1"
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    board.accept(site.deployment(2, "2"))
    board.settle(2)
    assert board.verify() == "2"
