"""Regions of a class map are found faster than in the plain way, and are the same ones to the last digit."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import segment
from jetfleet_agent.pipeline.tasks.segment import Segment
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.predictions import Detection

WIDTH, HEIGHT, CLASSES = 72, 56, 4
SAME = Geometry(WIDTH, HEIGHT, 1.0, 1.0, 0, 0)
Maps = npt.NDArray[np.float32]


def plain_mean_chance(planes: Any, numbers: Any, index: int, rect: tuple[int, int, int, int]) -> float:
    left, top, wide, high = rect
    step = max(1, int((wide * high // 8192) ** 0.5))
    rows, columns = np.nonzero(numbers[top:top + high:step, left:left + wide:step] == index)
    if not len(rows):
        step = 1
        rows, columns = np.nonzero(numbers[top:top + high, left:left + wide] == index)
    some = np.linspace(0, len(rows) - 1, min(256, len(rows))).astype(np.intp)
    told = planes[:, top + step * rows[some], left + step * columns[some]].astype(np.float64)
    if len(planes) > 1 and not (told.min() >= 0.0 and np.allclose(told.sum(axis=0), 1.0, atol=1e-3)):
        told = np.exp(told - told.max(axis=0))
        told /= told.sum(axis=0)
    return round(float(told[index].mean()), 4)


class PlainSegment(Segment):
    """The oracle: every contour of every class is found, then looked at."""

    def _told(self, numbers: Any, planes: Any, geometry: Geometry) -> tuple[Detection, ...]:
        least = max(1.0, self._least_area * numbers.size)
        regions: list[tuple[float, int, Any]] = []
        for index in np.flatnonzero(np.bincount(numbers.reshape(-1), minlength=1) >= least).tolist():
            contours, _ = cv2.findContours((numbers == index).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            regions += [(cv2.contourArea(c), index, c) for c in contours if cv2.contourArea(c) >= least]
        regions.sort(key=lambda region: -region[0])
        found = (self._region(index, contour, numbers, planes, geometry) for _, index, contour in regions[:self._most])
        return tuple(detection for detection in found if detection is not None)


def maps_of(seed: int, cells: int, noise: float) -> Maps:
    """(C, H, W) scores: blobs of about size / cells, and grains over them."""
    rng = np.random.default_rng(seed)
    blobs = rng.normal(size=(CLASSES, cells, cells)).astype(np.float32)
    wide = np.stack([cv2.resize(plane, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for plane in blobs])
    return np.asarray(3.0 * wide + noise * rng.normal(size=wide.shape), np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.sampled_from([0.0, 0.5, 2.0, 8.0]), st.sampled_from([0.0, 0.001, 0.01, 0.05]))
@example(1, 2, 8.0, 0.0)
@settings(max_examples=60)
def test_the_same_regions_as_in_the_plain_way(seed: int, cells: int, noise: float, least: float) -> None:
    spec = TaskSpec("segment", InputSpec("x", WIDTH, HEIGHT), tuple("abcd"), {"min_area": least, "max_detections": 300, "threshold": 0.0})
    scores = maps_of(seed, cells, noise)[None]
    assert Segment(spec).decode((scores,), SAME) == PlainSegment(spec).decode((scores,), SAME)


@pytest.mark.parametrize("noise", [0.0, 8.0])
def test_a_region_within_a_ring_is_told_in_neither_way_or_in_both(noise: float) -> None:
    scores = np.zeros((CLASSES, HEIGHT, WIDTH), np.float32)
    scores[1] = -9.0
    scores[1, 8:48, 8:64] = 9.0
    scores[1, 12:44, 12:60] = -9.0
    scores[1, 20:36, 20:50] = 9.0
    grains = np.random.default_rng(0).normal(size=scores.shape).astype(np.float32)
    scores[[0, 2, 3]] = np.clip(noise * grains[[0, 2, 3]], -8.0, 8.0)  # around the ring and within it, never through it
    spec = TaskSpec("segment", InputSpec("x", WIDTH, HEIGHT), tuple("abcd"), {"min_area": 0.01, "threshold": 0.0})
    told = Segment(spec).decode((scores[None],), SAME)
    assert told == PlainSegment(spec).decode((scores[None],), SAME)
    assert sum(d.label == "b" for d in told) == 1


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40)
def test_the_mean_chance_is_the_plain_one(seed: int, as_chances: bool) -> None:
    planes = maps_of(seed, 4, 1.0)
    if as_chances:
        planes = np.exp(planes) / np.exp(planes).sum(axis=0)
    numbers = planes.argmax(axis=0).astype(np.uint16)
    for index in np.unique(numbers).tolist():
        rect = cv2.boundingRect((numbers == index).astype(np.uint8))
        assert segment._mean_chance(planes, numbers, index, rect) == plain_mean_chance(planes, numbers, index, rect)
