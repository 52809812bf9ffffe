"""The board becomes another one: another power mode, other clocks. What holds when, what is chosen anew, and what an app then runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slot_worlds import BUNDLES, CANDIDATE, World, parts_of, weights_of

from jetfleet_agent.power import read_conditions
from jetfleet_agent.supervisor.rechoice import Rechoice
from jetfleet_contract import slot_records as r
from jetfleet_contract.conditions import MAX_SETTLE_S, Conditions, settle, settling
from jetfleet_contract.errors import StorageError
from jetfleet_contract.policy import Candidate

FAST = Conditions("36.4.3", "MAXN_SUPER", 1728, 1020, "0-5")
SLOW = Conditions("36.4.3", "7W", 960, 408, "0-3")
OTHER = Candidate("int8", "openvino", "int8")
WEIGHTS = parts_of(BUNDLES["a"])[0]


# --- when a reading holds -----------------------------------------------------------------------------------


def test_another_mode_holds_only_after_it_has_stood() -> None:
    state = settling(FAST, 0.0)
    for at in range(5, 60, 5):
        state = settle(state, SLOW, float(at))
        assert state.stands == FAST
    assert settle(state, SLOW, 65.0).stands == SLOW


def test_a_blink_starts_the_wait_again() -> None:
    state = settling(FAST, 0.0)
    for at, reading in ((5, SLOW), (60, SLOW), (62, FAST), (64, SLOW), (120, SLOW)):
        state = settle(state, reading, float(at))
        assert state.stands == FAST
    assert settle(state, SLOW, 124.0).stands == SLOW


def test_a_board_that_swings_chooses_ever_more_seldom_and_calms_down() -> None:
    state, now, changes = settling(FAST, 0.0), 0.0, 0
    for _ in range(2000):  # half a day of two minutes here, two minutes there
        now += 20.0
        before = state.stands
        state = settle(state, SLOW if (now // 120) % 2 else FAST, now)
        changes += state.stands != before
    assert changes <= 4
    assert state.wait_s <= MAX_SETTLE_S


@given(st.lists(st.tuples(st.sampled_from([FAST, SLOW, Conditions()]), st.floats(0.0, 100.0)), max_size=60))
def test_what_holds_was_read_for_as_long_as_was_asked(readings: list[tuple[Conditions, float]]) -> None:
    state, now, since = settling(FAST, 0.0), 0.0, {FAST: 0.0}
    last = FAST
    for reading, step in readings:
        now += step
        if reading != last:
            since[reading], last = now, reading
        wait, before = state.wait_s, state.stands
        state = settle(state, reading, now)
        if state.stands != before:
            assert state.stands == reading
            assert now - since[reading] >= wait


# --- what is read -------------------------------------------------------------------------------------------


def _jetson(root: Path) -> Path:
    files = {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n", "var/lib/nvpmodel/status": "pmode:0002\n",
             "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=7W >\nCPU_A78_0 MAX_FREQ 960000\n",
             "sys/devices/system/cpu/online": "0-3\n", "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
             "sys/class/devfreq/17000000.gpu/max_freq": "408000000\n",
             "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 1020000000\n"}
    policy = "sys/devices/system/cpu/cpufreq/policy0/"
    files |= {policy + "scaling_cur_freq": "729600", policy + "scaling_max_freq": "960000", policy + "cpuinfo_max_freq": "1728000"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_jetsons_conditions_in_words(tmp_path: Path) -> None:
    found = read_conditions(_jetson(tmp_path))
    assert found == SLOW
    assert found.text == "L4T 36.4.3, power mode 7W, CPU up to 960 MHz, GPU up to 408 MHz, processors 0-3"


def test_a_machine_that_tells_nothing_never_changes(tmp_path: Path) -> None:
    assert read_conditions(tmp_path) == Conditions()
    assert Conditions().text == ""


# --- who is asked -------------------------------------------------------------------------------------------


class Board:
    """A clock, a reading, one app, and the choosing as it was asked for."""

    def __init__(self, under: Conditions | None = FAST, reading: Conditions = FAST) -> None:
        self.now, self.reading, self.under = 0.0, reading, under
        self.states = {"app": World().install().state}
        self.asked: list[tuple[str, str]] = []
        self.fails = False
        self.rechoice = Rechoice(lambda: self.reading, lambda _name, _version: self.under, lambda: self.states, self, lambda: self.now)

    def choose_again(self, app: str, slot: r.Slot, why: str) -> None:
        self.asked.append((app, why))
        if self.fails:
            raise StorageError("store.io", "the disk is gone")

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + max(self.rechoice.tick(), 0.1), end)


def test_another_power_mode_asks_once_with_both_in_words() -> None:
    board = Board()
    board.run(30)
    board.reading = SLOW
    board.run(200)
    assert board.asked == [("app", f"{SLOW.text}; before: {FAST.text}")]


def test_a_start_under_another_mode_asks_at_once() -> None:
    board = Board(under=FAST, reading=SLOW)
    board.run(6)
    assert len(board.asked) == 1


def test_what_nobody_noted_and_what_did_not_change_is_left_alone() -> None:
    for board in (Board(under=None, reading=SLOW), Board()):
        board.run(300)
        assert board.asked == []


def test_an_update_under_way_comes_first() -> None:
    board = Board(under=FAST, reading=SLOW)
    board.states["app"] = World().install().go("trial", 2, "b").state
    board.run(100)
    assert board.asked == []
    board.states["app"] = World().install().state
    board.run(10)
    assert len(board.asked) == 1


def test_a_failure_ends_nothing() -> None:
    board = Board(under=FAST, reading=SLOW)
    board.fails = True
    board.run(60)
    assert len(board.asked) == 1


# --- what the app does --------------------------------------------------------------------------------------


def test_another_candidate_of_the_same_bundle_runs_without_a_trial_and_is_reported() -> None:
    world = World().install()
    champion = world.state.champion
    assert champion is not None
    effects = world.send(r.Rechosen(champion.bundle, OTHER, WEIGHTS, "chosen anew: power mode 7W"))
    assert isinstance(effects[0], r.Persist)
    after = world.disk.champion
    assert after == msgspec.structs.replace(champion, candidate=OTHER, weights=WEIGHTS)
    assert world.reports[-1].candidate == OTHER.name
    assert (world.reports[-1].outcome, world.reports[-1].detail) == ("committed", "chosen anew: power mode 7W")
    assert world.send(r.Rechosen(champion.bundle, OTHER, WEIGHTS)) == ()
    assert world.send(r.Rechosen(champion.bundle, CANDIDATE, "7" * 64)) == (), "weights that are not kept here could not run"


@pytest.mark.parametrize("phase", [phase for phase in r.PHASES if phase != "idle"])
def test_under_an_update_and_for_another_bundle_it_is_late(phase: r.Phase) -> None:
    world = World().install().go(phase, 2, "b")
    before = world.state
    assert before.champion is not None
    assert world.send(r.Rechosen(before.champion.bundle, OTHER, WEIGHTS)) == ()
    assert world.state == before
    idle = World().install()
    assert idle.send(r.Rechosen("c" * 64, CANDIDATE, weights_of("c" * 64))) == ()
