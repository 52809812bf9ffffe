"""A wall clock that jumps to 1970 and ten years ahead in the middle of an update, and leases over reboots: only elapsed time counts."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import msgspec
import pytest
from board_lives import Board, Site
from brokers import until
from signed_repository import DAY, NOW
from supervised_lives import APP, Life, Shelf
from supervisor_rig import DEVICE, Rig

from jetfleet_contract import topics
from jetfleet_contract.errors import UntrustedError
from jetfleet_contract.messages import Deployment, Instant, TrialPolicy, encode

YEARS = 3650 * DAY
JUMPS = (0.0, -1.8e9, YEARS, -YEARS, 1.0)


class JumpingRig(Rig):
    """Each reading of its wall clock is somewhere else; the clock since boot is right."""

    def __init__(self, folder: Path, shelf: Shelf) -> None:
        self._jumps = itertools.cycle(JUMPS)
        super().__init__(folder, shelf)

    def now(self) -> Instant:
        return Instant(time.monotonic(), "boot", time.time() + next(self._jumps), wall_trusted=False)


def test_a_whole_supervisor_updates_while_the_wall_clock_jumps(tmp_path: Path) -> None:
    plans = {"1": '{"version": 1}', "2": '{"version": 2}'}
    shelf = Shelf(tmp_path / "shelf", ("1", "2"), plans, keep_s=0.3)
    rig = JumpingRig(tmp_path / "state", shelf)
    try:
        rig.trust.ready = True
        rig.up()
        for seq, version in ((1, "1"), (2, "2")):
            rig.inbox.message(topics.desired(DEVICE), encode(shelf.deployment(seq, version)))
            until(lambda: any(r.seq == seq and r.outcome == "committed" for r in rig.reports()), f"version {version}", 60)  # noqa: B023
        until(lambda: rig.running == shelf.bundles["2"], "the second model to run", 60)
        assert not rig.supervisor._refused
    finally:
        rig.stop()


class DriftingBoard(Board):
    """A board whose wall clock shows something else from now on."""

    wall = 0.0
    trusted = False

    def now(self) -> Instant:
        return Instant(self.mono, self.boot, self.wall or NOW + self.mono, self.trusted)


@pytest.mark.parametrize("wall", [1.0, NOW - YEARS, NOW + YEARS])
@pytest.mark.parametrize("phase", ["fetching", "trial", "keeping"])
def test_an_untrusted_clock_that_jumps_in_the_middle_changes_nothing(tmp_path: Path, wall: float, phase: str) -> None:
    site = Site(Shelf(tmp_path / "shelf", ("1", "2")))
    board = DriftingBoard(tmp_path / "state", site)
    board.follow(((site.deployment(1, "1"), "idle"),))
    board.accept(site.deployment(2, "2"))
    board.settle(2, until=phase)
    board.wall = wall
    board.settle(2)
    assert board.verify() == "2"
    again = DriftingBoard(tmp_path / "state", site)
    again.wall = wall
    again.follow(((site.deployment(3, "1", downgrade=True), "idle"),))
    assert again.verify() == "1"


def test_a_trusted_clock_ten_years_ahead_stops_new_deployments_and_not_the_one_under_way(tmp_path: Path) -> None:
    site = Site(Shelf(tmp_path / "shelf", ("1", "2")))
    board = DriftingBoard(tmp_path / "state", site)
    board.follow(((site.deployment(1, "1"), "idle"),))
    board.accept(site.deployment(2, "2"))
    board.wall, board.trusted = NOW + YEARS, True
    board.settle(2)
    assert board.verify() == "2"
    with pytest.raises(UntrustedError) as caught:
        board.accept(site.deployment(3, "1", downgrade=True))
    assert caught.value.code == "trust.expired"
    board.wall, board.trusted = 0.0, False
    board.accept(site.deployment(3, "1", downgrade=True))
    board.settle(3)
    assert board.verify() == "1"


# --- leases ------------------------------------------------------------------------------------------------------


def leased(shelf: Shelf, seq: int, version: str) -> Deployment:
    made = shelf.deployment(seq, version)
    spec = msgspec.structs.replace(made.apps[0], trial=TrialPolicy(frames=10, lease_s=600, keep_s=30))
    return msgspec.structs.replace(made, apps=(spec,))


def start(folder: Path, shelf: Shelf, boot: str) -> Life:
    """Another boot: the clock since boot begins anew, at any number."""
    life = Life(folder, shelf)
    life.boot, life.mono = boot, 5.0
    life.updater.resume()
    return life


def pass_time(life: Life, seconds: float) -> None:
    """Nothing answers, time passes."""
    end = life.mono + seconds
    while life.mono < end:
        life.mono = min(life.mono + max(life.updater.tick(), 1.0), end)
    life.updater.tick()


def test_a_lease_is_spent_over_reboots(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", ("1", "2"))
    life = Life(tmp_path / "board", shelf)
    life.live((leased(shelf, 1, "1"),))
    life.updater.deploy(leased(shelf, 2, "2"))
    life.settle(2, until="trial")
    pass_time(life, 300)
    second = start(tmp_path / "board", shelf, "second boot")
    state = second.updater.states[APP]
    assert (state.phase, state.spent_s >= 240) == ("trial", True), "at most one checkpoint is lost"
    pass_time(second, 200)
    assert second.updater.states[APP].phase == "trial"
    pass_time(second, 161)
    last = second.updater.states[APP].last
    assert last is not None
    assert (last.outcome, last.code, second.running) == ("failed", "trial.lease", shelf.bundles["1"])


def test_time_that_the_board_was_off_spends_no_lease(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", ("1", "2"))
    life = Life(tmp_path / "board", shelf)
    life.live((leased(shelf, 1, "1"),))
    life.updater.deploy(leased(shelf, 2, "2"))
    life.settle(2, until="trial")
    off = Life(tmp_path / "board", shelf)
    off.boot, off.mono = "second boot", 1e7
    off.updater.resume()
    off.settle(2)
    last = off.updater.states[APP].last
    assert last is not None
    assert last.outcome == "committed"


def test_at_the_end_of_keeping_the_board_commits_with_no_word_from_anybody(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", ("1", "2"))
    life = Life(tmp_path / "board", shelf)
    life.live((leased(shelf, 1, "1"),))
    life.updater.deploy(leased(shelf, 2, "2"))
    life.settle(2, until="keeping")
    while life.pending:
        life._work_once()
    pass_time(life, 31)
    state = life.updater.states[APP]
    assert state.champion is not None
    assert (state.phase, state.champion.version) == ("idle", "2")
    assert len(life.outbox) > 0, "nobody has acknowledged anything"
