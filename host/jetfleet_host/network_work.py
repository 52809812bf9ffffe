"""What one run of an ONNX network has to do: multiply-accumulates and elements by layer, for the roofline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jetfleet_contract.errors import InputError
from jetfleet_contract.roofline import Layer, Work
from jetfleet_host.compress.graphs import CONVS, GraphView, attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

COUNTED = (*CONVS, "Gemm", "MatMul")
# What stands between an initialiser and the layer that multiplies with it.
_CARRIERS = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity", "Transpose", "Reshape")


def work_of(model: Path | ModelProto) -> Work:
    """Count a network's work at batch 1: a free batch axis becomes 1, other free axes are an error.

    Raises:
        InputError: `roofline.model` for a file that is no ONNX model; `roofline.shape`, naming the node whose shapes are not fixed.
    """
    view = GraphView(_at_batch_one(_loaded(model)))
    seen: set[str] = set()
    layers = tuple(_layer(view, node, seen) for node in view.nodes if node.op_type in COUNTED)
    return Work(layers, sum(view.elements(name) for name in view.inputs), sum(view.elements(name) for name in view.outputs))


def _loaded(model: Path | ModelProto) -> ModelProto:
    import onnx

    if not isinstance(model, Path):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    try:
        return onnx.load(str(model))
    except Exception as error:  # noqa: BLE001 - protobuf, OSError and onnx's own: the reason is the result
        raise InputError("roofline.model", f"{model.name} cannot be read as an ONNX model: {str(error)[:200]}", where=str(model),
                         remedy="give an ONNX file that onnx.load reads") from None


def _at_batch_one(model: ModelProto) -> ModelProto:
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in constants or not dims or dims[0].HasField("dim_value"):
            continue
        dims[0].dim_value = 1
        del model.graph.value_info[:]  # they were inferred for a free batch
    return model


def _layer(view: GraphView, node: NodeProto, seen: set[str]) -> Layer:
    activations, weights = [], 0
    for name in node.input[:2]:
        origin = _constant_behind(view, name)
        if not origin:
            activations.append(view.elements(name))
        elif origin not in seen:  # shared weights are read once
            seen.add(origin)
            weights += view.elements(name)
    macs, outside = view.macs(node), view.elements(node.output[0])
    if not macs or not outside or not all(activations):
        raise InputError("roofline.shape", f"{node.op_type} {node.name or node.output[0]!r} has no fixed shapes: its work is unknown",
                         remedy="fix the axes of the network's inputs other than the batch, then export it again")
    return Layer(node.name or node.output[0], macs, weights, tuple(activations), outside, _suits_winograd(view, node))


def _constant_behind(view: GraphView, tensor: str) -> str:
    """The initialiser or Constant that the tensor is a form of, or "" for a computed one."""
    while (node := view.producer.get(tensor)) is not None:
        if node.op_type == "Constant":
            return tensor
        if node.op_type not in _CARRIERS:
            return ""
        tensor = node.input[0]
    return "" if tensor in view.inputs else tensor


def _suits_winograd(view: GraphView, node: NodeProto) -> bool:
    """A plain convolution whose kernel is at least 3 wide and whose stride and dilation are 1."""
    if node.op_type not in CONVS:
        return False
    kernel = (view.shape(node.input[1]) or ())[2:]
    ones: Any = [1] * len(kernel)
    return (math.prod(kernel) >= 9 and attribute(node, "group", 1) == 1 and list(attribute(node, "strides", ones)) == ones
            and list(attribute(node, "dilations", ones)) == ones)
