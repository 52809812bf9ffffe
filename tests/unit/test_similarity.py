"""How alike two things are, against slow and plain oracles."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.similarity import key_point_similarity, outline_area, outline_iou, relative_error, total_variation

COORDINATE = st.integers(0, 200).map(float)
OUTLINES = st.lists(COORDINATE, min_size=6, max_size=40).map(lambda numbers: tuple(numbers[:len(numbers) // 2 * 2]))
BOX = (0.0, 0.0, 100.0, 100.0)


def star(seed: int, *, corners: int = 24) -> tuple[float, ...]:
    """A polygon around a middle that does not cross itself."""
    rng = np.random.default_rng(seed)
    angles = np.arange(corners) * 2 * np.pi / corners
    radii = rng.uniform(60, 180, corners)
    middle = rng.uniform(180, 320, 2)
    return tuple(np.stack([middle[0] + radii * np.cos(angles), middle[1] + radii * np.sin(angles)], 1).reshape(-1).tolist())


def drawn(outline: tuple[float, ...]) -> np.ndarray:
    canvas = np.zeros((2000, 2000), np.uint8)
    cv2.fillPoly(canvas, [np.round(np.array(outline).reshape(-1, 2) * 4).astype(np.int32)], 1)
    return canvas.astype(bool)


@pytest.mark.parametrize("seed", range(8))
def test_outlines_compare_as_their_drawn_masks_do(seed: int) -> None:
    a, b = star(seed), star(seed + 100)
    mask_a, mask_b = drawn(a), drawn(b)
    truth = (mask_a & mask_b).sum() / (mask_a | mask_b).sum()
    assert outline_iou(a, b) == pytest.approx(truth, abs=0.02)
    assert outline_area(a) == pytest.approx(mask_a.sum() / 16, rel=0.02)


def test_rectangles_compare_exactly() -> None:
    a = (0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0)
    assert outline_iou(a, a) == 1.0
    assert outline_iou(a, (5.0, 0.0, 15.0, 0.0, 15.0, 10.0, 5.0, 10.0)) == pytest.approx(1 / 3)
    assert outline_iou(a, (20.0, 0.0, 30.0, 0.0, 30.0, 10.0, 20.0, 10.0)) == 0.0


@given(OUTLINES, OUTLINES)
def test_any_two_outlines_have_a_bounded_symmetric_iou(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    value = outline_iou(a, b)
    assert 0.0 <= value <= 1.0
    assert value == pytest.approx(outline_iou(b, a))


@pytest.mark.parametrize("odd", [(), (1.0, 2.0), (0.0, 0.0, 5.0, 0.0, 9.0, 0.0), (math.nan,) * 6, (0.0, 0.0, math.inf, 0.0, 0.0, math.inf)])
def test_an_outline_that_is_none_is_like_nothing(odd: tuple[float, ...]) -> None:
    assert outline_iou(odd, (0.0, 0.0, 10.0, 0.0, 10.0, 10.0)) == 0.0
    assert outline_iou(odd, odd) == 0.0


def person(shift: float = 0.0, hidden: int = 0) -> tuple[float, ...]:
    return tuple(v for i in range(17) for v in (5.0 * i + shift, 90.0 - 4.0 * i, 0.0 if i < hidden else 0.9))


def test_key_points_follow_cocos_formula() -> None:
    sigmas = np.array([.26, .25, .25, .35, .35, .79, .79, .72, .72, .62, .62, 1.07, 1.07, .87, .87, .89, .89]) / 10.0
    expected = np.exp(-(3.0 ** 2) / (2 * sigmas) ** 2 / (100 * 100 * 0.53) / 2).mean()  # as pycocotools' computeOks writes it
    assert key_point_similarity(person(), person(3.0), BOX, BOX) == pytest.approx(expected)
    assert key_point_similarity(person(), person(), BOX, BOX) == 1.0


def test_a_point_that_one_side_hides_counts_against_it() -> None:
    assert key_point_similarity(person(), person(hidden=5), BOX, BOX) == pytest.approx(12 / 17)
    assert key_point_similarity(person(hidden=5), person(hidden=5), BOX, BOX) == 1.0
    assert key_point_similarity(person(hidden=17), person(hidden=17), BOX, BOX) is None
    assert key_point_similarity(person(), person()[:-3], BOX, BOX) == 0.0


@given(st.lists(st.floats(-1e6, 1e6), max_size=20), st.lists(st.floats(-1e6, 1e6), max_size=20))
def test_relative_error_is_bounded_and_symmetric(a: list[float], b: list[float]) -> None:
    assert 0.0 <= relative_error(a, b) <= 1.0
    assert relative_error(a, b) == relative_error(b, a)
    assert relative_error(a, a) == 0.0


def test_relative_error_of_known_vectors() -> None:
    assert relative_error((3.0, 4.0), (3.0, 4.5)) == pytest.approx(0.5 / math.hypot(3.0, 4.5))
    assert relative_error((1.0,), (math.nan,)) == 1.0


LABELLED = st.dictionaries(st.sampled_from("abcd"), st.floats(0.0, 0.25))


@given(LABELLED, LABELLED)
def test_total_variation_is_bounded_symmetric_and_none_with_itself(a: dict[str, float], b: dict[str, float]) -> None:
    assert 0.0 <= total_variation(a, b) <= 1.0
    assert total_variation(a, b) == pytest.approx(total_variation(b, a))
    assert total_variation(a, a) == 0.0


def test_total_variation_of_known_distributions() -> None:
    assert total_variation({"a": 1.0}, {"b": 1.0}) == 1.0
    assert total_variation({"a": 0.8, "b": 0.2}, {"a": 0.5, "b": 0.5}) == pytest.approx(0.3)
    assert total_variation({"a": 0.8}, {"a": 0.6}) == pytest.approx(0.2), "what is left to others differs by as much"
