"""What speaks against an engine of a model, found without a GPU and without TensorRT: operators, their restrictions, types, free axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jetfleet_host.engines.jobs import Fault
from jetfleet_host.engines.operator_table import Release

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_WEIGHT_TYPES = frozenset(("FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT32", "INT64", "BOOL", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1"))
_INPUT_TYPES = frozenset(("FLOAT", "FLOAT16", "BFLOAT16", "INT32", "INT64", "BOOL", "UINT8"))
_RESIZE_COORDINATES = frozenset(("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"))
_POOLS = frozenset(("MaxPool", "AveragePool", "LpPool"))


def screen(model: ModelProto, release: Release, *, profiled: frozenset[str] = frozenset()) -> tuple[Fault, ...]:
    """Every reason against an engine, in the order of the graph. Inputs in `profiled` have an optimisation profile.

    Codes: `engine.opset`, `engine.operator`, `engine.restriction`, `engine.quantised`, `engine.type`, `engine.profile`.
    """
    functions = {(function.domain, function.name) for function in model.functions}
    return (*_opset(model, release), *_graph(model.graph, release, functions), *_inputs(model.graph, profiled))


def _opset(model: ModelProto, release: Release) -> Iterator[Fault]:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and not release.first_opset <= entry.version <= release.last_opset:
            yield Fault("engine.opset", f"{release.title} reads operator sets {release.first_opset} to {release.last_opset}, this is "
                        f"{entry.version}", remedy=f"export it with opset 17 to {release.last_opset}")


def _graph(graph: GraphProto, release: Release, functions: set[tuple[str, str]]) -> Iterator[Fault]:
    weights = {tensor.name: tensor for tensor in graph.initializer}
    consumers = {name: _named(index, node) for index, node in reversed(tuple(enumerate(graph.node))) for name in node.input}
    yield from _types(weights, consumers, release)
    for index, node in enumerate(graph.node):
        name = _named(index, node)
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain not in ("", "ai.onnx") or node.op_type not in release.operators:
            kind = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
            yield Fault("engine.operator", f"{release.title} has no operator {kind}", name, kind,
                        "export the model without it, or keep to another backend for this model")
            continue
        reason = _restriction(node, weights)
        if reason:
            code = "engine.quantised" if node.op_type in ("QuantizeLinear", "DequantizeLinear") else "engine.restriction"
            yield Fault(code, f"{release.title}: {node.op_type} {reason}", name, node.op_type, _remedy(code))
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graph(attribute.g, release, functions)


def _remedy(code: str) -> str:
    if code == "engine.quantised":
        return "take the bundle's qdq-int8 variant, whose zero points are 0; qdq-uint8 is ONNX Runtime's"
    return "export the model without it, or keep to another backend for this model"


def _types(weights: dict[str, Any], consumers: dict[str, str], release: Release) -> Iterator[Fault]:
    for name, tensor in weights.items():
        kind = _type_name(tensor.data_type)
        if kind == "UINT8" and name in consumers:
            continue  # a zero point or quantised weight: told at its node
        if kind not in _WEIGHT_TYPES:
            narrowed = ", it would narrow them to FLOAT in silence" if kind == "DOUBLE" else ""
            yield Fault("engine.type", f"{release.title} takes no {kind} weights{narrowed}: {name}", consumers.get(name, ""),
                        remedy="export the model in float32 or float16")


def _inputs(graph: GraphProto, profiled: frozenset[str]) -> Iterator[Fault]:
    weights = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in weights:
            continue
        kind = _type_name(value.type.tensor_type.elem_type)
        if kind not in _INPUT_TYPES:
            yield Fault("engine.type", f"input {value.name} is {kind}, which TensorRT does not take", remedy="export it in float32")
        axes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]
        if value.name not in profiled and any(isinstance(axis, str) for axis in axes):
            yield Fault("engine.profile", f"input {value.name} of shape ({', '.join(map(str, axes))}) has free axes and no profile",
                        remedy="give --batch MIN,USUAL,MAX, and --size HxW where height and width are free too")


def _restriction(node: Any, weights: dict[str, Any]) -> str:
    """The page's restrictions that a graph shows on its face; "" when none is broken."""
    values = {attribute.name: _value(attribute) for attribute in node.attribute}
    if node.op_type in _POOLS:
        return _pool(node, values)
    if node.op_type == "Resize":
        return _resize(values)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _quantised(node, weights)
    if node.op_type == "LayerNormalization" and len([name for name in node.output if name]) > 1:
        return "gives only its first output"
    if node.op_type == "ScatterND" and values.get("reduction", "none") != "none":
        return "cannot reduce"
    if node.op_type == "TopK" and values.get("sorted", 1) != 1:
        return "must sort"
    if node.op_type == "LSTM" and (values.get("layout", 0) or values.get("input_forget", 0)):
        return "takes neither layout nor input_forget"
    return ""


def _pool(node: Any, values: dict[str, Any]) -> str:
    if len(values.get("kernel_shape", (0, 0))) not in (2, 3):
        return "pools over 2 or 3 axes only"
    if any(step != 1 for step in values.get("dilations", ())):
        return "takes no dilations"
    if len([name for name in node.output if name]) > 1:
        return "gives no indices"
    return ""


def _resize(values: dict[str, Any]) -> str:
    if values.get("mode", "nearest") not in ("nearest", "linear"):
        return f"has no mode {values['mode']}"
    if values.get("coordinate_transformation_mode", "half_pixel") not in _RESIZE_COORDINATES:
        return f"has no coordinates {values['coordinate_transformation_mode']}"
    if values.get("antialias", 0):
        return "does not smooth (antialias)"
    if values.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "stretches only"
    return ""


def _quantised(node: Any, weights: dict[str, Any]) -> str:
    from onnx import numpy_helper

    point = weights.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if point is None:
        return "" if len(node.input) > 2 and node.input[2] else "without a zero point is uint8, it must be int8"
    if _type_name(point.data_type) not in ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1", "INT32"):
        return f"with {_type_name(point.data_type)} zero points is not for it, they must be int8"
    return "has zero points other than 0" if numpy_helper.to_array(point).any() else ""


def _value(attribute: Any) -> Any:
    from onnx import helper

    value = helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _type_name(kind: int) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(kind)) if kind in TensorProto.DataType.values() else f"type {kind}"


def _named(index: int, node: Any) -> str:
    return node.name or f"#{index}"
