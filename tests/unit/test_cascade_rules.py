"""The cascade's decisions, pure: what is asked about, what answers change, how many bytes may leave."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.allowance import HOUR_S, Allowance, ask
from jetfleet_contract.app_config import Cascade
from jetfleet_contract.cascade import MAX_SEEN, Memory, amended, is_uncertain, select, window_of
from jetfleet_contract.messages import Instant
from jetfleet_contract.predictions import Detection

OPTIONS = Cascade(below=0.5, above=0.1, most=2)
WHOLE = (0, 0, 100, 100)
LOOKS = (bytes(64), bytes([200] * 64), bytes([90] * 64))


def box(x: float, y: float = 0.0, side: float = 20.0) -> tuple[float, float, float, float]:
    return x, y, x + side, y + side


def pick(memory: Memory, detections: list[Detection], now: float, look: bytes = LOOKS[0],
         options: Cascade = OPTIONS) -> tuple[Memory, tuple[int, ...]]:
    return select(memory, options, "front", detections, lambda _index: look, now)


def test_what_lies_in_the_band_is_asked_about_least_certain_first() -> None:
    found = [Detection("a", 0.1, box(0)), Detection("a", 0.3, box(30)), Detection("a", 0.5, box(60)), Detection("a", 0.099, box(80)),
             Detection("a", 0.25, box(0, 50))]
    assert pick((), found, 0.0)[1] == (1, 4)
    assert [is_uncertain(OPTIONS, each) for each in found] == [True, True, False, False, True]


def test_a_label_has_a_band_of_its_own() -> None:
    options = msgspec.structs.replace(OPTIONS, labels={"knife": (0.0, 0.9)})
    found = [Detection("knife", 0.8, box(0)), Detection("fork", 0.8, box(40))]
    assert pick((), found, 0.0, options=options)[1] == (0,)


def test_a_label_that_was_not_asked_about_lately_goes_first() -> None:
    memory, _ = pick((), [Detection("a", 0.3, box(0))], 0.0)
    found = [Detection("a", 0.3, box(60)), Detection("b", 0.12, box(30))]
    assert pick(memory, found, 1.0, options=msgspec.structs.replace(OPTIONS, most=1))[1] == (1,)


def test_what_stands_still_is_asked_about_once_until_it_looks_different_moves_or_time_passes() -> None:
    still = [Detection("a", 0.3, box(0))]
    memory, first = pick((), still, 0.0)
    assert first == (0,)
    assert pick(memory, still, 30.0)[1] == ()
    assert pick(memory, [Detection("a", 0.3, box(2))], 30.0)[1] == ()
    assert pick(memory, still, 30.0, LOOKS[1])[1] == (0,)
    assert pick(memory, [Detection("a", 0.3, box(15))], 30.0)[1] == (0,)
    assert pick(memory, still, OPTIONS.repeat_s + 0.1)[1] == (0,)
    assert select(memory, OPTIONS, "back", still, lambda _: LOOKS[0], 30.0)[1] == (0,)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 80), st.sampled_from(["a", "b"])), max_size=40), st.integers(1, 16))
def test_never_more_than_asked_for_never_what_is_certain_and_memory_is_bounded(found: list[tuple[float, float, str]], most: int) -> None:
    options = msgspec.structs.replace(OPTIONS, most=most)
    detections = [Detection(label, score, box(x)) for score, x, label in found]
    memory, chosen = pick((), detections, 0.0, options=options)
    assert len(chosen) <= most
    assert all(is_uncertain(options, detections[index]) for index in chosen)
    assert len(memory) == len(chosen) <= MAX_SEEN
    assert pick(memory, detections, 0.0, options=options)[1] == () or len(chosen) == most


# --- amended -----------------------------------------------------------------------------------------------------


def test_the_hosts_word_takes_the_place_of_the_boards() -> None:
    sure, asked = Detection("a", 0.9, box(70)), Detection("a", 0.3, box(10))
    better = Detection("b", 0.95, box(11))
    assert amended(OPTIONS, (asked, sure), asked, WHOLE, (better,)) == (better, sure)
    assert amended(OPTIONS, (sure, asked), asked, WHOLE, (better,)) == (sure, better)


def test_what_the_host_does_not_see_is_gone() -> None:
    sure, asked = Detection("a", 0.9, box(70)), Detection("a", 0.3, box(10))
    assert amended(OPTIONS, (sure, asked), asked, WHOLE, ()) == (sure,)
    assert amended(OPTIONS, (sure, asked), asked, WHOLE, (Detection("a", 0.2, box(40, 40)),)) == (sure,)


def test_what_the_host_sees_besides_is_added_if_it_is_sure_whole_and_new() -> None:
    sure, asked = Detection("a", 0.9, box(70)), Detection("a", 0.3, box(10))
    new = Detection("c", 0.8, box(40, 40))
    unsure, cut, known = Detection("c", 0.4, box(40, 70)), Detection("c", 0.9, (0.0, 40.0, 30.0, 60.0)), Detection("a", 0.7, box(71))
    said = (Detection("a", 0.9, box(10)), new, unsure, cut, known)
    assert amended(OPTIONS, (asked, sure), asked, WHOLE, said) == (said[0], sure, new)


def test_whole_frame_labels_are_replaced_together() -> None:
    asked, other, place = Detection("cat", 0.4), Detection("dog", 0.35), Detection("a", 0.9, box(0))
    said = (Detection("dog", 0.9), Detection("cat", 0.05))
    assert amended(OPTIONS, (asked, other, place), asked, WHOLE, said) == (*said, place)
    assert amended(OPTIONS, (asked, other), asked, WHOLE, ()) == (asked, other)


def test_an_answer_about_what_is_no_more_changes_nothing() -> None:
    before = (Detection("a", 0.9, box(0)),)
    assert amended(OPTIONS, before, Detection("a", 0.3, box(10)), WHOLE, (Detection("b", 0.9, box(10)),)) == before


DETECTIONS = st.builds(Detection, st.sampled_from(["a", "b"]), st.floats(0, 1),
                       st.builds(box, st.floats(0, 80), st.floats(0, 80), st.floats(1, 20)))


@given(st.lists(DETECTIONS, min_size=1, max_size=6), st.lists(DETECTIONS, max_size=6), st.data())
def test_what_the_host_was_not_asked_about_stays_as_it_is(before: list[Detection], said: list[Detection], data: st.DataObject) -> None:
    asked = data.draw(st.sampled_from(before))
    after = list(amended(OPTIONS, before, asked, WHOLE, said))
    others = list(before)
    others.remove(asked)
    for other in others:
        assert other in after
        after.remove(other)
    assert all(found in said for found in after)


# --- windows -----------------------------------------------------------------------------------------------------


@given(st.tuples(*[st.floats(-50, 700)] * 4), st.integers(1, 640), st.integers(1, 480), st.floats(0, 4))
def test_a_window_is_never_empty_and_never_outside(corners: tuple[float, ...], width: int, height: int, margin: float) -> None:
    x0, y0, x1, y1 = corners
    window = window_of((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), width, height, margin)
    assert 0 <= window[0] < window[2] <= width
    assert 0 <= window[1] < window[3] <= height


def test_a_window_shows_the_thing_with_its_margin() -> None:
    x0, y0, x1, y1 = window_of((100.0, 100.0, 140.0, 120.0), 640, 480, 0.5)
    assert x0 <= 80
    assert y0 <= 94
    assert x1 >= 160
    assert y1 >= 126
    assert window_of(None, 640, 480, 0.5) == (0, 0, 640, 480)


# --- bytes -------------------------------------------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.floats(0, 2000), st.integers(1, 4000), st.booleans()), min_size=1, max_size=80)


@given(STEPS, st.integers(1, 20_000), st.integers(0, 60_000))
def test_no_hour_and_no_day_sees_more_than_its_bytes(steps: list[tuple[float, int, bool]], per_hour: int, per_day: int) -> None:
    """Whatever the moments and restarts; a restart is a new boot of a machine whose clock is right."""
    allowance, now, boot, left = Allowance(), 1_700_000_000.0, 0, []
    for wait, size, restart in steps:
        now += wait
        boot += restart
        if restart:
            allowance = msgspec.json.decode(msgspec.json.encode(allowance), type=Allowance)
        grant = ask(allowance, size, per_hour, per_day, Instant(now - 1_600_000_000.0 + 7 * boot, f"b{boot}", now, True))
        allowance = grant.allowance
        if not grant.code:
            left.append((now, size))
    for at, _ in left:
        assert sum(size for other, size in left if at <= other <= at + HOUR_S) <= per_hour + 1e-6 * per_hour
        assert sum(size for other, size in left if other // 86_400 == at // 86_400) <= per_day


@given(STEPS)
def test_without_a_clock_that_can_prove_it_a_restart_refills_nothing(steps: list[tuple[float, int, bool]]) -> None:
    allowance, left = Allowance(), 0
    for number, (wait, size, _) in enumerate(steps):
        grant = ask(allowance, size, 10_000, 1 << 40, Instant(wait, f"b{number}", wait, False))
        allowance, left = grant.allowance, left + (0 if grant.code else size)
    assert left <= 5000


@pytest.mark.parametrize(("per_hour", "per_day", "code"), [
    (0, 1000, "crop.hour-budget"), (10_000, 99, "crop.day-budget"), (10_000, 1000, "")])
def test_why_not(per_hour: int, per_day: int, code: str) -> None:
    assert ask(Allowance(), 100, per_hour, per_day, Instant(5.0, "b", 1e9, True)).code == code
