"""What stands in for cameras and accelerators: a distribution of latencies a board class, and the figures that follow from it.

Median and spread are made up to look like boards of these classes; nothing here claims to be a measurement. What is real is what is
made of the numbers: choice, trial verdicts, sketches, telemetry and the fleet's gates are the contract's own.
"""

from __future__ import annotations

import math
import random

import msgspec

from jetfleet_contract.messages import BackendInfo, Capability, Series
from jetfleet_contract.policy import Candidate, Measurement
from jetfleet_contract.sketch import SketchRecorder
from jetfleet_contract.slot_records import Slot
from jetfleet_contract.trials import TrialNumbers

FRAMES_A_WINDOW = 24
PRE_SHARE = 0.15
_PRECISIONS = {"tensorrt": ("fp32", "fp16", "int8"), "onnxruntime": ("fp32", "int8")}
_SPEED = {"fp32": 1.0, "fp16": 0.7, "int8": 0.5}


class BoardClass(msgspec.Struct, frozen=True):
    """A kind of board: its share of the fleet, and its log-normal latency (median in ms, sigma of the logarithm)."""

    name: str
    share: float
    arch: str
    backend: str
    median_ms: float
    sigma: float

    @property
    def capability(self) -> Capability:
        backend = BackendInfo(self.backend, "simulated", precisions=_PRECISIONS[self.backend])
        return Capability(self.name, self.name, self.arch, memory_mb=8192, cores=6, backends=(backend,), simulated=True)


CLASSES = (
    BoardClass("orin-nano", 0.45, "aarch64", "tensorrt", 8.0, 0.10),
    BoardClass("orin-nx", 0.25, "aarch64", "tensorrt", 5.0, 0.10),
    BoardClass("xavier-nx", 0.15, "aarch64", "tensorrt", 14.0, 0.15),
    BoardClass("cpu-x86", 0.10, "x86_64", "onnxruntime", 26.0, 0.20),
    BoardClass("cpu-arm64", 0.05, "aarch64", "onnxruntime", 60.0, 0.20),
)


class ModelTraits(msgspec.Struct, frozen=True):
    """How a version behaves: its latency over the first version's, and the share of the boards whose trial finds it bad."""

    latency: float = 1.0
    bad_share: float = 0.0


def class_of(draws: random.Random) -> BoardClass:
    """A class by lot, as the shares say."""
    return draws.choices(CLASSES, [one.share for one in CLASSES])[0]


def measured(board: BoardClass, traits: ModelTraits, candidate: Candidate, draws: random.Random) -> Measurement:
    """What this board measures of a candidate."""
    factor = _SPEED.get(candidate.precision, 1.0) * traits.latency
    p50 = board.median_ms * factor * draws.lognormvariate(0.0, 0.03)
    return Measurement(p50, p50 * math.exp(2.3 * board.sigma), 200.0, best_ms=p50 * 0.9)


def trial_numbers(board: BoardClass, old: ModelTraits, new: ModelTraits, frames: int, draws: random.Random) -> TrialNumbers:
    """What a trial beside the champion sees: p99 of both over `frames` frames, and their agreement."""
    champion = _p99([board.median_ms * old.latency * draws.lognormvariate(0.0, board.sigma) for _ in range(frames)])
    challenger = _p99([board.median_ms * new.latency * draws.lognormvariate(0.0, board.sigma) for _ in range(frames)])
    return TrialNumbers(live_frames=frames, live_agreement=0.95 + 0.05 * draws.random(), champion_p99_ms=champion,
                        challenger_p99_ms=challenger)


def window_series(board: BoardClass, traits: ModelTraits, app: str, slot: Slot, seconds: float, fps: float, draws: random.Random) -> Series:
    """One window of the live model: every frame counted, the first `FRAMES_A_WINDOW` of them timed."""
    seen = max(1, round(seconds * fps))
    stale = sum(draws.random() < 0.02 for _ in range(seen))
    total, infer = SketchRecorder(), SketchRecorder()
    for _ in range(min(seen - stale, FRAMES_A_WINDOW)):
        milliseconds = board.median_ms * traits.latency * draws.lognormvariate(0.0, board.sigma)
        infer.add(milliseconds)
        total.add(milliseconds * (1 + PRE_SHARE))
    candidate = slot.candidate.name if slot.candidate else ""
    return Series(app, slot.bundle, slot.version, candidate, "front", seen, seen - stale, {"stale": stale} if stale else {},
                  {"total": total.take(), "infer": infer.take()})


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))] if values else 0.0
