"""How a runtime is set up on one board: which settings are worth measuring there, and which of them win.

A setting replaces the runtime's defaults only where it clearly wins: several rounds in turns, every round of them, and by more than the
noise of a busy board. What was not measured, or not clearly better, stays as the runtime's authors made it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta

from .wire import Message

# Medians of one setting, measured again and again on a busy machine, were within 2 %.
CLEARLY = 0.97
NO_SLOWER = 1.01
CLEARLY_LESS_CPU = 0.85
LEAST_ROUNDS = 2
ECO_SLOWEST = 2.0
MAX_SETTINGS = 8
# A quantized file keeps layers in float where integers cost accuracy; under this share of integer layers it is not run as int8 at all.
LEAST_INTEGER = 0.1


class Tuning(Message, frozen=True):
    """One set-up of a runtime.

    `folded`: frames go in as (N, H, W, 3) uint8 and the graph normalises them (openvino). `flush`: denormal numbers count as zero
    (onnxruntime; openvino always does). `sleeping`: worker threads sleep between two layers instead of spinning (onnxruntime).
    `pinned`: each worker thread stays on a core of its own; off, because every process would take the same first cores. `provider`: the
    execution provider (onnxruntime), device (openvino) or DLA core (tensorrt); empty: the CPU, or the GPU of a runtime for GPUs.
    `threads`: of the session; 0: as the board's config says.
    """

    folded: bool = False
    flush: bool = False
    sleeping: bool = False
    pinned: bool = False
    provider: Annotated[str, Meta(max_length=63)] = ""
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0

    @property
    def text(self) -> str:
        """``defaults``, or what differs from them."""
        parts = [name for name in ("folded", "flush", "sleeping", "pinned") if getattr(self, name)]
        parts += [f"{self.threads} threads" if self.threads > 1 else "1 thread"] if self.threads else []
        return ", ".join(parts + ([self.provider] if self.provider else [])) or "defaults"


class TuningFigures(Message, frozen=True):
    """What one setting cost, one entry a round: medians of wall and CPU milliseconds for pre-processing and session of one frame.
    `error`: why it cannot be used here."""

    tuning: Tuning
    period_ms: tuple[float, ...] = ()
    cpu_ms: tuple[float, ...] = ()
    error: str = ""


class TuningChoice(Message, frozen=True):
    """The setting that a board uses for one candidate, why, and what was measured of all of them, the defaults first."""

    tuning: Tuning = Tuning()
    reason: str = "not measured"
    figures: tuple[TuningFigures, ...] = ()


def settings_to_measure(backend: str, *, threads: int, cores: int, dla: bool = False) -> tuple[Tuning, ...]:
    """The settings worth a second of measuring each, the defaults first; empty where a runtime has none that we know of.

    Args:
        threads: CPU threads given to the runtime; 0: its own choice.
        cores: of the board. Threads are pinned only where they fill it: several apps with few threads each would share the first cores.
            Half of the threads are measured too: seldom faster, often cheaper.
        dla: a DLA core here runs the candidate's precision: measured beside the GPU, because in low power modes it has more operations a
            second (TensorRT).
    """
    half = (threads or cores) // 2
    fills = cores > 1 and threads in (0, cores)
    if backend == "onnxruntime":
        halved = (Tuning(flush=True, sleeping=True, threads=half),) if half else ()
        pinned = (Tuning(flush=True, pinned=True),) if fills else ()
        return (Tuning(), Tuning(flush=True), Tuning(flush=True, sleeping=True), *halved, *pinned)
    if backend == "openvino":
        halved = (Tuning(folded=True, threads=half),) if half else ()
        pinned = (Tuning(folded=True, pinned=True),) if fills else ()
        return (Tuning(), Tuning(folded=True), *halved, *pinned)
    if backend == "tensorrt" and dla:
        return (Tuning(), Tuning(provider="DLA0"))
    return ()


def choose_tuning(figures: Sequence[TuningFigures]) -> TuningChoice:
    """The fastest setting that beats the defaults clearly; else one that is as fast for clearly less CPU; else the defaults.

    Args:
        figures: the defaults first. Rounds of all settings were taken in turns, so the n-th entries belong together.
    """
    kept = tuple(figures)
    if not kept or kept[0].error or len(kept[0].period_ms) < LEAST_ROUNDS:
        return TuningChoice(Tuning(), kept[0].error if kept and kept[0].error else "not measured", kept)
    base, rivals = kept[0], [one for one in kept[1:] if not one.error and len(one.period_ms) == len(kept[0].period_ms)]
    faster = [one for one in rivals if _wins(one.period_ms, base.period_ms, CLEARLY)]
    if faster:
        best = min(faster, key=lambda one: statistics.median(one.period_ms))
        return TuningChoice(best.tuning, f"{_ratio(best.period_ms, base.period_ms):.2f}x the time of the defaults", kept)
    frugal = [one for one in rivals
              if _wins(one.cpu_ms, base.cpu_ms, CLEARLY_LESS_CPU) and _ratio(one.period_ms, base.period_ms) <= NO_SLOWER]
    if frugal:
        best = min(frugal, key=lambda one: statistics.median(one.cpu_ms))
        return TuningChoice(best.tuning, f"as fast as the defaults for {_ratio(best.cpu_ms, base.cpu_ms):.2f}x the CPU time", kept)
    return TuningChoice(Tuning(), "no setting clearly beats the defaults", kept)


def eco_tuning(choice: TuningChoice) -> Tuning | None:
    """The setting to run with while the board is short of cooling: the least CPU time a frame of those that take clearly less than the
    chosen one, in every round, and at most `ECO_SLOWEST` times as long. None when no measured one does."""
    used = next((one for one in choice.figures if one.tuning == choice.tuning and not one.error), None)
    if used is None or len(used.cpu_ms) < LEAST_ROUNDS:
        return None
    cheaper = [one for one in choice.figures if not one.error and one.tuning != used.tuning
               and _wins(one.cpu_ms, used.cpu_ms, CLEARLY_LESS_CPU) and _ratio(one.period_ms, used.period_ms) <= ECO_SLOWEST]
    return min(cheaper, key=lambda one: statistics.median(one.cpu_ms)).tuning if cheaper else None


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    below = statistics.median(other)
    return statistics.median(one) / below if below else 1.0


def _wins(one: Sequence[float], other: Sequence[float], by: float) -> bool:
    """True when `one` is the lesser in every round, and its median at most `by` times the other's."""
    return len(one) == len(other) > 0 and all(a < b for a, b in zip(one, other, strict=True)) and _ratio(one, other) <= by


def ran_in(asked: str, layers: dict[str, int]) -> str:
    """The precision that a run deserves to be called, from how many heavy layers ran in which.

    Args:
        asked: fp32, fp16, bf16 or int8.
        layers: layers with weights by the precision that they really ran in; empty when the runtime does not tell (or there is none).

    Returns:
        `asked` where that is what happened; else what most layers ran in.
    """
    total = sum(layers.values())
    if not total:
        return asked
    if asked == "int8" and layers.get("int8", 0) >= LEAST_INTEGER * total:
        return "int8"
    floats = {name: count for name, count in layers.items() if name != "int8"}
    pool = floats if asked == "int8" and floats else layers
    return max(pool, key=lambda name: (pool[name], name == asked))
