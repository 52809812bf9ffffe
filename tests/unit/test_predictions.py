"""Matching, F1, agreement, comparison by what an answer holds, and its bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.messages import MAX_MESSAGE_BYTES, Result, decode, encode
from jetfleet_contract.predictions import (
    Detection,
    MatchCount,
    agreement,
    bounded,
    compare_answers,
    compare_frame,
    is_bounded,
    match_frame,
    placed,
)
from jetfleet_contract.similarity import iou


def box(x: float, y: float, w: float = 10, h: float = 10, label: str = "text") -> Detection:
    return Detection(label, 0.9, (x, y, x + w, y + h))


SOME_BOXES = st.lists(
    st.builds(box, st.integers(0, 50), st.integers(0, 50), st.integers(1, 30), st.integers(1, 30), st.sampled_from(["a", "b"])), max_size=6
).map(tuple)


def test_iou_of_known_boxes() -> None:
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0


def test_one_truth_is_matched_once_only() -> None:
    assert match_frame((box(0, 0),), (box(0, 0), box(1, 0))) == MatchCount(1, 0, 1)


def test_another_label_is_no_match() -> None:
    assert match_frame((box(0, 0, label="cat"),), (box(0, 0, label="dog"),)) == MatchCount(0, 1, 1)


def test_classification_compares_the_first_label() -> None:
    cat, dog = Detection("cat", 0.9), Detection("dog", 0.1)
    assert match_frame((cat,), (cat, dog)) == MatchCount(1, 0, 0)
    assert match_frame((cat,), (dog, cat)) == MatchCount(0, 1, 1)
    assert match_frame((), (dog,)) == MatchCount(0, 0, 1)


@given(st.lists(SOME_BOXES, min_size=1, max_size=4))
def test_a_model_agrees_with_itself(frames: list[tuple[Detection, ...]]) -> None:
    assert agreement(frames, frames) == 1.0


@given(SOME_BOXES, SOME_BOXES)
def test_counts_add_up_and_are_symmetric(a: tuple[Detection, ...], b: tuple[Detection, ...]) -> None:
    there, back = match_frame(a, b), match_frame(b, a)
    assert there.matched + there.missed == len(a)
    assert there.matched + there.extra == len(b)
    assert there.matched == back.matched
    assert 0.0 <= there.f1 <= 1.0


def test_agreement_of_nothing_with_something_is_zero() -> None:
    assert agreement([()], [(box(0, 0),)]) == 0.0
    assert agreement([()], [()]) == 1.0


# --- comparison by what a frame's answer holds -------------------------------------------------------------

SQUARE = (0.0, 0.0, 40.0, 0.0, 40.0, 40.0, 0.0, 40.0)
NUMBER = st.floats(0.0, 100.0)
SOME_THINGS = st.lists(st.one_of(
    st.builds(box, st.integers(0, 50), st.integers(0, 50), st.integers(1, 30), st.integers(1, 30), st.sampled_from(["a", "b"])),
    st.builds(lambda x, outline: Detection("a", 0.5, (x, 0.0, x + 40.0, 40.0), outline=tuple(outline)), NUMBER,
              st.lists(NUMBER, min_size=6, max_size=12).map(lambda o: o[:len(o) // 2 * 2])),
    st.builds(lambda x, points: Detection("a", 0.5, (x, 0.0, x + 40.0, 40.0), points=tuple(points) * 3), NUMBER,
              st.tuples(NUMBER, NUMBER, st.floats(0.0, 1.0))),
    st.builds(Detection, st.sampled_from(["cat", "dog"]), st.floats(0.0, 0.5)),
    st.builds(lambda label, values: Detection(label, 1.0, values=tuple(values)), st.sampled_from(["o1", "o2"]),
              st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5))), max_size=6).map(tuple)


def all_pairs_oracle(truth: tuple[Detection, ...], found: tuple[Detection, ...], least: float) -> MatchCount:
    """Greedy matching over every pair, with no pruning."""
    pairs = sorted(((iou(t.box, f.box), i, j) for i, t in enumerate(truth) for j, f in enumerate(found)
                    if t.box and f.box and t.label == f.label), key=lambda p: (-p[0], p[1] + p[2], abs(p[1] - p[2])))
    used: tuple[set[int], set[int]] = set(), set()
    for overlap, i, j in pairs:
        if overlap >= least and i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
    return MatchCount(len(used[0]), len(truth) - len(used[0]), len(found) - len(used[0]))


@given(SOME_BOXES, SOME_BOXES, st.sampled_from([0.1, 0.5, 0.9]))
def test_the_sweep_matches_what_all_pairs_match(a: tuple[Detection, ...], b: tuple[Detection, ...], least: float) -> None:
    assert match_frame(a, b, min_iou=least) == all_pairs_oracle(a, b, least)


@given(SOME_THINGS, SOME_THINGS)
def test_any_answers_compare_within_bounds_and_symmetrically(a: tuple[Detection, ...], b: tuple[Detection, ...]) -> None:
    there, back = compare_frame(a, b), compare_frame(b, a)
    for both in (there, back):
        assert 0.0 <= both.f1 <= 1.0
        assert 0.0 <= both.mean_iou <= 1.0 + 1e-9
        assert 0.0 <= both.score_distance <= 1.0
    assert there.matches.matched == back.matches.matched
    assert there.mean_iou == pytest.approx(back.mean_iou)
    assert there.score_distance == pytest.approx(back.score_distance)


@given(SOME_BOXES)
def test_boxes_compared_with_themselves_are_one(a: tuple[Detection, ...]) -> None:
    same = compare_frame(a, a)
    assert (same.f1, same.mean_iou, same.score_distance) == (1.0, 1.0, 0.0)


@given(SOME_THINGS, SOME_THINGS, SOME_THINGS, SOME_THINGS)
def test_comparisons_add_up_over_frames(a: tuple[Detection, ...], b: tuple[Detection, ...], c: tuple[Detection, ...],
                                        d: tuple[Detection, ...]) -> None:
    assert compare_answers([a, c], [b, d]) == compare_frame(a, b).plus(compare_frame(c, d))


def test_masks_decide_where_both_have_one() -> None:
    whole = Detection("a", 0.9, (0, 0, 40, 40), outline=SQUARE)
    half = Detection("a", 0.6, (0, 0, 40, 40), outline=(0.0, 0.0, 40.0, 0.0, 0.0, 40.0))
    sliver = Detection("a", 0.6, (0, 0, 40, 40), outline=(0.0, 0.0, 40.0, 40.0, 38.0, 40.0))
    met = compare_frame((whole,), (half,))
    assert met.matches == MatchCount(1, 0, 0)
    assert met.mean_iou == pytest.approx(0.5, abs=0.01)
    assert met.score_distance == pytest.approx(0.3)
    assert match_frame((whole,), (sliver,)) == MatchCount(0, 1, 1)
    assert match_frame((whole,), (box(0, 0, 40, 40, "a"),)) == MatchCount(1, 0, 0), "a box alone is compared as a box"


def test_key_points_decide_where_both_have_some() -> None:
    def person(x: float) -> Detection:
        return Detection("person", 0.9, (0, 0, 100, 100), points=tuple(v for i in range(17) for v in (5.0 * i + x, 50.0, 0.9)))
    assert compare_frame((person(0),), (person(0),)).mean_iou == 1.0
    assert match_frame((person(0),), (person(1),)) == MatchCount(1, 0, 0)
    assert match_frame((person(0),), (person(40),)) == MatchCount(0, 1, 1)


def test_labels_tell_how_far_their_scores_are_apart() -> None:
    met = compare_frame((Detection("cat", 0.9), Detection("dog", 0.1)), (Detection("cat", 0.6), Detection("dog", 0.4)))
    assert (met.f1, met.mean_iou) == (1.0, 1.0)
    assert met.score_distance == pytest.approx(0.3)
    assert compare_frame((Detection("cat", 0.51), Detection("dog", 0.49)), (Detection("dog", 0.51), Detection("cat", 0.49))).f1 == 0.0


def test_raw_values_match_within_a_relative_error() -> None:
    a = Detection("embedding", 1.0, values=(3.0, 4.0))
    assert match_frame((a,), (Detection("embedding", 1.0, values=(3.1, 4.0)),)) == MatchCount(1, 0, 0)
    assert match_frame((a,), (Detection("embedding", 1.0, values=(4.0, 3.0)),)) == MatchCount(0, 1, 1)
    assert match_frame((a,), (Detection("other", 1.0, values=(3.0, 4.0)),)) == MatchCount(0, 1, 1)
    assert compare_frame((a,), (Detection("embedding", 1.0, values=(3.0, 4.0, 5.0)),)).score_distance == 1.0


# --- bounds and the wire -----------------------------------------------------------------------------------


def test_an_answer_within_bounds_is_left_as_it_is() -> None:
    fine = (box(0, 0), Detection("a", 0.5, outline=SQUARE))
    assert bounded(fine) is fine


def test_what_is_not_finite_is_left_out() -> None:
    bad = [Detection("a", math.nan), Detection("a", 0.5, (0, 0, math.inf, 1)), Detection("a", 0.5, outline=(math.nan,) * 6)]
    assert bounded((*bad, box(0, 0))) == (box(0, 0),)
    assert not is_bounded(tuple(bad))


@given(st.integers(0, 1500), st.integers(0, 80), st.integers(0, 210), st.integers(0, 5000))
def test_whatever_a_model_says_fits_into_a_message(count: int, outline: int, points: int, values: int) -> None:
    many = tuple(Detection("thing", 1 / (i + 3), (i / 3, i / 7, i / 3 + 9, i / 7 + 9), outline=(i / 3,) * 2 * outline,
                           points=(i / 3,) * 3 * points, values=(1 / 3,) * (values if i < 3 else 0)) for i in range(count))
    kept = bounded(many)
    assert is_bounded(kept)
    assert bounded(kept) == kept
    assert len(encode(Result("app", "camera", 1, 1.0, 1.0, "1", "c", kept))) <= MAX_MESSAGE_BYTES
    if many:
        assert kept[0].score == pytest.approx(many[0].score, abs=1e-4), "the best score stays"


def test_a_plain_detection_is_written_as_before_there_was_more() -> None:
    result = Result("app", "camera", 1, 1.0, 1.0, "1", "c", (Detection("a", 0.5), Detection("a", 0.5, track=7)))
    assert b'[["a",0.5,null,[]],["a",0.5,null,[],[],[],[],7]]' in encode(result)
    assert decode(encode(result), Result) == result


def test_what_was_seen_in_a_crop_is_placed_in_the_frame() -> None:
    seen = Detection("a", 0.5, (1, 2, 3, 4), (1.0, 2.0) * 4, (1.0, 2.0) * 3, (1.0, 2.0, 0.5), (), 9)
    whole = Detection("cat", 0.9, values=(1.0,))
    crop = (100.0, 200.0, 150.0, 250.0)
    assert placed((seen, whole), crop) == (
        Detection("a", 0.5, (101, 202, 103, 204), (101.0, 202.0) * 4, (101.0, 202.0) * 3, (101.0, 202.0, 0.5), (), 9),
        Detection("cat", 0.9, crop, values=(1.0,)))
