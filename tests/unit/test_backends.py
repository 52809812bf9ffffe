"""Backends on small ONNX files made here: they agree with each other, reuse their memory, and say what is wrong."""

from __future__ import annotations

import importlib
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import save_brightness_model, save_map_model

from jetfleet_agent.pipeline.backends import Backend, open_backend
from jetfleet_agent.pipeline.preprocess import Preprocessor
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import IncompatibleError, InputError, OrderError, RuntimeFailure
from jetfleet_contract.tuning import Tuning

SHAPE = (1, 3, 48, 64)
TINY = (1, 3, 16, 16)
RUNTIMES = ["onnxruntime", "openvino"]


def opened(name: str, path: Path, precision: str = "fp32", lanes: int = 1, shape: tuple[int, ...] = SHAPE) -> Backend:
    pytest.importorskip(name)
    return open_backend(name, path, precision=precision, threads=1, input_shape=shape, lanes=lanes)


def classifier(shape: tuple[Any, ...] = TINY) -> Any:
    return importlib.import_module("tiny_models").classifier(shape)


def saved(built: Any, folder: Path) -> Path:
    path = folder / "tiny.onnx"
    path.write_bytes(built.SerializeToString())
    return path


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
    """Without a driver that is said, before TensorRT is looked for: it is needed first."""
    try:
        import tensorrt  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(IncompatibleError) as caught:
            open_backend("tensorrt", model, precision="fp16", threads=0, input_shape=SHAPE).activate()
        assert (caught.value.code, "JetPack" in caught.value.remedy) in (("backend.missing", True), ("cuda.driver", False))
        return
    pytest.skip("TensorRT is installed here")


def test_openvino_refuses_a_precision_that_it_quietly_ran_otherwise(tmp_path: Path) -> None:
    """A real fall-back of this machine's CPU: whichever half precision it lacks is asked for."""
    ov = pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    has = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    lacking = [precision for precision in ("fp16", "bf16") if precision.upper() not in has]
    if not lacking:
        pytest.skip("this CPU has both half precisions")
    path = saved(classifier(), tmp_path)
    backend = opened("openvino", path, lacking[0], shape=TINY)
    with pytest.raises(IncompatibleError) as caught:
        backend.activate()
    assert caught.value.code == "backend.fallback"
    assert f"asked for {lacking[0]}" in caught.value.what
    assert f"in {backend.precision}" in caught.value.what
    assert backend.precision != lacking[0]
    assert backend.layers.get(lacking[0], 0) == 0
    assert backend.lanes == ()


