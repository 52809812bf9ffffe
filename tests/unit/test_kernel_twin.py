"""The kernel's oracle against the CPU's pre-processor and OpenCV, on random frames of odd sizes and pitches."""

from __future__ import annotations

from typing import Any, get_args

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_frames import in_format, pitched, random_colors

from jetfleet_agent.pipeline.kernel_twin import new_tensor, preprocess
from jetfleet_agent.pipeline.preprocess import Preprocessor
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import InputError
from jetfleet_contract.kernel_arguments import FRAME_BYTES, MAX_SIDE, ONE, RULES_BYTES, Fit, Matrix, Region, check_frame, rules, sampling
from jetfleet_contract.kernels import FORMATS, LAYOUTS, TYPES, PixelFormat

SPECS = {
    "levels": InputSpec("x", 96, 64, color="bgr", resize="letterbox", scale=1.0, pad=114),
    "rgb": InputSpec("x", 64, 80, color="rgb", resize="stretch", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "odd": InputSpec("x", 51, 37, color="bgr", resize="letterbox", scale=1.0, pad=0),
}
SIZES = ((640, 360), (96, 64), (50, 130), (2, 2), (318, 242))


def by_twin(frame: tuple[Any, ...], pixels: PixelFormat, size: tuple[int, int], spec: InputSpec, **how: Any) -> Any:
    where = sampling(spec, *size, how.get("fit", spec.resize), how.get("region"))
    told = rules(spec, pixels)
    out = new_tensor(1, told, "nchw", "f32")
    preprocess(frame, pixels, where, told, out[0], "nchw", "f32")
    return out


def levels_apart(a: Any, b: Any, spec: InputSpec) -> float:
    per_level = np.array([spec.scale / std for std in spec.std]).reshape(1, 3, 1, 1)
    return float(np.max(np.abs(a - b) / per_level))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", FORMATS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_twin_agrees_with_the_cpu(spec: InputSpec, pixels: PixelFormat, size: tuple[int, int]) -> None:
    random = np.random.default_rng(list(f"{pixels} {size}".encode()))
    planes, as_bgr = in_format(random_colors(random, *size), pixels)
    out = np.empty((1, 3, spec.height, spec.width), np.float32)
    geometry = Preprocessor(spec).run(as_bgr, out)
    where = sampling(spec, *size, spec.resize)
    assert (where.width / size[0], where.height / size[1], where.left, where.top) == pytest.approx(
        (geometry.scale_x, geometry.scale_y, geometry.pad_x, geometry.pad_y))
    apart = levels_apart(by_twin(tuple(pitched(plane, 28) for plane in planes), pixels, size, spec), out, spec)
    assert apart <= (3.01 if pixels in ("nv12", "yuyv") else 1.01)


@pytest.mark.parametrize("pixels", ["bgr", "rgba", "gray"])
@given(width=st.integers(2, 200), height=st.integers(2, 200), tensor=st.tuples(st.integers(1, 90), st.integers(1, 90)),
       seed=st.integers(0, 999))
def test_any_size_agrees(pixels: PixelFormat, width: int, height: int, tensor: tuple[int, int], seed: int) -> None:
    spec = InputSpec("x", *tensor, resize="letterbox", scale=1.0)
    planes, as_bgr = in_format(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8), pixels)
    out = np.empty((1, 3, spec.height, spec.width), np.float32)
    Preprocessor(spec).run(as_bgr, out)
    assert levels_apart(by_twin(planes, pixels, (width, height), spec), out, spec) <= 1.05


def test_a_region_is_the_cut_out_frame() -> None:
    spec = SPECS["levels"]
    frame = random_colors(np.random.default_rng(5), 300, 200)
    region = Region(31, 17, 160, 90)
    cut = np.ascontiguousarray(frame[17:107, 31:191])
    here = by_twin((pitched(frame.reshape(200, -1), 0),), "bgr", (300, 200), spec, region=region)
    there = by_twin((cut.reshape(90, -1),), "bgr", (160, 90), spec)
    assert levels_apart(here, there, spec) <= 0.01


