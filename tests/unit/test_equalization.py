"""Cross-layer equalization and bias correction: same function in float, less loss in int8, and nothing kept that does not help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from jetfleet_host.compress.bias_correction import correct_bias, mean_shifts
from jetfleet_host.compress.calibration import ScaleTable, calibrate
from jetfleet_host.compress.equality import check_equal, outputs_of, relative_error
from jetfleet_host.compress.equalization import equalize, find_pairs
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import ModelHandle, serialized, write_model
from jetfleet_host.compress.placement import place, quantizable
from jetfleet_host.compress.qdq import write_qdq


def _inverted_residual(activation: str = "Relu", *, spread: float = 0.0, seed: int = 7) -> Any:
    """MobileNetV2's block: expand, depthwise, project; channels of the inner tensors scaled against each other by factors up to e^spread,
    as batch norm folding leaves them. For ReLU6 the factors only shrink channels, so that the function keeps its saturation."""
    net = tiny_models.Net()
    net.rng = np.random.default_rng(seed)
    factors = np.exp(net.rng.uniform(-spread, 0.0 if activation == "Clip" else spread, 16)).astype(np.float32)

    def conv(source: str, name: str, *args: Any, out: Any = 1.0, inside: Any = 1.0, **kwargs: Any) -> str:
        net.conv(source, name, *args, **kwargs)
        weight, bias = (numpy_helper.to_array(tensor) for tensor in net.weights[-2:])
        along = (1, -1, 1, 1) if args[0] != kwargs.get("group") else (-1, 1, 1, 1)
        scaled = weight * np.reshape(out, (-1, 1, 1, 1)) * np.reshape(inside, along)
        net.weights[-2:] = [numpy_helper.from_array(scaled.astype(np.float32), f"{name}.w"),
                            numpy_helper.from_array((bias * np.reshape(out, -1)).astype(np.float32), f"{name}.b")]
        return name

    def act(source: str, name: str) -> str:
        if activation == "Relu":
            return net.node("Relu", [source], name)
        return net.node("Clip", [source, net.scalar(f"{name}.low", 0.0), net.scalar(f"{name}.high", 6.0)], name)

    hidden = act(conv("x", "expand", 3, 16, kernel=1, out=factors), "e")
    hidden = act(conv(hidden, "depthwise", 16, 16, group=16, out=factors[::-1], inside=1.0 / factors), "d")
    conv(hidden, "project", 16, 8, kernel=1, inside=1.0 / factors[::-1])
    net.node("Relu", ["project"], "y")
    net.conv("y", "last", 8, 8)
    return net.model("last")


def _inputs(count: int = 6, scale: float = 1.0) -> list[Any]:
    rng = np.random.default_rng(3)
    return [(scale * rng.normal(size=(1, 3, 16, 16))).astype(np.float32) for _ in range(count)]


def _handle(model: Any, tmp_path: Path) -> ModelHandle:
    return write_model(tmp_path / "m.onnx", serialized(model))


def _table(model: Any, tmp_path: Path, **options: Any) -> ScaleTable:
    return msgspec.structs.replace(calibrate(_handle(model, tmp_path), _inputs()), **options)


def _loss(model: Any, table: ScaleTable, layout: Any = "qdq-int8", inputs: list[Any] | None = None) -> float:
    view, images = GraphView(model), inputs or _inputs()
    made = write_qdq(model, place(view, [node.output[0] for node in quantizable(view)], layout), table)
    return float(np.mean([relative_error(r[0], f[0]) for r, f in zip(outputs_of(model, images), outputs_of(made, images), strict=True)]))


def test_pairs_go_through_relu_relu6_and_nothing() -> None:
    pairs = find_pairs(GraphView(_inverted_residual("Clip")))
    assert [(pair.first, pair.second, pair.bound) for pair in pairs] == [
        ("expand", "depthwise", 6.0), ("depthwise", "project", 6.0), ("project", "last", float("inf"))]


def test_a_tensor_with_two_readers_is_no_pair() -> None:
    assert [(pair.first, pair.second) for pair in find_pairs(GraphView(tiny_models.residual()))] == [("a", "b")]


@settings(max_examples=15, deadline=None)
@given(st.floats(0.0, 6.0), st.integers(0, 1000), st.sampled_from(["Relu", "Clip"]), st.floats(0.1, 8.0))
def test_the_function_stays_the_same(spread: float, seed: int, activation: str, scale: float) -> None:
    model, inputs = _inverted_residual(activation, spread=spread, seed=seed), _inputs(3, scale)
    changed, told = equalize(model, inputs)
    check_equal("equalize", outputs_of(model, inputs), outputs_of(changed, inputs))
    assert told.pairs == 3


def test_relu6_channels_that_saturate_are_not_scaled() -> None:
    model, inputs = _inverted_residual("Clip", spread=1.0), _inputs(3, 8.0)
    assert any((value == 6.0).any() for value in _inner(model, inputs, "e"))
    changed, _ = equalize(model, inputs)
    saturated = np.any([value.max(axis=(0, 2, 3)) >= 6.0 for value in _inner(model, inputs, "e")], axis=0)
    before, after = (_weight(m, "expand.w") for m in (model, changed))
    np.testing.assert_array_equal(before[saturated], after[saturated])
    assert not np.array_equal(before[~saturated], after[~saturated])


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_one_scale_a_tensor_collapses_without_it_and_not_with_it(activation: str, tmp_path: Path) -> None:
    model = _inverted_residual(activation, spread=5.0)
    changed, told = equalize(model, _inputs())
    before = _loss(model, _table(model, tmp_path, per_channel=False))
    after = _loss(changed, _table(changed, tmp_path, per_channel=False))
    assert before > 0.15
    assert after < 0.4 * before
    assert told.spread_after < told.spread_before


def test_shifts_are_what_a_direct_comparison_finds(tmp_path: Path) -> None:
    """Of the first layer alone: nothing before it is int8, so the whole file's own means must differ by just the shift."""
    model = _inverted_residual(spread=3.0)
    table = _table(model, tmp_path, per_channel=False)
    view = GraphView(model)
    made = write_qdq(model, place(view, ["expand"], "qdq-int8"), table)
    expected = np.mean([(a - b).mean(axis=(0, 2, 3)) for a, b in zip(_inner(model, _inputs(), "expand"), _inner(made, _inputs(), "expand"),
                                                                     strict=True)], axis=0)
    np.testing.assert_allclose(mean_shifts(model, ["expand"], table, _inputs())["expand"], expected, atol=1e-6)


