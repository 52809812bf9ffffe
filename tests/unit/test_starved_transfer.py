"""Transfers on a machine that has no time for them: nobody is left waiting, and what is only late is not sent again. Virtual time."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starved_world import StarvedWorld
from transfer_world import CHUNK, World

from jetfleet_contract import charges, rounds, transfer
from jetfleet_contract.chunks import Bitmap

COUNT = 763  # 50 MB


@settings(max_examples=12)
@given(
    seed=st.integers(0, 1 << 30), devices=st.integers(1, 8), stall_s=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    loss=st.sampled_from([0.0, 0.1, 0.6, 0.9]), restarts=st.lists(st.floats(0.1, 15.0), max_size=3),
    reboots=st.lists(st.floats(0.1, 15.0), max_size=3),
)
def test_every_board_is_served_in_bounded_time_whatever_stalls_loses_and_restarts(
    seed: int, devices: int, stall_s: float, loss: float, restarts: list[float], reboots: list[float]
) -> None:
    """Losses and restarts end after 15 s, stalls of up to 8 s never do."""
    world = StarvedWorld(seed, 300, devices, stall_s=stall_s, loss=loss)
    for at in restarts:
        world.at(at, world.senders.clear)
    for at in reboots:
        world.at(at, partial(world.boot, "d0"))
    world.run(15.0)
    world.loss = 0.0
    assert world.run(300.0), {name: (board.phase, len(board.missing)) for name, board in world.boards.items()}


@pytest.mark.parametrize("seed", [1, 2])
def test_half_of_everything_lost_is_served_on_by_what_comes(seed: int) -> None:
    """It was refused hundreds of times and waited five minutes: progress did not count."""
    world = World(seed, COUNT, 4, 0.5, 0.0, 0.0, grant_every_s=0.008)
    assert world.run(120.0)


@pytest.mark.parametrize(("devices", "stall_s"), [(4, 0.1), (4, 0.5), (16, 0.1), (16, 0.5), (32, 0.5)])
def test_what_is_only_late_is_not_sent_again(devices: int, stall_s: float) -> None:
    """It was 1.4 copies for 16 boards and 2.4 for 32, by boards that asked late, were left behind or asked again for what was under way."""
    copies = []
    for seed in range(3):
        world = StarvedWorld(seed, COUNT, devices, stall_s=stall_s, expected=devices)
        assert world.run(120.0)
        assert not world.refused
        copies.append(world.copies)
    assert sum(copies) / len(copies) <= 1.1


def test_a_board_that_asks_while_its_chunks_are_under_way_is_reminded_and_told_the_truth() -> None:
    full = Bitmap.full(30)
    state, _ = rounds.step_sender(rounds.sender(30, 6), rounds.Wanted("a", transfer.Want(CHUNK, full)), 0.0)
    state, _ = rounds.step_sender(state, rounds.Grant(64), 0.1)
    state, _ = rounds.step_sender(state, rounds.Grant(0), 5.0)
    assert state.phase == "idle"  # it said nothing
    left = charges.allowance(state.charges, 30, "a", 5.0)
    state, effects = rounds.step_sender(state, rounds.Wanted("a", transfer.Want(CHUNK, full)), 5.0)
    (reminder,) = effects
    assert isinstance(reminder, rounds.Announce)
    assert (reminder.device, reminder.mark.round, state.phase) == ("a", state.round, "idle")
    answer = transfer.Want(CHUNK, Bitmap.of(30, [4]), reminder.mark.round, reminder.mark.mark)
    state, _ = rounds.step_sender(state, rounds.Wanted("a", answer), 5.1)
    state, effects = rounds.step_sender(state, rounds.Grant(64), 6.0)
    assert [effect.indices for effect in effects if isinstance(effect, rounds.Send)] == [(4,)]
    assert charges.allowance(state.charges, 30, "a", 5.0) >= left


def test_a_board_that_never_answers_the_reminder_is_believed() -> None:
    full = Bitmap.full(30)
    state, _ = rounds.step_sender(rounds.sender(30, 6), rounds.Wanted("a", transfer.Want(CHUNK, full)), 0.0)
    state, _ = rounds.step_sender(state, rounds.Grant(64), 0.1)
    state, _ = rounds.step_sender(state, rounds.Grant(0), 5.0)
    state, _ = rounds.step_sender(state, rounds.Wanted("a", transfer.Want(CHUNK, full)), 24.0)
    assert state.phase == "idle"
    state, _ = rounds.step_sender(state, rounds.Wanted("a", transfer.Want(CHUNK, full)), 26.0)
    assert state.phase == "gathering"


def test_who_lies_about_its_progress_gains_one_blob_in_all() -> None:
    """It says by turns that it has everything and that it has nothing."""
    count, sent = 100, 0
    state = rounds.sender(count, 6)
    for turn in range(1200):
        now = turn * 0.5
        said = Bitmap.full(count) if turn % 2 else Bitmap(count)
        state, _ = rounds.step_sender(state, rounds.Wanted("liar", transfer.Want(CHUNK, said)), now)
        state, effects = rounds.step_sender(state, rounds.Grant(1000), now + 0.4)
        sent += sum(len(effect.indices) for effect in effects if isinstance(effect, rounds.Send))
    assert count < sent <= count * (charges.BUDGET_BLOBS + 1 + 600 / charges.BUDGET_RENEW_S) + charges.BUDGET_SLACK + 1


def test_those_left_behind_alone_do_not_send_the_others_on_again_and_again() -> None:
    """Every turn of the host published one more move, and those that had not read the first were sent from lane to lane."""
    for seed in range(2):
        world = StarvedWorld(seed, 3000, 4, stall_s=0.5)
        assert world.run(300.0)
        assert world.lanes <= 12
