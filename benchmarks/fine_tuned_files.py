"""The files that the delta benchmark compares: each state of the fine-tune as fp32, fp16 and int8 ONNX, made by jetfleet's own passes.

The int8 scales are calibrated anew on the pictures that the state was trained with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jetfleet_host.compress.calibration import ScaleTable, calibrate
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.halving import halve
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.placement import place
from jetfleet_host.compress.qdq import write_qdq

STAGES = (64, 128, 256, 512)


def resnet18(arrays: dict[str, Any], *, reverse: bool = False) -> Any:
    """An ONNX model (1, 3, 64, 64) -> (1, classes) of `fine_tune`'s arrays; `reverse` writes its initialisers in another order, and
    another producer, as another version of an exporter would."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []

    def plain(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(source: str, name: str, stride: int) -> str:
        kernel = arrays[f"{name}.w"].shape[-1]
        return plain("Conv", [source, f"{name}.w", f"{name}.b"], name, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4,
                     strides=[stride] * 2)

    value = plain("Relu", [conv("x", "stem", 2)], "stem.relu")
    value = plain("MaxPool", [value], "pool", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    for stage in range(len(STAGES)):
        for block in range(2):
            name, stride = f"s{stage}b{block}", 2 if stage and not block else 1
            skip = conv(value, f"{name}.down", stride) if f"{name}.down.w" in arrays else value
            inner = plain("Relu", [conv(value, f"{name}.a", stride)], f"{name}.a.relu")
            value = plain("Relu", [plain("Add", [conv(inner, f"{name}.b", 1), skip], f"{name}.sum")], f"{name}.relu")
    value = plain("Flatten", [plain("GlobalAveragePool", [value], "mean")], "flat")
    plain("Gemm", [value, "fc.w", "fc.b"], "logits", transB=1)
    weights = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in sorted(arrays.items(), reverse=reverse)]
    graph = helper.make_graph(nodes, "resnet18", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 64])],
                              [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(arrays["fc.b"])])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="b" if reverse else "a")


def write_files(arrays: dict[str, Any], pictures: Any, folder: Path, *, reverse: bool = False) -> tuple[dict[str, Path], ScaleTable]:
    """fp32, fp16 and int8 of one state, and the scales that its calibration found."""
    folder.mkdir(parents=True, exist_ok=True)
    model = write_model(folder / "fp32.onnx", serialized(resnet18(arrays, reverse=reverse)))
    tensors = [((picture[None].astype(np.float32) - 127.5) / 64.0) for picture in pictures]
    table = calibrate(model, tensors, percentile=99.99)
    write_model(folder / "fp16.onnx", serialized(halve(model.load(), table)))
    write_model(folder / "int8.onnx", serialized(write_qdq(model.load(), _all_layers(model.load()), table)))
    return {kind: folder / f"{kind}.onnx" for kind in ("fp32", "fp16", "int8")}, table


def _all_layers(model: Any) -> Any:
    view = GraphView(model)
    layers = {node.output[0] for node in view.nodes if node.op_type in ("Conv", "Gemm")}
    return place(view, layers, "qdq-int8")
