"""The rule of decoding: the CPU's task and the kernels' oracle give the same survivors of any head; bounds and sizes of a launch."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from decode_heads import KINDS, head_of, random_rules
from fake_cuda import FakeCuda
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cubins import cubin

from jetfleet_agent.pipeline.cuda.decode_launch import DecodeLaunch
from jetfleet_agent.pipeline.decode_twin import decode
from jetfleet_agent.pipeline.decoded import SLOT, record_type
from jetfleet_agent.pipeline.tasks.yolo_outputs import Candidates, Reading, read, suppress
from jetfleet_contract.decode_arguments import MAX_CANDIDATES, RULES_BYTES, SLOT_BYTES, HeadRules, head_rules
from jetfleet_contract.errors import InputError
from jetfleet_contract.kernels import HEAD_TYPES, HEADS, NAMES


def by_task(head: Any, rules: HeadRules, image: int) -> Candidates:
    """What the CPU's path leaves of one image."""
    with np.errstate(all="ignore"):
        found = read((head[image:image + 1],), Reading(rules.layout, rules.classes), rules.threshold)
        chosen = suppress(found, min_iou=rules.iou, most=rules.most, agnostic=rules.agnostic)
    return Candidates(found.boxes[chosen], found.scores[chosen], found.classes[chosen], found.rest[chosen])


def check(head: Any, rules: HeadRules) -> None:
    for image, record in enumerate(decode(head, rules)):
        mine, kept = by_task(head, rules, image), int(record["kept"])
        slots = record["slots"][:kept]
        assert len(mine.scores) == kept
        assert mine.boxes.tobytes() == slots["box"].tobytes()
        assert mine.scores.tobytes() == slots["score"].tobytes()
        assert np.array_equal(mine.classes, slots["class"])
        assert np.array_equal(mine.rest, record["rest"][:kept], equal_nan=True)


