"""The linter: each rule on one graph that breaks it and one that does not; the TensorRT twin passes; what other quantizers' files break."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from onnx import TensorProto
from typer.testing import CliRunner

from jetfleet_host.cli import app
from jetfleet_host.compress.calibration import calibrate
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.linting import Finding, lint, passes
from jetfleet_host.compress.placement import place, quantizable
from jetfleet_host.compress.qdq import write_qdq
from jetfleet_host.compress.worth import judge_worth

_SCALE, _ZERO = np.float32(0.1), np.int8(0)


class Net(tiny_models.Net):
    """With Q/DQ pairs and layers that read through them."""

    def pair(self, tensor: str, name: str = "", *, scale: Any = _SCALE, zero: Any = _ZERO, **attributes: Any) -> str:
        name = name or f"{tensor}.pair"
        parameters = [self.constant(f"{name}.s", scale), self.constant(f"{name}.z", zero)]
        self.node("QuantizeLinear", [tensor, *parameters], f"{name}.q", **attributes)
        return self.node("DequantizeLinear", [f"{name}.q", *parameters], name, **attributes)

    def layer(self, source: str, name: str, inside: int = 16, outside: int = 16, *, axis: int = 0, **options: Any) -> str:
        """A convolution with int8 weights; its input must be a pair for it to run in int8."""
        self.conv(source, name, inside, outside, **options)
        node = self.nodes[-1]
        shape = self.weights[-2].dims
        del self.weights[-2]
        channels = shape[axis]
        weights = self.node("DequantizeLinear", [
            self.constant(f"{name}.w8", self.rng.integers(-127, 128, shape).astype(np.int8)),
            self.constant(f"{name}.ws", np.full(channels, 0.01, np.float32)), self.constant(f"{name}.wz", np.zeros(channels, np.int8)),
        ], f"{name}.wdq", axis=axis)
        node.input[1] = weights
        self.nodes[-2:] = [self.nodes[-1], node]
        return name


def _net(build: Callable[[Net], str], *, opset: int = 17, shape: Any = (1, 16, 8, 8)) -> Any:
    net = Net(shape, opset=opset)
    return net.model(build(net))


def _codes(model: Any, **options: Any) -> set[tuple[str, str]]:
    return {(finding.code, finding.node) for finding in lint(model, **options)}


def _plain(net: Net) -> str:
    return net.layer(net.pair("x"), "conv")


def _with_pair(**parameters: Any) -> Callable[[Net], str]:
    return lambda net: net.layer(net.pair("x", "p", **parameters), "conv")


def _unpaired_q(net: Net) -> str:
    net.node("QuantizeLinear", ["x", net.scalar("s", 0.1), net.constant("z", np.int8(0))], "q")
    net.node("Cast", ["q"], "float", to=TensorProto.FLOAT)
    return net.node("Relu", ["float"], "y")


def _two_pairs(net: Net) -> str:
    net.layer(net.pair("x", "p"), "left")
    net.layer(net.pair("x", "r", scale=np.float32(0.2)), "right")
    return net.node("Concat", ["left", "right"], "y", axis=1)


def _one_pair(net: Net) -> str:
    net.layer(net.pair("x", "p"), "left")
    net.layer("p", "right")
    return net.node("Concat", ["left", "right"], "y", axis=1)


def _computed_scale(net: Net) -> str:
    net.node("ReduceMax", ["x"], "most", keepdims=0)
    zero = net.constant("z", np.int8(0))
    net.node("QuantizeLinear", ["x", "most", zero], "q")
    net.node("DequantizeLinear", ["q", "most", zero], "dq")
    return net.layer("dq", "conv")


def _integer_conv(net: Net) -> str:
    net.node("DynamicQuantizeLinear", ["x"], "q")
    net.nodes[-1].output.extend(["s", "z"])
    net.node("ConvInteger", ["q", net.constant("w", np.zeros((16, 16, 1, 1), np.int8)), "z"], "i")
    return net.node("Cast", ["i"], "y", to=TensorProto.FLOAT)


def _float_weights(net: Net) -> str:
    return net.conv(net.pair("x"), "conv", 16, 16)


def _float_input(net: Net) -> str:
    return net.layer("x", "conv")


def _quantized_bias(net: Net) -> str:
    net.layer(net.pair("x"), "conv")
    node = net.nodes[-1]
    scales = net.constant("bs", np.full(16, 0.01, np.float32))
    net.node("DequantizeLinear", [net.constant("b8", np.zeros(16, np.int32)), scales], "bdq", axis=0)
    node.input[2] = "bdq"
    net.nodes[-2:] = [net.nodes[-1], node]
    return "conv"


def _between(net: Net) -> str:
    net.node("Relu", [net.pair(net.layer(net.pair("x"), "conv"), "p")], "r")
    return net.layer(net.pair("r"), "next")


def _behind(net: Net) -> str:
    net.node("Relu", [net.layer(net.pair("x"), "conv")], "r")
    return net.layer(net.pair("r"), "next")


def _residual(*, skip: bool, branch: bool) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        left = net.layer(net.pair("x"), "conv")
        return net.node("Add", [net.pair(left, "b") if branch else left, "x.pair" if skip else "x"], "sum")
    return build


def _stream(quantized: bool) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        net.node("Add", ["x", net.pair("x") if quantized else "x"], "sum")
        return net.node("LayerNormalization", ["sum", net.constant("g", np.ones(8, np.float32))], "y", axis=-1)
    return build


def _softmax(quantized: bool) -> Callable[[Net], str]:
    return lambda net: net.node("Softmax", [net.pair("x") if quantized else "x"], "y")


def _pool(behind: float) -> Callable[[Net], str]:
    def build(net: Net) -> str:
        net.node("MaxPool", [net.pair("x")], "pooled", kernel_shape=[2, 2], strides=[2, 2])
        return net.layer(net.pair("pooled", scale=np.float32(behind)), "conv")
    return build


def _depthwise(net: Net) -> str:
    return net.layer(net.pair("x"), "conv", group=16)


def _thin(net: Net) -> str:
    net.node("Relu", [net.conv("x", "first", 16, 12)], "r")
    return net.layer(net.pair("r"), "conv", 12, 16)


_RULES: list[tuple[str, str, Callable[[Net], str], Callable[[Net], str]]] = [
    ("lint.type", "p.q", _with_pair(zero=np.uint8(0)), _plain),
    ("lint.zero-point", "p.q", _with_pair(zero=np.int8(3)), _plain),
    ("lint.scale", "q", _computed_scale, _plain),
    ("lint.scale", "p.q", _with_pair(scale=np.float32(0.0)), _plain),
    ("lint.pair", "q", _unpaired_q, _plain),
    ("lint.shared", "r.q", _two_pairs, _one_pair),
    ("lint.activation-axis", "p.q", _with_pair(scale=np.full(16, 0.1, np.float32), zero=np.zeros(16, np.int8)), _plain),
    ("lint.weight-axis", "conv.wdq", lambda net: net.layer(net.pair("x"), "conv", axis=1), _plain),
    ("lint.operator", "i", _integer_conv, _plain),
    ("lint.half-quantized", "conv", _float_weights, _plain),
    ("lint.half-quantized", "conv", _float_input, _plain),
    ("lint.bias", "conv", _quantized_bias, _plain),
    ("lint.between", "r", _between, _behind),
    ("lint.both-branches", "sum", _residual(skip=True, branch=True), _residual(skip=True, branch=False)),
    ("lint.skip", "sum", _residual(skip=False, branch=False), _residual(skip=True, branch=False)),
    ("lint.residual-stream", "sum", _stream(True), _stream(False)),
    ("lint.glue", "y", _softmax(True), _softmax(False)),
    ("lint.pool-scale", "pooled", _pool(0.2), _pool(0.1)),
    ("lint.depthwise", "conv", _depthwise, _plain),
    ("lint.few-channels", "conv", _thin, _plain),
]


@pytest.mark.parametrize(("code", "node", "bad", "good"), _RULES, ids=lambda value: value if isinstance(value, str) else "")
def test_each_rule_names_the_node_that_breaks_it(code: str, node: str, bad: Any, good: Any) -> None:
    assert (code, node) in _codes(_net(bad))
    assert passes(lint(_net(good)))
    assert code not in {found for found, _ in _codes(_net(good))}


def test_every_code_has_a_case_and_findings_say_what_to_do() -> None:
    covered = {code for code, *_ in _RULES} | {"lint.opset", "lint.gemv", "lint.narrow-product"}
    source = Path(lint.__code__.co_filename).read_text()
    written = {f"lint.{part.split(chr(34))[0]}" for part in source.split('"lint.')[1:]} - {"lint.{reason}"}
    assert written <= covered
    findings = [finding for _, _, bad, _ in _RULES for finding in lint(_net(bad))]
    assert all(finding.what and finding.remedy and finding.node for finding in findings)


def test_operator_sets_below_13_and_above_the_targets_are_told() -> None:
    model = _net(_plain)
    old = onnx.ModelProto()
    old.CopyFrom(model)
    old.opset_import[0].version = 12
    assert ("lint.opset", "x.pair.q") in _codes(old)
    assert ("lint.opset", "") in _codes(model, last_opset=16)
    assert passes(lint(model))


def test_the_first_layer_may_have_few_channels_behind_its_pair_too() -> None:
    assert lint(_net(lambda net: net.layer(net.pair("x"), "conv", 3, 16), shape=(1, 3, 8, 8))) == ()


def _product(rows: int, inside: int, outside: int) -> Any:
    net = Net((1, rows, inside))
    net.pair("x")
    net.node("DequantizeLinear", [net.constant("w8", np.ones((inside, outside), np.int8)),
                                  net.constant("ws", np.full(outside, 0.1, np.float32))], "w", axis=1)
    return net.model(net.node("MatMul", ["x.pair", "w"], "y"))


@pytest.mark.parametrize(("rows", "inside", "outside", "code"), [
    (1, 64, 64, "lint.gemv"), (32, 8, 64, "lint.narrow-product"), (32, 64, 64, "")])
def test_products_that_int8_does_not_pay_for(rows: int, inside: int, outside: int, code: str) -> None:
    found = lint(_product(rows, inside, outside))
    assert [finding.code for finding in found] == ([code] if code else [])
    assert passes(found)


def _quantized(model: Any, layout: Any, tmp_path: Path) -> Any:
    rng = np.random.default_rng(3)
    table = calibrate(write_model(tmp_path / "m.onnx", serialized(model)), [rng.normal(size=(1, 3, 16, 16)).astype(np.float32)] * 2)
    view = GraphView(model)
    return write_qdq(model, place(view, [node.output[0] for node in quantizable(view)], layout), table)


@pytest.mark.parametrize("make", [tiny_models.residual, tiny_models.depthwise, tiny_models.concat, tiny_models.hard_swish_text,
                                  tiny_models.classifier])
def test_the_tensorrt_twin_passes_and_the_others_do_not(make: Any, tmp_path: Path) -> None:
    model = make()
    found = lint(_quantized(model, "qdq-int8", tmp_path))
    assert passes(found), [finding for finding in found if finding.level != "note"]
    assert not passes(lint(_quantized(model, "qdq-uint8", tmp_path)))
    assert not passes(lint(_quantized(model, "qdq-arm", tmp_path)))


def _theirs(tmp_path: Path, **options: Any) -> tuple[Finding, ...]:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter([np.random.default_rng(3).normal(size=(1, 3, 16, 16)).astype(np.float32)] * 2)

        def get_next(self) -> Any:
            image = next(self._rest, None)
            return None if image is None else {"x": image}

    write_model(tmp_path / "m.onnx", serialized(tiny_models.residual()))
    quantize_static(tmp_path / "m.onnx", tmp_path / "q.onnx", Reader(), quant_format=QuantFormat.QDQ, **options)
    return lint(onnx.load(tmp_path / "q.onnx"))


def test_what_onnxruntimes_default_file_breaks(tmp_path: Path) -> None:
    """Its default is int8, not symmetric: zero points, int32 biases through DQ, Q/DQ on both branches and between layer and activation."""
    codes = {finding.code for finding in _theirs(tmp_path)}
    assert {"lint.zero-point", "lint.bias", "lint.both-branches"} <= codes


def test_onnxruntimes_symmetric_file_is_legal_but_not_well_placed(tmp_path: Path) -> None:
    found = _theirs(tmp_path, per_channel=True, extra_options={"ActivationSymmetric": True, "WeightSymmetric": True})
    assert {finding.level for finding in found} == {"warning"}


def test_the_command_tells_findings_and_ends_with_1(tmp_path: Path) -> None:
    runner = CliRunner()
    bad = write_model(tmp_path / "bad.onnx", serialized(_net(_with_pair(zero=np.int8(3)))))
    told = runner.invoke(app, ["lint", str(bad.path)])
    assert told.exit_code == 1
    assert "p.q: zero point 3" in told.stdout
    answer = json.loads(runner.invoke(app, ["lint", str(bad.path), "--json"]).stdout)
    assert answer["counts"]["error"] == 2
    assert answer["findings"][0]["code"] == "lint.zero-point"
    good = write_model(tmp_path / "good.onnx", serialized(_net(_plain)))
    assert runner.invoke(app, ["lint", str(good.path)]).exit_code == 0


def test_a_float_model_gets_a_verdict_instead(tmp_path: Path) -> None:
    path = write_model(tmp_path / "f.onnx", serialized(tiny_models.depthwise())).path
    told = CliRunner().invoke(app, ["lint", str(path)])
    assert told.exit_code == 0
    assert "1 depthwise" in told.stdout


def test_verdicts_by_layer_and_model() -> None:
    verdict = judge_worth(GraphView(tiny_models.depthwise()))
    assert [(layer.node, layer.reason) for layer in verdict.layers] == [("dw", "depthwise")]
    assert verdict.worth
    assert 0.5 < verdict.share < 1.0
    thin = Net((1, 16, 8, 8))
    thin.conv("x", "dw", 16, 16, group=16)
    poor = judge_worth(GraphView(thin.model("dw")))
    assert not poor.worth
    assert poor.share == 0.0
