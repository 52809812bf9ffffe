"""Tasks whose answers have a shape or are numbers: key points, instance masks, regions of a class map, raw tensors."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import load_task
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.predictions import MAX_OUTLINE_POINTS, is_bounded
from jetfleet_contract.similarity import outline_area, outline_iou

SIDE = 320
CELLS = 2100
SAME = Geometry(SIDE, SIDE, 1.0, 1.0)
HALF = Geometry(640, 480, 0.5, 0.5, 0.0, 40.0)  # a 640x480 frame letterboxed into 320x320


def spec(kind: str, labels: tuple[str, ...] = (), **options: float | str | bool) -> TaskSpec:
    return TaskSpec(kind, InputSpec("x", SIDE, SIDE), labels, options)


def polygon(mask: np.ndarray) -> tuple[float, ...]:
    """The mask's own outline, every pixel of it."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return tuple((max(contours, key=cv2.contourArea).reshape(-1) + 0.5).tolist())


# --- key points --------------------------------------------------------------------------------------------


def pose(points: int = 17, dimensions: int = 3) -> np.ndarray:
    raw = np.zeros((1, 5 + points * dimensions, CELLS), np.float32)
    raw[0, :5, 7] = (100, 120, 60, 90, 0.8)
    for index in range(points):
        raw[0, 5 + index * dimensions:7 + index * dimensions, 7] = (80 + index, 100 + 2 * index)
        if dimensions == 3:
            raw[0, 7 + index * dimensions, 7] = 0.5 + index / 100
    return raw


def test_key_points_are_placed_in_the_frame() -> None:
    (found,) = load_task(spec("keypoints", ("person",))).decode((pose(),), HALF)
    assert found.box == (140.0, 70.0, 260.0, 250.0)
    told = np.array(found.points).reshape(17, 3)
    np.testing.assert_allclose(told[:, 0], (80 + np.arange(17)) * 2)
    np.testing.assert_allclose(told[:, 1], (100 + 2 * np.arange(17) - 40) * 2)
    np.testing.assert_allclose(told[:, 2], 0.5 + np.arange(17) / 100, atol=1e-3)


def test_points_without_scores_are_sure() -> None:
    (found,) = load_task(spec("keypoints", ("hand",), points=21, dimensions=2)).decode((pose(21, 2),), SAME)
    assert len(found.points) == 63
    assert set(found.points[2::3]) == {1.0}


def test_end_to_end_key_points() -> None:
    raw = np.zeros((1, 100, 6 + 51), np.float32)
    raw[0, 0, :6] = (70, 75, 130, 165, 0.9, 0)
    raw[0, 0, 6:] = np.tile((90, 100, 0.7), 17)
    (found,) = load_task(spec("keypoints", ("person",))).decode((raw,), SAME)
    assert found.box == (70.0, 75.0, 130.0, 165.0)
    assert found.points[:3] == (90.0, 100.0, 0.7)


@pytest.mark.parametrize("kind", ["keypoints", "segment"])
def test_nothing_seen_is_no_answer(kind: str) -> None:
    empty = {"keypoints": (np.zeros_like(pose()),),
             "segment": (np.zeros((1, 39, CELLS), np.float32), np.zeros((1, 32, 80, 80), np.float32))}
    assert load_task(spec(kind)).decode(empty[kind], SAME) == ()


def test_another_number_of_points_is_named() -> None:
    with pytest.raises(IncompatibleError) as caught:
        load_task(spec("keypoints", ("person",))).decode((pose(5),), SAME)
    assert caught.value.code == "task.output"


# --- instances ---------------------------------------------------------------------------------------------


