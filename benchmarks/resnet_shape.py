"""ResNet-50's shape (He et al., CVPR 2016, table 1), weights random from a fixed seed: for latency, never for accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # (blocks, bottleneck width)


def resnet50(seed: int = 50) -> Any:
    """An ONNX model, (1, 3, 224, 224) -> (1, 1000), batch norms already folded: 53 convolutions and one product, 25.5 M weights."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    nodes: list[Any] = []
    weights: list[Any] = []

    def conv(source: str, name: str, inside: int, outside: int, kernel: int, stride: int, gain: float = 2.0) -> str:
        spread = np.sqrt(gain / (inside * kernel * kernel))  # He initialisation keeps activations in range over 50 layers
        weights.append(numpy_helper.from_array(rng.normal(0, spread, (outside, inside, kernel, kernel)).astype(np.float32), f"{name}.w"))
        weights.append(numpy_helper.from_array(rng.normal(0, 0.01, outside).astype(np.float32), f"{name}.b"))
        nodes.append(helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [name], name=name, kernel_shape=[kernel] * 2,
                                      pads=[kernel // 2] * 4, strides=[stride] * 2))
        return name

    def plain(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    value = plain("Relu", [conv("x", "stem", 3, 64, 7, 2)], "stem.relu")
    value = plain("MaxPool", [value], "pool", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    channels = 64
    for stage, (blocks, width) in enumerate(STAGES):
        for block in range(blocks):
            name, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            skip = value
            if not block:
                skip = conv(value, f"{name}.down", channels, 4 * width, 1, stride, 1.0)
            inner = plain("Relu", [conv(value, f"{name}.a", channels, width, 1, 1)], f"{name}.a.relu")
            inner = plain("Relu", [conv(inner, f"{name}.b", width, width, 3, stride)], f"{name}.b.relu")
            inner = conv(inner, f"{name}.c", width, 4 * width, 1, 1, 0.25)
            value = plain("Relu", [plain("Add", [inner, skip], f"{name}.sum")], f"{name}.relu")
            channels = 4 * width
    value = plain("Flatten", [plain("GlobalAveragePool", [value], "mean")], "flat")
    weights.append(numpy_helper.from_array(rng.normal(0, 0.02, (channels, 1000)).astype(np.float32), "fc.w"))
    weights.append(numpy_helper.from_array(np.zeros(1000, np.float32), "fc.b"))
    plain("Gemm", [value, "fc.w", "fc.b"], "logits")
    graph = helper.make_graph(nodes, "resnet50", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1000])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
