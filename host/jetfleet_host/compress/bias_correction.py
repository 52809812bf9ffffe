"""Empirical bias correction: what int8 moves the mean of each layer's channels by goes back into its bias.

M. Nagel et al., ICCV 2019, section 4.2, in the form that needs one pass: each layer stands twice in one graph, in float and in int8, both
reading the float tensor before it, and only the difference of their channel means comes out. A layer corrected by itself shifts nobody
behind it, so the layers need no order. The correction is kept in the scale table, so that all files of a table share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .calibration import ScaleTable
from .equality import open_session, outputs_of, relative_error
from .graphs import CONVS, GraphView
from .handles import ModelHandle
from .placement import place
from .preparing import opset_of
from .qdq import quantize_weight, weight_axis, write_qdq

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Tensor = NDArray[np.float32]
# Every second image is kept back from the measurement, to see whether the correction helps on it.
_HELD_OUT = 2
# The operator set from which ReduceMean takes its axes as an input.
_AXES_AS_INPUT = 18


class Correction(msgspec.Struct, frozen=True):
    """Mean relative output error on the images kept back, without and with the correction; `kept` when it is smaller with it."""

    error_before: float
    error_after: float
    layers: int
    kept: bool


def correct_bias(model: ModelHandle, layers: Sequence[str], table: ScaleTable, tensors: Sequence[Tensor]) -> tuple[ScaleTable, Correction]:
    """The table with a correction for the bias of each of `layers` (by output), when that makes int8 better on images kept back."""
    proto = model.load()
    measured, judged = (tensors[::_HELD_OUT], tensors[1::_HELD_OUT]) if len(tensors) > 1 else (tensors, tensors)
    shifts = mean_shifts(proto, layers, table, measured)
    corrected = msgspec.structs.replace(table, biases={name: tuple(shift.astype(np.float32).tolist()) for name, shift in shifts.items()})
    reference = outputs_of(proto, judged)
    before, after = (_error(proto, layers, candidate, reference, judged) for candidate in (table, corrected))
    kept = bool(shifts) and after < before
    return corrected if kept else table, Correction(round(before, 9), round(after, 9), len(shifts), kept)


def mean_shifts(model: ModelProto, layers: Sequence[str], table: ScaleTable, tensors: Sequence[Tensor]) -> dict[str, NDArray[np.float64]]:
    """Float minus int8 mean of each channel of the layers' outputs, over the images. Products without a bias have none to correct."""
    import onnx

    view = GraphView(model)
    wanted = [view.producer[name] for name in layers if _has_room(view, view.producer[name])]
    twice = onnx.ModelProto()
    twice.CopyFrom(model)
    del twice.graph.output[:]
    for node in wanted:
        nodes, constants = _beside(view, node, table)
        twice.graph.node.extend(nodes)
        twice.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
        twice.graph.output.append(onnx.helper.make_tensor_value_info(f"{node.output[0]}.shift", onnx.TensorProto.FLOAT, None))
    if not wanted:
        return {}
    session = open_session(twice)
    source = session.get_inputs()[0].name
    total: list[NDArray[np.float64]] = [np.zeros(1)] * len(wanted)
    for tensor in tensors:
        seen = session.run(None, {source: tensor})
        total = [before + np.asarray(value, np.float64).reshape(-1) for before, value in zip(total, seen, strict=True)]
    return {node.output[0]: shift / len(tensors) for node, shift in zip(wanted, total, strict=True)}


def _has_room(view: GraphView, node: NodeProto) -> bool:
    if node.op_type not in (*CONVS, "Gemm"):
        return False
    return len(node.input) < 3 or not node.input[2] or view.constant(node.input[2]) is not None


def _beside(view: GraphView, node: NodeProto, table: ScaleTable) -> tuple[list[NodeProto], dict[str, NDArray[Any]]]:
    """Nodes that compute the layer's int8 output beside its float one, and the mean of their difference over all but the channels."""
    import onnx

    output, source, weight = node.output[0], node.input[0], view.constant(node.input[1])
    if weight is None:  # layers are quantizable ones
        raise ValueError(f"{output} has no constant weights")
    axis = weight_axis(node) if table.per_channel else None
    steps, scales = quantize_weight(weight, axis, table.weights.get(output, ()))
    along = [1] * weight.ndim
    if axis is not None:
        along[axis] = -1
    name = f"{output}.beside"
    constants: dict[str, NDArray[Any]] = {
        f"{name}.weight": (steps * scales.reshape(along)).astype(np.float32),
        f"{name}.scale": np.asarray(table.scale(source), np.float32), f"{name}.zero": np.zeros((), np.int8),
    }
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name = twin.output[0] = name
    twin.input[0], twin.input[1] = f"{name}.dq", f"{name}.weight"
    axes = [0, *range(2, weight.ndim)]
    reduce: dict[str, Any] = {"axes": axes}
    operands = [f"{name}.moved"]
    if opset_of(view.model) >= _AXES_AS_INPUT:
        constants[f"{name}.axes"] = np.asarray(axes, np.int64)
        reduce, operands = {}, [*operands, f"{name}.axes"]
    make = onnx.helper.make_node
    return [
        make("QuantizeLinear", [source, f"{name}.scale", f"{name}.zero"], [f"{name}.q"], name=f"{name}.q"),
        make("DequantizeLinear", [f"{name}.q", f"{name}.scale", f"{name}.zero"], [f"{name}.dq"], name=f"{name}.dq"),
        twin,
        make("Sub", [output, name], [f"{name}.moved"], name=f"{name}.moved"),
        make("ReduceMean", operands, [f"{output}.shift"], name=f"{output}.shift", keepdims=0, **reduce),
    ], constants


def _error(model: ModelProto, layers: Sequence[str], table: ScaleTable, reference: Sequence[Sequence[Tensor]],
           tensors: Sequence[Tensor]) -> float:
    found = outputs_of(write_qdq(model, place(GraphView(model), layers, "qdq-int8"), table), tensors)
    return float(np.mean([relative_error(r, f) for image, other in zip(reference, found, strict=True)
                          for r, f in zip(image, other, strict=True)]))
