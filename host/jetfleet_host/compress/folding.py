"""Passes that fold arithmetic into convolutions. Exact up to float rounding, and every runtime gains.

A convolution is linear, so a constant factor or term behind it belongs in its weights and bias, and a constant factor
before it in its weights. A term before it does too, unless the convolution pads with zeros: the border would differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .graphs import CONVS, GraphView, attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = NDArray[Any]


class FuseHardSwish(msgspec.Struct, frozen=True, tag="fuse-hardswish"):
    """``x * clip(x + 3, 0, 6) / 6``, five nodes as exporters write it, becomes one HardSwish (opset 14)."""

    @property
    def name(self) -> str:
        return "fuse-hardswish"

    def apply(self, model: ModelProto) -> ModelProto:
        import onnx.helper

        view = GraphView(model)
        replaced: dict[str, NodeProto] = {}
        dropped: set[str] = set()
        for node in view.nodes:
            match = _hard_swish(view, node)
            if match is None:
                continue
            source, inner = match
            replaced[node.output[0]] = onnx.helper.make_node("HardSwish", [source], [node.output[0]], name=f"{node.output[0]}.hardswish")
            dropped.update(inner)
        nodes = [replaced.get(node.output[0], node) for node in view.nodes if node.output[0] not in dropped]
        return rebuilt(model, nodes, {})


class FoldAffine(msgspec.Struct, frozen=True, tag="fold-affine"):
    """Fold constant Mul, Div, Add and Sub per channel or scalar into the convolution before, or a Mul into the one behind."""

    @property
    def name(self) -> str:
        return "fold-affine"

    def apply(self, model: ModelProto) -> ModelProto:
        for step in (_fold_backward, _swap, _fold_forward):
            changed: ModelProto | None = model
            while changed is not None:
                model = changed
                changed = step(model)
        return model


def rebuilt(model: ModelProto, nodes: list[NodeProto], constants: dict[str, Array]) -> ModelProto:
    """The model with these nodes and with these initialisers replaced or added; unread initialisers are left out."""
    import onnx
    import onnx.numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used and tensor.name not in constants]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    result.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items() if name in used)
    del result.graph.value_info[:]
    return result


def _scalar(view: GraphView, tensor: str) -> float | None:
    value = view.constant(tensor)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def _operand(view: GraphView, node: NodeProto) -> tuple[str, Array] | None:
    """(computed input, constant input) of a two-input node, when exactly one is constant."""
    if len(node.input) != 2:
        return None
    left, right = view.constant(node.input[0]), view.constant(node.input[1])
    if (left is None) == (right is None):
        return None
    if left is not None and node.op_type in ("Div", "Sub"):
        return None  # constant minus or over tensor is not affine in the way we fold
    return (node.input[1], left) if left is not None else (node.input[0], right)  # type: ignore[return-value]


def _hard_swish(view: GraphView, node: NodeProto) -> tuple[str, set[str]] | None:
    """Match at the last node of the pattern. Returns the source tensor and the inner tensors that go."""
    if node.op_type not in ("Div", "Mul"):
        return None
    last = _operand(view, node)
    if last is None or last[1].size != 1:
        return None
    factor = float(last[1].reshape(-1)[0])
    if abs((factor if node.op_type == "Mul" else 1.0 / factor) - 1.0 / 6.0) > 1e-6:
        return None
    product = view.producer.get(last[0])
    if product is None or product.op_type != "Mul" or view.only_consumer(last[0]) is None:
        return None
    for clipped, source in ((product.input[0], product.input[1]), (product.input[1], product.input[0])):
        shifted = _relu6_of_shifted(view, clipped, source)
        if shifted:
            return source, {last[0], clipped, shifted}
    return None


def _relu6_of_shifted(view: GraphView, clipped: str, source: str) -> str:
    """The name of ``source + 3`` when `clipped` is its ReLU6 and both are read nowhere else."""
    clip = view.producer.get(clipped)
    if clip is None or clip.op_type != "Clip" or len(clip.input) < 3 or view.only_consumer(clipped) is None:
        return ""
    if _scalar(view, clip.input[1]) != 0.0 or _scalar(view, clip.input[2]) != 6.0:
        return ""
    shift = view.producer.get(clip.input[0])
    if shift is None or shift.op_type != "Add" or view.only_consumer(clip.input[0]) is None:
        return ""
    operand = _operand(view, shift)
    if operand is None or operand[0] != source or operand[1].size != 1 or float(operand[1].reshape(-1)[0]) != 3.0:
        return ""
    return str(clip.input[0])


def _channels(value: Array, channels: int) -> Array | None:
    """The constant as one value a channel of an NCHW tensor, or None when it varies over pixels."""
    if value.size == 1:
        return np.full(channels, float(value.reshape(-1)[0]), np.float64)
    shape = (1,) * (4 - value.ndim) + value.shape if value.ndim <= 4 else value.shape
    if len(shape) == 4 and shape[1] == channels and shape[0] == shape[2] == shape[3] == 1:
        return value.reshape(-1).astype(np.float64)
    return None


def _scale_and_shift(kind: str, value: Array) -> tuple[Array, Array]:
    """The node ``x kind value`` as ``x * scale + shift``, one of each a channel."""
    if kind in ("Mul", "Div"):
        return (value if kind == "Mul" else 1.0 / value), np.zeros_like(value)
    return np.ones_like(value), (value if kind == "Add" else -value)


def _out_channels(node: NodeProto, weight: Array) -> int:
    return int(weight.shape[0]) if node.op_type == "Conv" else int(weight.shape[1]) * int(attribute(node, "group", 1))


def scale_out(node: NodeProto, weight: Array, factor: Array) -> Array | None:
    """Weights times one factor per output channel; None for a grouped transposed convolution (its layout mixes groups)."""
    if node.op_type == "Conv":
        return np.asarray(weight * factor.reshape(-1, *([1] * (weight.ndim - 1))))
    if int(attribute(node, "group", 1)) != 1:
        return None
    return np.asarray(weight * factor.reshape(1, -1, *([1] * (weight.ndim - 2))))


def scale_in(node: NodeProto, weight: Array, factor: Array) -> Array | None:
    """Weights times one factor per input channel, by group."""
    group = int(attribute(node, "group", 1))
    if node.op_type == "ConvTranspose":
        return np.asarray(weight * factor.reshape(-1, *([1] * (weight.ndim - 1))))
    per_group = factor.reshape(group, -1)  # (group, in / group)
    rows = np.repeat(per_group, weight.shape[0] // group, axis=0)  # (out, in / group)
    return np.asarray(weight * rows.reshape(*rows.shape, *([1] * (weight.ndim - 2))))


def _fold_backward(model: ModelProto) -> ModelProto | None:
    """Fold one batch of ``conv -> affine`` pairs; None when there is none left."""
    view = GraphView(model)
    constants: dict[str, Array] = {}
    changed: dict[str, NodeProto] = {}
    dropped: set[str] = set()
    for node in view.nodes:
        if node.op_type not in CONVS or view.constant(node.input[1]) is None:
            continue
        affine = view.only_consumer(node.output[0])
        if affine is None or affine.op_type not in ("Mul", "Div", "Add", "Sub") or len(view.consumers[node.input[1]]) != 1:
            continue
        folded = _with_affine(view, node, affine)
        if folded is None:
            continue
        new, tensors = folded
        constants.update(tensors)
        changed[node.output[0]] = new
        dropped.add(affine.output[0])
    if not changed:
        return None
    nodes = [changed.get(node.output[0], node) for node in view.nodes if node.output[0] not in dropped]
    return rebuilt(model, nodes, constants)


def _with_affine(view: GraphView, node: NodeProto, affine: NodeProto) -> tuple[NodeProto, dict[str, Array]] | None:
    import onnx

    operand = _operand(view, affine)
    weight = view.constant(node.input[1])
    if operand is None or weight is None:
        return None
    channels = _out_channels(node, weight)
    value = _channels(operand[1], channels)
    bias = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(channels, np.float32)
    if value is None or bias is None:
        return None
    scale, shift = _scale_and_shift(affine.op_type, value)
    scaled = scale_out(node, weight.astype(np.float64), scale)
    if scaled is None:
        return None
    output = affine.output[0]
    new = onnx.NodeProto()
    new.CopyFrom(node)
    del new.input[:]
    new.input.extend([node.input[0], f"{output}.weight", f"{output}.bias"])
    new.output[0] = output
    tensors = {f"{output}.weight": scaled.astype(np.float32), f"{output}.bias": (bias * scale + shift).astype(np.float32)}
    return new, tensors


def _swap(model: ModelProto) -> ModelProto | None:
    """``x * m + a`` before convolutions becomes ``(x + a / m) * m``, so that the factor can be folded into them."""
    import onnx.helper

    view = GraphView(model)
    for node in view.nodes:
        if node.op_type != "Add":
            continue
        operand = _operand(view, node)
        inner = view.producer.get(operand[0]) if operand else None
        if operand is None or inner is None or inner.op_type != "Mul" or view.only_consumer(operand[0]) is None:
            continue
        factor = _operand(view, inner)
        readers = view.consumers.get(node.output[0], [])
        if factor is None or not np.all(factor[1]) or not readers or node.output[0] in view.outputs:
            continue
        if any(reader.op_type not in CONVS or reader.input[0] != node.output[0] for reader in readers):
            continue
        output = node.output[0]
        names = [f"{output}.term", f"{output}.factor", f"{output}.shifted"]
        constants = {names[0]: (operand[1] / factor[1]).astype(np.float32), names[1]: factor[1]}
        swapped = {
            operand[0]: onnx.helper.make_node("Add", [factor[0], names[0]], [names[2]], name=names[2]),
            output: onnx.helper.make_node("Mul", [names[2], names[1]], [output], name=output),
        }
        return rebuilt(model, [swapped.get(n.output[0], n) for n in view.nodes], constants)
    return None


def _fold_forward(model: ModelProto) -> ModelProto | None:
    """Fold one ``Mul or Add by constant -> convolutions`` group; None when there is none left."""
    view = GraphView(model)
    for node in view.nodes:
        if node.op_type not in ("Mul", "Div", "Add", "Sub") or node.output[0] in view.outputs:
            continue
        operand = _operand(view, node)
        readers = view.consumers.get(node.output[0], [])
        if operand is None or not readers or any(not _takes(view, reader, node) for reader in readers):
            continue
        constants: dict[str, Array] = {}
        changed: dict[str, NodeProto] = {}
        for reader in readers:
            moved = _with_input_affine(view, reader, node, operand)
            if moved is None:
                break
            changed[reader.output[0]], tensors = moved
            constants.update(tensors)
        else:
            nodes = [changed.get(n.output[0], n) for n in view.nodes if n.output[0] != node.output[0]]
            return rebuilt(model, nodes, constants)
    return None


def _takes(view: GraphView, reader: NodeProto, node: NodeProto) -> bool:
    """True when `reader` is a convolution whose only tie to `node` is its image input and whose weights are its own."""
    if reader.op_type not in CONVS or reader.input[0] != node.output[0] or node.output[0] in reader.input[1:]:
        return False
    if view.constant(reader.input[1]) is None or len(view.consumers[reader.input[1]]) != 1:
        return False
    if node.op_type in ("Mul", "Div"):
        return True
    # A term is folded only where every output pixel sees every tap: a convolution without padding.
    pads = attribute(reader, "pads", [0])
    return reader.op_type == "Conv" and not any(pads) and attribute(reader, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")


def _with_input_affine(view: GraphView, conv: NodeProto, node: NodeProto,
                       operand: tuple[str, Array]) -> tuple[NodeProto, dict[str, Array]] | None:
    import onnx

    weight = view.constant(conv.input[1])
    shape = view.shape(node.output[0])
    if weight is None or shape is None or len(shape) != 4:
        return None
    value = _channels(operand[1], shape[1])
    if value is None:
        return None
    scale, shift = _scale_and_shift(node.op_type, value)
    wide = weight.astype(np.float64)
    scaled = scale_in(conv, wide, scale)
    bias = view.constant(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else np.zeros(_out_channels(conv, weight), np.float32)
    if scaled is None or bias is None:
        return None
    output = conv.output[0]
    new = onnx.NodeProto()
    new.CopyFrom(conv)
    del new.input[:]
    new.input.extend([operand[0], f"{output}.weight.in", f"{output}.bias.in"])
    tensors = {f"{output}.weight.in": scaled.astype(np.float32)}
    if np.any(shift):
        terms = scale_in(conv, wide, shift)
        bias = bias + (0.0 if terms is None else terms.reshape(terms.shape[0], -1).sum(axis=1))
    tensors[f"{output}.bias.in"] = np.asarray(bias, np.float32)
    return new, tensors
