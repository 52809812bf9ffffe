"""The machines of a transfer: their tables, and many receivers against one sender over a bad network in virtual time."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_world import CHUNK, World

from jetfleet_contract import charges, pacing, rounds, transfer, wanters
from jetfleet_contract.chunks import Bitmap
from jetfleet_contract.errors import OrderError

MARK = transfer.RoundMark(round=7, mark=1, kind="sync", chunks=3)
RECEIVER_EVENTS: tuple[transfer.ReceiverEvent, ...] = (
    transfer.Opened(Bitmap.full(3), 0.5), transfer.Up(0.5), transfer.Down(), transfer.Stored(7, 1), transfer.Spoiled(7, 1),
    transfer.Marked(MARK, 0.5), transfer.Tick(0.5), transfer.Checked(), transfer.Unchecked(Bitmap.of(3, [1]), 0.5),
    transfer.Broken("store.full"), transfer.Hold(), transfer.Release(0.5, 2, apart=True),
)
SENDER_EVENTS: tuple[rounds.SenderEvent, ...] = (
    rounds.Wanted("a", transfer.Want(CHUNK, Bitmap.full(3))), rounds.Grant(2), rounds.Lost(),
)


# --- tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", get_args(transfer.ReceiverPhase))
@pytest.mark.parametrize("event", RECEIVER_EVENTS, ids=lambda event: type(event).__name__)
def test_a_receiver_takes_what_its_table_says_and_nothing_else(phase: transfer.ReceiverPhase, event: transfer.ReceiverEvent) -> None:
    state = transfer.Receiver(CHUNK, Bitmap.full(3), phase=phase, online=True)
    before = encode_state(state)
    legal = {
        "opening": {"Opened", "Release", "Up", "Down", "Marked", "Tick", "Broken"},
        "held": {"Up", "Down", "Stored", "Spoiled", "Marked", "Tick", "Broken", "Hold", "Release"},
        "checking": {"Hold", "Checked", "Unchecked", "Broken", "Up", "Down", "Stored", "Spoiled", "Marked", "Tick"},
        "done": {"Hold", "Up", "Down", "Stored", "Spoiled", "Marked", "Tick"},
        "failed": {"Hold", "Up", "Down", "Stored", "Spoiled", "Marked", "Tick"},
    }.get(phase, {"Up", "Down", "Stored", "Spoiled", "Marked", "Tick", "Broken", "Hold"})
    if type(event).__name__ in legal:
        transfer.step_receiver(state, event, 10.0)
    else:
        with pytest.raises(OrderError, match=phase):
            transfer.step_receiver(state, event, 10.0)
    assert encode_state(state) == before


@pytest.mark.parametrize("event", SENDER_EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("phase", get_args(rounds.SenderPhase))
def test_a_sender_never_changes_the_state_it_was_given(phase: rounds.SenderPhase, event: rounds.SenderEvent) -> None:
    state = rounds.sender(3, 6)
    state, _ = rounds.step_sender(state, SENDER_EVENTS[0], 0.0)
    steps = {"idle": 0, "gathering": 1, "sending": 2, "draining": 3}
    for number in range(1, steps[phase]):
        state, _ = rounds.step_sender(state, rounds.Grant(1 if number == 1 else 3), float(number))
    if phase == "idle":
        state = rounds.sender(3, 6)
    assert state.phase == phase
    before = encode_state(state)
    rounds.step_sender(state, event, 9.0)
    assert encode_state(state) == before


def test_an_unknown_event_is_out_of_order() -> None:
    with pytest.raises(OrderError):
        rounds.step_sender(rounds.sender(3, 1), transfer.Checked(), 0.0)  # type: ignore[arg-type]


def encode_state(state: object) -> str:
    return repr(state)


# --- single behaviours --------------------------------------------------------------------------------------


def opened(count: int, missing: Bitmap | None = None) -> transfer.Receiver:
    state, _ = transfer.step_receiver(transfer.receiver(count, CHUNK), transfer.Up(0.0), 0.0)
    state, _ = transfer.step_receiver(state, transfer.Opened(missing or Bitmap.full(count), 0.0), 0.0)
    return state


def test_a_resumed_receiver_asks_only_for_its_holes() -> None:
    _, effects = transfer.step_receiver(opened(9, Bitmap.of(9, [4, 5])), transfer.Tick(0.5), 0.1)
    assert isinstance(effects[0], transfer.Ask)
    assert list(effects[0].want.missing) == [4, 5]


def test_nothing_missing_goes_straight_to_the_check_without_a_network() -> None:
    state, effects = transfer.step_receiver(transfer.receiver(4, CHUNK), transfer.Opened(Bitmap(4), 0.0), 0.0)
    assert (state.phase, effects) == ("checking", (transfer.Check(),))


def test_an_unanswered_ask_is_repeated_ever_more_slowly_and_for_ever() -> None:
    state, at, gaps = opened(2), 0.0, []
    for _ in range(14):
        state, effects = transfer.step_receiver(state, transfer.Tick(0.5), state.wake_at)
        assert [type(effect) for effect in effects] == [transfer.Ask]
        gaps.append(state.wake_at - at)
        at = state.wake_at
    assert gaps[-1] == pytest.approx(transfer.MAX_ASK_S)
    assert gaps == sorted(gaps)


def test_a_held_receiver_asks_for_nothing_listens_to_nothing_and_goes_on_when_released() -> None:
    state, _ = transfer.step_receiver(opened(9), transfer.Tick(0.5), 0.1)
    state, effects = transfer.step_receiver(state, transfer.Hold(), 0.2)
    assert [len(effect.want.missing) for effect in effects if isinstance(effect, transfer.Ask)] == [0]  # the host stops sending for it
    assert (state.phase, state.listens, state.wake_at) == ("held", False, transfer.NEVER)
    state, _ = transfer.step_receiver(state, transfer.Stored(7, 3), 0.3)  # it was under way
    state, effects = transfer.step_receiver(state, transfer.Release(0.0, 2, apart=True), 50.0)
    state, effects = transfer.step_receiver(state, transfer.Tick(0.5), 50.1)
    assert isinstance(effects[0], transfer.Ask)
    assert (list(effects[0].want.missing), effects[0].want.apart, state.listens) == ([0, 1], True, True)


def test_a_receiver_takes_no_more_than_it_is_allowed() -> None:
    state, _ = transfer.step_receiver(opened(9), transfer.Hold(), 0.1)
    state, _ = transfer.step_receiver(state, transfer.Release(0.0, 3, apart=True), 0.2)
    state, _ = transfer.step_receiver(state, transfer.Tick(0.5), 0.3)
    for index in (0, 0, 1):
        assert state.phase != "held"
        state, effects = transfer.step_receiver(state, transfer.Stored(7, index), 0.4)
    assert state.phase == "held"
    assert [len(effect.want.missing) for effect in effects if isinstance(effect, transfer.Ask)] == [0]


def test_a_repeated_chunk_does_not_silence_the_asking() -> None:
    """Nobody looks at the bytes of a chunk that is here already, so anybody could send it."""
    state, _ = transfer.step_receiver(opened(9), transfer.Tick(0.5), 0.1)
    state, _ = transfer.step_receiver(state, transfer.Stored(7, 1), 0.2)
    due = state.wake_at
    state, _ = transfer.step_receiver(state, transfer.Stored(99, 1), 1.0)
    assert (state.wake_at, state.round, state.repeated) == (due, 7, 1)


def test_a_forged_chunk_neither_counts_nor_silences_the_asking() -> None:
    state = opened(2)
    due = state.wake_at
    state, effects = transfer.step_receiver(state, transfer.Spoiled(7, 1), due - 0.01)
    assert (effects, state.wake_at, len(state.missing), state.spoiled) == ((), due, 2, 1)


def test_a_due_answer_is_not_put_off_by_later_marks() -> None:
    state = opened(500)
    state, _ = transfer.step_receiver(state, transfer.Marked(transfer.RoundMark(7, 1, "sync", 9, 10.0), 0.1), 0.0)
    due = state.answer_at
    state, _ = transfer.step_receiver(state, transfer.Marked(transfer.RoundMark(7, 2, "sync", 9, 10.0), 0.9), 0.5)
    assert state.answer_at == due
    state, effects = transfer.step_receiver(state, transfer.Tick(0.0), due)
    assert isinstance(effects[0], transfer.Ask)
    assert effects[0].want.mark == 2


def test_a_mark_that_overtook_its_chunks_is_not_answered_with_holes() -> None:
    """Seen with the embedded broker: the end mark came before the round's chunks, and the whole round was sent again."""
    state = opened(2)
    state, effects = transfer.step_receiver(state, transfer.Marked(transfer.RoundMark(7, 1, "end", 0, 0.0), 0.0), 1.0)
    assert effects == ()
    state, effects = transfer.step_receiver(state, transfer.Tick(0.0), 1.0)
    assert effects == ()
    for index in range(2):
        state, effects = transfer.step_receiver(state, transfer.Stored(7, index), 1.01)
    assert [type(effect) for effect in effects] == [transfer.Ask, transfer.Check]  # "I have all", then the check


