"""MobileNetV2's and RetinaNet's shapes, for counting their work only: the weights are zeros. No download, no torch.

MobileNetV2: Sandler et al., CVPR 2018, table 2. RetinaNet as MLPerf Inference runs it on Open Images: ResNeXt-50 32x4d (Xie et al., CVPR
2017), a feature pyramid of five levels (Lin et al., CVPR 2017) and two heads of four convolutions that the levels share (Lin et al.,
ICCV 2017), 264 classes: 37 M weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MOBILENET_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
RESNEXT_STAGES = ((3, 128), (4, 256), (6, 512), (3, 1024))  # (blocks, width of the grouped convolution)
ANCHORS, CLASSES = 9, 264


class _Graph:
    """Collects nodes and weights; a value is its name and its number of channels."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def conv(self, value: tuple[str, int], out: int, kernel: int = 1, stride: int = 1, group: int = 1, shared: str = "") -> tuple[str, int]:
        """A convolution with same padding; those of the same name in `shared` have the same weights."""
        from onnx import numpy_helper

        name, inside = value
        weight = shared or f"w{len(self._weights)}"
        if all(known.name != weight for known in self._weights):
            self._weights.append(numpy_helper.from_array(np.zeros((out, inside // group, kernel, kernel), np.float32), weight))
        return self.node("Conv", [name, weight], out, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, strides=[stride] * 2, group=group)

    def node(self, kind: str, inputs: list[str], channels: int, **attributes: Any) -> tuple[str, int]:
        from onnx import helper

        name = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name, channels

    def relu(self, value: tuple[str, int]) -> tuple[str, int]:
        return self.node("Relu", [value[0]], value[1])

    def model(self, size: int, outputs: list[tuple[str, int]]) -> Any:
        from onnx import TensorProto, helper

        graph = helper.make_graph(self._nodes, "shape", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size])],
                                  [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name, _ in outputs], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mobilenet_v2() -> Any:
    """An ONNX model, (1, 3, 224, 224) -> (1, 1000, 1, 1): 52 convolutions and a last one for the classes, 3.5 M weights."""
    graph = _Graph()
    value = graph.conv(("x", 3), 32, 3, 2)
    for expand, out, repeats, first_stride in MOBILENET_STAGES:
        for index in range(repeats):
            stride, skip = first_stride if index == 0 else 1, value
            inner = value if expand == 1 else graph.conv(value, expand * value[1])
            inner = graph.conv(inner, inner[1], 3, stride, inner[1])
            value = graph.conv(inner, out)
            if stride == 1 and skip[1] == out:
                value = graph.node("Add", [skip[0], value[0]], out)
    value = graph.conv(value, 1280)
    return graph.model(224, [graph.conv(graph.node("GlobalAveragePool", [value[0]], 1280), 1000)])


def retinanet(size: int = 800) -> Any:
    """An ONNX model, (1, 3, size, size) -> a box and a class map for each of five levels."""
    graph = _Graph()
    value = graph.relu(graph.conv(("x", 3), 64, 7, 2))
    value = graph.node("MaxPool", [value[0]], 64, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    levels = []
    for stage, (blocks, width) in enumerate(RESNEXT_STAGES):
        for block in range(blocks):
            stride, skip = 2 if stage and not block else 1, value
            inner = graph.conv(graph.relu(graph.conv(value, width)), width, 3, stride, 32)
            inner = graph.conv(graph.relu(inner), 2 * width)
            skip = skip if block else graph.conv(skip, 2 * width, 1, stride)
            value = graph.relu(graph.node("Add", [inner[0], skip[0]], 2 * width))
        levels.append(value)
    pyramid = [graph.conv(graph.conv(level, 256), 256, 3) for level in levels[1:]]  # the top-down additions are elementwise
    pyramid.append(graph.conv(pyramid[-1], 256, 3, 2))
    pyramid.append(graph.conv(graph.relu(pyramid[-1]), 256, 3, 2))
    outputs = []
    for level in pyramid:
        for out in (4 * ANCHORS, CLASSES * ANCHORS):
            head = level
            for index in range(4):
                head = graph.relu(graph.conv(head, 256, 3, shared=f"head{out}.{index}"))
            outputs.append(graph.conv(head, out, 3, shared=f"head{out}.out"))
    return graph.model(size, outputs)
