"""Which layers gain nothing from int8 on a GPU at batch 1, and whether the model as a whole does; each with its reason.

The rules are those by which NVIDIA's own quantizer leaves layers out (Model Optimizer, ONNX path), and depthwise convolutions, which move
more bytes than they compute. They speak of TensorRT; on a CPU a depthwise layer left in float costs more than it saves, so verdicts are
told, and the noise ladder and the board's own measurement decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jetfleet_contract.messages import Message

from .graphs import CONVS, GraphView, attribute
from .placement import quantizable

if TYPE_CHECKING:
    from onnx import NodeProto

Reason = Literal["depthwise", "gemv", "narrow-product", "few-channels"]

# Tensor cores work on tiles of this many int8 values; a product narrower than one tile pads it.
_TILE = 16
_HALF_TILE = 8
# A model whose layers worth it hold less than this share of all multiply-accumulates is not worth int8.
_LEAST_SHARE = 0.5

TOLD: dict[Reason, str] = {
    "depthwise": "a depthwise convolution at batch 1 is bound by memory, int8 kernels gain nothing over float16",
    "gemv": "one row by a matrix is bound by reading the weights once, and the layers around it are small",
    "narrow-product": f"an inner or outer size under {_TILE} leaves most of a tensor-core tile empty",
    "few-channels": f"fewer than {_TILE} channels, and no multiple of {_HALF_TILE}, leave most of a tensor-core tile empty",
}


class LayerVerdict(Message, frozen=True):
    """One layer (by its first output) that int8 does not pay for, and `share`, 0..1, of the model's multiply-accumulates that it does."""

    node: str
    op: str
    reason: Reason
    share: float

    @property
    def told(self) -> str:
        return TOLD[self.reason]


class ModelVerdict(Message, frozen=True):
    """`worth`: int8 pays for this model on a GPU at batch 1. `share`: multiply-accumulates, 0..1, of the layers that it pays for.

    `residuals`: residual Adds before a layer normalisation; they stay in float, for int8 there takes a transformer's accuracy to nothing.
    """

    worth: bool
    share: float
    layers: tuple[LayerVerdict, ...]
    residuals: int
    reason: str


def judge_worth(view: GraphView) -> ModelVerdict:
    """Judge every layer that could run in int8, and the model by what is left of its work."""
    layers = quantizable(view)
    total = sum(view.macs(node) for node in view.nodes) or 1
    found = tuple(LayerVerdict(node.output[0], node.op_type, reason, round(view.macs(node) / total, 4))
                  for node in layers if (reason := reason_against(view, node)) is not None)
    poor = {layer.node for layer in found}
    share = round(sum(view.macs(node) for node in layers if node.output[0] not in poor) / total, 4)
    residuals = sum(1 for node in view.nodes if node.op_type == "Add" and feeds_normalisation(view, node))
    worth = share >= _LEAST_SHARE
    return ModelVerdict(worth, share, found, residuals, _sentence(worth, share, len(layers), found, residuals))


def reason_against(view: GraphView, node: NodeProto) -> Reason | None:
    """Why int8 does not pay for a Conv, ConvTranspose, Gemm or MatMul with constant weights; None when it may."""
    weight = view.shape(node.input[1])
    if weight is None or not weight:
        return None
    if node.op_type in CONVS:
        return _against_conv(view, node, weight)
    rows = view.shape(node.output[0])
    if rows and len(rows) > 1 and rows[-2] == 1:
        return "gemv"
    return "narrow-product" if min(weight[-2:]) < _TILE else None


def feeds_normalisation(view: GraphView, node: NodeProto) -> bool:
    """True for a node some reader of which normalises over the last axes."""
    return any(reader.op_type == "LayerNormalization" for reader in view.consumers.get(node.output[0], []))


def _against_conv(view: GraphView, node: NodeProto, weight: tuple[int, ...]) -> Reason | None:
    group = int(attribute(node, "group", 1))
    shape = view.shape(node.output[0])
    if group > 1 and weight[1] == 1:
        return "depthwise" if shape and shape[0] == 1 else None
    inside, outside = (weight[1] * group, weight[0]) if node.op_type == "Conv" else (weight[0], weight[1] * group)
    first = _before_pair(view, node.input[0]) in view.inputs
    thin = [channels for channels in ((outside,) if first else (inside, outside)) if channels < _TILE and channels % _HALF_TILE]
    return "few-channels" if thin else None


def _before_pair(view: GraphView, tensor: str) -> str:
    """The tensor before its Q/DQ pair, or the tensor itself."""
    while (node := view.producer.get(tensor)) is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        tensor = node.input[0]
    return tensor


def _sentence(worth: bool, share: float, layers: int, found: tuple[LayerVerdict, ...], residuals: int) -> str:
    counts: dict[str, int] = {}
    for layer in found:
        counts[layer.reason] = counts.get(layer.reason, 0) + 1
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    said = f"int8 {'pays' if worth else 'does not pay'}: {layers - len(found)} of {layers} layers gain, {100 * share:.0f} % of the work"
    said += f"; not worth it: {listed}" if listed else ""
    return said + (f"; {residuals} residual Adds before a layer normalisation stay in float" if residuals else "")