@pytest.mark.parametrize("kind", HEAD_TYPES)
@pytest.mark.parametrize("layout", HEADS)
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), scene=st.sampled_from(KINDS), anchors=st.integers(1, 120), images=st.integers(1, 2))
def test_the_task_and_the_twin_agree(layout: Any, kind: Any, seed: int, scene: str, anchors: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    rules = random_rules(rng, layout, kind, images=images, anchors=anchors)
    check(head_of(rng, rules, scene), rules)


@pytest.mark.parametrize("layout", HEADS)
@pytest.mark.parametrize("scene", ["sure", "ties"])
def test_they_agree_on_more_candidates_than_the_bound(layout: Any, scene: str) -> None:
    rng = np.random.default_rng(7)
    rules = random_rules(rng, layout, "f32", images=1, anchors=3 * MAX_CANDIDATES)
    head = head_of(rng, rules, scene)
    assert decode(head, rules)[0]["passed"] > MAX_CANDIDATES or scene == "ties"
    check(head, rules)


def boxes(*corners: tuple[float, float, float, float], classes: tuple[int, ...] = ()) -> Candidates:
    """Candidates, best first, by their corners."""
    count = len(corners)
    return Candidates(np.array(corners, np.float32), np.linspace(0.9, 0.5, count).astype(np.float32),
                      np.array(classes or (0,) * count, np.int32), np.empty((count, 0), np.float32))


def test_the_cut_keeps_the_lower_of_equal_anchors() -> None:
    head = np.zeros((1, 5, 5000), np.float32)
    head[0, 0], head[0, 2:4] = np.arange(5000), 0.5
    head[0, 4] = 0.5
    head[0, 4, 4000:] = 0.75
    found = read((head,), Reading("v8", 1), 0.25)
    assert np.array_equal(found.boxes[:, 0] + 0.25, np.concatenate([np.arange(1000), np.arange(4000, 5000)]))


def test_a_head_of_float16_meets_the_threshold_as_float32() -> None:
    """float16 of 0.3 is over float32's 0.3; compared in float16 it would not be."""
    head = np.zeros((1, 6, 3), np.float16)
    head[0, 2:4], head[0, 4, 1] = 10, 0.3
    assert len(read((head,), Reading("v8", 2), 0.3).scores) == 1
    rows = np.zeros((1, 3, 7), np.float16)
    rows[0, :, 2:4], rows[0, 1, 4:6] = 10, (0.3, 1.0)
    assert len(read((rows,), Reading("v5", 2), 0.3).scores) == 1


def test_boxes_without_area_cover_nobody_and_take_no_place() -> None:
    found = boxes((10, 10, 0, 0), (5, 5, 5, 9), (np.nan, 0, 1, 1), (0, 0, np.inf, 9), (2, 2, 8, 8))
    assert suppress(found, min_iou=0.0, most=1, agnostic=True).tolist() == [4]


def test_classes_never_cover_each_other() -> None:
    """OpenCV's batched suppression moves classes apart by their largest coordinate, and forgets that boxes may begin below 0."""
    found = boxes((0, 0, 100, 100), (-101, -101, -1, -1), classes=(0, 1))
    rects: Any = found.boxes - np.array([[0], [0]], np.float32)
    rects[:, 2:] -= rects[:, :2]
    scores: Any = found.scores
    classes: Any = found.classes
    assert list(cv2.dnn.NMSBoxesBatched(rects.astype(np.float64), scores, classes, 0.0, 0.45)) == [0]
    assert suppress(found, min_iou=0.45, most=9, agnostic=False).tolist() == [0, 1]


# --- a launch ----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), layout=st.sampled_from(HEADS), anchors=st.integers(1, 30_000), images=st.integers(1, 4))
def test_sizes_hold_what_the_kernels_write(seed: int, layout: Any, anchors: int, images: int) -> None:
    rules = random_rules(np.random.default_rng(seed), layout, "f16", images=images, anchors=anchors)
    assert record_type(rules).itemsize == rules.image_output
    assert rules.image_output % 16 == rules.image_workspace % 16 == 0
    assert len(rules.pack()) == RULES_BYTES
    assert rules.most <= rules.slots <= 64 * rules.words
    assert rules.words <= 64  # one thread of the last step a word
    assert SLOT.itemsize == SLOT_BYTES
    assert rules.image_workspace >= anchors * 40 + rules.slots * (32 + 8 * rules.words)
    assert rules.scan_grid[0] * 128 >= anchors
    assert rules.compare_grid[1] * 128 >= rules.slots


def test_a_decode_is_five_launches_and_six_with_what_goes_along() -> None:
    for extra, count in ((0, 5), (32, 6)):
        cuda = FakeCuda()
        rules = head_rules("v8", "f16", (2, 84 + extra, 2100), classes=80, extra=extra)
        head = head_of(np.random.default_rng(), rules, "scene")
        at, workspace, output = (cuda.allocate(size) for size in (rules.head_bytes, rules.workspace_bytes, rules.output_bytes))
        cuda.array(at, head.shape, head.dtype)[...] = head
        launch = DecodeLaunch(cuda, cuda.load(cubin(cuda.sm, rules.kernels)), rules)
        launch.enqueue(at, workspace, output, cuda.stream())
        assert len(cuda.log) == count
        assert set(cuda.log) == rules.kernels <= NAMES
        assert np.array_equal(cuda.array(output, (2,), record_type(rules))["kept"], decode(head, rules)["kept"])
    assert rules.output_bytes == 2 * (16 + 300 * (32 + 32 * 4))


@pytest.mark.parametrize(("shape", "classes", "limits", "code"), [
    ((1, 84), 80, {}, "decode.shape"), ((1, 84, 0), 80, {}, "decode.shape"), ((1, 85, 8400), 80, {}, "decode.shape"),
    ((1, 84, 8400), 0, {}, "decode.shape"), ((65, 84, 8400), 80, {}, "decode.shape"), ((1, 84, 1 << 21), 80, {}, "decode.shape"),
    ((64, 2004, 1 << 20), 2000, {}, "decode.shape"), ((1, 84, 8400), 80, {"threshold": 1.1}, "decode.limit"),
    ((1, 84, 8400), 80, {"threshold": float("nan")}, "decode.limit"), ((1, 84, 8400), 80, {"iou": -0.1}, "decode.limit"),
    ((1, 84, 8400), 80, {"most": 0}, "decode.limit")])
def test_what_no_launch_can_do_is_refused(shape: tuple[int, ...], classes: int, limits: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        head_rules("v8", "f32", shape, classes=classes, **limits)
    assert caught.value.code == code