def test_a_correction_is_kept_when_it_helps_and_all_files_share_it(tmp_path: Path) -> None:
    """Bright images: weights rounded to one coarse grid move the means of channels."""
    model = _inverted_residual(spread=1.5)
    bright = [image + np.float32(2.0) for image in _inputs()]
    table = msgspec.structs.replace(calibrate(_handle(model, tmp_path), bright), per_channel=False)
    layers = [node.output[0] for node in quantizable(GraphView(model))]
    corrected, told = correct_bias(_handle(model, tmp_path), layers, table, bright)
    assert told.kept
    assert told.error_after < 0.8 * told.error_before
    assert set(corrected.biases) == set(layers)
    assert _loss(model, corrected, "qdq-uint8", bright) < _loss(model, table, "qdq-uint8", bright)


def test_a_correction_that_does_not_help_is_dropped(tmp_path: Path) -> None:
    """Measured on images that are nothing like those kept back."""
    model = _inverted_residual(spread=3.0)
    table = _table(model, tmp_path, per_channel=False)
    mixed = [image if index % 2 else 40.0 * np.abs(image) for index, image in enumerate(_inputs())]
    corrected, told = correct_bias(_handle(model, tmp_path), ["expand", "depthwise", "project"], table, mixed)
    assert not told.kept
    assert corrected == table


def _inner(model: Any, inputs: list[Any], name: str) -> list[Any]:
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return [found[0] for found in outputs_of(watched, inputs)]


def _weight(model: Any, name: str) -> Any:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)
