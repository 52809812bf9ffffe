"""What bfloat16 execution does to the numbers, for builders whose CPU has no bfloat16 (no AMX, no AVX512-BF16).

A runtime in bf16 rounds the operands of convolutions and matrix products to 8 significant bits and accumulates in
float32. The simulated model does the same in float32: rounded weights, and every such input through bfloat16 and back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folding import rebuilt
from .graphs import CONVS, GraphView
from .placement import PRODUCTS

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def simulate_bf16(model: ModelProto) -> ModelProto:
    """The model as a bf16 runtime would compute it, in plain float32 operators and two casts a tensor."""
    import onnx

    view = GraphView(model)
    constants: dict[str, NDArray[Any]] = {}
    nodes: list[NodeProto] = []
    rounded: set[str] = set()
    for node in view.nodes:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        if node.op_type in (*CONVS, *PRODUCTS):
            for index, tensor in enumerate(node.input[:2]):
                value = view.constant(tensor)
                name = f"{tensor}.bf16"
                new.input[index] = name
                if value is not None:
                    constants[name] = to_bf16(value)
                elif name not in rounded:
                    rounded.add(name)
                    nodes.append(onnx.helper.make_node("Cast", [tensor], [f"{name}.narrow"], name=f"{name}.narrow",
                                                       to=onnx.TensorProto.BFLOAT16))
                    nodes.append(onnx.helper.make_node("Cast", [f"{name}.narrow"], [name], name=name, to=onnx.TensorProto.FLOAT))
        nodes.append(new)
    return rebuilt(model, nodes, constants)


def to_bf16(value: NDArray[Any]) -> NDArray[np.float32]:
    """float32 rounded to the nearest bfloat16, ties to even, as float32."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32).reshape(value.shape)
