"""An index over an ONNX graph: who makes a tensor, who reads it, which tensors are constant, which shape each has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

CONVS = ("Conv", "ConvTranspose")
# Producers whose output is never negative, so that an unsigned zero point of 0 loses nothing.
NON_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
# These only move or pick values: what holds for their input's range holds for their output's.
MOVERS = ("MaxPool", "Resize", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")


class GraphView:
    """Read-only index of one model's main graph.

    Shapes come from ONNX shape inference; a tensor without a static shape has none here.
    """

    def __init__(self, model: ModelProto) -> None:
        import onnx

        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.producer: dict[str, NodeProto] = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                if name:
                    self.consumers.setdefault(name, []).append(node)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input if value.name not in self._initializers]
        self.outputs = [value.name for value in model.graph.output]
        inferred = onnx.shape_inference.infer_shapes(model)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._float: set[str] = set()
        self._types: dict[str, int] = {}
        for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
            kind = value.type.tensor_type
            self._types[value.name] = int(kind.elem_type)
            if kind.elem_type == onnx.TensorProto.FLOAT:
                self._float.add(value.name)
            if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
                self._shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The static shape, or None."""
        if tensor in self._initializers:
            return tuple(self._initializers[tensor].dims)
        return self._shapes.get(tensor)

    def elements(self, tensor: str) -> int:
        """Number of values in the tensor; 0 when its shape is not known."""
        shape = self.shape(tensor)
        return math.prod(shape) if shape else 0

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """The value of an initialiser, or None for a computed tensor."""
        import onnx.numpy_helper

        found = self._initializers.get(tensor)
        return None if found is None else np.asarray(onnx.numpy_helper.to_array(found))

    def element_type(self, tensor: str) -> int:
        """The tensor's type as ONNX numbers them; 0 when it is not known."""
        found = self._initializers.get(tensor)
        return int(found.data_type) if found is not None else self._types.get(tensor, 0)

    def is_float(self, tensor: str) -> bool:
        """True for a computed float32 tensor."""
        return tensor in self._float and tensor not in self._initializers

    def only_consumer(self, tensor: str) -> NodeProto | None:
        """The one node that reads the tensor, when it is one and the tensor is no output of the graph."""
        readers = self.consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def non_negative(self, tensor: str) -> bool:
        """True when the graph proves that every value is >= 0 (ReLU and its kind, through moves and joins of such)."""
        node = self.producer.get(tensor)
        if node is None:
            return False
        if node.op_type in NON_NEGATIVE:
            return True
        if node.op_type == "Clip":
            low = self.constant(node.input[1]) if len(node.input) > 1 and node.input[1] else None
            return low is not None and float(low) >= 0.0
        if node.op_type in MOVERS or node.op_type in ("AveragePool", "GlobalAveragePool"):
            return self.non_negative(node.input[0])
        if node.op_type == "Concat":
            return all(self.non_negative(name) for name in node.input)
        return False

    def macs(self, node: NodeProto) -> int:
        """Multiply-accumulates of a Conv, ConvTranspose, Gemm or MatMul with constant weights; 0 for others."""
        if node.op_type in CONVS:
            weight = self.shape(node.input[1])
            # Each output (Conv) or input (ConvTranspose) pixel costs one row of the weight tensor.
            pixels = self.elements(node.output[0] if node.op_type == "Conv" else node.input[0])
            return pixels * math.prod(weight[1:]) if weight else 0
        if node.op_type in ("Gemm", "MatMul"):
            left, out = self.shape(node.input[0]), self.elements(node.output[0])
            return out * left[-1] if left else 0
        return 0


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default`."""
    import onnx.helper

    for candidate in node.attribute:
        if candidate.name == name:
            return onnx.helper.get_attribute_value(candidate)
    return default
