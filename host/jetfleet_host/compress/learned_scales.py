"""Scales that training learned, out of the file in which they arrived.

A network trained with fake quantization is exported with QuantizeLinear/DequantizeLinear pairs where its activations were quantized. This
takes them out: what is left is a float graph with weights on their grid, and the scales by the names of that very graph's tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jetfleet_contract.errors import InputError

from .calibration import Range, ScaleTable
from .folding import rebuilt
from .graphs import GraphView
from .placement import quantizable
from .qdq import quantize_weight, weight_axis

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def take_scales(model: ModelProto) -> tuple[ModelProto, ScaleTable]:
    """The float graph, and the scales of its quantized tensors and of the weights of the layers that read them.

    A graph without pairs comes back as it is, with an empty table. `images` of the table is 0: no calibration was behind it.

    Raises:
        InputError: `build.scales` for a pair that is not symmetric int8 with one constant scale, with its node.
    """
    view = GraphView(model)
    ranges: dict[str, Range] = {}
    plain: dict[str, str] = {}
    for node in view.nodes:
        if node.op_type == "QuantizeLinear" and view.constant(node.input[0]) is None:
            source = plain.get(node.input[0], node.input[0])
            ranges.setdefault(source, _range(view, node, source))
            plain.update({pair.output[0]: source for pair in view.consumers.get(node.output[0], []) if pair.op_type == "DequantizeLinear"})
    if not ranges:
        return model, ScaleTable({}, 0, 100.0)
    read = {node.output[0] for node in quantizable(view) if _behind_pools(view, node.input[0]) in plain}
    clean = rebuilt(model, [_rewired(node, plain) for node in view.nodes if not _of_pair(view, node, plain)], {})
    for output in clean.graph.output:
        if output.name in plain:
            raise InputError("build.scales", f"output {output.name!r} of the model is quantized",
                             remedy="leave the last layer's output float")
    after = GraphView(clean)
    weights = {node.output[0]: _weight_scales(after, node) for node in quantizable(after) if node.output[0] in read}
    return clean, ScaleTable(ranges, 0, 100.0, weights)


def _range(view: GraphView, node: NodeProto, source: str) -> Range:
    scale = view.constant(node.input[1])
    zero = view.constant(node.input[2]) if len(node.input) > 2 else np.zeros((), np.uint8)
    if scale is None or scale.size != 1 or zero is None or zero.dtype != np.int8 or zero.any():
        raise InputError("build.scales", f"tensor {source!r} is not quantized to symmetric int8 with one scale",
                         where=f"node {node.name!r}", remedy="give a float model, or one that a qat stage trained")
    magnitude = float(scale.reshape(-1)[0]) * 127.0
    return Range(0.0 if view.non_negative(source) else -magnitude, magnitude, magnitude)


def _behind_pools(view: GraphView, tensor: str) -> str:
    """The tensor whose scale this one shares: max pools pick values, so they run on int8 between a pair and its reader."""
    while (node := view.producer.get(tensor)) is not None and node.op_type == "MaxPool":
        tensor = node.input[0]
    return tensor


def _of_pair(view: GraphView, node: NodeProto, plain: dict[str, str]) -> bool:
    if node.op_type == "QuantizeLinear":
        return any(reader.output[0] in plain for reader in view.consumers.get(node.output[0], []))
    return node.op_type == "DequantizeLinear" and node.output[0] in plain


def _rewired(node: NodeProto, plain: dict[str, str]) -> NodeProto:
    import onnx

    new = onnx.NodeProto()
    new.CopyFrom(node)
    for index, name in enumerate(node.input):
        new.input[index] = plain.get(name, name)
    return new


def _weight_scales(view: GraphView, node: NodeProto) -> tuple[float, ...]:
    weight = view.constant(node.input[1])
    if weight is None:  # quantizable() only gives nodes with constant weights
        raise ValueError(f"{node.output[0]} has no constant weights")
    return tuple(float(scale) for scale in quantize_weight(weight, weight_axis(node))[1])
