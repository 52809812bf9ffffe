"""The int8 half of a build: the gentlest loss that still pays, found by the guard, and its uint8 twin.

Start with most layers in int8; when the guard refuses, leave the noisiest ones in float and try again.
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
    """The first rung of the ladder that the guard accepts, else the last one, not passed; None without int8 layers.

    Args:
        table_for: the scales when just these layers, by output, run in int8.
        guard: takes the int8 and the uint8 file, gives True when both are within the limit.
    """
    last: Twins | None = None
    seen: set[tuple[str, ...]] = set()
    for index, share in enumerate(LADDER):
        layers = kept_layers(noise, share)
        if not layers or layers in seen:
            continue
        seen.add(layers)
        table = table_for(layers)
        int8 = written(model, table, Quantize("qdq-int8", layers), checkpoints)
        uint8 = written(model, table, Quantize("qdq-uint8", layers), checkpoints)
        passed = guard(int8, uint8)
        last = Twins(int8, uint8, layers, len(noise), share, passed, table)
        step(index + 1, len(LADDER))
        if passed:
            break
    return last


def written(model: ModelHandle, table: ScaleTable, config: Quantize, checkpoints: Checkpoints) -> ModelHandle:
    """The model with these layers in int8 in this layout, from the checkpoints where it was written before."""
    key = checkpoints.key("quantize", config, model.digest, table)
    return checkpoints.model(key) or checkpoints.keep_model(key, config.apply(model, table))
