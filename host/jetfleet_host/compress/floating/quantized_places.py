"""Where fake quantization goes in a torch graph: the places of `placement.py` for the layout ``qdq-int8``, by the same rules.

Inputs of convolutions and linear layers; on a residual sum the skip branch alone, when the other one comes bare from a convolution; the
input of a max pool in place of its output. One place a tensor, shared by all who read it there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval

from jetfleet_contract.errors import InputError

_CONVS = (nn.Conv2d, nn.ConvTranspose2d)
LAYERS = (*_CONVS, nn.Linear)
_SUMS = (operator.add, operator.iadd, torch.add)
_NOTHING = (nn.Identity, nn.Dropout)


def traced(model: nn.Module) -> fx.GraphModule:
    """The model's graph, with batch norms folded into their convolutions and without layers that do nothing in evaluation.

    Raises:
        InputError: `build.trace` when its forward depends on values, with the reason.
    """
    try:
        graph = fx.symbolic_trace(model.eval())
    except Exception as error:  # the model's own code runs here and may raise anything
        raise InputError("build.trace", f"the model cannot be traced for training with quantization: {' '.join(str(error).split())[:200]}",
                         remedy="write forward() without branches on tensor values, or quantize after training") from error
    for node in list(graph.graph.nodes):
        node.type = None  # an annotation that is a string cannot be pickled with the graph
        if isinstance(_module(graph, node), _NOTHING):
            _bypass(graph, node)
    for node in list(graph.graph.nodes):
        _fold(graph, node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def insert(graph: fx.GraphModule, shape: tuple[int, ...], make: Callable[[], nn.Module]) -> list[str]:
    """Put a module of `make` at each place; gives their names.

    Raises:
        InputError: `build.qat` when the graph has no layer to quantize.
    """
    ShapeProp(graph).propagate(torch.zeros(shape))
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        for source in _read(graph, node):
            while isinstance(_module(graph, source), nn.MaxPool2d):
                node, source = source, source.args[0]
            if node not in readers.setdefault(source, []):
                readers[source].append(node)
    if not readers:
        raise InputError("build.qat", "the model has no convolution or linear layer that could train with quantization",
                         remedy="give the model as a torch module with nn.Conv2d and nn.Linear layers")
    names = []
    for number, (source, users) in enumerate(readers.items()):
        name = f"quantized_{number}"
        graph.add_submodule(name, make())
        with graph.graph.inserting_after(source):
            place = graph.graph.call_module(name, (source,))
        for user in users:
            _replace_at(graph, user, source, place)
        names.append(name)
    graph.recompile()
    return names


def replace_layers(graph: fx.GraphModule, kind: type[nn.Module] | tuple[type[nn.Module], ...],
                   make: Callable[[nn.Module], nn.Module]) -> None:
    """Put `make(module)` in the place of each module of this kind that the graph calls."""
    for name in dict.fromkeys(node.target for node in graph.graph.nodes if isinstance(_module(graph, node), kind)):
        parent, _, own = name.rpartition(".")
        setattr(graph.get_submodule(parent), own, make(graph.get_submodule(name)))


def _read(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Tensors that the node is to read quantized."""
    if isinstance(_module(graph, node), LAYERS):
        return [node.args[0]]
    if not _is_sum(node) or any(not isinstance(arg, fx.Node) for arg in node.args[:2]):
        return []
    left, right = node.args[:2]
    if _shape(left) != _shape(right):
        return []
    bare = [isinstance(_module(graph, arg), _CONVS) and len(arg.users) == 1 for arg in (left, right)]
    return [left if bare[1] else right] if any(bare) else []


def _replace_at(graph: fx.GraphModule, user: fx.Node, source: fx.Node, place: fx.Node) -> None:
    """On a sum of a tensor with itself, or of a bare convolution, the other input stays."""
    if not _is_sum(user):
        user.replace_input_with(source, place)
        return
    skip = _read(graph, user)
    user.args = tuple(place if arg is source and (not skip or arg in skip) else arg for arg in user.args)


def _is_sum(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in _SUMS) or (node.op == "call_method" and node.target in ("add", "add_"))


def _shape(node: fx.Node) -> Any:
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def _bypass(graph: fx.GraphModule, node: fx.Node) -> None:
    node.replace_all_uses_with(node.args[0])
    graph.graph.erase_node(node)


def _fold(graph: fx.GraphModule, node: fx.Node) -> None:
    """A batch norm right behind a convolution that nothing else reads becomes part of its weights."""
    norm = _module(graph, node)
    if not isinstance(norm, nn.BatchNorm2d) or not isinstance(node.args[0], fx.Node):
        return
    before = node.args[0]
    conv = _module(graph, before)
    calls = [other for other in graph.graph.nodes if other.op == "call_module" and other.target == before.target]
    if not isinstance(conv, _CONVS) or len(before.users) > 1 or len(calls) > 1:
        return
    parent, _, own = before.target.rpartition(".")
    setattr(graph.get_submodule(parent), own, fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d)))
    _bypass(graph, node)
