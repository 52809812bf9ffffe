"""Backends on small ONNX files made here: they agree with each other, reuse their memory, and say what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipelines import save_brightness_model, save_map_model

from jetfleet_agent.pipeline.backends import Backend, open_backend
from jetfleet_contract.errors import IncompatibleError, InputError, OrderError, RuntimeFailure

SHAPE = (1, 3, 48, 64)
RUNTIMES = ["onnxruntime", "openvino"]


def opened(name: str, path: Path, precision: str = "fp32", lanes: int = 1, shape: tuple[int, ...] = SHAPE) -> Backend:
    pytest.importorskip(name)
    return open_backend(name, path, precision=precision, threads=1, input_shape=shape, lanes=lanes)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    return save_map_model(tmp_path / "map.onnx", work=2)


def test_all_backends_give_the_same_map(model: Path) -> None:
    image = np.random.default_rng(3).random(SHAPE).astype(np.float32)
    maps = []
    for name in RUNTIMES:
        with opened(name, model) as backend:
            backend.lanes[0].tensor[...] = image
            maps.append(backend.infer(backend.lanes[0])[0].copy())
            assert backend.precision == "fp32"
            assert backend.provider
            assert backend.versions
    np.testing.assert_allclose(maps[0], np.clip(1 - image.mean(axis=1, keepdims=True), 0, 1), atol=1e-5)
    np.testing.assert_allclose(maps[0], maps[1], atol=1e-5)


@pytest.mark.parametrize("name", RUNTIMES)
def test_lanes_do_not_touch_each_other(name: str, model: Path) -> None:
    with opened(name, model, lanes=3) as backend:
        for lane, value in zip(backend.lanes, (0.0, 0.25, 1.0), strict=True):
            lane.tensor.fill(value)
        outputs = [backend.infer(lane)[0] for lane in backend.lanes]
        for output, value in zip(outputs, (0.0, 0.25, 1.0), strict=True):
            np.testing.assert_allclose(output, 1 - value, atol=1e-6)


@pytest.mark.parametrize("name", RUNTIMES)
def test_buffers_are_allocated_once(name: str, model: Path) -> None:
    with opened(name, model) as backend:
        lane = backend.lanes[0]
        places = {(lane.tensor.ctypes.data, backend.infer(lane)[0].ctypes.data) for _ in range(5)}
        assert len(places) == 1


@pytest.mark.parametrize("name", RUNTIMES)
def test_free_axes_take_the_bundles_shape(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    path = save_brightness_model(tmp_path / "free.onnx", free=True)
    with opened(name, path, shape=(1, 3, 20, 30)) as backend:
        backend.lanes[0].tensor.fill(1.0)
        assert backend.infer(backend.lanes[0])[0].reshape(-1).argmax() == 1


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_file_that_is_no_model(name: str, tmp_path: Path) -> None:
    path = tmp_path / "not.onnx"
    path.write_bytes(b"this is no protobuf" * 20)
    with pytest.raises(RuntimeFailure) as caught:
        opened(name, path).activate()
    assert caught.value.code == "backend.load"
    assert "not.onnx" in caught.value.what


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_model_of_another_size_is_named(name: str, model: Path) -> None:
    with pytest.raises(IncompatibleError) as caught:
        opened(name, model, shape=(1, 3, 96, 96)).activate()
    assert caught.value.code == "backend.input"


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_missing_file_and_calls_out_of_order(name: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as missing:
        opened(name, tmp_path / "gone.onnx").activate()
    assert missing.value.code == "model.missing"
    backend = opened(name, model)
    with backend:
        lane = backend.lanes[0]
        with pytest.raises(OrderError):
            backend.activate()
    backend.deactivate()
    with pytest.raises(OrderError):
        backend.infer(lane)


def test_precision_and_name_are_checked_before_anything_is_loaded(model: Path) -> None:
    with pytest.raises(IncompatibleError) as precision:
        open_backend("onnxruntime", model, precision="bf16", threads=1, input_shape=SHAPE)
    assert precision.value.code == "backend.precision"
    with pytest.raises(IncompatibleError) as name:
        open_backend("caffe", model, precision="fp32", threads=1, input_shape=SHAPE)
    assert name.value.code == "backend.unknown"


def test_tensorrt_that_is_not_there_says_so(model: Path) -> None:
    try:
        import tensorrt  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(IncompatibleError) as caught:
            open_backend("tensorrt", model, precision="fp16", threads=0, input_shape=SHAPE).activate()
        assert caught.value.code == "backend.missing"
        assert "JetPack" in caught.value.remedy
        return
    pytest.skip("TensorRT is installed here")


def test_openvino_tells_what_it_really_ran_in(model: Path) -> None:
    """bf16 on a CPU that has it, fp32 on one that has not: never the wish."""
    ov = pytest.importorskip("openvino")
    has_bf16 = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with opened("openvino", model, "bf16") as backend:
        assert backend.precision == ("bf16" if has_bf16 else "fp32")
