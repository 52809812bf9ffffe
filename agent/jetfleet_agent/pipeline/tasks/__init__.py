"""Tasks: what a model's tensors mean. A task is a class that takes a `TaskSpec`, found by its kind through the entry points
group ``jetfleet.tasks``, so that an installed package adds one without touching jetfleet.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from importlib.metadata import entry_points
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.preprocess import Geometry, Image, Preprocessor
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.errors import IncompatibleError, InputError
from jetfleet_contract.predictions import Detection

GROUP = "jetfleet.tasks"
# JetPack's own Python may run the pipeline from sources, with no distribution metadata beside them.
_OURS = {
    "classify": "jetfleet_agent.pipeline.tasks.classify:Classify",
    "detect-db": "jetfleet_agent.pipeline.tasks.detect_db:DetectDb",
}

Number = TypeVar("Number", int, float)


class Crop:
    """A piece of a frame for a chained app: `image` (H, W, 3) uint8 BGR, `box` (x0, y0, x1, y1) in frame pixels."""

    __slots__ = ("box", "image")

    def __init__(self, image: Image, box: tuple[float, float, float, float]) -> None:
        self.image = image
        self.box = box


class Task(ABC):
    """One model's meaning. One instance a thread: pre-processing owns scratch memory.

    `whole_frame`: its answers are about the frame, not about places in it, so a frame cannot be cut into tiles for it.
    """

    whole_frame = False
    options: frozenset[str] = frozenset()

    def __init__(self, spec: TaskSpec) -> None:
        unknown = sorted(set(spec.options) - self.options)
        if unknown:
            raise InputError("task.option", f"task {spec.kind!r} has no option {unknown[0][:40]!r}",
                             remedy=f"it has {', '.join(sorted(self.options)) or 'none'}")
        self.spec = spec
        self.preprocessor = Preprocessor(spec.input)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.preprocessor.shape

    def prepare(self, frame: Image, out: npt.NDArray[np.float32]) -> Geometry:
        """Write the frame into the (1, 3, h, w) float32 tensor `out`; the geometry maps the answer back."""
        return self.preprocessor.run(frame, out)

    @abstractmethod
    def decode(self, outputs: tuple[npt.NDArray[Any], ...], geometry: Geometry) -> tuple[Detection, ...]:
        """The model's outputs as detections in frame pixels.

        Raises:
            IncompatibleError: `task.output` when the outputs do not have the task's shape.
        """

    def crops(self, frame: Image, detections: tuple[Detection, ...]) -> list[Crop]:
        """What a chained app gets to see; one crop a box by default."""
        height, width = frame.shape[:2]
        found = []
        for detection in detections:
            if detection.box is None:
                continue
            x0, y0 = max(0, int(detection.box[0])), max(0, int(detection.box[1]))
            x1, y1 = min(width, round(detection.box[2])), min(height, round(detection.box[3]))
            if x1 > x0 and y1 > y0:
                found.append(Crop(frame[y0:y1, x0:x1], (float(x0), float(y0), float(x1), float(y1))))
        return found


def load_task(spec: TaskSpec) -> Task:
    """The task of that kind.

    Raises:
        IncompatibleError: `task.unknown`.
        InputError: `task.option` for an option the task does not have, or one out of range.
    """
    kind: type[Task]
    named = [entry for entry in entry_points(group=GROUP) if entry.name == spec.kind]
    if named:
        kind = named[0].load()
    elif spec.kind in _OURS:
        module, _, name = _OURS[spec.kind].partition(":")
        kind = getattr(importlib.import_module(module), name)
    else:
        raise IncompatibleError("task.unknown", f"there is no task {spec.kind[:40]!r} on this board",
                                remedy=f"install a package that has it in the entry points group {GROUP}")
    return kind(spec)


def number(spec: TaskSpec, name: str, default: Number, low: Number, high: Number) -> Number:
    """A numeric option within bounds, else InputError `task.option`."""
    value = spec.options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError("task.option", f"option {name!r} is {value!r}, it must be a number from {low} to {high}")
    return type(default)(value)
