"""Where Q/DQ pairs go, per layout. Pure functions of the graph; the tests assert the positions on tiny graphs.

`qdq-int8` follows TensorRT's rules: quantize the inputs of convolutions and matrix products, Q after the activation,
nothing between convolution and activation, on a residual Add only the skip branch, so that Conv + Add + ReLU fuse.

`qdq-uint8` follows ONNX Runtime's x86 kernels: a convolution runs in integers only when its output is quantized too,
and an Add when both inputs and its output are; so it adds those points to the same ones. `qdq-arm` and `qdq-uint8-narrow` stand at the
same places.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import msgspec

from .graphs import CONVS, GraphView

if TYPE_CHECKING:
    from onnx import NodeProto

PRODUCTS = ("Gemm", "MatMul")
# Activations that ONNX Runtime folds into an integer convolution when Q with zero point 0 follows.
FOLDED_ACTIVATIONS = ("Relu",)

Layout = Literal["qdq-int8", "qdq-uint8", "qdq-arm", "qdq-uint8-narrow"]


class Edge(msgspec.Struct, frozen=True, order=True):
    """Input number `index` of the node that makes `node` (a node is named by its first output)."""

    node: str
    index: int


class Placement(msgspec.Struct, frozen=True):
    """Edges that read through a Q/DQ pair, nodes whose weights are int8, and tensors that share another one's scale.

    `outputs` are tensors quantized for all of their readers, because the producing kernel needs it. `clipped` are tensors
    that get a Clip to their own quantized range before Q, which changes nothing in the numbers.
    """

    layout: Layout
    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]
    outputs: tuple[str, ...] = ()
    same_scale: dict[str, str] = {}
    clipped: tuple[str, ...] = ()


def quantizable(view: GraphView) -> tuple[NodeProto, ...]:
    """Nodes with constant weights that both runtimes have integer kernels for."""
    return tuple(node for node in view.nodes
                 if node.op_type in (*CONVS, *PRODUCTS) and view.constant(node.input[1]) is not None
                 and (view.is_float(node.input[0]) or node.input[0] in view.inputs))


def place(view: GraphView, nodes: Collection[str], layout: Layout) -> Placement:
    """Positions for one layout when the nodes that make `nodes` are to run in int8."""
    wanted = [node for node in view.nodes if node.output[0] in nodes]
    edges = {Edge(node.output[0], 0) for node in wanted}
    adds = _residual_adds(view, set(nodes))
    edges |= {Edge(add.output[0], skip) for add, skip in adds}
    same = _through_pools(view, edges)
    if layout == "qdq-int8":
        return Placement(layout, tuple(n.output[0] for n in wanted), tuple(sorted(edges)), (), same, _joined(view, edges))
    # A tensor that leaves the graph stays float, so nothing is gained by quantizing it.
    outputs = {_after_activation(view, node) for node in wanted} - set(view.outputs)
    for add, _ in adds:
        edges |= {Edge(add.output[0], 0), Edge(add.output[0], 1)}
        outputs |= {_after_activation(view, add)} - set(view.outputs)
    return Placement(layout, tuple(n.output[0] for n in wanted), tuple(sorted(edges)), tuple(sorted(outputs)), same)


def _joined(view: GraphView, edges: set[Edge]) -> tuple[str, ...]:
    """Quantized tensors that a Concat makes.

    OpenVINO 2026.4 moves such a Q above the Concat and then mixes u8 and i8 branches: output off by 98 % on PP-OCRv4's head,
    right with any node between. TensorRT and ONNX Runtime do not mind the Clip.
    """
    read = {view.producer[edge.node].input[edge.index] for edge in edges}
    return tuple(sorted(name for name in read if name in view.producer and view.producer[name].op_type == "Concat"))


def _after_activation(view: GraphView, node: NodeProto) -> str:
    reader = view.only_consumer(node.output[0])
    return str(reader.output[0] if reader is not None and reader.op_type in FOLDED_ACTIVATIONS else node.output[0])


def _residual_adds(view: GraphView, nodes: set[str]) -> list[tuple[NodeProto, int]]:
    """(Add, index of its skip input) where the other input comes bare from a quantized convolution read by nothing else."""
    found = []
    for node in view.nodes:
        if node.op_type != "Add" or any(view.constant(name) is not None for name in node.input):
            continue
        if view.shape(node.input[0]) != view.shape(node.input[1]):
            continue
        bare = [name in nodes and view.producer[name].op_type in CONVS and view.only_consumer(name) is node for name in node.input]
        if any(bare):
            found.append((node, 0 if bare[1] else 1))
    return found


def _through_pools(view: GraphView, edges: set[Edge]) -> dict[str, str]:
    """Let MaxPool run on int8: quantize its input with the scale of its output's Q/DQ, which both then share."""
    same: dict[str, str] = {}
    read = {view.producer[edge.node].input[edge.index] for edge in edges}
    for node in view.nodes:
        if node.op_type == "MaxPool" and node.output[0] in read:
            edges.add(Edge(node.output[0], 0))
            same[node.output[0]] = node.input[0]
    return same
