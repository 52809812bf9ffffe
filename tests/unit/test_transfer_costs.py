"""What a transfer costs the host and each board: over the pure machines, in virtual time, by seed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starved_world import BROKER_QUEUE
from transfer_world import CHUNK, World

from jetfleet_contract import pacing, rounds, transfer, wanters
from jetfleet_contract.chunks import Bitmap

COUNT = 800


def ideal_copies(loss: float, devices: int) -> float:
    """Copies of each chunk that a sender needs who always knows what everybody lacks: the expected maximum of `devices` geometric
    variables, sum over k >= 0 of ``1 - (1 - loss^k)^devices``."""
    return sum(1.0 - (1.0 - loss**sent) ** devices for sent in range(200))


def test_the_bound_is_the_one_that_the_books_have() -> None:
    assert ideal_copies(0.1, 4) == pytest.approx(1.39, abs=0.01)
    assert ideal_copies(0.1, 16) == pytest.approx(1.98, abs=0.01)
    draw = random.Random(1)
    runs = [max(next(n for n in range(1, 99) if draw.random() >= 0.1) for _ in range(16)) for _ in range(20_000)]
    assert sum(runs) / len(runs) == pytest.approx(ideal_copies(0.1, 16), rel=0.02)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("devices", [4, 16])
def test_a_tenth_lost_by_each_costs_what_ideal_shared_resend_costs(devices: int, seed: int) -> None:
    world = World(seed, COUNT * 2, devices, 0.1, 0.001, 0.0)
    assert world.run(600.0)
    assert world.published <= COUNT * 2 * ideal_copies(0.1, devices) * 1.05
    assert not world.refused


@given(seed=st.integers(0, 1 << 30), devices=st.integers(1, 64), jitter_s=st.sampled_from([0.0, 0.004]))
@settings(max_examples=8)
def test_without_loss_any_number_of_boards_costs_one_copy(seed: int, devices: int, jitter_s: float) -> None:
    world = World(seed, COUNT, devices, 0.0, jitter_s, 0.0)
    assert world.run(600.0)
    assert world.published <= COUNT * 1.02
    assert all(world.received[name] <= COUNT * 1.02 for name in world.boards)


def test_who_is_nearly_done_does_not_pay_for_a_late_joiner() -> None:
    world = World(5, COUNT, 2, 0.0, 0.001, 0.0)
    holes = Bitmap.of(COUNT, range(COUNT - 40, COUNT))
    for name in world.disks:
        world.disks[name] = holes
    world.run(0.05)
    world.join("late")
    assert world.run(60.0)
    assert all(world.received[name] <= 40 + 2 * rounds.MARK_EVERY for name in ("d0", "d1"))
    assert world.published <= COUNT * 1.1


def test_a_resumed_board_pays_for_its_own_holes_only() -> None:
    """Both ask in one gathering: one lacks all, the other a few chunks here and there."""
    world = World(6, COUNT, 2, 0.0, 0.0, 0.0)
    world.disks["d1"] = Bitmap.of(COUNT, range(0, COUNT, 40))
    assert world.run(60.0)
    assert world.received["d1"] == COUNT // 40
    assert world.published == COUNT


@pytest.mark.parametrize("few", [1, 2])
def test_nobody_pays_for_holes_that_only_others_have(few: int) -> None:
    world = World(7, COUNT, 6, 0.05, 0.0, 0.0, few=few)
    assert world.run(60.0)
    extra = {name: got - COUNT for name, got in world.received.items()}
    assert max(extra.values()) <= COUNT * 0.03
    assert world.published <= COUNT * ideal_copies(0.05, 6) * (1.05 if few == 1 else 1.1)


def test_a_slow_reader_neither_holds_the_others_nor_fills_the_brokers_queue() -> None:
    count, grants = 5000, 0.008  # the others take 1000 chunks a second, 64 MB/s
    quick = World(8, count, 4, 0.0, 0.0, 0.0, grant_every_s=grants)
    assert quick.run(600.0)
    alone = max(quick.done_at.values())
    world = World(8, count, 5, 0.0, 0.0, 0.0, slow={"d4": 60.0}, grant_every_s=grants)
    assert world.run(600.0)
    others = [at for name, at in world.done_at.items() if name != "d4"]
    assert max(others) <= alone + 2 * wanters.HURRY_S
    assert world.lines["d4"].most < BROKER_QUEUE * 0.8  # the others left it behind
    assert {world.boards[name].lane for name in world.boards} == {0, 1}
    assert world.received["d4"] <= count + 2 * rounds.MARK_EVERY
    assert world.published <= 2 * count
    assert world.done_at["d4"] <= count / 60.0 * 1.2  # it got everything, at its own pace


def test_a_reader_that_all_wait_for_stays_in_the_broadcast() -> None:
    """When everybody is slow, nobody is late: a crowded broker must not turn one copy into many."""
    slow = {f"d{n}": 300.0 + n for n in range(6)}
    world = World(9, 1500, 6, 0.0, 0.0, 0.0, slow=slow)
    assert world.run(600.0)
    assert not world.lanes
    assert world.published <= 1500 * 1.02


def test_a_board_that_sleeps_for_hours_costs_what_it_lacks() -> None:
    world = World(10, COUNT, 3, 0.0, 0.0, 0.0)
    while world.published < COUNT // 2:
        world.run(world.now + 0.002)
    world.board("d0", transfer.Down())
    asleep = world.boards.pop("d0")
    assert world.run(3600.0)
    before = world.published
    assert before == COUNT
    world.now = 4 * 3600.0
    world.agenda.clear()
    world.boards["d0"] = asleep
    lacked = len(world.disks["d0"])
    world.at(0.0, lambda: world.board("d0", transfer.Up(0.5)))
    world.at(0.0, world.grant)
    assert world.run(5 * 3600.0)
    assert world.published - before == lacked


def test_a_late_joiner_joins_the_round_that_runs() -> None:
    world = World(11, COUNT, 2, 0.0, 0.0, 0.0)
    while world.published < COUNT // 4:
        world.run(world.now + 0.002)
    missed = world.published
    world.join("late")
    assert world.run(60.0)
    assert world.published <= COUNT + missed + rounds.MARK_EVERY


def pace_while_the_others_come(losses: dict[str, float]) -> float:
    """The rate that pacing had come to when all but those with the worst link were done."""
    world = World(12, 3000, 0, 0.0, 0.0, 0.0)
    draw = random.Random(3)
    carry = world.carry

    def lossy(name: str, arrive: Callable[[], None], loss: float, up: bool = False) -> None:
        if up or draw.random() >= losses[name]:
            carry(name, arrive, loss, up)

    world.carry = lossy  # type: ignore[method-assign]
    for name in losses:
        world.join(name)
    assert world.run(60.0)
    best = min(losses.values())
    until = max(at for name, at in world.done_at.items() if losses[name] == best)
    pace = pacing.starting(400e6, 1e6, 4e6, 0.0)
    for at, seen in world.observed:
        if at <= until:
            pace = pacing.observe(pace, seen.sent, seen.lost, at * 100.0, seen.device)  # a cut a second at most: let them come apart
    return pace.rate


def test_losses_that_all_see_slow_the_sender_and_one_bad_link_does_not() -> None:
    many = {f"d{n}": 0.0 for n in range(15)}
    assert pace_while_the_others_come({**many, "bad": 0.1}) == 400e6
    assert pace_while_the_others_come({"d0": 0.0, "d1": 0.0, "bad": 0.3}) == 400e6
    assert pace_while_the_others_come(dict.fromkeys(many, 0.05)) < 100e6


def test_a_late_joiner_does_not_look_like_loss() -> None:
    world = World(13, COUNT, 2, 0.0, 0.0, 0.0)
    while world.published < COUNT // 2 + 20:
        world.run(world.now + 0.002)
    world.join("late")
    assert world.run(60.0)
    assert sum(seen.lost for _, seen in world.observed) == 0


def test_ten_thousand_boards_and_ten_thousand_chunks_are_split_with_few_operations() -> None:
    """A round's plan takes a fixed number of set operations a board: counted, not timed."""
    count, devices = 10_000, 10_000
    draw = random.Random(4)
    state = rounds.sender(count, 1)
    holes = [Bitmap.of(count, draw.sample(range(count), 3)) for _ in range(devices)]
    for number, missing in enumerate(holes):
        state, _ = rounds.step_sender(state, rounds.Wanted(f"d{number}", transfer.Want(CHUNK, missing)), 0.0)
    operations = 0
    both = Bitmap.both

    def counted(self: Bitmap, other: Bitmap) -> Bitmap:
        nonlocal operations
        operations += 1
        return both(self, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bitmap, "both", counted)
        state, effects = rounds.step_sender(state, rounds.Grant(32), 5.0)
    assert operations <= 3 * devices
    shared = [send for send in effects if isinstance(send, rounds.Send) and not send.device]
    asked_by = [sum(missing.has(index) for missing in holes) for send in shared for index in send.indices]
    assert asked_by
    assert min(asked_by) >= 2