def test_crop_fills_the_tensor_and_loses_both_sides_alike() -> None:
    spec = InputSpec("x", 64, 64, color="bgr", scale=1.0)
    frame = random_colors(np.random.default_rng(6), 320, 128)
    want = cv2.resize(frame[:, 96:224], (64, 64), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)[None].astype(np.float32)
    got = by_twin((frame.reshape(128, -1),), "bgr", (320, 128), spec, fit="crop")
    assert levels_apart(got, want, spec) <= 1.01


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", TYPES)
def test_layouts_and_types_are_one_picture(layout: Any, kind: Any) -> None:
    spec = InputSpec("x", 40, 40, color="rgb", resize="letterbox", scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    planes, _ = in_format(random_colors(np.random.default_rng(7), 90, 60), "bgr")
    scale = 1 / 64 if kind == "i8" else 1.0
    told, where = rules(spec, "bgr", input_scale=scale), sampling(spec, 90, 60, "letterbox")
    out = new_tensor(2, told, layout, kind)
    assert out.flags.c_contiguous  # as the kernel addresses it
    before = out.copy()
    preprocess(planes, "bgr", where, told, out[1], layout, kind)
    real = by_twin(planes, "bgr", (90, 60), spec)[0]
    got = out[1].astype(np.float32) * scale
    got = got if layout == "nchw" else got.transpose(2, 0, 1)
    assert np.array_equal(out[0], before[0])  # the other picture
    assert np.max(np.abs(got - np.clip(real, -128 * scale, 127 * scale))) <= {"f32": 0.0, "f16": 2e-3, "i8": scale / 2 + 1e-6}[kind]
    band = got[:, :where.top]
    want = [(114 / 255 - m) / s for m, s in zip(spec.mean, spec.std, strict=True)]
    assert np.allclose(band[:, 0, 0], want, atol=scale / 2 if kind == "i8" else 2e-3)


@pytest.mark.parametrize("matrix", get_args(Matrix))
def test_grey_and_primaries_of_every_matrix(matrix: Matrix) -> None:
    """Mid grey has no colour in any of them; white is white; the coefficients are ITU's."""
    told = rules(InputSpec("x", 4, 4, color="rgb", scale=1.0), "nv12", matrix)
    white, black = (255, 0) if matrix.endswith("full") else (235, 16)
    for luma, level in ((white, 255), (black, 0)):
        got = [255 * (ONE * (luma * told.luma + 128 * (told.from_u[c] + told.from_v[c])) + told.base[c]) for c in range(3)]
        assert got == pytest.approx([level] * 3, abs=1e-3)
    red = {"bt601": 1.402, "bt709": 1.5748}[matrix.removesuffix("-full")]
    assert told.from_v[0] * 255 * ONE == pytest.approx(red * (1 if matrix.endswith("full") else 255 / 224), rel=1e-6)


def test_arguments_have_the_kernel_s_size() -> None:
    spec = SPECS["odd"]
    fit: Fit = "letterbox"
    assert len(sampling(spec, 33, 44, fit).pack(1 << 40, 64)) == FRAME_BYTES
    assert len(rules(spec, "bgr").pack()) == RULES_BYTES


@given(width=st.integers(2, 5000), height=st.integers(2, 5000), tensor=st.integers(1, 2000))
def test_a_grid_covers_the_picture_and_a_block_is_legal(width: int, height: int, tensor: int) -> None:
    where = sampling(InputSpec("x", tensor, tensor), width, height, "letterbox")
    threads, columns, rows = where.grid
    assert rows == where.height
    assert threads % 32 == 0
    assert 32 <= threads <= 256
    assert where.left // 4 * 4 + 4 * threads * columns >= where.left + where.width


@pytest.mark.parametrize(("pixels", "size", "pitch"), [("nv12", (33, 20), 64), ("nv12", (32, 21), 64), ("yuyv", (31, 4), 64),
                                                      ("bgr", (32, 4), 95),
                                                      ("rgba", (8, 4), 33), ("gray", (10, 4), 9)])
def test_frames_that_cannot_be_are_refused(pixels: PixelFormat, size: tuple[int, int], pitch: int) -> None:
    with pytest.raises(InputError) as caught:
        check_frame(pixels, *size, pitch)
    assert caught.value.code == "frame.shape"


def test_regions_and_scales_that_cannot_be_are_refused() -> None:
    spec = SPECS["levels"]
    for region in (Region(0, 0, 101, 10), Region(-1, 0, 5, 5), Region(5, 5, 0, 5)):
        with pytest.raises(InputError, match="not inside"):
            sampling(spec, 100, 100, "stretch", region)
    for size, part in (((1, 100), None), ((100, 1), None), ((100, 100), Region(99, 0, 1, 50))):
        with pytest.raises(InputError, match="at least two"):
            sampling(spec, *size, "stretch", part)
    with pytest.raises(InputError, match="limit"):
        sampling(spec, MAX_SIDE + 1, 100, "stretch")
    with pytest.raises(InputError, match="positive"):
        sampling(spec, 0, 100, "stretch")
    with pytest.raises(InputError, match="positive"):
        rules(spec, "bgr", input_scale=0.0)
