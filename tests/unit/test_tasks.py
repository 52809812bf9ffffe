"""Tasks on tensors with known answers: DB maps with drawn rectangles, logits, and what is wrong with options or shapes."""

from __future__ import annotations

import cv2
import numpy as np
import pyclipper
import pytest

from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import load_task
from jetfleet_agent.pipeline.tasks.crops import MAX_CROPS
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.errors import IncompatibleError, InputError
from jetfleet_contract.predictions import Detection
from jetfleet_contract.similarity import iou

W, H = 320, 240
SAME = Geometry(W, H, 1.0, 1.0)


def spec(kind: str = "detect-db", labels: tuple[str, ...] = (), **options: float | str | bool) -> TaskSpec:
    return TaskSpec(kind, InputSpec("x", W, H), labels, options)


def drawn(*rects: tuple[tuple[float, float], tuple[float, float], float], value: float = 0.9) -> np.ndarray:
    canvas = np.zeros((H, W), np.float32)
    for rect in rects:
        cv2.fillPoly(canvas, [np.round(cv2.boxPoints(rect)).astype(np.int32)], value)
    return canvas[None, None]


def grown(width: float, height: float, ratio: float) -> float:
    """How far DB's unclipping moves each side: area * ratio / perimeter."""
    return width * height * ratio / (2 * (width + height))


def test_finds_each_drawn_box_where_it_is() -> None:
    boxes = [((60, 50), (80, 20)), ((220, 60), (100, 30)), ((160, 180), (140, 24))]
    found = load_task(spec(dilation=False)).decode((drawn(*((c, s, 0.0) for c, s in boxes)),), SAME)
    assert len(found) == 3
    for (x, y), (w, h) in boxes:
        d = grown(w, h, 1.6)
        truth = (x - w / 2 - d, y - h / 2 - d, x + w / 2 + d, y + h / 2 + d)
        best = max(found, key=lambda f: iou(f.box or (0, 0, 0, 0), truth))
        assert iou(best.box or (0, 0, 0, 0), truth) > 0.9
        assert best.score == pytest.approx(0.9, abs=0.02)
        assert best.label == "text"