def ellipses(*shapes: tuple[tuple[int, int], tuple[int, int], float], cell: int = 4) -> tuple[np.ndarray, list[np.ndarray]]:
    """Prototypes (1, 32, h, w), one for each drawn ellipse, and the ellipses as masks of the input's size."""
    prototypes = np.zeros((1, 32, SIDE // cell, SIDE // cell), np.float32)
    masks = []
    for index, (middle, axes, angle) in enumerate(shapes):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        cv2.ellipse(mask, middle, axes, angle, 0, 360, 1, -1)
        distance = cv2.distanceTransform(mask, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5)
        prototypes[0, index] = cv2.resize(distance, prototypes.shape[:1:-1], interpolation=cv2.INTER_AREA)
        masks.append(mask.astype(bool))
    return prototypes, masks


SHAPES = (((90, 100), (60, 25), 30.0), ((220, 200), (40, 70), 0.0))


def instances(masks: list[np.ndarray]) -> np.ndarray:
    raw = np.zeros((1, 4 + 3 + 32, CELLS), np.float32)
    for index, mask in enumerate(masks):
        ys, xs = np.nonzero(mask)
        raw[0, :4, 50 + index] = ((xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2,
                                  xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min())
        raw[0, 4 + index, 50 + index] = 0.9
        raw[0, 7 + index, 50 + index] = 1.0  # its own prototype
    return raw


def test_instance_outlines_are_their_masks() -> None:
    prototypes, masks = ellipses(*SHAPES)
    found = load_task(spec("segment", ("a", "b", "c"))).decode((instances(masks), prototypes), SAME)
    assert [d.label for d in found] == ["a", "b"]
    for detection, mask in zip(found, masks, strict=True):
        assert outline_iou(detection.outline, polygon(mask)) > 0.95
        assert 6 <= len(detection.outline) <= 2 * MAX_OUTLINE_POINTS
    assert is_bounded(found)


def test_an_outline_stays_within_its_box_and_is_placed_in_the_frame() -> None:
    prototypes, masks = ellipses(*SHAPES)
    raw = instances(masks)
    raw[0, 2, 50] /= 2  # half as wide a box as the mask
    found = load_task(spec("segment", ("a", "b", "c"))).decode((raw, prototypes), HALF)
    for detection in found:
        assert detection.box is not None
        xs, ys = np.array(detection.outline[::2]), np.array(detection.outline[1::2])
        assert xs.min() >= detection.box[0] - 2
        assert xs.max() <= detection.box[2] + 2
        assert ys.min() >= detection.box[1] - 2
        assert ys.max() <= detection.box[3] + 2
    whole = load_task(spec("segment", ("a", "b", "c"))).decode((instances(masks), prototypes), HALF)
    assert outline_area(whole[1].outline) == pytest.approx(4 * masks[1].sum(), rel=0.05)


def test_a_thing_whose_mask_is_empty_is_still_a_box() -> None:
    prototypes, masks = ellipses(*SHAPES)
    found = load_task(spec("segment", ("a", "b", "c"))).decode((instances(masks), -np.ones_like(prototypes)), SAME)
    assert [d.outline for d in found] == [(), ()]


def test_instances_without_prototypes_are_named() -> None:
    _, masks = ellipses(*SHAPES)
    for outputs in ((instances(masks),), (instances(masks), instances(masks))):
        with pytest.raises(IncompatibleError) as caught:
            load_task(spec("segment", ("a", "b", "c"), form="instances")).decode(outputs, SAME)
        assert caught.value.code == "task.output"


# --- regions -----------------------------------------------------------------------------------------------


def class_map(masks: list[np.ndarray]) -> np.ndarray:
    numbers = np.zeros((SIDE, SIDE), np.int64)
    for index, mask in enumerate(masks):
        numbers[mask] = index + 1
    return numbers


ROAD = ("background", "road", "car")


def test_regions_of_scores_and_of_class_numbers_are_the_same_places() -> None:
    _, masks = ellipses(*SHAPES)
    numbers = class_map(masks)
    logits = np.where(np.arange(3)[:, None, None] == numbers, 3.0, 0.0).astype(np.float32)
    chance = float(np.exp(3) / (np.exp(3) + 2))
    by_score = load_task(spec("segment", ROAD, background=0)).decode((logits[None],), SAME)
    by_number = load_task(spec("segment", ROAD, background=0)).decode((numbers[None].astype(np.int64),), SAME)
    assert [(d.label, d.box, d.outline) for d in by_score] == [(d.label, d.box, d.outline) for d in by_number]
    assert {d.label for d in by_score} == {"road", "car"}
    assert [d.score for d in by_score] == pytest.approx([chance] * 2, abs=1e-3)
    assert [d.score for d in by_number] == [1.0, 1.0]
    for detection in by_score:
        mask = masks[ROAD.index(detection.label) - 1]
        assert outline_iou(detection.outline, polygon(mask)) > 0.97
        ys, xs = np.nonzero(mask)
        assert detection.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_probabilities_are_told_as_they_are_and_faint_regions_are_not() -> None:
    _, masks = ellipses(*SHAPES)
    chances = np.where(np.arange(3)[:, None, None] == class_map(masks), 0.5, 0.25).astype(np.float32)[None]
    assert [d.score for d in load_task(spec("segment", ROAD, background=0)).decode((chances,), SAME)] == [0.5, 0.5]
    assert load_task(spec("segment", ROAD, threshold=0.6)).decode((chances,), SAME) == ()


def test_without_a_background_all_classes_are_told() -> None:
    _, masks = ellipses(*SHAPES)
    found = load_task(spec("segment", ROAD)).decode((class_map(masks)[None, None],), SAME)
    assert {d.label for d in found} == set(ROAD)


@pytest.mark.parametrize("logits", [True, False])
def test_one_class_is_a_chance_or_a_logit(logits: bool) -> None:
    _, masks = ellipses(SHAPES[0])
    plane = np.where(masks[0], 4.0, -4.0) if logits else np.where(masks[0], 0.9, 0.1)
    (found,) = load_task(spec("segment", ("lane",), threshold=0.5)).decode((plane[None, None].astype(np.float32),), SAME)
    assert found.score == pytest.approx(0.982 if logits else 0.9, abs=1e-3)
    assert outline_iou(found.outline, polygon(masks[0])) > 0.97


def test_a_coarse_map_is_placed_in_the_frame() -> None:
    numbers = np.zeros((1, 80, 80), np.int32)
    numbers[0, 20:40, 30:60] = 1
    (found,) = load_task(spec("segment", ROAD, background=0)).decode((numbers,), HALF)
    assert found.box == (240.0, 80.0, 480.0, 240.0)
    xs = found.outline[::2]
    assert (min(xs), max(xs)) == pytest.approx((244, 476), abs=1)


def test_noise_is_bounded_and_specks_are_left_out() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 3, (1, SIDE, SIDE))
    found = load_task(spec("segment", ROAD, min_area=0.0, max_detections=200)).decode((noise,), SAME)
    assert len(found) <= 200
    assert is_bounded(found)
    numbers = np.zeros((1, SIDE, SIDE), np.int32)
    numbers[0, 5:7, 5:7] = 1
    assert load_task(spec("segment", ROAD, background=0)).decode((numbers,), SAME) == ()


@pytest.mark.parametrize(("output", "code"), [(np.zeros((1, 5, SIDE, SIDE), np.float32), "task.labels"),
                                              (np.full((1, SIDE, SIDE), 7), "task.labels"), (np.full((1, SIDE, SIDE), -1), "task.labels"),
                                              (np.zeros((3, 4)), "task.output"), (np.zeros((2, 3, SIDE, SIDE)), "task.output")])
def test_maps_that_do_not_fit_are_named(output: np.ndarray, code: str) -> None:
    with pytest.raises(IncompatibleError) as caught:
        load_task(spec("segment", ROAD)).decode((output,), SAME)
    assert caught.value.code == code


# --- raw ---------------------------------------------------------------------------------------------------


def test_small_tensors_are_told_whole() -> None:
    first, second = load_task(spec("raw", ("embedding",))).decode((np.array([[0.1, -2.5]], np.float32), np.array([7], np.int64)), SAME)
    assert (first.label, first.score, first.box, first.values) == ("embedding", 1.0, None, (0.1, -2.5))
    assert (second.label, second.values) == ("output1", (7.0,))


def test_large_tensors_are_summed_up() -> None:
    tensor = np.arange(10_000, dtype=np.float32).reshape(1, 100, 100)
    (found,) = load_task(spec("raw", samples=5)).decode((tensor,), SAME)
    assert found.values == pytest.approx((0, 9999, 4999.5, tensor.std(), 0, 2500, 5000, 7499, 9999), rel=1e-3)
    with pytest.raises(IncompatibleError) as caught:
        load_task(spec("raw", form="values")).decode((tensor,), SAME)
    assert caught.value.code == "task.output"


def test_numbers_that_are_none_are_counted_not_sent() -> None:
    broken = np.array([1.0, np.nan, np.inf, 3.0], np.float32)
    (whole,) = load_task(spec("raw")).decode((broken,), SAME)
    assert (whole.score, whole.values) == (0.5, (1.0, 0.0, 0.0, 3.0))
    (summed,) = load_task(spec("raw", form="summary")).decode((broken,), SAME)
    assert summed.values == (1.0, 3.0, 2.0, 1.0, 1.0, 0.0, 0.0, 3.0)
    assert load_task(spec("raw")).decode((np.empty((0, 4), np.float32),), SAME) == ()
