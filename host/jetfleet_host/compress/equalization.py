"""Cross-layer equalization: channels of neighbouring convolutions are scaled against each other until their weights span alike ranges.

M. Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019, section 4.1. For a pair
conv - activation - conv and a positive factor s a channel, dividing the first one's output and multiplying the second one's input by
it changes nothing as long as the activation lets positive factors through. ReLU does; ReLU6 does where neither the channel nor its
scaled twin reaches 6, so its channels are scaled within what calibration saw of them, and those that saturate stay. Depthwise triples
are two pairs that share a layer, hence the rounds. It helps weights with one scale a tensor, and activations in every case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .equality import open_session
from .folding import rebuilt, scale_in, scale_out
from .graphs import GraphView, attribute

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

Array = NDArray[np.float64]
Tensor = NDArray[np.float32]

_ROUNDS = 60
# A round that moves no factor by more than this share ends the search.
_SETTLED = 1e-3
# No channel is scaled by more than this in all: factors beyond are of channels that say nothing.
_LARGEST_FACTOR = 1e4
# Values outside the calibration set may be a little larger: a ReLU6 channel is scaled up to this share of its bound.
_CLIP_SHARE = 0.95


class Pair(msgspec.Struct, frozen=True):
    """Two convolutions, each by its output, with only an activation between them. `bound`: the activation's upper one, or infinity."""

    first: str
    second: str
    between: str
    bound: float


class Equalized(msgspec.Struct, frozen=True):
    """The largest ratio of two channels' weight ranges over all paired layers, before and after, and how many pairs were scaled."""

    pairs: int
    spread_before: float
    spread_after: float


def find_pairs(view: GraphView) -> tuple[Pair, ...]:
    """Every conv - (ReLU, ReLU6 or nothing) - conv whose inner tensors are read nowhere else and whose weights are its own."""
    found = []
    for node in view.nodes:
        if not _owns_weights(view, node):
            continue
        reader = view.only_consumer(node.output[0])
        bound = _bound(view, reader) if reader is not None else None
        if reader is not None and bound is not None:
            between, second = reader.output[0], view.only_consumer(reader.output[0])
        else:
            between, second, bound = node.output[0], reader, float("inf")
        if second is None or second.input[0] != between or not _owns_weights(view, second):
            continue
        found.append(Pair(node.output[0], second.output[0], between, bound))
    return tuple(found)


def channel_peaks(model: ModelProto, tensors: Iterable[Tensor], names: Sequence[str]) -> dict[str, Array]:
    """The largest value of each channel (axis 1) of the named inner tensors over the images."""
    import onnx

    if not names:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                                for name in names if name not in present)
    session = open_session(watched)
    source = session.get_inputs()[0].name
    peaks: dict[str, Array] = {}
    for tensor in tensors:
        for name, value in zip(names, session.run(list(names), {source: tensor}), strict=True):
            peak = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).max(axis=1).astype(np.float64)
            peaks[name] = np.maximum(peaks.get(name, peak), peak)
    return peaks


def equalize(model: ModelProto, tensors: Sequence[Tensor]) -> tuple[ModelProto, Equalized]:
    """The same function with equalized weights. Exact on `tensors` up to float rounding; the caller checks that.

    Args:
        tensors: calibration images (1, C, H, W), to see how near the channels of a ReLU6 come to its bound.
    """
    view = GraphView(model)
    pairs = find_pairs(view)
    peaks = channel_peaks(model, tensors, [pair.between for pair in pairs if np.isfinite(pair.bound)])
    layers = {name: _Layer(view, view.producer[name]) for pair in pairs for name in (pair.first, pair.second)}
    before = _spread(layers.values())
    total = {pair: np.ones(layers[pair.first].channels) for pair in pairs}
    for _ in range(_ROUNDS):
        moved = 0.0
        for pair in pairs:
            first, second = layers[pair.first], layers[pair.second]
            factor = _factor(first.out_ranges(), second.in_ranges(), total[pair], pair.bound, peaks.get(pair.between))
            first.scale_outputs(1.0 / factor)
            second.scale_inputs(factor)
            total[pair] = total[pair] * factor
            moved = max(moved, float(np.abs(np.log(factor)).max(initial=0.0)))
        if moved < _SETTLED:
            break
    constants = {name: value for layer in layers.values() for name, value in layer.constants().items()}
    return rebuilt(model, view.nodes, constants), Equalized(len(pairs), before, _spread(layers.values()))


