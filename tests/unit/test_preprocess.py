"""Pre-processing against a naive float64 oracle, and the way back from tensor to frame."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from jetfleet_agent.pipeline.preprocess import Preprocessor
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import InputError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def oracle(frame: np.ndarray, spec: InputSpec) -> np.ndarray:
    """The formula of `InputSpec`, written as plainly as it reads."""
    height, width = frame.shape[:2]
    if spec.resize == "stretch":
        canvas = cv2.resize(frame, (spec.width, spec.height), interpolation=cv2.INTER_LINEAR)
    else:
        ratio = min(spec.width / width, spec.height / height)
        w, h = round(width * ratio), round(height * ratio)
        canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
        left, top = (spec.width - w) // 2, (spec.height - h) // 2
        canvas[top:top + h, left:left + w] = cv2.resize(frame, (w, h), interpolation=cv2.INTER_LINEAR)
    if spec.color == "rgb":
        canvas = canvas[:, :, ::-1]
    values = (canvas.astype(np.float64) * spec.scale - np.array(spec.mean)) / np.array(spec.std)
    return np.asarray(values.transpose(2, 0, 1)[None], np.float32)


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("color", ["bgr", "rgb"])
@pytest.mark.parametrize("size", [(48, 64), (97, 31), (31, 97), (200, 320), (1, 1)])
def test_equals_the_formula(resize: str, color: str, size: tuple[int, int]) -> None:
    spec = InputSpec("x", 64, 48, color, resize, mean=MEAN, std=STD)  # type: ignore[arg-type]
    frame = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    out = np.full((1, 3, 48, 64), np.nan, np.float32)
    Preprocessor(spec).run(frame, out)
    np.testing.assert_array_equal(out, oracle(frame, spec))


def test_letterbox_border_is_right_again_after_frames_of_another_shape() -> None:
    spec = InputSpec("x", 64, 48, resize="letterbox")
    random = np.random.default_rng(2)
    preprocessor, out = Preprocessor(spec), np.empty((1, 3, 48, 64), np.float32)
    for size in ((48, 48), (20, 90), (48, 64), (90, 20)):
        frame = random.integers(0, 256, (*size, 3), np.uint8)
        preprocessor.run(frame, out)
        np.testing.assert_array_equal(out, oracle(frame, spec))


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_geometry_maps_a_mark_back_to_where_it_was(resize: str) -> None:
    spec = InputSpec("x", 160, 120, resize=resize)  # type: ignore[arg-type]
    frame = np.zeros((300, 200, 3), np.uint8)
    frame[150:170, 60:100] = 255
    out = np.empty((1, 3, 120, 160), np.float32)
    geometry = Preprocessor(spec).run(frame, out)
    if resize == "letterbox":
        out[:, :, :, :40] = out[:, :, :, 120:] = 0  # the gray border is no mark
    rows, columns = np.nonzero(out[0, 0] > 0.5)
    corners = [geometry.to_frame(columns.min(), rows.min()), geometry.to_frame(columns.max() + 1, rows.max() + 1)]
    np.testing.assert_allclose(corners, [[60, 150], [100, 170]], atol=2.6)


def test_geometry_clips_to_the_frame() -> None:
    geometry = Preprocessor(InputSpec("x", 64, 48)).run(np.zeros((100, 100, 3), np.uint8), np.empty((1, 3, 48, 64), np.float32))
    assert geometry.to_frame(-5.0, 900.0) == (0.0, 100.0)


@pytest.mark.parametrize("frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32),
                                   np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_frame_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        Preprocessor(InputSpec("x", 64, 48)).run(frame, np.empty((1, 3, 48, 64), np.float32))
    assert caught.value.code == "frame.shape"


@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(48, 64), (97, 31), (31, 97), (200, 320), (1, 1)])
def test_a_folded_tensor_is_the_resized_frame_whatever_was_in_it(resize: str, size: tuple[int, int]) -> None:
    spec = InputSpec("x", 64, 48, "rgb", resize, mean=MEAN, std=STD)  # type: ignore[arg-type]
    frame = np.random.default_rng(4).integers(0, 256, (*size, 3), np.uint8)
    preprocessor = Preprocessor(spec)
    plain, folded = np.empty((1, 3, 48, 64), np.float32), np.full((1, 48, 64, 3), 77, np.uint8)
    assert preprocessor.run(frame, plain) == preprocessor.run(frame, folded)
    values = (folded[0, :, :, ::-1].astype(np.float64) * spec.scale - np.array(MEAN)) / np.array(STD)
    np.testing.assert_array_equal(plain[0], values.transpose(2, 0, 1).astype(np.float32))


def test_two_kinds_of_tensors_in_turns_do_not_spoil_the_border() -> None:
    spec = InputSpec("x", 64, 48, resize="letterbox")
    random, preprocessor = np.random.default_rng(8), Preprocessor(spec)
    plain, folded = np.empty((1, 3, 48, 64), np.float32), np.empty((1, 48, 64, 3), np.uint8)
    for size in ((48, 48), (20, 90), (48, 64), (90, 20), (90, 20)):
        frame = random.integers(0, 256, (*size, 3), np.uint8)
        preprocessor.run(frame, folded)
        preprocessor.run(frame, plain)
        np.testing.assert_array_equal(plain, oracle(frame, spec))


@pytest.mark.parametrize(("shape", "kind"), [((1, 3, 48, 64), "uint8"), ((1, 48, 64, 3), "float32"), ((2, 3, 48, 64), "float32"),
                                             ((3, 48, 64), "float32"), ((1, 64, 48, 3), "uint8")])
def test_a_tensor_of_another_input_is_refused(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(InputError) as caught:
        Preprocessor(InputSpec("x", 64, 48)).run(np.zeros((48, 64, 3), np.uint8), np.empty(shape, kind))
    assert caught.value.code == "tensor.shape"


def test_no_frame_allocates_a_tensor_or_a_canvas() -> None:
    """The tensor is written in place: what is around it in memory stays, and it is the same memory every time."""
    spec = InputSpec("x", 64, 48, resize="letterbox")
    backing = np.full((3, 3, 48, 64), 7.0, np.float32)
    Preprocessor(spec).run(np.zeros((40, 90, 3), np.uint8), backing[1:2])
    assert (backing[0] == 7).all()
    assert (backing[2] == 7).all()
    assert not (backing[1] == 7).any()
