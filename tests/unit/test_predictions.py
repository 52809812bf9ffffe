"""Matching, F1 and agreement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.predictions import Detection, MatchCount, agreement, iou, match_frame


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
