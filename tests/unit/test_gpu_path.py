"""Whether a kernel can write an engine's input, and the reason where it cannot."""

from __future__ import annotations

import msgspec
import pytest

from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.gpu_path import EngineInput, gpu_path

SPEC = InputSpec("x", 64, 48, resize="letterbox")
PLAIN = EngineInput((2, 3, 48, 64), "float32")


@pytest.mark.parametrize(("shape", "dtype", "kernel", "size"), [
    ((2, 3, 48, 64), "float32", "jf_preprocess_bgr_nchw_f32", 4), ((2, 3, 48, 64), "float16", "jf_preprocess_bgr_nchw_f16", 2),
    ((1, 48, 64, 3), "float16", "jf_preprocess_bgr_nhwc_f16", 2), ((1, 48, 64, 3), "int8", "jf_preprocess_bgr_nhwc_i8", 1)])
def test_the_kernel_is_that_of_the_engine_s_layout_and_type(shape: tuple[int, ...], dtype: str, kernel: str, size: int) -> None:
    fold = gpu_path(msgspec.structs.replace(SPEC, input_scale=0.02), EngineInput(shape, dtype)).fold
    assert fold is not None
    assert (fold.kernel.name, fold.images, fold.image_bytes) == (kernel, shape[0], 3 * 48 * 64 * size)
    assert fold.names == {kernel, kernel.replace("preprocess_bgr", "fill")}
    assert fold.rules.pad[0] == pytest.approx(114 / 255 / (0.02 if dtype == "int8" else 1.0))


@pytest.mark.parametrize(("spec", "source", "pixels", "part"), [
    (None, PLAIN, "bgr", "gives tensors"),
    (SPEC, PLAIN, "p010", "no kernel reads frames of 'p010'"),
    (SPEC, EngineInput((2, 3, 64, 48), "float32"), "bgr", "[2, 3, 64, 48], no pictures of 64 x 48"),
    (SPEC, EngineInput((2, 1, 48, 64), "float32"), "bgr", "no pictures"),
    (SPEC, EngineInput((3, 48, 64), "float32"), "bgr", "no pictures"),
    (SPEC, EngineInput((2, 3, 48, 64), "bfloat16"), "bgr", "no kernel writes bfloat16"),
    (SPEC, EngineInput((2, 3, 48, 64), "int8"), "bgr", "input_scale"),
    (msgspec.structs.replace(SPEC, resize="cover"), PLAIN, "bgr", "no kernel resizes by 'cover'"),
    (InputSpec("x", 64, 70_000), EngineInput((1, 3, 70_000, 64), "float32"), "bgr", "65535"),
    (msgspec.structs.replace(SPEC, std=(1.0, 0.0, 1.0)), PLAIN, "bgr", "must be positive")])
def test_what_no_kernel_can_do_is_named(spec: InputSpec | None, source: EngineInput, pixels: str, part: str) -> None:
    path = gpu_path(spec, source, pixels)
    assert path.fold is None
    assert part in path.reason
