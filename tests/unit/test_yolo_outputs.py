"""Every layout of the YOLO family against an oracle in plain Python, and how a layout is told."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import load_task
from jetfleet_agent.pipeline.tasks.yolo_outputs import LAYOUTS, tell_layout
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.decode_arguments import MAX_CANDIDATES
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.predictions import Detection
from jetfleet_contract.similarity import iou

SIDE = 640
CELLS = 8400
SAME = Geometry(SIDE, SIDE, 1.0, 1.0)
LABELS = tuple(f"c{index}" for index in range(80))


def task(labels: tuple[str, ...] = LABELS, **options: float | str | bool) -> TaskSpec:
    return TaskSpec("detect-yolo", InputSpec("x", SIDE, SIDE), labels, options)


def scene(seed: int, *, count: int = CELLS, classes: int = 80, things: int = 12, each: int = 6) -> np.ndarray:
    """(4 + classes, count) as a v8 head gives it: every thing is seen by some candidates near each other, the rest is noise."""
    rng = np.random.default_rng(seed)
    raw = np.empty((4 + classes, count), np.float32)
    raw[:2] = rng.uniform(0, SIDE, (2, count))
    raw[2:4] = rng.uniform(10, 200, (2, count))
    raw[4:] = rng.uniform(0, 0.2, (classes, count))
    seen = rng.permutation(count)[:things * each].reshape(things, each)
    for candidates in seen:
        middle, size, label = rng.uniform(80, 560, 2), rng.uniform(40, 200, 2), rng.integers(classes)
        raw[:2, candidates] = middle[:, None] + rng.normal(0, 6, (2, each))
        raw[2:4, candidates] = size[:, None] * rng.uniform(0.9, 1.1, (2, each))
        raw[4 + label, candidates] = rng.uniform(0.26, 0.98, each)
    return raw


def oracle(raw: np.ndarray, *, threshold: float = 0.25, min_iou: float = 0.45, most: int = 300, agnostic: bool = False) -> list[Detection]:
    """Best class a candidate, threshold, greedy suppression; one candidate after the other."""
    found = []
    for column in raw.T.tolist():
        score = max(column[4:])
        if score > threshold:
            cx, cy, w, h = column[:4]
            found.append((score, LABELS[column[4:].index(score)], (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)))
    found.sort(key=lambda item: -item[0])
    kept: list[tuple[float, str, tuple[float, float, float, float]]] = []
    for score, label, box in found:
        if all(iou(box, other) <= min_iou for _, name, other in kept if agnostic or name == label):
            kept.append((score, label, box))
    clipped = [Detection(label, score, tuple(min(max(v, 0.0), float(SIDE)) for v in box)) for score, label, box in kept[:most]]  # type: ignore[arg-type]
    return [d for d in clipped if d.box and d.box[2] > d.box[0] and d.box[3] > d.box[1]]


def check(found: tuple[Detection, ...], expected: list[Detection]) -> None:
    assert [d.label for d in found] == [d.label for d in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.score == pytest.approx(theirs.score, abs=6e-5)
        assert mine.box == pytest.approx(theirs.box, abs=0.011)


def as_v5(raw: np.ndarray) -> np.ndarray:
    """The same scene with objectness: scores are split in two factors; three times as many candidates, as three anchors give."""
    objectness = np.sqrt(raw[4:].max(axis=0))
    rows = np.concatenate([raw[:4], objectness[None], raw[4:] / objectness], axis=0).T
    empty = np.zeros_like(rows)
    return np.concatenate([rows, empty, empty])[None].astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_v8_equals_the_oracle(seed: int) -> None:
    raw = scene(seed)
    check(load_task(task()).decode((raw[None],), SAME), oracle(raw))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("options", [{"iou": 0.2}, {"iou": 0.9}, {"threshold": 0.6}, {"agnostic": True, "iou": 0.1}, {"max_detections": 5}])
def test_options_do_what_they_do_in_the_oracle(seed: int, options: dict[str, float | bool]) -> None:
    raw = scene(seed, things=40)
    names = {"iou": "min_iou", "max_detections": "most"}
    check(load_task(task(**options)).decode((raw[None],), SAME), oracle(raw, **{names.get(k, k): v for k, v in options.items()}))  # type: ignore[arg-type]


def test_rows_and_columns_and_objectness_are_the_same_scene() -> None:
    raw = scene(5)
    expected = oracle(raw)
    check(load_task(task()).decode((np.ascontiguousarray(raw.T)[None],), SAME), expected)
    check(load_task(task()).decode((raw[None].astype(np.float16).astype(np.float32),), SAME), oracle(raw.astype(np.float16)))
    v5 = load_task(task()).decode((as_v5(raw),), SAME)
    assert [d.label for d in v5] == [d.label for d in expected]
    assert [d.score for d in v5] == pytest.approx([d.score for d in expected], abs=1.1e-4)


def suppressed() -> tuple[list[tuple[float, float, float, float]], list[float], list[int]]:
    return [(10, 20, 110, 220), (300, 40, 400, 90), (10, 20, 110, 221)], [0.9, 0.5, 0.1], [3, 7, 3]


def test_end_to_end_answers_are_taken_as_they_are() -> None:
    boxes, scores, classes = suppressed()
    raw = np.zeros((1, 300, 6), np.float32)
    raw[0, :3] = np.concatenate([boxes, np.array([scores]).T, np.array([classes]).T], axis=1)
    found = load_task(task()).decode((raw,), SAME)
    assert found == (Detection("c3", 0.9, boxes[0]), Detection("c7", 0.5, boxes[1]))
    raw[0, 1, 0] = np.nan
    assert [d.label for d in load_task(task()).decode((raw,), SAME)] == ["c3"]
    raw[0, 0, 5] = 91
    with pytest.raises(IncompatibleError) as caught:
        load_task(task()).decode((raw,), SAME)
    assert caught.value.code == "task.labels"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 3), (1, 3, 2), (2, 1, 3, 0)])
@pytest.mark.parametrize("batch", [True, False])
def test_outputs_of_an_nms_node(order: tuple[int, ...], batch: bool) -> None:
    boxes, scores, classes = suppressed()
    padded = [np.zeros((100, 4), np.float32), np.zeros(100, np.float32), np.zeros(100, np.int32)]
    padded[0][:3], padded[1][:3], padded[2][:3] = boxes, scores, classes
    padded[1][50] = 0.99  # behind the count: memory that the node did not write
    every = (np.array([3], np.int32), *(padded if len(order) == 4 else [part[:3] for part in padded]))
    outputs = tuple(every[i][None] if batch else every[i] for i in order)
    found = load_task(task()).decode(outputs, SAME)
    assert found == (Detection("c3", 0.9, boxes[0]), Detection("c7", 0.5, boxes[1]))


def test_float_classes_of_an_nms_node_follow_the_scores() -> None:
    boxes, scores, classes = suppressed()
    outputs = (np.array(boxes, np.float32), np.array(scores, np.float32), np.array(classes, np.float32))
    assert [d.label for d in load_task(task()).decode(outputs, SAME)] == ["c3", "c7"]


def test_what_onnx_non_max_suppression_picked() -> None:
    raw = scene(3)
    picked = np.array([[0, 5, 17], [0, 6, 400], [0, 900, 1], [0, 1, 999_999], [1, 5, 17]], np.int64)
    raw[4 + 5, 17], raw[4 + 6, 400] = 0.8, 0.7
    outputs = (picked, np.ascontiguousarray(raw[:4].T)[None], raw[None, 4:])
    found = load_task(task()).decode(outputs, SAME)
    assert [(d.label, d.score) for d in found] == [("c5", 0.8), ("c6", 0.7)]


def test_boxes_come_back_in_the_frame_and_stay_inside() -> None:
    raw = np.zeros((1, 84, CELLS), np.float32)
    raw[0, :5, 0] = (100, 200, 40, 20, 0.9)
    raw[0, :5, 1] = (640, 480, 100, 100, 0.8)
    raw[0, :5, 2] = (-90, -90, 20, 20, 0.8)
    (first, second) = load_task(task()).decode((raw,), Geometry(1280, 720, 0.5, 0.5, 0.0, 140.0))
    assert first.box == (160.0, 100.0, 240.0, 140.0)
    assert second.box == (1180.0, 580.0, 1280.0, 720.0)


def test_a_model_that_is_sure_of_everything_is_bounded() -> None:
    raw = scene(1)
    raw[4] = np.random.default_rng(3).uniform(0.9, 1.0, CELLS)
    found = load_task(task(iou=1.0, max_detections=1000)).decode((raw[None],), SAME)
    assert len(found) == 1000 < MAX_CANDIDATES
    assert min(d.score for d in found) > np.sort(raw[4])[-1000:].min() - 1e-4
    assert load_task(task()).decode((np.full((1, 84, CELLS), np.nan, np.float32),), SAME) == ()
    assert load_task(task()).decode((np.full((1, 84, CELLS), np.inf, np.float32),), SAME) == ()


# --- telling the layout ------------------------------------------------------------------------------------

TELL = [
    ((1, 84, 8400), 0, "v8", 80), ((1, 84, 8400), 80, "v8", 80), ((1, 25200, 85), 0, "v5", 80), ((1, 25200, 85), 80, "v5", 80),
    ((1, 8400, 85), 80, "v5", 80), ((1, 8400, 84), 80, "v8-rows", 80), ((1, 300, 6), 0, "end2end", 0), ((1, 300, 6), 2, "end2end", 0),
    ((1, 300, 6), 80, "end2end", 0), ((1, 25200, 6), 0, "v5", 1), ((1, 25200, 6), 1, "v5", 1), ((1, 5, 8400), 1, "v8", 1),
    ((1, 6, 8400), 2, "v8", 2), ((1, 8400, 6), 2, "v8-rows", 2), ((1, 8400, 84), 0, "v8-rows", 80),
]


@pytest.mark.parametrize(("shape", "labels", "layout", "classes"), TELL)
def test_the_layout_is_told_from_the_shape(shape: tuple[int, ...], labels: int, layout: str, classes: int) -> None:
    reading = tell_layout((shape,), "auto", labels=labels, extra=0, height=SIDE, width=SIDE)
    assert (reading.layout, reading.classes) == (layout, classes)


def test_what_could_be_two_layouts_asks() -> None:
    with pytest.raises(IncompatibleError) as caught:
        tell_layout(((1, 2100, 85),), "auto", labels=0, extra=0, height=SIDE, width=SIDE)
    assert caught.value.code == "task.layout"
    assert "v5 or v8-rows" in caught.value.what
    with pytest.raises(IncompatibleError, match="v8-rows or end2end"):
        tell_layout(((1, 48, 6),), "auto", labels=2, extra=0, height=SIDE, width=SIDE)
    assert tell_layout(((1, 2100, 85),), "v5", labels=0, extra=0, height=SIDE, width=SIDE).classes == 80


@pytest.mark.parametrize("shapes", [
    (), ((1, 84),), ((2, 84, 8400),), ((1, 4, 8400),), ((1, 84, 8400), (1, 84, 8400)), ((1, 100, 4), (1, 100))])
def test_what_is_no_layout_is_named(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(IncompatibleError) as caught:
        tell_layout(shapes, "auto", labels=80, extra=0, height=SIDE, width=SIDE)
    assert caught.value.code == "task.output"


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(1, 12), min_size=0, max_size=4).map(tuple), max_size=4), st.integers(0, 4),
       st.sampled_from([0, 6, 32]))
def test_any_shapes_are_told_or_refused(shapes: list[tuple[int, ...]], labels: int, extra: int) -> None:
    with contextlib.suppress(IncompatibleError):
        assert tell_layout(tuple(shapes), "auto", labels=labels, extra=extra, height=32, width=32).layout in LAYOUTS


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), st.sampled_from([((1, 8, 21),), ((1, 63, 9),), ((1, 9, 6),), ((1, 1), (1, 7, 4), (1, 7), (1, 7)),
                                                   ((3, 3), (1, 21, 4), (1, 4, 21))]))
def test_any_numbers_are_decoded_or_refused(seed: int, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Huge, tiny, infinite and no numbers at all: an answer within bounds, or a typed error."""
    rng = np.random.default_rng(seed)
    pool = np.array([0.0, 0.3, 0.9, 1.0, 5.0, 31.0, -4.0, 1e30, -1e38, np.inf, -np.inf, np.nan], np.float32)
    outputs = tuple(rng.integers(-9, 30, shape) if len(shape) == 2 and shape[1] in (1, 3) else rng.choice(pool, shape) for shape in shapes)
    spec = TaskSpec("detect-yolo", InputSpec("x", 32, 32), ("a", "b", "c", "d"))
    found: tuple[Detection, ...] = ()
    with np.errstate(all="ignore"), contextlib.suppress(IncompatibleError):
        found = load_task(spec).decode(outputs, Geometry(64, 64, 0.5, 0.5))
    for detection in found:
        assert detection.box is not None
        assert 0 <= detection.box[0] < detection.box[2] <= 64
        assert 0 < detection.score <= 1.0
