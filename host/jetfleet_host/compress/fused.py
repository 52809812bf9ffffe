"""How many nodes a graph has, and how many kernels a runtime makes of them: before clean-up and after it.

Two counts of kernels. *Groups* are what any fusing runtime makes of the graph: a convolution or product with the constant terms, the
activation and the residual Add behind it is one. *Kernels* are the nodes that ONNX Runtime's own optimizer leaves.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.messages import Message

from .graphs import CONVS, GraphView
from .handles import ModelHandle
from .placement import PRODUCTS

if TYPE_CHECKING:
    from onnx import NodeProto

_BEHIND = ("BatchNormalization", "Mul", "Div", "Add", "Sub", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh")


class GraphCount(Message, frozen=True):
    """`nodes` of the file, `groups` that fuse, `kernels` that ONNX Runtime runs (0 where it cannot load the file)."""

    nodes: int
    groups: int
    kernels: int


class NamedCount(Message, frozen=True):
    """A stage of the build and the graph that it left."""

    stage: str
    count: GraphCount


def count_graph(model: ModelHandle) -> GraphCount:
    """Count a model's nodes, fused groups and ONNX Runtime's kernels. Constants and moves without work are no kernels of a group."""
    view = GraphView(model.load())
    return GraphCount(len(view.nodes), count_groups(view), _kernels(model))


def count_groups(view: GraphView) -> int:
    """Nodes less those that run inside the kernel of the convolution or product before them."""
    inside: set[str] = set()
    for node in view.nodes:
        if node.op_type in (*CONVS, *PRODUCTS):
            inside |= _tail(view, node)
    return sum(1 for node in view.nodes if node.op_type not in ("Constant", "Identity") and node.output[0] not in inside)


def _tail(view: GraphView, node: NodeProto) -> set[str]:
    """Outputs of the nodes behind one layer that fuse into it: each the only reader of the one before."""
    found: set[str] = set()
    reader = view.only_consumer(node.output[0])
    while reader is not None and reader.op_type in _BEHIND and reader.output[0] not in found:
        found.add(reader.output[0])
        reader = view.only_consumer(reader.output[0])
    return found


def _kernels(model: ModelHandle) -> int:
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="jetfleet-fused-") as folder:
        written = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(written)
        try:
            onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001  the runtime raises types of its own; whether it runs at all is the scorer's to say
            return 0
        return len(onnx.load(str(written), load_external_data=False).graph.node)
