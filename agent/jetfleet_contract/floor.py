"""How much of a pipeline's time is the model's own: the floor, measured at warm-up, and what is spent over it for ever after.

    floor_ms         F: median of the bare session, at warm-up and alone; lowered when a window's median is below it, because a
                     challenger warms up beside a running champion, and a board may have been hot when it started
    overhead_ratio   (median pre + median infer + median decode + median sink) / F: from a frame's being there to its result's being
                     handed over, queues left out. 1.0 would be a pipeline that costs nothing
    session_ratio    median infer / F: over 1 the session itself is slower than it can be (heat, throttling, neighbours)
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from .messages import Series
from .sketch import Sketch
from .wire import Message

WORK = ("pre", "infer", "decode", "sink")
# Fewer frames say nothing about a median; the last known ratio stays.
LEAST_FRAMES = 5


class Floor(Message, frozen=True):
    """Medians of one frame's work at warm-up, nothing else running in this process; milliseconds."""

    session_ms: float = 0.0
    pre_ms: float = 0.0
    decode_ms: float = 0.0


def floor_of(session_ms: Sequence[float], pre_ms: Sequence[float], decode_ms: Sequence[float]) -> Floor:
    """The floor from runs at warm-up, at least one of each."""
    return Floor(statistics.median(session_ms), statistics.median(pre_ms), statistics.median(decode_ms))


class Overhead(Message, frozen=True):
    """The floor as it is known now, and the last window's ratios over it; 0 before there were enough frames."""

    floor: Floor = Floor()
    overhead_ratio: float = 0.0
    session_ratio: float = 0.0

    @property
    def gauges(self) -> dict[str, float]:
        """What a window carries; empty without a floor."""
        if not self.floor.session_ms:
            return {}
        told = {"floor_ms": self.floor.session_ms, "floor_pre_ms": self.floor.pre_ms, "floor_decode_ms": self.floor.decode_ms}
        return told if not self.overhead_ratio else {**told, "overhead_ratio": self.overhead_ratio, "session_ratio": self.session_ratio}


def after_window(before: Overhead, series: Iterable[Series]) -> Overhead:
    """The overhead after one window.

    Args:
        series: the running model's of that window, one a source; those of other models must be left out.
    """
    merged: dict[str, Sketch] = {}
    for one in series:
        for name in WORK:
            merged[name] = merged.get(name, Sketch()).merged(one.stages.get(name, Sketch()))
    infer = merged.get("infer", Sketch())
    if infer.count < LEAST_FRAMES or not before.floor.session_ms:
        return before
    session_ms = infer.quantile(0.5)
    floor = Floor(min(before.floor.session_ms, session_ms), before.floor.pre_ms, before.floor.decode_ms)
    work_ms = sum(sketch.quantile(0.5) for sketch in merged.values())
    return Overhead(floor, work_ms / floor.session_ms, session_ms / floor.session_ms)
