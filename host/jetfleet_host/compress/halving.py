"""The fp16 variant: weights and arithmetic in float16, inputs and outputs stay float32.

Tensors whose calibrated magnitude or constants come near float16's limit (65504) keep their nodes in float32, and so do constants all of
which lie under its smallest normal number, and operators that lose too much in half precision or have no half kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration import ScaleTable
from .folding import rebuilt
from .graphs import GraphView

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Half of float16's largest value: data outside the calibration set may be larger.
LIMIT = 32752.0
# float16's smallest normal number: below it a value has fewer than 11 significant bits, and below 6e-8 none.
SMALLEST = 2.0**-14
KEEP_FLOAT = ("Resize", "Softmax", "LayerNormalization", "ReduceMean", "ReduceSum", "Pow", "Exp", "NonMaxSuppression", "TopK", "Cast")


class _Halver:
    def __init__(self, view: GraphView, table: ScaleTable) -> None:
        self.view, self.table = view, table
        self.constants: dict[str, NDArray[Any]] = {}
        self.half_nodes = {node.output[0] for node in view.nodes if self._fits(node)}
        self._half = {name for node in view.nodes if node.output[0] in self.half_nodes for name in node.output}

    def nodes(self) -> list[NodeProto]:
        result: list[NodeProto] = []
        casts: set[str] = set()
        for node in self.view.nodes:
            half = node.output[0] in self.half_nodes
            new = _copy(node)
            for index, tensor in enumerate(node.input):
                if tensor:
                    new.input[index] = self._input(tensor, half, result, casts)
            for index, tensor in enumerate(node.output):
                if half and tensor:
                    new.output[index] = f"{tensor}.half"
            result.append(new)
        missing = [tensor for tensor in self.view.outputs if tensor in self._half and tensor not in casts]
        return [*result, *(self._cast(f"{tensor}.half", tensor, half=False) for tensor in missing)]

    def _fits(self, node: NodeProto) -> bool:
        if node.op_type in KEEP_FLOAT or not all(self.view.is_float(name) for name in node.output if name):
            return False
        for tensor in (*node.input, *node.output):
            value = self.view.constant(tensor)
            if value is not None and value.dtype == np.float32 and value.size and not _holds(value):
                return False
            seen = self.table.ranges.get(tensor)
            if seen is not None and max(abs(seen.low), abs(seen.high)) > LIMIT:
                return False
        return True

    def _input(self, tensor: str, half: bool, result: list[NodeProto], casts: set[str]) -> str:
        value = self.view.constant(tensor)
        if value is not None:
            if not half or value.dtype != np.float32:
                return tensor
            self.constants[f"{tensor}.half"] = value.astype(np.float16)
            return f"{tensor}.half"
        is_half = tensor in self._half
        if half == is_half or not (is_half or self.view.is_float(tensor) or tensor in self.view.inputs):
            return f"{tensor}.half" if is_half else tensor
        name = f"{tensor}.half" if half else tensor
        if name not in casts:
            casts.add(name)
            result.append(self._cast(tensor if half else f"{tensor}.half", name, half=half))
        return name

    def _cast(self, source: str, target: str, *, half: bool) -> NodeProto:
        import onnx

        kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
        return onnx.helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=kind)


def _holds(value: NDArray[np.float32]) -> bool:
    """True for constants that float16 holds: none near its limit, and not all of them so small that they lose their digits."""
    largest = float(np.abs(value).max())
    return largest <= LIMIT and (largest == 0.0 or largest >= SMALLEST)


def halve(model: ModelProto, table: ScaleTable) -> ModelProto:
    """The model in float16 where the calibrated ranges allow it; float32 inputs and outputs under the same names."""
    halver = _Halver(GraphView(model), table)
    nodes = halver.nodes()
    return rebuilt(model, nodes, halver.constants)


def _copy(node: NodeProto) -> NodeProto:
    import onnx

    new = onnx.NodeProto()
    new.CopyFrom(node)
    return new