def test_a_blob_that_reads_back_wrong_again_and_again_is_given_up() -> None:
    state = opened(1)
    for left in range(transfer.MAX_CHECKS, 0, -1):
        state, _ = transfer.step_receiver(state, transfer.Stored(7, 0), 1.0)
        assert state.phase == "checking"
        state, effects = transfer.step_receiver(state, transfer.Unchecked(Bitmap.full(1), 0.0), 1.0)
        assert state.phase == ("asking" if left > 1 else "failed")
    assert effects == (transfer.GiveUp("blob.unverifiable"),)


def wanted(device: str, missing: Bitmap, round_: int = 0, mark: int = 0) -> rounds.Wanted:
    return rounds.Wanted(device, transfer.Want(CHUNK, missing, round_, mark))


def test_one_chunk_is_sent_once_for_all_who_lack_it() -> None:
    state = rounds.sender(10, 6)
    for device, missing in (("a", range(10)), ("b", range(5)), ("c", range(3, 8))):
        state, _ = rounds.step_sender(state, wanted(device, Bitmap.of(10, missing)), 0.0)
    state, effects = rounds.step_sender(state, rounds.Grant(100), 5.0)
    sent = [index for effect in effects if isinstance(effect, rounds.Send) for index in effect.indices]
    assert sorted(sent) == list(range(10))


