"""The int8 half of a build: the gentlest loss that still pays, found by the guard, and its uint8 twin.

Start with most layers in int8; when the guard refuses, leave the noisiest ones in float and try again. What one rung took away too much
is given back by halves, so that no layer stays in float for the coarseness of the ladder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from .calibration import ScaleTable
from .checkpoints import Checkpoints
from .graphs import GraphView
from .handles import ModelHandle, serialized
from .placement import Layout, place
from .qdq import write_qdq
from .sensitivity import LADDER, LayerNoise, kept_layers

# Tries between a rung that failed and the next, which passed: each costs three evaluations, two leave a quarter of the layers between.
_STEPS_BACK = 2


class Quantize(msgspec.Struct, frozen=True, tag="quantize"):
    """One rung: which layers run in int8, in which layout."""

    layout: Layout
    layers: tuple[str, ...]

    def apply(self, model: ModelHandle, table: ScaleTable) -> bytes:
        proto = model.load()
        return serialized(write_qdq(proto, place(GraphView(proto), set(self.layers), self.layout), table))


@dataclass(frozen=True)
class Twins:
    """Both int8 files of one rung, from one table; the layers `names`, of `layers` quantizable ones, run in int8. `passed`: the guard's
    verdict."""

    int8: ModelHandle
    uint8: ModelHandle
    names: tuple[str, ...]
    layers: int
    share: float
    passed: bool
    table: ScaleTable

    @property
    def kept(self) -> int:
        return len(self.names)


Guard = Callable[[ModelHandle, ModelHandle], bool]


def search_twins(model: ModelHandle, table_for: Callable[[tuple[str, ...]], ScaleTable], noise: Sequence[LayerNoise],
                 checkpoints: Checkpoints, guard: Guard, step: Callable[[int, int], None]) -> Twins | None:
    """The first rung of the ladder that the guard accepts, with as many layers of the rung before given back as it accepts too; else the
    last rung, not passed; None without int8 layers.

    Args:
        table_for: the scales when just these layers, by output, run in int8.
        guard: takes the int8 and the uint8 file, gives True when both are within the limit.
    """
    def tried(layers: tuple[str, ...], share: float) -> Twins:
        table = table_for(layers)
        int8 = written(model, table, Quantize("qdq-int8", layers), checkpoints)
        uint8 = written(model, table, Quantize("qdq-uint8", layers), checkpoints)
        return Twins(int8, uint8, layers, len(noise), share, guard(int8, uint8), table)

    last: Twins | None = None
    for index, share in enumerate(LADDER):
        layers = kept_layers(noise, share)
        if not layers or (last is not None and layers == last.names):
            continue
        refused, last = last, tried(layers, share)
        step(index + 1, len(LADDER))
        if last.passed:
            return _given_back(last, refused, noise, tried) if refused is not None else last
    return last


def _price(layer: LayerNoise) -> tuple[float, str]:
    return layer.price, layer.node


def _given_back(passed: Twins, refused: Twins, noise: Sequence[LayerNoise], tried: Callable[[tuple[str, ...], float], Twins]) -> Twins:
    """Bisect between a rung that passed and the one before it, which did not: layers come back in the order of noise per work saved."""
    left_out = sorted((layer for layer in noise if layer.node in set(refused.names) - set(passed.names)), key=_price)
    low, high = 0, len(left_out)
    for _ in range(_STEPS_BACK):
        middle = (low + high) // 2
        if middle == low:
            break
        kept = {*passed.names, *(layer.node for layer in left_out[low:middle])}
        candidate = tried(tuple(layer.node for layer in noise if layer.node in kept), passed.share)
        if candidate.passed:
            passed, low = candidate, middle
        else:
            high = middle
    return passed


def written(model: ModelHandle, table: ScaleTable, config: Quantize, checkpoints: Checkpoints) -> ModelHandle:
    """The model with these layers in int8 in this layout, from the checkpoints where it was written before."""
    key = checkpoints.key("quantize", config, model.digest, table)
    return checkpoints.model(key) or checkpoints.keep_model(key, config.apply(model, table))
