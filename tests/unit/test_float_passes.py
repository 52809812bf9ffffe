"""Float passes compute what the original computes, and really fold what they say they fold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import tiny_models

from jetfleet_contract.errors import InputError, RuntimeFailure
from jetfleet_host.compress.calibration import calibrate
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.equality import TOLERANCE, check_equal, outputs_of, relative_error
from jetfleet_host.compress.folding import FoldAffine, FuseHardSwish
from jetfleet_host.compress.halving import halve
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.preparing import FixShapes, Simplify, UpgradeOpset, opset_of
from jetfleet_host.compress.rounding import simulate_bf16, to_bf16
from jetfleet_host.compress.sensitivity import LayerNoise, kept_layers, measure_noise
from jetfleet_host.compress.stages import passes_for, prepare


def _inputs(count: int = 2) -> list[Any]:
    rng = np.random.default_rng(5)
    return [rng.normal(size=(1, 3, 16, 16)).astype(np.float32) * 3 for _ in range(count)]


def _kinds(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def test_scaled_hard_swish_folds_to_five_nodes_and_computes_the_same() -> None:
    model, tensors = tiny_models.hard_swish_text(), _inputs()
    fused = FoldAffine().apply(FuseHardSwish().apply(model))
    # conv, HardSwish, the one Add that zero padding forbids to fold, two convolutions and their sum
    assert _kinds(fused) == Counter({"Conv": 3, "HardSwish": 1, "Add": 2})
    for reference, found in zip(outputs_of(model, tensors), outputs_of(fused, tensors), strict=True):
        assert relative_error(reference[0], found[0]) < 1e-5


def test_a_term_before_padding_is_never_folded() -> None:
    net = tiny_models.Net()
    net.node("Add", ["x", net.scalar("term", 2.0)], "shifted")
    model = net.model(net.conv("shifted", "padded", 3, 4))
    assert _kinds(FoldAffine().apply(model)) == Counter({"Conv": 1, "Add": 1})


def test_a_term_before_a_pointwise_convolution_goes_into_its_bias() -> None:
    net = tiny_models.Net()
    net.node("Sub", ["x", net.scalar("term", 2.0)], "shifted")
    net.node("Div", ["shifted", net.constant("factor", np.array([2.0, 4.0, 8.0], np.float32).reshape(1, 3, 1, 1))], "scaled")
    model, tensors = net.model(net.conv("scaled", "y", 3, 6, kernel=1)), _inputs()
    folded = FoldAffine().apply(model)
    assert _kinds(folded) == Counter({"Conv": 1})
    assert relative_error(outputs_of(model, tensors)[0][0], outputs_of(folded, tensors)[0][0]) < 1e-5


def test_grouped_convolution_takes_its_own_channels_factors() -> None:
    net = tiny_models.Net()
    net.conv("x", "a", 3, 8)
    net.node("HardSigmoid", ["a"], "s")
    net.node("Mul", ["s", net.constant("f", np.arange(1, 9, dtype=np.float32).reshape(1, 8, 1, 1))], "m")
    model, tensors = net.model(net.conv("m", "y", 8, 8, group=4)), _inputs()
    folded = FoldAffine().apply(model)
    assert "Mul" not in _kinds(folded)
    assert relative_error(outputs_of(model, tensors)[0][0], outputs_of(folded, tensors)[0][0]) < 1e-5


def test_transposed_convolution_folds_behind_and_before() -> None:
    net = tiny_models.Net()
    net.conv("x", "a", 3, 6)
    net.node("Relu", ["a"], "r")
    net.node("Mul", ["r", net.constant("f", np.linspace(0.5, 2, 6, dtype=np.float32).reshape(1, 6, 1, 1))], "m")
    weight = net.constant("t.w", net.rng.normal(size=(6, 4, 2, 2)).astype(np.float32))
    net.node("ConvTranspose", ["m", weight], "t", kernel_shape=[2, 2], strides=[2, 2])
    net.node("Add", ["t", net.constant("b", np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1))], "y")
    model, tensors = net.model("y"), _inputs()
    folded = FoldAffine().apply(model)
    assert _kinds(folded) == Counter({"Conv": 1, "Relu": 1, "ConvTranspose": 1})
    assert relative_error(outputs_of(model, tensors)[0][0], outputs_of(folded, tensors)[0][0]) < 1e-5


def test_weights_shared_by_two_convolutions_are_left_alone() -> None:
    net = tiny_models.Net()
    weight = net.constant("w", net.rng.normal(size=(3, 3, 1, 1)).astype(np.float32))
    net.node("Conv", ["x", weight], "a", kernel_shape=[1, 1])
    net.node("Mul", ["a", net.scalar("two", 2.0)], "b")
    net.node("Conv", ["b", weight], "y", kernel_shape=[1, 1])
    model, tensors = net.model("y"), _inputs()
    folded = FoldAffine().apply(model)
    assert relative_error(outputs_of(model, tensors)[0][0], outputs_of(folded, tensors)[0][0]) < 1e-6


def test_other_activations_are_not_taken_for_hard_swish() -> None:
    net = tiny_models.Net()
    net.conv("x", "h", 3, 4)
    net.node("Add", ["h", net.scalar("two", 2.0)], "h3")  # 2, not 3
    net.node("Clip", ["h3", net.scalar("zero", 0.0), net.scalar("six", 6.0)], "h6")
    net.node("Mul", ["h", "h6"], "hh")
    net.node("Div", ["hh", net.scalar("six2", 6.0)], "y")
    assert "HardSwish" not in _kinds(FuseHardSwish().apply(net.model("y")))


def test_all_passes_keep_a_dynamic_old_opset_model_equal(tmp_path: Path) -> None:
    model = tiny_models.classifier(("n", 3, "h", "w"), opset=11)
    checkpoints = Checkpoints(tmp_path / "cache")
    seen: list[str] = []
    handle = checkpoints.keep_model("start", serialized(model))
    done = prepare(handle, (1, 3, 16, 16), _inputs(), checkpoints, lambda name, _d, _o: seen.append(name))
    assert seen == [stage.name for stage in passes_for((1, 3, 16, 16))]
    assert opset_of(done.load()) == 17
    assert relative_error(outputs_of(model, _inputs())[0][0], outputs_of(done.load(), _inputs())[0][0]) < 1e-5


def test_finished_passes_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "cache")
    handle = checkpoints.keep_model("start", serialized(tiny_models.hard_swish_text()))
    first = prepare(handle, (1, 3, 16, 16), _inputs(), checkpoints, lambda *_: None)

    def explode(*_: object) -> None:
        raise AssertionError("the pass ran although its checkpoint stands")

    for stage in (UpgradeOpset, FixShapes, Simplify, FuseHardSwish, FoldAffine):
        monkeypatch.setattr(stage, "apply", explode)
    assert prepare(handle, (1, 3, 16, 16), _inputs(), checkpoints, lambda *_: None).digest == first.digest


def test_a_damaged_checkpoint_is_made_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "cache")
    kept = checkpoints.keep_model("k", b"model")
    kept.path.write_bytes(b"mod")
    assert checkpoints.model("k") is None
    checkpoints.keep_value("v", {"a": 1})
    (tmp_path / "cache" / "v.json").write_bytes(b"{")
    assert checkpoints.value("v", dict[str, int]) is None


def test_rounding_on_an_empty_picture_is_no_difference() -> None:
    reference = np.full((1, 1, 8, 8), 1e-7, np.float32)
    check_equal("pass", [[reference]], [[np.zeros_like(reference)]])
    with pytest.raises(RuntimeFailure):
        check_equal("pass", [[reference]], [[np.full_like(reference, 1e-3)]])


def test_a_pass_that_breaks_the_model_stops_the_build() -> None:
    good = [[np.ones((1, 4), np.float32)]]
    check_equal("pass", good, [[np.full((1, 4), 1.0 + TOLERANCE / 10, np.float32)]])
    with pytest.raises(RuntimeFailure) as caught:
        check_equal("pass", good, [[np.full((1, 4), 1.01, np.float32)]])
    assert caught.value.code == "build.not-equal"
    with pytest.raises(RuntimeFailure):
        check_equal("pass", good, [[np.full((1, 4), np.nan, np.float32)]])


def test_a_fixed_axis_is_not_overridden() -> None:
    with pytest.raises(InputError) as caught:
        FixShapes((1, 3, 32, 32)).apply(tiny_models.classifier())
    assert caught.value.code == "build.shape"
    assert "1x3x16x16" in caught.value.remedy


def test_fp16_keeps_float_ends_and_halves_the_weights(tmp_path: Path) -> None:
    model, tensors = tiny_models.residual(), _inputs()
    table = calibrate(write_model(tmp_path / "m.onnx", serialized(model)), tensors)
    half = halve(model, table)
    onnx.checker.check_model(half, full_check=True)
    assert [value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)] == [onnx.TensorProto.FLOAT] * 2
    assert len(serialized(half)) < 0.62 * len(serialized(model))
    assert relative_error(outputs_of(model, tensors)[0][0], outputs_of(half, tensors)[0][0]) < 5e-3


def test_fp16_leaves_a_node_that_would_overflow_in_float(tmp_path: Path) -> None:
    net = tiny_models.Net()
    net.conv("x", "a", 3, 4)
    net.node("Mul", ["a", net.scalar("big", 60000.0)], "huge")
    net.node("Mul", ["huge", net.scalar("small", 1e-4)], "y")
    model, tensors = net.model("y"), _inputs()
    table = calibrate(write_model(tmp_path / "m.onnx", serialized(model)), tensors)
    found = outputs_of(halve(model, table), tensors)[0][0]
    assert np.isfinite(found).all()
    assert relative_error(outputs_of(model, tensors)[0][0], found) < 5e-3


def test_fp16_leaves_constants_that_would_lose_their_digits_in_float(tmp_path: Path) -> None:
    net = tiny_models.Net()
    net.conv("x", "a", 3, 4)
    net.node("Mul", ["a", net.scalar("tiny", 3.3e-8)], "faint")
    net.node("Mul", ["faint", net.scalar("back", 3e7)], "y")
    model, tensors = net.model("y"), _inputs()
    table = calibrate(write_model(tmp_path / "m.onnx", serialized(model)), tensors)
    assert relative_error(outputs_of(model, tensors)[0][0], outputs_of(halve(model, table), tensors)[0][0]) < 5e-3


def test_bf16_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.14159, 0.0], np.float32)
    np.testing.assert_array_equal(to_bf16(values), np.array([1.0, 1.0, 1.015625, -3.140625, 0.0], np.float32))


def test_bf16_simulation_runs_and_differs_a_little() -> None:
    model, tensors = tiny_models.residual(), _inputs()
    error = relative_error(outputs_of(model, tensors)[0][0], outputs_of(simulate_bf16(model), tensors)[0][0])
    assert 1e-4 < error < 2e-2


def test_noise_names_the_layer_that_quantizes_badly(tmp_path: Path) -> None:
    net = tiny_models.Net()
    net.conv("x", "good", 3, 8)
    net.node("Relu", ["good"], "r")
    # One channel a thousand times the others: a per-tensor input scale leaves nothing for the rest.
    spread = np.array([1000.0] + [1.0] * 7, np.float32).reshape(1, 8, 1, 1)
    net.node("Mul", ["r", net.constant("spread", spread)], "wide")
    model = net.model(net.conv("wide", "bad", 8, 8))
    last = next(tensor for tensor in model.graph.initializer if tensor.name == "bad.w")
    weight = np.array(onnx.numpy_helper.to_array(last))
    weight[:, 0] = 0.0
    last.CopyFrom(onnx.numpy_helper.from_array(weight, "bad.w"))
    handle = write_model(tmp_path / "m.onnx", serialized(model))
    noise = {layer.node: layer for layer in measure_noise(handle, calibrate(handle, _inputs()), _inputs(), lambda *_: None)}
    assert noise["bad"].error > 10 * noise["good"].error
    assert kept_layers(tuple(noise.values()), 0.1) == ("good",)


def test_kept_layers_drop_the_dearest_noise_first() -> None:
    noise = (LayerNoise("a", 0.1, 100), LayerNoise("b", 0.1, 10_000), LayerNoise("c", 0.01, 10))
    assert kept_layers(noise, 1.0) == ("a", "b", "c")
    assert kept_layers(noise, 0.6) == ("b", "c")
    assert kept_layers(noise, 0.0) == ()


def test_calibration_refuses_a_model_that_gives_nan(tmp_path: Path) -> None:
    net = tiny_models.Net()
    net.node("Sqrt", ["x"], "y")  # of negative values
    handle = write_model(tmp_path / "m.onnx", serialized(net.model("y")))
    with pytest.raises(InputError) as caught:
        calibrate(handle, _inputs())
    assert caught.value.code == "build.not-finite"


def test_percentile_clips_outliers_and_keeps_the_range(tmp_path: Path) -> None:
    net = tiny_models.Net((1, 3, 64, 64))
    net.node("Relu", ["x"], "y")
    tensor = np.full((1, 3, 64, 64), 0.5, np.float32)
    tensor[0, 0, 0, 0] = 100.0
    handle = write_model(tmp_path / "m.onnx", serialized(net.model("y")))
    clipped = calibrate(handle, [tensor], percentile=99.9).ranges["y"]
    assert (clipped.high, clipped.magnitude) == (100.0, 0.5)
    assert calibrate(handle, [tensor]).ranges["y"].magnitude == 100.0
    assert msgspec.json.decode(msgspec.json.encode(clipped), type=type(clipped)) == clipped