def chunks_before(mark: int) -> int:
    return sum(min(rounds.MARK_EVERY, rounds.FIRST_MARK << number) for number in range(mark))


def test_a_round_waits_for_a_slow_receiver_but_not_for_a_dead_one() -> None:
    count = rounds.MARK_EVERY * (wanters.WINDOW_MARKS + 4)
    state, _ = rounds.step_sender(rounds.sender(count, 6), wanted("slow", Bitmap.full(count)), 0.0)
    state, _ = rounds.step_sender(state, rounds.Grant(count), 1.0)
    assert rounds.held_back(state)
    assert len(state.sent) == chunks_before(wanters.WINDOW_MARKS)
    state, _ = rounds.step_sender(state, wanted("slow", Bitmap.full(count).minus(state.marks[1]), state.round, 1), 1.1)
    state, _ = rounds.step_sender(state, rounds.Grant(count), 1.2)
    assert len(state.sent) == chunks_before(wanters.WINDOW_MARKS + 1)
    waiting, _ = rounds.step_sender(state, rounds.Grant(count), 1.1 + wanters.SILENCE_S)
    assert waiting.phase == "sending"
    state, effects = rounds.step_sender(state, rounds.Grant(count), 1.3 + wanters.SILENCE_S)
    assert (state.phase, effects) == ("idle", ())  # nobody answers: it asks again if it lives