def _factor(first: Array, second: Array, total: Array, bound: float, peak: Array | None) -> Array:
    """Factors that bring both ranges to their geometric mean, within what the activation's bound allows."""
    told = (first > 0) & (second > 0)
    factor = np.where(told, np.sqrt(np.where(told, first, 1.0) / np.where(told, second, 1.0)), 1.0)
    if peak is not None:
        # Values before ReLU6, scaled, may not reach the bound; a channel that did at the start may not be scaled at all.
        fixed = peak >= bound * _CLIP_SHARE
        if fixed.any() and (fixed & told).any():
            factor = factor / np.exp(np.mean(np.log(factor[fixed & told])))
        least = np.maximum(peak, 0.0) / (bound * _CLIP_SHARE) / total
        factor = np.where(fixed, 1.0, np.where(told, np.maximum(factor, least), 1.0))
    return np.asarray(np.clip(total * factor, 1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR) / total)


def _spread(layers: Iterable[_Layer]) -> float:
    ratios = [1.0]
    for layer in layers:
        ranges = layer.out_ranges()
        told = ranges[ranges > 0]
        if told.size:
            ratios.append(float(told.max() / told.min()))
    return round(max(ratios), 3)


def _bound(view: GraphView, node: NodeProto) -> float | None:
    """The activation's upper bound, infinity for ReLU; None for a node that does not let positive factors through."""
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type != "Clip" or len(node.input) < 3:
        return None
    low, high = view.constant(node.input[1]), view.constant(node.input[2])
    if low is None or high is None or float(low) != 0.0 or float(high) <= 0.0:
        return None
    return float(high)


def _owns_weights(view: GraphView, node: NodeProto) -> bool:
    """True for a convolution whose weights and bias are constants that nobody else reads."""
    names = [name for name in node.input[1:] if name]
    return node.op_type == "Conv" and all(view.constant(name) is not None and len(view.consumers[name]) == 1 for name in names)


class _Layer:
    """A convolution's weights and bias in float64 while they are scaled."""

    def __init__(self, view: GraphView, node: NodeProto) -> None:
        self.node = node
        weight = view.constant(node.input[1])
        bias = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if weight is None:  # pairs only hold layers that own constant weights
            raise ValueError(f"{node.output[0]} has no constant weights")
        self.weight: Array = weight.astype(np.float64)
        self.bias = None if bias is None else bias.astype(np.float64)

    @property
    def channels(self) -> int:
        return int(self.weight.shape[0])

    def out_ranges(self) -> Array:
        return np.asarray(np.abs(self.weight).reshape(self.channels, -1).max(axis=1))

    def in_ranges(self) -> Array:
        """The largest weight that each input channel meets; a depthwise layer's rows are its input channels."""
        out, inside = self.weight.shape[:2]
        group = _group(self.node)
        by_group = np.abs(self.weight).reshape(group, out // group, inside, -1)
        return np.asarray(by_group.max(axis=(1, 3)).reshape(-1))

    def scale_outputs(self, factor: Array) -> None:
        self.weight = _known(scale_out(self.node, self.weight, factor))
        self.bias = None if self.bias is None else self.bias * factor

    def scale_inputs(self, factor: Array) -> None:
        self.weight = _known(scale_in(self.node, self.weight, factor))

    def constants(self) -> dict[str, Tensor]:
        found = {self.node.input[1]: self.weight.astype(np.float32)}
        if self.bias is not None:
            found[self.node.input[2]] = self.bias.astype(np.float32)
        return found


def _group(node: NodeProto) -> int:
    return int(attribute(node, "group", 1))


def _known(weight: Any) -> Array:
    if weight is None:  # only a grouped transposed convolution has no answer, and pairs hold none
        raise ValueError("weights of this layout cannot be scaled by channel")
    return np.asarray(weight)
