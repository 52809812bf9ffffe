"""The least time that a network can take on a board: the roofline (Williams, Waterman, Patterson, CACM 52(4), 2009), layer by layer.

    floor = max(sum over layers of max(operations / peak, bytes / bandwidth) - kept / bandwidth, operations of all / peak, whole graph)
    whole graph = max(operations of all / peak, (weights + inputs + outputs - L2) / bandwidth)

It must never be above what anybody measures, so whatever may cost nothing is counted as nothing:

- operations: two for each multiply-accumulate of a convolution or matrix product; nothing for the rest (fused, or moved by the way);
- bytes: weights once; activations in and out of such a layer, each only beyond what the GPU's L2 cache can hold, since what fits there
  need not go through memory; elementwise work is fused and not counted; `kept` is what may lie in L2 since the run before: its size;
- the value's width is the precision's, also where an engine keeps some layers wider;
- where no tensor cores do the work, a 3x3 convolution of stride 1 counts a quarter (Winograd F(4x4, 3x3); Lavin and Gray, 2016);
- the peak is the board file's dense one for the precision (fp32 may run as tf32), of the GPU alone: an engine that spreads over the
  DLA too is not covered.

A board file without a peak or without the size of L2 leaves that part out, and the floor is lower. No clock, no measurement: a floor
is computed, and never shown as a measurement.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from .boards import BoardFile, PowerMode

BYTES_OF = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.0, "fp8": 1.0, "nvfp4": 0.5}
_RUNS_AS = {"fp32": ("fp32", "tf32")}
WINOGRAD = 4.0


class Layer(msgspec.Struct, frozen=True):
    """A convolution or matrix product: multiply-accumulates, and elements of weights, of activations in and of activations out."""

    name: str
    macs: int
    weights: int
    inside: tuple[int, ...]
    outside: int
    winograd: bool = False


class Work(msgspec.Struct, frozen=True):
    """What one run of a network has to do; `inputs` and `outputs` are elements of the graph's own."""

    layers: tuple[Layer, ...]
    inputs: int
    outputs: int

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)


class Floor(msgspec.Struct, frozen=True):
    """The least milliseconds; `whole_ms` by the whole graph alone. `bound`: what most of the layers' time is bound by."""

    ms: float
    whole_ms: float
    bound: Literal["operations", "memory"]


def floor(work: Work, board: BoardFile, mode: PowerMode, precision: str) -> Floor | None:
    """The floor of a network on a board in a power mode, or None where the board file knows too little to say anything.

    Args:
        precision: of execution, as in `Candidate.precision`.
    """
    if precision not in BYTES_OF:
        return None
    peak, on_tensor_cores = _peak(board, mode, precision)
    bandwidth = _bandwidth(board, mode)
    cache = board.gpu.l2_kb * 1024.0 if board.gpu is not None and board.gpu.l2_kb else None
    if peak is None and (bandwidth is None or cache is None):
        return None
    width = BYTES_OF[precision]
    layers = [(_operation_s(layer, peak, on_tensor_cores), _memory_s(layer, bandwidth, cache, width)) for layer in work.layers]
    operations = sum(ops for ops, _ in layers)
    whole, kept = operations, 0.0
    if bandwidth is not None and cache is not None:
        kept = cache / bandwidth
        whole = max(operations, ((work.weights + work.inputs + work.outputs) * width - cache) / bandwidth)
    layered = sum(max(ops, moved) for ops, moved in layers) - kept
    by_operations = sum(ops for ops, moved in layers if ops >= moved)
    by_memory = sum(moved for ops, moved in layers if moved > ops)
    return Floor(1e3 * max(layered, whole), 1e3 * whole, "operations" if by_operations >= by_memory else "memory")


def modes_with_peak(board: BoardFile) -> Iterable[PowerMode]:
    """The power modes for which the file knows a peak; of the others nothing useful can be said."""
    return (mode for mode in board.power_modes if mode.dense_tops)


def _peak(board: BoardFile, mode: PowerMode, precision: str) -> tuple[float | None, bool]:
    """Operations a second, and whether tensor cores give them."""
    known = {name: mode.dense_tops[name] for name in _RUNS_AS.get(precision, (precision,)) if name in mode.dense_tops}
    if not known:
        return None, False
    best = max(known, key=lambda name: known[name])
    return known[best] * 1e12, board.gpu is not None and best in board.gpu.tensor_precisions


def _bandwidth(board: BoardFile, mode: PowerMode) -> float | None:
    """Bytes a second in that mode; where it is not known, the most that any mode has, which is never too little."""
    if mode.memory_gb_s is not None:
        return mode.memory_gb_s * 1e9
    known = [figure for figure in (board.memory_gb_s, *(other.memory_gb_s for other in board.power_modes)) if figure is not None]
    return max(known) * 1e9 if known else None


def _operation_s(layer: Layer, peak: float | None, on_tensor_cores: bool) -> float:
    if peak is None:
        return 0.0
    return 2.0 * layer.macs / (WINOGRAD if layer.winograd and not on_tensor_cores else 1.0) / peak


def _memory_s(layer: Layer, bandwidth: float | None, cache: float | None, width: float) -> float:
    if bandwidth is None or cache is None:
        return 0.0
    spilled = sum(max(0.0, elements * width - cache) for elements in (*layer.inside, layer.outside))
    return (layer.weights * width + spilled) / bandwidth