def test_silent_ones_do_not_keep_a_few_others_waiting() -> None:
    count = wanters.WINDOW_MARKS * rounds.MARK_EVERY
    state = rounds.sender(count, 6)
    for name in ("alive", "dead1", "dead2"):
        state, _ = rounds.step_sender(state, wanted(name, Bitmap.full(count)), 0.0)
    state, _ = rounds.step_sender(state, rounds.Grant(count), 1.0)
    state, _ = rounds.step_sender(state, wanted("alive", Bitmap.full(count).minus(state.sent), state.round, state.mark), 1.1)
    assert rounds.held_back(state)
    state, _ = rounds.step_sender(state, rounds.Grant(count), 1.2 + wanters.PATIENCE_S)
    assert len(state.sent) > chunks_before(wanters.WINDOW_MARKS)


def test_only_what_was_sent_before_the_mark_counts_as_lost() -> None:
    count = rounds.MARK_EVERY * 3
    state, _ = rounds.step_sender(rounds.sender(count, 6), wanted("a", Bitmap.full(count)), 0.0)
    state, _ = rounds.step_sender(state, rounds.Grant(chunks_before(2) + 5), 1.0)
    holes = Bitmap.full(count).minus(Bitmap.of(count, range(rounds.FIRST_MARK))).with_(3)
    state, effects = rounds.step_sender(state, wanted("a", holes, state.round, 1), 1.1)
    assert effects == (rounds.Observe("a", rounds.FIRST_MARK, 1),)


def test_nobody_gets_more_than_one_and_a_half_blobs_and_slack_at_once() -> None:
    count, sent, refused = 100, 0, 0
    state = rounds.sender(count, 6)
    for turn in range(10):
        now = turn * 5.0
        state, _ = rounds.step_sender(state, rounds.Lost(), now)
        state, _ = rounds.step_sender(state, wanted("greedy", Bitmap.full(count)), now)
        state, effects = rounds.step_sender(state, rounds.Grant(1000), now + 1)
        sent += sum(len(effect.indices) for effect in effects if isinstance(effect, rounds.Send))
        refused += sum(isinstance(effect, rounds.Refuse) for effect in effects)
    assert sent <= count * charges.BUDGET_BLOBS + charges.BUDGET_SLACK + 50 / charges.BUDGET_RENEW_S * count
    assert refused >= 8
    later = now + charges.BUDGET_RENEW_S * 2
    assert charges.allowance(state.charges, state.count, "greedy", later) == int(count * charges.BUDGET_BLOBS + charges.BUDGET_SLACK)


def test_asking_again_within_a_round_is_not_charged_again() -> None:
    state, _ = rounds.step_sender(rounds.sender(50, 6), wanted("a", Bitmap.full(50)), 0.0)
    state, _ = rounds.step_sender(state, rounds.Grant(1), 1.0)
    left = charges.allowance(state.charges, state.count, "a", 1.0)
    for _ in range(20):
        state, _ = rounds.step_sender(state, wanted("a", Bitmap.full(50), 0, 0), 1.0)
    assert charges.allowance(state.charges, state.count, "a", 1.0) == left


@pytest.mark.parametrize("grant", [10, 64])
def test_an_ask_that_crossed_with_its_chunks_does_not_bring_them_twice(grant: int) -> None:
    """Found on a restarted host: two asks of the same holes, the second under way while the first was answered."""
    holes = Bitmap.full(30)
    state, _ = rounds.step_sender(rounds.sender(30, 6), wanted("a", holes), 0.0)
    state, _ = rounds.step_sender(state, rounds.Grant(grant), 0.1)
    assert state.phase == ("sending" if grant < 30 else "draining")
    sent = min(30, grant)
    for now in (0.2, 0.3):
        state, effects = rounds.step_sender(state, wanted("a", holes), now)
        state, more = rounds.step_sender(state, rounds.Grant(64), now)
        sent += sum(len(effect.indices) for effect in (*effects, *more) if isinstance(effect, rounds.Send))
    assert sent == 30
    state, _ = rounds.step_sender(state, wanted("a", Bitmap(30), state.round, state.mark), 0.4)
    assert state.phase == "idle"


