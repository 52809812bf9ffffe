"""A model that is wrong although it loads, runs and agrees with itself: what a trial on live frames exists for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

CONVOLUTION, FACTOR = 2, 0.4


def spoil(model: Path, out: Path) -> Path:
    """Write a copy of `model` whose third convolution has weights of 0.4 times their size; returns `out`.

    That is the wrong scale of a faulty weight converter. Shapes, types and numerics stay sound, so neither a checker, nor
    calibration, nor a probe set made from the model itself can see it. PP-OCRv4's detector then finds less than a fifth of
    the lines, badly placed: measured on the demo's video, agreement with the sound model 0.09, 0.38 in the best 20 frames.

    Raises:
        InputError: `demo.model` when the model has no such convolution with constant weights.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(model))
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    tensor = _constant(graph, convolutions[CONVOLUTION].input[1]) if len(convolutions) > CONVOLUTION else None
    if tensor is None:
        raise InputError("demo.model", "the model has no third convolution with constant weights to spoil", where=str(model))
    weights = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((weights * FACTOR).astype(weights.dtype), tensor.name))
    out.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, str(out))
    return out


def _constant(graph: ModelProto, name: str) -> TensorProto | None:
    """The tensor of that name, whether it is an initializer or a Constant node's."""
    for tensor in graph.graph.initializer:
        if tensor.name == name:
            return tensor
    for node in graph.graph.node:
        if node.op_type == "Constant" and name in node.output:
            return node.attribute[0].t
    return None
