"""Writes a placement into the graph as QuantizeLinear/DequantizeLinear pairs with int8 weights.

All layouts take every scale from the same table; they differ in the zero point and its type alone:

    qdq-int8          int8, zero point 0
    qdq-uint8         uint8, zero point 0 where the graph proves values >= 0, else 128
    qdq-arm           int8, zero point -128 where the graph proves values >= 0, else 0: the uint8 file, moved by 128
    qdq-uint8-narrow  as qdq-uint8, weights in 7 bits (-63..63), for x86 CPUs whose 8-bit products add up in 16 bits and saturate

Weights: int8, symmetric, one scale per output channel (or one a tensor, when the table says so), stored as initialisers behind
DequantizeLinear. Biases stay float32. A tensor with 255 steps above its zero point and the same scale clips at 255 steps instead of 127:
never tighter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration import ScaleTable
from .folding import rebuilt
from .graphs import GraphView, attribute
from .placement import Layout, Placement

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = NDArray[Any]
# 255 * 63 * 2 is under 2**15: two neighbouring products never saturate a 16-bit sum.
_NARROW = 63


def write_qdq(model: ModelProto, placement: Placement, table: ScaleTable) -> ModelProto:
    """The model with the placement's Q/DQ pairs, one pair a tensor, shared by all edges that read through it."""
    view = GraphView(model)
    writer = _Writer(view, placement, table)
    return rebuilt(model, writer.nodes(), writer.constants)


def quantize_weight(weight: Array, axis: int | None, held: tuple[float, ...] = (), limit: int = 127) -> tuple[Array, Array]:
    """Symmetric int8 per channel along `axis` (None: for the whole tensor), narrow range -limit..limit.

    The `held` scales, of 127 steps, are taken when there is one for each channel. Returns (int8 weights, float32 scales).
    """
    moved = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    magnitude = np.abs(moved).max(axis=1)
    scales = (np.where(magnitude > 0, magnitude, 1.0) / 127.0).astype(np.float32)
    if len(held) == len(scales):
        scales = np.asarray(held, np.float32)
    if limit != 127:
        scales = (scales * np.float32(127.0 / limit)).astype(np.float32)
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    steps = np.rint(weight / scales.reshape(shape))
    return np.clip(steps, -limit, limit).astype(np.int8), scales.reshape(()) if axis is None else scales


def zero_point(view: GraphView, tensor: str, layout: Layout) -> Array:
    """The scalar zero point of a tensor in a layout; its type is the quantized type."""
    if layout == "qdq-int8":
        return np.zeros((), np.int8)
    if layout == "qdq-arm":
        return np.asarray(-128 if view.non_negative(tensor) else 0, np.int8)
    return np.asarray(0 if view.non_negative(tensor) else 128, np.uint8)


def weight_axis(node: NodeProto) -> int:
    """The axis of a node's weights (its input 1) that its output channels lie on."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1  # ConvTranspose (in, out / group, ...) and a right-hand MatMul operand (in, out)


class _Writer:
    def __init__(self, view: GraphView, placement: Placement, table: ScaleTable) -> None:
        self.view, self.placement, self.table = view, placement, table
        self.constants: dict[str, Array] = {}
        self._edges = {(edge.node, edge.index) for edge in placement.edges}
        self._outputs = set(placement.outputs)
        self._quantized = set(placement.nodes)

    def nodes(self) -> list[NodeProto]:
        """All nodes in topological order: each tensor's pair right behind its producer."""
        wanted = self._outputs | {self.view.producer[name].input[index] for name, index in self._edges}
        result = [pair for name in self.view.inputs if name in wanted for pair in self._pair(name)]
        for node in self.view.nodes:
            if node.output[0] in self._quantized:
                result.append(self._weights(node))
            result.append(self._rewired(node))
            for name in node.output:
                if name in wanted:
                    result.extend(self._pair(name))
        return result

    def _pair(self, tensor: str) -> list[NodeProto]:
        import onnx.helper

        scale, zero = f"{tensor}.scale", f"{tensor}.zero"
        origin = self.placement.same_scale.get(tensor, tensor)
        self.constants[scale] = np.asarray(self.table.scale(origin), np.float32)
        self.constants[zero] = zero_point(self.view, tensor, self.placement.layout)
        source, clip = tensor, []
        if tensor in self.placement.clipped:
            source, limit = f"{tensor}.clipped", np.float32(127.0) * self.constants[scale]
            self.constants.update({f"{source}.low": np.asarray(-limit), f"{source}.high": np.asarray(limit)})
            clip = [onnx.helper.make_node("Clip", [tensor, f"{source}.low", f"{source}.high"], [source], name=source)]
        return [
            *clip,
            onnx.helper.make_node("QuantizeLinear", [source, scale, zero], [f"{tensor}.q"], name=f"{tensor}.q"),
            onnx.helper.make_node("DequantizeLinear", [f"{tensor}.q", scale, zero], [f"{tensor}.dq"], name=f"{tensor}.dq"),
        ]

    def _weights(self, node: NodeProto) -> NodeProto:
        import onnx.helper

        weight = self.view.constant(node.input[1])
        if weight is None:  # placement only names nodes with constant weights
            raise ValueError(f"{node.output[0]} has no constant weights")
        axis = weight_axis(node) if self.table.per_channel else None
        limit = _NARROW if self.placement.layout == "qdq-uint8-narrow" else 127
        steps, scales = quantize_weight(weight, axis, self.table.weights.get(node.output[0], ()), limit)
        base = f"{node.output[0]}.weight8"
        self.constants.update({base: steps, f"{base}.scale": scales, f"{base}.zero": np.zeros(scales.shape, np.int8)})
        along = {} if axis is None else {"axis": axis}
        return onnx.helper.make_node("DequantizeLinear", [base, f"{base}.scale", f"{base}.zero"], [f"{base}.dq"],
                                     name=f"{base}.dq", **along)

    def _bias(self, node: NodeProto, new: NodeProto) -> None:
        """Give `new` the layer's bias with what the table adds to it."""
        shift = self.table.biases.get(node.output[0], ())
        if not shift:
            return
        present = self.view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(len(shift), np.float32)
        if present is None or present.size != len(shift):
            return
        name = f"{node.output[0]}.bias"
        self.constants[name] = (present.reshape(-1).astype(np.float64) + shift).astype(np.float32)
        del new.input[2:]
        new.input.append(name)

    def _rewired(self, node: NodeProto) -> NodeProto:
        import onnx

        new = onnx.NodeProto()
        new.CopyFrom(node)
        for index, tensor in enumerate(node.input):
            if (node.output[0], index) in self._edges or tensor in self._outputs:
                new.input[index] = f"{tensor}.dq"
        if node.output[0] in self._quantized:
            new.input[1] = f"{node.output[0]}.weight8.dq"
            self._bias(node, new)
        return new
