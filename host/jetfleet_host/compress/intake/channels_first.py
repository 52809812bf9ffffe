"""TensorFlow's images have their channels last, every runtime's path here has them first: the difference goes into the graph's first node.

A converted graph begins with the opposite transpose, so that the two cancel and nothing is left of either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jetfleet_host.compress.folding import rebuilt
from jetfleet_host.compress.graphs import attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_TO_LAST = (0, 2, 3, 1)
_TO_FIRST = (0, 3, 1, 2)


def channels_first(model: ModelProto) -> ModelProto:
    """The model with its (N, H, W, C) input, C 1 or 3, as (N, C, H, W); any other model as it is."""
    import onnx
    from onnx import helper

    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1 or not _channels_last([dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]):
        return model
    name, kind = inputs[0].name, inputs[0].type.tensor_type
    batch, height, width, channels = (dim.dim_value for dim in kind.shape.dim)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    readers = [node for node in nodes if name in node.input]
    moved = f"{name}.channels_last"
    outputs = {value.name for value in model.graph.output}
    if readers and all(_moves_to_first(node) and node.output[0] not in outputs for node in readers):
        renamed = {node.output[0]: name for node in readers}
        nodes = [node for node in nodes if node not in readers]
    else:
        renamed = {name: moved}
        nodes.insert(0, helper.make_node("Transpose", [name], [moved], name=moved, perm=_TO_LAST))
    for node in nodes:
        if node.name != moved:
            node.input[:] = [renamed.get(source, source) for source in node.input]
    result = rebuilt(model, nodes, {})
    shape = next(value for value in result.graph.input if value.name == name).type.tensor_type.shape
    del shape.dim[:]
    for size in (batch, channels, height, width):
        dim = shape.dim.add()
        if size:
            dim.dim_value = size
    return result


def _channels_last(shape: list[int]) -> bool:
    return len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)


def _moves_to_first(node: NodeProto) -> bool:
    return node.op_type == "Transpose" and tuple(attribute(node, "perm", ())) == _TO_FIRST