def test_what_a_lost_link_left_in_the_queue_is_not_charged() -> None:
    state = rounds.sender(100, 6)
    for turn in range(12):
        state, _ = rounds.step_sender(state, wanted("a", Bitmap.full(100)), turn * 0.2)
        state, effects = rounds.step_sender(state, rounds.Grant(10), turn * 0.2 + 0.1)
        assert sum(len(effect.indices) for effect in effects if isinstance(effect, rounds.Send)) == 10
        state, _ = rounds.step_sender(state, rounds.Lost(), turn * 0.2 + 0.1)
    assert charges.allowance(state.charges, state.count, "a", 2.4) == pytest.approx(158 - 120, abs=1)


def test_who_changes_lanes_takes_its_charge_along_and_pays_for_nothing_that_was_not_sent() -> None:
    old, new = rounds.sender(100, 6), rounds.sender(100, 900)
    old, _ = rounds.step_sender(old, wanted("a", Bitmap.full(100)), 0.0)
    old, _ = rounds.step_sender(old, rounds.Grant(30), 1.0)
    new, (old, _) = rounds.handed_over(old, new, "a", 1.0)
    assert not old.wanters
    assert not old.charges
    assert charges.allowance(new.charges, 100, "a", 1.0) == 158 - 30


def test_pace_halves_on_loss_and_recovers_slowly() -> None:
    pace = pacing.starting(1000.0, 10.0, 500.0, 0.0)
    pace = pacing.observe(pace, 300, 30, 1.0)
    assert pace.rate == 500.0
    assert pacing.observe(pace, 300, 30, 1.5).rate == 500.0  # once a second
    for step in range(20):
        pace = pacing.observe(pace, 300, 299, 3.0 + step)
    assert pace.rate == 10.0
    for _ in range(30):
        pace = pacing.observe(pace, 300, 0, 50.0)
    assert pace.rate == 1000.0
    pace = pacing.refill(pace, 50.0)
    assert pacing.refill(pacing.spend(pace, 400), 50.2).tokens == pytest.approx(300.0)


# --- many receivers, one sender, a bad network, virtual time ------------------------------------------------


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1 << 30), count=st.integers(1, 200), devices=st.integers(1, 6), loss=st.sampled_from([0.0, 0.01, 0.1, 0.3]),
    jitter_s=st.sampled_from([0.0, 0.005, 0.2]), repeat=st.sampled_from([0.0, 0.2]),
)
def test_everybody_gets_everything_over_a_bad_network(
    seed: int, count: int, devices: int, loss: float, jitter_s: float, repeat: float
) -> None:
    world = World(seed, count, devices, loss, jitter_s, repeat)
    assert world.run(7200.0), {name: (board.phase, len(board.missing)) for name, board in world.boards.items()}
    assert not any(world.disks.values())


@given(seed=st.integers(0, 1 << 30), devices=st.integers(2, 20))
@settings(max_examples=20)
def test_a_clean_network_costs_each_chunk_once(seed: int, devices: int) -> None:
    world = World(seed, 300, devices, 0.0, 0.0, 0.0)
    assert world.run(100.0)
    assert world.published == 300


@given(seed=st.integers(0, 1 << 30), data=st.data())
@settings(max_examples=30)
def test_restarts_of_boards_and_host_cost_only_what_was_missing(seed: int, data: st.DataObject) -> None:
    world = World(seed, 300, 3, 0.02, 0.002, 0.0)
    world.run(data.draw(st.floats(0.05, 0.2)))
    lacked = sum(len(bits) for bits in world.disks.values())
    before = world.published
    if data.draw(st.booleans()):
        world.senders.clear()  # the host forgot everything
    for name in data.draw(st.sets(st.sampled_from(sorted(world.boards)))):
        world.boot(name)  # the board forgot everything but its disk
    assert world.run(7200.0)
    assert world.published - before <= lacked * 1.5 + 3 * charges.BUDGET_SLACK


def test_a_late_joiner_gets_the_rest_of_the_round_and_its_holes_in_the_next() -> None:
    world = World(3, 200, 1, 0.0, 0.0, 0.0)
    while world.published < 40:
        world.run(world.now + 0.002)
    assert world.published < 200
    missed = world.published
    world.disks["late"] = Bitmap.full(200)
    world.boot("late")
    assert world.run(60.0)
    assert 200 < world.published <= 200 + missed + 60