@pytest.mark.parametrize("angle", [0.0, 12.0, 33.0, 45.0, 71.0])
def test_closed_form_growth_equals_the_polygon_clipper(angle: float) -> None:
    rect = ((160.0, 120.0), (110.0, 26.0), angle)
    probability = drawn(rect)
    (found,) = load_task(spec(dilation=False)).decode((probability,), SAME)

    contours, _ = cv2.findContours((probability[0, 0] > 0.3).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    inner = cv2.minAreaRect(contours[0])
    points = cv2.boxPoints(inner)
    distance = grown(float(inner[1][0]), float(inner[1][1]), 1.6)
    clipper = pyclipper.PyclipperOffset()
    clipper.AddPath([(round(float(x)), round(float(y))) for x, y in points], pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    outer = cv2.minAreaRect(np.array(clipper.Execute(distance)[0], np.int32))
    ours = np.array(found.quad, np.float32).reshape(4, 2)
    theirs = cv2.boxPoints(outer)
    shared, _ = cv2.intersectConvexConvex(ours, cv2.convexHull(theirs).reshape(-1, 2))
    assert shared / max(cv2.contourArea(ours), cv2.contourArea(theirs)) > 0.93


def test_quad_is_clockwise_from_the_top_left() -> None:
    (found,) = load_task(spec()).decode((drawn(((160, 120), (100, 30), 10.0)),), SAME)
    quad = np.array(found.quad).reshape(4, 2)
    assert np.argmin(quad.sum(axis=1)) == 0
    steps = np.roll(quad, -1, axis=0) - quad
    turns = steps[:, 0] * np.roll(steps[:, 1], -1) - steps[:, 1] * np.roll(steps[:, 0], -1)
    assert (turns > 0).all(), "with y down, clockwise turns are positive"


def test_boxes_come_back_in_frame_pixels() -> None:
    geometry = Geometry(640, 960, 0.5, 0.25)
    (found,) = load_task(spec(unclip_ratio=0.0, dilation=False)).decode((drawn(((100, 100), (60, 20), 0.0)),), geometry)
    assert found.box == pytest.approx((140, 360, 260, 440), abs=6)


def test_faint_small_or_no_text_is_nothing() -> None:
    task = load_task(spec(box_threshold=0.6))
    assert task.decode((drawn(((100, 100), (60, 20), 0.0), value=0.5),), SAME) == ()
    assert task.decode((drawn(((100, 100), (1, 1), 0.0)),), SAME) == ()
    assert task.decode((np.zeros((1, 1, H, W), np.float32),), SAME) == ()
    assert task.decode((np.full((1, 1, H, W), np.nan, np.float32),), SAME) == ()


def test_max_candidates_bounds_the_answer() -> None:
    rects = [((20 + 40 * i, 20 + 40 * j), (20, 12), 0.0) for i in range(7) for j in range(5)]
    assert len(load_task(spec()).decode((drawn(*rects),), SAME)) == 35
    assert len(load_task(spec(max_candidates=4)).decode((drawn(*rects),), SAME)) <= 4


def test_threshold_option_changes_what_is_found() -> None:
    faint = (drawn(((100, 100), (60, 20), 0.0), value=0.25),)
    assert load_task(spec(box_threshold=0.1)).decode(faint, SAME) == ()
    assert len(load_task(spec(box_threshold=0.1, threshold=0.2)).decode(faint, SAME)) == 1


@pytest.mark.parametrize("outputs", [(), (np.zeros((1, 2, H, W), np.float32),), (np.zeros((1, 1, 5, 5), np.float32),)])
def test_outputs_of_another_shape_are_named(outputs: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(IncompatibleError) as caught:
        load_task(spec()).decode(outputs, SAME)
    assert caught.value.code == "task.output"


def test_crops_stay_inside_the_frame() -> None:
    task = load_task(spec())
    frame = np.arange(H * W * 3, dtype=np.uint32).astype(np.uint8).reshape(H, W, 3)
    found = task.decode((drawn(((8, 8), (40, 20), 0.0), ((200, 100), (60, 20), 0.0)),), SAME)
    crops = task.crops(frame, found)
    assert len(crops) == 2
    for crop in crops:
        x0, y0, x1, y1 = (int(v) for v in crop.box)
        assert 0 <= x0 < x1 <= W
        assert 0 <= y0 < y1 <= H
        np.testing.assert_array_equal(crop.image, frame[y0:y1, x0:x1])


def test_classify_ranks_logits_and_keeps_probabilities() -> None:
    labels = ("a", "b", "c")
    task = load_task(spec("classify", labels, top=2))
    logits = task.decode((np.array([[1.0, 3.0, 2.0]], np.float32),), SAME)
    assert [d.label for d in logits] == ["b", "c"]
    assert logits[0].score == pytest.approx(np.exp(3) / (np.exp(1) + np.exp(2) + np.exp(3)), rel=1e-6)
    assert logits[0].box is None
    assert task.decode((np.array([[0.2, 0.7, 0.1]], np.float32),), SAME)[0].score == pytest.approx(0.7)
    assert load_task(spec("classify", labels, threshold=0.8)).decode((np.array([[0.2, 0.7, 0.1]], np.float32),), SAME) == ()


def test_classify_refuses_labels_that_do_not_fit() -> None:
    with pytest.raises(IncompatibleError) as caught:
        load_task(spec("classify", ("a", "b"))).decode((np.zeros((1, 3), np.float32),), SAME)
    assert caught.value.code == "task.labels"


@pytest.mark.parametrize("options", [{"treshold": 0.3}, {"threshold": "high"}, {"threshold": 7.0}, {"max_candidates": True}])
def test_a_bad_option_is_one_clear_error(options: dict[str, float | str | bool]) -> None:
    with pytest.raises(InputError) as caught:
        load_task(TaskSpec("detect-db", InputSpec("x", W, H), (), options))
    assert caught.value.code == "task.option"


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(IncompatibleError) as caught:
        load_task(spec("depth"))
    assert caught.value.code == "task.unknown"
    assert "depth" in caught.value.what


def boxes(*labels: str) -> tuple[Detection, ...]:
    return tuple(Detection(label, 0.9 - i / 100, (10.0 * i, 10.0, 10.0 * i + 8.0, 30.0)) for i, label in enumerate(labels))


def test_crops_of_some_labels_only_and_of_the_best() -> None:
    frame = np.zeros((H, W, 3), np.uint8)
    seen = boxes("car", "person", "car", "dog")
    assert [c.box[0] for c in load_task(spec("detect-yolo", crop_labels="car, dog")).crops(frame, seen)] == [0.0, 20.0, 30.0]
    assert [c.box[0] for c in load_task(spec("detect-yolo", crop_most=2)).crops(frame, seen[::-1])] == [10.0, 0.0]
    assert len(load_task(spec("detect-yolo")).crops(frame, boxes(*["car"] * 30) * 5)) == MAX_CROPS
    assert load_task(spec("classify")).crops(frame, (Detection("whole", 0.9),)) == []


def test_crops_of_a_label_that_the_model_does_not_have_are_an_error() -> None:
    with pytest.raises(InputError) as caught:
        load_task(spec("detect-yolo", ("car", "dog"), crop_labels="cat"))
    assert caught.value.code == "task.option"


@pytest.mark.parametrize("angle", [8.0, 30.0, -40.0])
def test_leaning_text_is_turned_upright(angle: float) -> None:
    upright = np.zeros((H, W, 3), np.uint8)
    cv2.putText(upright, "JETFLEET", (90, 130), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (255, 255, 255), 2)
    turn = cv2.getRotationMatrix2D((160, 120), -angle, 1.0)
    leaning = cv2.warpAffine(upright, turn, (W, H))
    corners = np.array([[85, 103], [240, 103], [240, 137], [85, 137]], np.float64)
    quad = np.concatenate([corners, np.ones((4, 1))], axis=1) @ turn.T
    low, high = quad.min(axis=0), quad.max(axis=0)
    seen = (Detection("text", 0.9, (low[0], low[1], high[0], high[1]), tuple(quad.reshape(-1).tolist())),)
    (crop,) = load_task(spec(crop_deskew=True)).crops(leaning, seen)
    straight = upright[103:137, 85:240]
    assert crop.image.shape == straight.shape
    difference = np.abs(crop.image.astype(int) - straight).mean()
    (plain,) = load_task(spec()).crops(leaning, seen)
    assert plain.image.shape[0] > straight.shape[0], "without the option it is cut as its box"
    assert difference < 20
    assert np.corrcoef(crop.image.reshape(-1), straight.reshape(-1))[0, 1] > 0.9


def test_a_quad_that_does_not_lean_is_a_view_of_the_frame() -> None:
    frame = np.zeros((H, W, 3), np.uint8)
    seen = (Detection("text", 0.9, (10, 10, 110, 40), (10.0, 10.0, 110.0, 11.0, 110.0, 40.0, 10.0, 39.0)),)
    (crop,) = load_task(spec(crop_deskew=True)).crops(frame, seen)
    assert crop.image.base is not None
