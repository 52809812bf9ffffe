"""Where Q/DQ pairs stand on tiny graphs, for both layouts, and that the twins share all scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
from onnx import numpy_helper

from jetfleet_host.compress.calibration import Range, ScaleTable, calibrate
from jetfleet_host.compress.equality import outputs_of, relative_error
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.placement import Edge, place, quantizable
from jetfleet_host.compress.qdq import quantize_weight, write_qdq


def _inputs(count: int = 4) -> list[Any]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=(1, 3, 16, 16)).astype(np.float32) for _ in range(count)]


def _all_layers(model: Any) -> tuple[GraphView, list[str]]:
    view = GraphView(model)
    return view, [node.output[0] for node in quantizable(view)]


def _table(model: Any, tmp_path: Path) -> ScaleTable:
    return calibrate(write_model(tmp_path / "m.onnx", serialized(model)), _inputs())


def _quantized(model: Any, layout: Any, tmp_path: Path) -> Any:
    view, layers = _all_layers(model)
    made = write_qdq(model, place(view, layers, layout), _table(model, tmp_path))
    onnx.checker.check_model(made, full_check=True)
    return made


def _quantized_tensors(model: Any) -> set[str]:
    return {str(node.output[0]).removesuffix(".q") for node in model.graph.node if node.op_type == "QuantizeLinear"}


def _constants(model: Any) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _reads(model: Any, output: str) -> list[str]:
    return next(list(node.input) for node in model.graph.node if node.output[0] == output)


def test_int8_residual_quantizes_the_skip_branch_only(tmp_path: Path) -> None:
    made = _quantized(tiny_models.residual(), "qdq-int8", tmp_path)
    assert _quantized_tensors(made) == {"x", "skip", "mid", "y"}  # the Add's other input, conv b's output, stays bare
    assert _reads(made, "sum") == ["b", "skip.dq"]
    assert _reads(made, "a")[0] == "skip.dq"  # one pair, shared by both readers
    assert _reads(made, "mid") == ["a"]  # nothing between a convolution and its ReLU
    assert _reads(made, "stem")[2] == "stem.b"  # the bias stays float


def test_uint8_residual_quantizes_both_inputs_and_the_output(tmp_path: Path) -> None:
    made = _quantized(tiny_models.residual(), "qdq-uint8", tmp_path)
    assert _quantized_tensors(made) == {"x", "skip", "mid", "b", "y"}  # "last" leaves the graph in float
    assert _reads(made, "sum") == ["b.dq", "skip.dq"]


def test_uint8_zero_points_follow_the_sign(tmp_path: Path) -> None:
    zero = {name.removesuffix(".zero"): value for name, value in
            _constants(_quantized(tiny_models.residual(), "qdq-uint8", tmp_path)).items()
            if name.endswith(".zero") and "weight8" not in name}
    assert {name: int(value) for name, value in zero.items()} == {"x": 128, "skip": 0, "mid": 0, "b": 128, "y": 0}
    assert {value.dtype for value in zero.values()} == {np.dtype(np.uint8)}


def test_int8_is_symmetric_everywhere(tmp_path: Path) -> None:
    constants = _constants(_quantized(tiny_models.residual(), "qdq-int8", tmp_path))
    zeros = [value for name, value in constants.items() if name.endswith(".zero")]
    assert zeros
    assert all(value.dtype == np.int8 and not value.any() for value in zeros)


@pytest.mark.parametrize("make", [tiny_models.residual, tiny_models.depthwise, tiny_models.concat, tiny_models.hard_swish_text])
@pytest.mark.parametrize("layout", ["qdq-uint8", "qdq-arm"])
def test_twins_share_every_scale_and_weight(make: Any, layout: Any, tmp_path: Path) -> None:
    model = make()
    first, twin = (_constants(_quantized(model, kind, tmp_path)) for kind in ("qdq-int8", layout))
    shared = {name for name in first if name.endswith(".scale") or ".weight8" in name}
    assert shared
    assert shared <= set(twin)
    for name in shared:
        np.testing.assert_array_equal(first[name], twin[name])


def test_the_arm_file_is_the_uint8_file_moved_by_128(tmp_path: Path) -> None:
    model = tiny_models.residual()
    uint8, arm = (_quantized(model, layout, tmp_path) for layout in ("qdq-uint8", "qdq-arm"))
    assert [node.output[0] for node in uint8.graph.node] == [node.output[0] for node in arm.graph.node]
    moved, plain = _constants(arm), _constants(uint8)
    zeros = {name for name in plain if name.endswith(".zero") and ".weight8" not in name}
    assert {int(plain[name]) for name in zeros} == {0, 128}
    for name in plain:
        expected = (plain[name].astype(np.int16) - 128).astype(np.int8) if name in zeros else plain[name]
        np.testing.assert_array_equal(moved[name], expected)
        assert moved[name].dtype == expected.dtype


def test_narrow_weights_cannot_saturate_a_16_bit_sum(tmp_path: Path) -> None:
    """Two neighbouring products of an 8-bit unsigned and a weight, as instructions before VNNI add them up."""
    model = tiny_models.residual()
    narrow, plain = (_constants(_quantized(model, layout, tmp_path)) for layout in ("qdq-uint8-narrow", "qdq-uint8"))
    for name in (name for name in plain if name.endswith(".weight8")):
        largest, before = (2 * 255 * int(np.abs(weights[name].astype(np.int32)).max()) for weights in (narrow, plain))
        assert largest < 2**15 <= before
        np.testing.assert_allclose(narrow[f"{name}.scale"], plain[f"{name}.scale"] * (127 / 63), rtol=1e-6)
    activations = [name for name in plain if name.endswith(".scale") and ".weight8" not in name]
    assert activations
    assert all(narrow[name] == plain[name] for name in activations)


def test_one_scale_a_tensor_when_the_table_says_so(tmp_path: Path) -> None:
    model = tiny_models.residual()
    view, layers = _all_layers(model)
    table = msgspec.structs.replace(_table(model, tmp_path), per_channel=False)
    made = write_qdq(model, place(view, layers, "qdq-int8"), table)
    onnx.checker.check_model(made, full_check=True)
    scales = [value for name, value in _constants(made).items() if name.endswith(".weight8.scale")]
    assert scales
    assert all(scale.shape == () for scale in scales)
    for reference, found in zip(outputs_of(model, _inputs(2)), outputs_of(made, _inputs(2)), strict=True):
        assert 0.0 < relative_error(reference[0], found[0]) < 0.05


@pytest.mark.parametrize("layout", ["qdq-int8", "qdq-uint8", "qdq-arm", "qdq-uint8-narrow"])
@pytest.mark.parametrize("make", [tiny_models.residual, tiny_models.depthwise, tiny_models.concat, tiny_models.hard_swish_text])
def test_quantized_output_stays_close(make: Any, layout: str, tmp_path: Path) -> None:
    model, tensors = make(), _inputs(2)
    made = _quantized(model, layout, tmp_path)
    for reference, found in zip(outputs_of(model, tensors), outputs_of(made, tensors), strict=True):
        assert 0.0 < relative_error(reference[0], found[0]) < 0.05


def test_depthwise_weights_have_one_scale_a_channel(tmp_path: Path) -> None:
    constants = _constants(_quantized(tiny_models.depthwise(), "qdq-int8", tmp_path))
    assert constants["dw.weight8"].shape == (16, 1, 3, 3)
    assert constants["dw.weight8.scale"].shape == (16,)


def test_concat_is_clipped_before_int8_and_bare_before_uint8(tmp_path: Path) -> None:
    model = tiny_models.concat()
    made = _quantized(model, "qdq-int8", tmp_path)
    limit = _constants(made)["joined.scale"] * np.float32(127)
    assert _reads(made, "joined.q")[0] == "joined.clipped"
    assert _constants(made)["joined.clipped.high"] == limit
    assert _reads(_quantized(model, "qdq-uint8", tmp_path), "joined.q")[0] == "joined"


def test_openvino_agrees_with_onnxruntime_on_a_quantized_concat(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    made = _quantized(tiny_models.concat(), "qdq-int8", tmp_path)
    handle = write_model(tmp_path / "q.onnx", serialized(made))
    tensor = _inputs(1)[0]
    core = ov.Core()
    found = core.compile_model(core.read_model(str(handle.path)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([tensor])[0]
    assert relative_error(outputs_of(made, [tensor])[0][0], found) < 0.03


def test_left_out_layers_stay_float(tmp_path: Path) -> None:
    model = tiny_models.residual()
    view = GraphView(model)
    made = write_qdq(model, place(view, ["b"], "qdq-int8"), _table(model, tmp_path))
    assert _quantized_tensors(made) == {"mid", "skip"}
    assert _reads(made, "a") == ["skip", "a.w", "a.b"]


def test_max_pool_shares_its_input_scale() -> None:
    net = tiny_models.Net()
    net.node("Relu", [net.conv("x", "stem", 3, 8)], "r")
    net.node("MaxPool", ["r"], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    model = net.model(net.conv("pooled", "last", 8, 8))
    placement = place(GraphView(model), ["last"], "qdq-int8")
    assert Edge("pooled", 0) in placement.edges
    table = ScaleTable({"r": Range(0.0, 2.0, 2.0), "pooled": Range(0.0, 1.0, 1.0)}, 1, 100.0)
    constants = _constants(write_qdq(model, placement, table))
    assert constants["pooled.scale"] == constants["r.scale"] == np.float32(2.0 / 127)


def test_onnxruntime_fuses_the_twin_into_integer_convolutions(tmp_path: Path) -> None:
    handle = write_model(tmp_path / "q.onnx", serialized(_quantized(tiny_models.residual(), "qdq-uint8", tmp_path)))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(handle.path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node]
    assert kinds.count("QLinearConv") == 3
    assert kinds.count("QLinearAdd") == 1
    assert kinds.count("Conv") == 1  # the last one, whose output leaves the graph


def test_weights_round_to_within_half_a_step() -> None:
    weight = np.random.default_rng(1).normal(size=(5, 4, 3, 3)).astype(np.float32)
    weight[2] = 0.0
    steps, scales = quantize_weight(weight, 0)
    assert np.abs(steps * scales.reshape(-1, 1, 1, 1) - weight).max() <= scales.max() / 2 * 1.0001
    assert steps.min() >= -127
    assert (scales > 0).all()
