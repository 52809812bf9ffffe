"""What TensorRT would hold against a file's Q/DQ nodes, found without a GPU: each finding names its node and says what to do.

Levels: *error*: the parser or builder refuses the file. *warning*: it builds, but a layer does not run in int8, or a fusion breaks.
*note*: legal and quantized, though int8 is unlikely to pay there.

Sources: TensorRT developer guide, "Working with quantized types" (explicit quantization, placement of Q/DQ layers); the Q/DQ placement
notes of NVIDIA's TensorFlow quantization toolkit; TensorRT issues 1992, 2774 and 4698; Model Optimizer's ONNX rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from .graphs import CONVS, GraphView, attribute
from .placement import PRODUCTS
from .preparing import opset_of
from .qdq import weight_axis
from .worth import TOLD, feeds_normalisation, reason_against

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Level = Literal["error", "warning", "note"]

# What a parser of TensorRT 10.3 (JetPack 6) reads.
LAST_OPSET = 21
_FIRST_OPSET = 13
_NARROW_TYPES_OPSET = 21
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh", "PRelu", "Elu")
_GLUE = ("LayerNormalization", "Softmax", "InstanceNormalization", "GroupNormalization", "Erf", "Gelu")
_INTEGER_OPERATORS = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")


class Finding(msgspec.Struct, frozen=True):
    """One rule broken at one node."""

    code: str
    level: Level
    node: str
    what: str
    remedy: str


def lint(model: ModelProto, *, last_opset: int = LAST_OPSET) -> tuple[Finding, ...]:
    """Every finding, in the order of the graph. A file without Q/DQ has none but of its opset.

    Args:
        last_opset: the newest operator set that the target's parser reads.
    """
    view = GraphView(model)
    return (*_opset(model, view, last_opset), *(finding for node in view.nodes for rule in _RULES for finding in rule(view, node)))


def passes(findings: tuple[Finding, ...]) -> bool:
    """True when nothing but notes was found."""
    return all(finding.level == "note" for finding in findings)


def _opset(model: ModelProto, view: GraphView, last_opset: int) -> Iterator[Finding]:
    opset = opset_of(model)
    quantized = [node for node in view.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if opset > last_opset:
        yield Finding("lint.opset", "error", "", f"operator set {opset}, the target's parser reads up to {last_opset}",
                      f"export it with opset {last_opset} or less")
    if not quantized:
        return
    if opset < _FIRST_OPSET:
        yield Finding("lint.opset", "error", _name(quantized[0]), f"Q/DQ in operator set {opset}; scales by channel need {_FIRST_OPSET}",
                      f"convert it to opset {_FIRST_OPSET} or newer")
    for node in quantized:
        if opset < _NARROW_TYPES_OPSET and _type_of(view, node) in ("FLOAT8E4M3FN", "INT4", "UINT4", "FLOAT4E2M1"):
            yield Finding("lint.opset", "error", _name(node), f"{_type_of(view, node)} in operator set {opset} needs {_NARROW_TYPES_OPSET}",
                          f"convert it to opset {_NARROW_TYPES_OPSET}")


def _types(view: GraphView, node: NodeProto) -> Iterator[Finding]:
    """Signed int8, zero point 0; scales that are constants, finite and positive."""
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return
    kind = _type_of(view, node)
    if kind not in ("INT8", "FLOAT8E4M3FN", "INT4", "FLOAT4E2M1", "INT32"):  # INT32 is of biases, which `lint.bias` tells
        yield Finding("lint.type", "error", _name(node), f"quantizes to {kind}; TensorRT takes signed int8", "write int8 with zero point 0")
    point = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if point is not None and np.asarray(point).astype(np.float32).any():
        yield Finding("lint.zero-point", "error", _name(node), f"zero point {int(np.asarray(point).reshape(-1)[0])}, it must be 0",
                      "calibrate symmetrically")
    scale = view.constant(node.input[1])
    if scale is None:
        yield Finding("lint.scale", "error", _name(node), f"its scale {node.input[1]!r} is computed, it must be a constant",
                      "quantize statically, not at run time")
    elif not (np.isfinite(scale).all() and (scale > 0).all()):
        yield Finding("lint.scale", "error", _name(node), "its scale is not a finite number above 0", "calibrate again")


def _pairs(view: GraphView, node: NodeProto) -> Iterator[Finding]:
    """Q goes into DQ; DQ comes from Q or a constant; one pair a tensor."""
    if node.op_type == "QuantizeLinear":
        others = [reader for reader in view.consumers.get(node.output[0], []) if reader.op_type != "DequantizeLinear"]
        if others or node.output[0] in view.outputs:
            where = f"{others[0].op_type} {_name(others[0])}" if others else "the graph's output"
            yield Finding("lint.pair", "error", _name(node), f"its int8 goes into {where}, not into a DequantizeLinear",
                          "write Q and DQ in pairs")
        twins = [reader for reader in view.consumers.get(node.input[0], []) if reader.op_type == "QuantizeLinear"]
        if len(twins) > 1 and twins[0] is not node and view.constant(node.input[0]) is None:
            same = _equal(view, twins[0].input[1], node.input[1])
            what = "a second Q/DQ pair of" if same else "another scale than that of"
            yield Finding("lint.shared", "warning", _name(node), f"{what} {_name(twins[0])} for the same tensor {node.input[0]!r}",
                          "share one pair between all readers")
    if node.op_type == "DequantizeLinear":
        origin = view.producer.get(node.input[0])
        if view.constant(node.input[0]) is None and (origin is None or origin.op_type != "QuantizeLinear"):
            yield Finding("lint.pair", "error", _name(node), f"dequantizes {node.input[0]!r}, which no QuantizeLinear makes",
                          "write Q and DQ in pairs")


def _axes(view: GraphView, node: NodeProto) -> Iterator[Finding]:
    """Activations have one scale a tensor, weights one a channel along the output channels."""
    if node.op_type == "QuantizeLinear" and view.constant(node.input[0]) is None and view.elements(node.input[1]) > 1:
        yield Finding("lint.activation-axis", "error", _name(node), "an activation has one scale a channel; TensorRT takes one a tensor",
                      "quantize activations by tensor")
    if node.op_type not in (*CONVS, *PRODUCTS):
        return
    pair = _weight_pair(view, node)
    if pair is None or view.elements(pair.input[1]) <= 1:
        return
    weight = view.shape(pair.input[0]) or ()
    axis, wanted = int(attribute(pair, "axis", 1)), weight_axis(node)
    if len(weight) and axis % len(weight) != wanted:
        yield Finding("lint.weight-axis", "error", _name(pair), f"scales of the weights of {node.op_type} {_name(node)} lie along axis "
                      f"{axis}, output channels on axis {wanted}", f"quantize them along axis {wanted}")


def _layers(view: GraphView, node: NodeProto) -> Iterator[Finding]:
    """A layer runs in int8 when its input and its weights both are, and its bias is not."""
    if node.op_type in _INTEGER_OPERATORS:
        yield Finding("lint.operator", "error", _name(node), f"{node.op_type} is ONNX Runtime's form of quantization, TensorRT reads Q/DQ",
                      "write the QDQ format")
    if node.op_type not in (*CONVS, *PRODUCTS):
        return
    data, weights = _dequantized(view, node.input[0]), _weight_pair(view, node) is not None
    if data and not weights and (view.constant(node.input[1]) is not None or not _dequantized(view, node.input[1])):
        yield Finding("lint.half-quantized", "warning", _name(node),
                      f"{node.op_type} reads an int8 input and float weights: it runs in float",
                      "quantize its weights, or leave Q/DQ off its input")
    if weights and not data:
        yield Finding("lint.half-quantized", "warning", _name(node), f"{node.op_type} has int8 weights and a float input: it runs in float",
                      "quantize its input, or keep its weights in float")
    if len(node.input) > 2 and node.input[2] and _dequantized(view, node.input[2]):
        yield Finding("lint.bias", "warning", _name(node), "its bias goes through Q/DQ; TensorRT adds biases in float",
                      "keep biases in float")


def _activations(view: GraphView, node: NodeProto) -> Iterator[Finding]:
    """Q stands behind the activation, never between a layer and it."""
    origin = _behind_pair(view, node.input[0]) if node.op_type in _ACTIVATIONS and node.input else None
    if origin is not None and origin.op_type in (*CONVS, *PRODUCTS, "Add", "BatchNormalization"):
        yield Finding("lint.between", "warning", _name(node), f"Q/DQ stands between {origin.op_type} {_name(origin)} and {node.op_type}: "
                      "the two do not fuse", f"put the pair behind the {node.op_type}")


def _residuals(view: GraphView, node: NodeProto) -> Iterator[Finding]:
    """A residual Add has Q/DQ on its skip branch only, so that it fuses into the convolution on the other."""
    if node.op_type != "Add" or any(view.constant(name) is not None for name in node.input):
        return
    if feeds_normalisation(view, node) and any(_dequantized(view, name) for name in node.input):
        yield Finding("lint.residual-stream", "warning", _name(node), "the residual stream of a transformer goes through int8",
                      "keep residual Adds before a layer normalisation in float")
        return
    paired = [_dequantized(view, name) for name in node.input]
    layers = [_integer_layer(view, name) for name in node.input]
    if all(paired) and any(_integer_layer(view, _source(view, name)) for name in node.input):
        yield Finding("lint.both-branches", "warning", _name(node),
                      "Q/DQ stands on both branches of a residual Add: it runs as a pass of its own",
                      "leave the branch that a convolution makes bare")
    if not any(paired) and any(layers) and view.shape(node.input[0]) == view.shape(node.input[1]):
        yield Finding("lint.skip", "warning", _name(node),
                      "the skip branch of a residual Add is float: the convolution before it writes float", "put Q/DQ on the skip branch")


def _glue(view: GraphView, node: NodeProto) -> Iterator[Finding]:
    if node.op_type in _GLUE and any(_dequantized(view, name) for name in node.input if name):
        yield Finding("lint.glue", "warning", _name(node), f"{node.op_type} reads an int8 input: it has no int8 kernel and loses accuracy",
                      "keep normalisations, softmax and attention glue in float")


def _pools(view: GraphView, node: NodeProto) -> Iterator[Finding]:
    """MaxPool picks values, so both its ends have one scale; two cost a requantization."""
    if node.op_type != "MaxPool" or not _dequantized(view, node.input[0]):
        return
    before = view.producer[node.input[0]].input[1]
    for reader in view.consumers.get(node.output[0], []):
        if reader.op_type == "QuantizeLinear" and not _equal(view, before, reader.input[1]):
            yield Finding("lint.pool-scale", "warning", _name(node),
                          "input and output of a MaxPool have different scales: it runs in float",
                          "give the pair behind it the scale of the pair before it")


def _worth(view: GraphView, node: NodeProto) -> Iterator[Finding]:
    if node.op_type not in (*CONVS, *PRODUCTS) or _weight_pair(view, node) is None or not _dequantized(view, node.input[0]):
        return
    reason = reason_against(view, node)
    if reason is not None:
        yield Finding(f"lint.{reason}", "note", _name(node), TOLD[reason], "measure it in float too")


_RULES = (_types, _pairs, _axes, _layers, _activations, _residuals, _glue, _pools, _worth)


def _name(node: NodeProto) -> str:
    return str(node.name or (node.output[0] if node.output else node.op_type))


def _type_of(view: GraphView, node: NodeProto) -> str:
    """Name of the quantized type: of the zero point, the constant, or the attribute; uint8 when nothing says so, as ONNX defines it."""
    from onnx import TensorProto

    kind = view.element_type(node.input[2]) if len(node.input) > 2 and node.input[2] else 0
    if not kind:
        source = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
        kind = int(attribute(node, "output_dtype", 0)) if node.op_type == "QuantizeLinear" else 0
        kind = kind or view.element_type(source)
    return str(TensorProto.DataType.Name(kind)) if kind else "UINT8"


def _dequantized(view: GraphView, tensor: str) -> bool:
    node = view.producer.get(tensor)
    return node is not None and node.op_type == "DequantizeLinear"


def _source(view: GraphView, tensor: str) -> str:
    """The tensor before a Q/DQ pair, or the tensor itself."""
    node = view.producer.get(tensor)
    if node is None or node.op_type != "DequantizeLinear":
        return tensor
    before = view.producer.get(node.input[0])
    return str(before.input[0]) if before is not None and before.op_type == "QuantizeLinear" else tensor


def _behind_pair(view: GraphView, tensor: str) -> NodeProto | None:
    """The node that makes what `tensor` is the dequantized form of."""
    source = _source(view, tensor)
    return None if source == tensor else view.producer.get(source)


def _weight_pair(view: GraphView, node: NodeProto) -> NodeProto | None:
    """The DequantizeLinear that a layer's constant weights come from: int8 constants, or float ones through Q."""
    pair = view.producer.get(node.input[1])
    if pair is None or pair.op_type != "DequantizeLinear":
        return None
    if view.constant(pair.input[0]) is not None:
        return pair
    before = view.producer.get(pair.input[0])
    return pair if before is not None and before.op_type == "QuantizeLinear" and view.constant(before.input[0]) is not None else None


def _integer_layer(view: GraphView, tensor: str) -> bool:
    """True for the output of a convolution that runs in int8 and that nobody else reads."""
    node = view.producer.get(tensor)
    return (node is not None and node.op_type in CONVS and _weight_pair(view, node) is not None and _dequantized(view, node.input[0])
            and view.only_consumer(tensor) is not None)


def _equal(view: GraphView, left: str, right: str) -> bool:
    first, second = view.constant(left), view.constant(right)
    return first is not None and second is not None and np.array_equal(first, second)
