"""The name of a score says by what things were compared."""

from __future__ import annotations

import pytest

from jetfleet_contract.predictions import Detection, Prediction
from jetfleet_host.compress.scoring import metric_of, score

BOX = (0.0, 0.0, 10.0, 10.0)
HALF = (0.0, 0.0, 10.0, 0.0, 0.0, 10.0)  # a triangle: half of the box
WHOLE = (0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0)
BOXED, MASKED = Detection("a", 1.0, BOX), Detection("a", 1.0, BOX, outline=HALF)
POSED = Detection("a", 1.0, BOX, points=(2.0, 2.0, 1.0))


@pytest.mark.parametrize(("truth", "name"), [
    (((Detection("a", 1.0),), ()), "accuracy"),
    (((BOXED,), ()), "f1@iou0.5"),
    (((), (MASKED, BOXED)), "f1@mask-iou0.5"),
    (((BOXED,), (POSED,)), "f1@oks0.5"),
])
def test_a_metric_is_named_after_what_the_labels_hold(truth: tuple[Prediction, ...], name: str) -> None:
    assert metric_of(truth) == name


@pytest.mark.parametrize(("truth", "found"), [
    (MASKED, Detection("a", 1.0, BOX, outline=(10.0, 10.0, 10.0, 0.0, 0.0, 10.0))),
    (POSED, Detection("a", 1.0, BOX, points=(9.0, 9.0, 1.0))),
])
def test_equal_boxes_are_no_hit_where_the_name_says_masks_or_points(truth: Detection, found: Detection) -> None:
    assert score([(truth,)], [(found,)]) == 0.0
    assert score([(truth,)], [(truth,)]) == score([(BOXED,)], [(found,)]) == 1.0