def test_openvino_runs_what_the_cpu_has(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    path = saved(classifier(), tmp_path)
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    with opened("openvino", path, "bf16", shape=TINY) as backend:
        assert backend.precision == "bf16"
        assert backend.provider == "CPU"
        assert backend.layers["bf16"] >= 2


def test_onnxruntime_names_the_layers_of_each_precision(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    with opened("onnxruntime", saved(classifier(), tmp_path), shape=TINY) as backend:
        assert (backend.provider, backend.precision) == ("CPUExecutionProvider", "fp32")
        assert set(backend.layers) == {"fp32"}
        assert backend.layers["fp32"] >= 2


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="x86 has no fp16 kernels in ONNX Runtime; others may")
def test_onnxruntime_refuses_to_call_float_arithmetic_fp16(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    backend = opened("onnxruntime", saved(classifier(), tmp_path), "fp16", shape=TINY)
    with pytest.raises(IncompatibleError) as caught:
        backend.activate()
    assert caught.value.code == "backend.fallback"
    assert "in fp32" in caught.value.what
    assert "ask for fp32" in caught.value.remedy


@pytest.mark.parametrize(("name", "provider"), [("onnxruntime", "CUDAExecutionProvider"), ("onnxruntime", "NoSuchExecutionProvider")])
def test_a_provider_that_is_not_there_is_no_silent_cpu(name: str, provider: str, model: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    if provider in ort.get_available_providers():
        pytest.skip(f"{provider} is here")
    backend = open_backend(name, model, precision="fp32", threads=1, input_shape=SHAPE, tuning=Tuning(provider=provider))
    with pytest.raises(IncompatibleError) as caught:
        backend.activate()
    assert caught.value.code == "backend.fallback"
    assert provider in caught.value.what


def test_a_provider_that_takes_no_layer_is_a_fallback(tmp_path: Path) -> None:
    """Azure's provider is compiled into the wheel, is accepted, and runs nothing of a plain model."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no AzureExecutionProvider")
    backend = open_backend("onnxruntime", saved(classifier(), tmp_path), precision="fp32", threads=1, input_shape=TINY,
                           tuning=Tuning(provider="AzureExecutionProvider"))
    with pytest.raises(IncompatibleError) as caught:
        backend.activate()
    assert caught.value.code == "backend.fallback"
    assert "on CPUExecutionProvider" in caught.value.what


@pytest.mark.parametrize("tuning", [Tuning(flush=True), Tuning(sleeping=True), Tuning(pinned=True),
                                    Tuning(flush=True, sleeping=True, pinned=True)], ids=lambda one: one.text)
@pytest.mark.parametrize("name", RUNTIMES)
def test_settings_change_no_answer(name: str, tuning: Tuning, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(name)
    path = saved(classifier(), tmp_path)
    image = np.random.default_rng(5).random(TINY).astype(np.float32)
    answers = []
    for one in (Tuning(), tuning):
        with open_backend(name, path, precision="fp32", threads=0, input_shape=TINY, tuning=one) as backend:
            backend.lanes[0].tensor[...] = image
            answers.append(backend.infer(backend.lanes[0])[0].copy())
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)


@pytest.mark.parametrize("color", ["bgr", "rgb"])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(16, 16), (40, 90), (7, 5)])
def test_folded_and_plain_give_the_same(tmp_path: Path, color: str, resize: str, size: tuple[int, int]) -> None:
    """Error bound: float32 rounding of a few operations in another order, 1e-4 of logits of size 8."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    spec = InputSpec("x", 16, 16, color, resize, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # type: ignore[arg-type]
    path = saved(classifier(), tmp_path)
    frame = np.random.default_rng(6).integers(0, 256, (*size, 3), np.uint8)
    preprocessor, answers, geometries = Preprocessor(spec), [], []
    for tuning in (Tuning(), Tuning(folded=True)):
        with open_backend("openvino", path, precision="fp32", threads=1, input_shape=TINY, tuning=tuning, spec=spec, lanes=2) as backend:
            lane = backend.lanes[1]
            lane.tensor[...] = 99  # what an earlier frame left
            geometries.append(preprocessor.run(frame, lane.tensor))
            answers.append(backend.infer(lane)[0].copy())
            assert lane.tensor.dtype == (np.uint8 if tuning.folded else np.float32)
    assert geometries[0] == geometries[1]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)


@pytest.mark.parametrize(("name", "folded"), [("onnxruntime", False), ("openvino", False), ("openvino", True)])
def test_a_batch_is_filled_image_by_image(name: str, folded: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(name)
    spec = InputSpec("x", 16, 16)
    path = saved(classifier(("n", 3, 16, 16)), tmp_path)
    tuning = Tuning(folded=folded)
    with open_backend(name, path, precision="fp32", threads=1, input_shape=(3, 3, 16, 16), tuning=tuning, spec=spec) as backend:
        lane = backend.lanes[0]
        for channel in range(3):
            frame = np.zeros((16, 16, 3), np.uint8)
            frame[:, :, channel] = 200
            Preprocessor(spec).run(frame, lane.tensor[channel:channel + 1])
        assert backend.infer(lane)[0].argmax(axis=1).tolist() == [0, 1, 2]


def test_only_openvino_folds_and_only_with_the_bundles_input(model: Path) -> None:
    for name, spec in (("onnxruntime", InputSpec("x", 64, 48)), ("openvino", None)):
        with pytest.raises(IncompatibleError) as caught:
            open_backend(name, model, precision="fp32", threads=1, input_shape=SHAPE, tuning=Tuning(folded=True), spec=spec)
        assert caught.value.code == "backend.fold"


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_model_that_takes_no_floats_is_named(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    built = classifier()
    built.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    built.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["x.float"], to=onnx.TensorProto.FLOAT))
    for node in list(built.graph.node)[1:]:
        for index, source in enumerate(node.input):
            if source == "x":
                node.input[index] = "x.float"
    with pytest.raises(IncompatibleError) as caught:
        opened(name, saved(built, tmp_path), shape=TINY).activate()
    assert caught.value.code == "backend.input"
    assert "float32" in caught.value.remedy
