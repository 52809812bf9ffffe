"""Tiny ONNX graphs for the builder's tests: each is one pattern that quantization must treat right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Net:
    """Collects nodes and weights; `model` closes the graph. Weights come from a fixed seed."""

    def __init__(self, shape: Sequence[int] = (1, 3, 16, 16), *, opset: int = 17) -> None:
        self.rng = np.random.default_rng(7)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.shape, self.opset = shape, opset

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def conv(self, source: str, output: str, inside: int, outside: int, *, kernel: int = 3, group: int = 1, stride: int = 1) -> str:
        spread = 1.0 / np.sqrt(inside / group * kernel * kernel)
        weight = self.rng.normal(0.0, spread, (outside, inside // group, kernel, kernel)).astype(np.float32)
        names = [source, self.constant(f"{output}.w", weight),
                 self.constant(f"{output}.b", self.rng.normal(0.0, 0.1, outside).astype(np.float32))]
        pad = kernel // 2
        return self.node("Conv", names, output, kernel_shape=[kernel, kernel], pads=[pad] * 4, group=group, strides=[stride, stride])

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.float32(value))

    def model(self, *outputs: str, shape: Sequence[Any] | None = None) -> Any:
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape or self.shape))],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs], self.weights)
        built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(built, strict_mode=True)
        onnx.checker.check_model(inferred)
        del inferred.graph.value_info[:]
        return inferred


def residual(shape: Sequence[int] = (1, 3, 16, 16)) -> Any:
    """conv a, relu, conv b, Add with the block's input, relu: one ResNet block behind a first convolution."""
    net = Net(shape)
    net.node("Relu", [net.conv("x", "stem", 3, 16)], "skip")
    net.node("Relu", [net.conv("skip", "a", 16, 16)], "mid")
    net.node("Add", [net.conv("mid", "b", 16, 16), "skip"], "sum")
    net.node("Relu", ["sum"], "y")
    net.conv("y", "last", 16, 8)
    return net.model("last")


def depthwise() -> Any:
    net = Net()
    net.node("Relu", [net.conv("x", "stem", 3, 16)], "s")
    net.node("Relu", [net.conv("s", "dw", 16, 16, group=16)], "d")
    net.conv("d", "pw", 16, 8, kernel=1)
    return net.model("pw")


def concat() -> Any:
    net = Net()
    net.node("Relu", [net.conv("x", "left", 3, 8)], "l")
    net.conv("x", "right", 3, 8)
    net.node("Concat", ["l", "right"], "joined", axis=1)
    net.conv("joined", "last", 16, 8)
    return net.model("last")


def hard_swish_text() -> Any:
    """conv, scale and shift, ``x * clip(x + 3, 0, 6) / 6`` in five nodes, scale and shift, two padded and pointwise convs."""
    net = Net()
    net.conv("x", "c", 3, 8)
    net.node("Mul", ["c", net.scalar("m1", 0.7)], "cm")
    net.node("Add", ["cm", net.scalar("a1", 0.2)], "h")
    net.node("Add", ["h", net.scalar("three", 3.0)], "h3")
    net.node("Clip", ["h3", net.scalar("zero", 0.0), net.scalar("six", 6.0)], "h6")
    net.node("Mul", ["h", "h6"], "hh")
    net.node("Div", ["hh", net.scalar("six2", 6.0)], "hs")
    net.node("Mul", ["hs", net.scalar("m2", 1.3)], "hm")
    net.node("Add", ["hm", net.scalar("a2", -0.4)], "ha")
    net.conv("ha", "padded", 8, 8)
    net.conv("ha", "pointwise", 8, 8, kernel=1)
    net.node("Add", ["padded", "pointwise"], "y")
    return net.model("y")


def classifier(shape: Sequence[Any] = (1, 3, 16, 16), *, opset: int = 13, classes: int = 3) -> Any:
    """A three-class classifier that really works: class c is the colour channel c with the largest mean.

    Random features are concatenated in with zero weight in the last product, so the answer is known and the graph is not trivial.
    """
    net = Net(opset=opset)
    eye = np.zeros((8, 3, 1, 1), np.float32)
    for channel in range(3):
        eye[channel, channel] = 1.0
    net.node("Conv", ["x", net.constant("pick.w", eye)], "pick", kernel_shape=[1, 1])
    net.node("Relu", ["pick"], "picked")
    net.node("Relu", [net.conv("picked", "features", 8, 8)], "f")
    net.node("GlobalAveragePool", ["picked"], "mean")
    net.node("GlobalAveragePool", ["f"], "noise")
    net.node("Concat", ["mean", "noise"], "all", axis=1)
    net.node("Flatten", ["all"], "flat")
    weight = np.zeros((16, classes), np.float32)
    for channel in range(min(classes, 3)):
        weight[channel, channel] = 8.0
    net.node("Gemm", ["flat", net.constant("fc.w", weight), net.constant("fc.b", np.zeros(classes, np.float32))], "logits")
    return net.model("logits", shape=shape)


def brightness_network(path: Any, blocks: int = 12) -> Any:
    """A classifier of dark and bright pictures behind convolutions that change nothing: logits (1 - mean, mean) * 10 at 48x64, and
    something to compile. Gives the path."""
    net = Net((1, 3, 48, 64))
    last = "x"
    for index in range(blocks):
        weight = np.zeros((3, 3, 3, 3), np.float32)
        weight[[0, 1, 2], [0, 1, 2], 1, 1] = 1.0
        inputs = [last, net.constant(f"c{index}.w", weight), net.constant(f"c{index}.b", np.zeros(3, np.float32))]
        last = net.node("Relu", [net.node("Conv", inputs, f"c{index}", kernel_shape=[3, 3], pads=[1] * 4)], f"r{index}")
    net.node("Flatten", [net.node("GlobalAveragePool", [last], "pool")], "flat")
    net.node("Gemm", ["flat", net.constant("w", np.array([[-10 / 3, 10 / 3]] * 3, np.float32)),
                      net.constant("bias", np.array([10.0, 0.0], np.float32))], "y")
    onnx.save(net.model("y"), str(path))
    return path
