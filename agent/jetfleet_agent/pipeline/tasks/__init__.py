"""Tasks: what a model's tensors mean. A task is a class that takes a `TaskSpec`, found by its kind through the entry points
group ``jetfleet.tasks``, so that an installed package adds one without touching jetfleet.
"""

from __future__ import annotations

import functools
import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.decoded import HeadDecode, OutputPort
from jetfleet_agent.pipeline.preprocess import Geometry, Image, Preprocessor
from jetfleet_agent.pipeline.tasks.crops import MAX_CROPS, Crop, Cutter
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError, RuntimeFailure
from jetfleet_contract.predictions import Detection, bounded

GROUP = "jetfleet.tasks"
# JetPack's own Python may run the pipeline from sources, with no distribution metadata beside them. These names cannot be taken by others.
_OURS = {
    "classify": "jetfleet_agent.pipeline.tasks.classify:Classify",
    "detect-db": "jetfleet_agent.pipeline.tasks.detect_db:DetectDb",
    "detect-yolo": "jetfleet_agent.pipeline.tasks.detect_yolo:DetectYolo",
    "keypoints": "jetfleet_agent.pipeline.tasks.keypoints:KeyPoints",
    "raw": "jetfleet_agent.pipeline.tasks.raw:Raw",
    "segment": "jetfleet_agent.pipeline.tasks.segment:Segment",
}

Number = TypeVar("Number", int, float)


class Task(ABC):
    """One model's meaning. One instance a thread: pre-processing owns scratch memory.

    Options of every task, for apps that are fed from it: `crop_labels` (``person,car``: crops of these only), `crop_most` 64 (crops a
    frame, the best scores), `crop_deskew` False (turn leaning quads upright).
    `whole_frame`: its answers are about the frame, not about places in it, so a frame cannot be cut into tiles for it.
    """

    whole_frame = False
    options: frozenset[str] = frozenset()
    _every = frozenset({"crop_labels", "crop_most", "crop_deskew"})

    def __init__(self, spec: TaskSpec) -> None:
        unknown = sorted(set(spec.options) - self.options - self._every)
        if unknown:
            raise InputError("task.option", f"task {spec.kind!r} has no option {unknown[0][:40]!r}",
                             remedy=f"it has {', '.join(sorted(self.options | self._every))}")
        self.spec = spec
        self.preprocessor = Preprocessor(spec.input)
        self._cutter = Cutter(_crop_labels(spec), number(spec, "crop_most", MAX_CROPS, 1, MAX_CROPS),
                              deskew=flag(spec, "crop_deskew", default=False))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.preprocessor.shape

    def prepare(self, frame: Image, out: npt.NDArray[np.float32]) -> Geometry:
        """Write the frame into the (1, 3, h, w) float32 tensor `out`; the geometry maps the answer back."""
        return self.preprocessor.run(frame, out)

    def on_gpu(self, outputs: Sequence[OutputPort]) -> HeadDecode | None:  # noqa: ARG002
        """What a GPU can do of `decode` for a model with these outputs, of a batch of any size; None when nothing.

        Raises:
            IncompatibleError: as `decode` of such outputs.
        """
        return None

    @abstractmethod
    def decode(self, outputs: tuple[npt.NDArray[Any], ...], geometry: Geometry) -> tuple[Detection, ...]:
        """The model's outputs as detections in frame pixels.

        Raises:
            IncompatibleError: `task.output` when the outputs do not have the task's shape.
        """

    def crops(self, frame: Image, detections: tuple[Detection, ...]) -> list[Crop]:
        """What a chained app gets to see; one crop a box by default."""
        return self._cutter.cut(frame, detections)


class Guarded(Task):
    """A task of which nothing but a JetfleetError comes out, and no answer that is too large to travel."""

    def __init__(self, task: Task) -> None:  # the task has checked spec and options
        self._task = task
        self.spec = task.spec
        self.preprocessor = task.preprocessor
        self.whole_frame = task.whole_frame

    def prepare(self, frame: Image, out: npt.NDArray[np.float32]) -> Geometry:
        return self._task.prepare(frame, out)

    def on_gpu(self, outputs: Sequence[OutputPort]) -> HeadDecode | None:
        """Raises:
            IncompatibleError: what the task says of the outputs.
            RuntimeFailure: `task.crash`.
        """
        try:
            return self._task.on_gpu(outputs)
        except JetfleetError:
            raise
        except Exception as error:
            raise self._crash("on_gpu", error) from error

    def decode(self, outputs: tuple[npt.NDArray[Any], ...], geometry: Geometry) -> tuple[Detection, ...]:
        """Raises:
            IncompatibleError: what the task says of the outputs.
            RuntimeFailure: `task.crash` for anything else that it raised, or an answer that is none.
        """
        try:
            return bounded(tuple(self._task.decode(outputs, geometry)))
        except JetfleetError:
            raise
        except Exception as error:
            raise self._crash("decode", error) from error

    def crops(self, frame: Image, detections: tuple[Detection, ...]) -> list[Crop]:
        """Raises:
            RuntimeFailure: `task.crash`.
        """
        try:
            return self._task.crops(frame, detections)[:MAX_CROPS]
        except Exception as error:
            raise self._crash("crops", error) from error

    def _crash(self, doing: str, error: Exception) -> RuntimeFailure:
        return RuntimeFailure("task.crash", f"task {self.spec.kind[:40]!r} failed in {doing}: {type(error).__name__}: {error}"[:300],
                              remedy="update or remove the package that has the task")


def load_task(spec: TaskSpec) -> Task:
    """The task of that kind, guarded.

    Raises:
        IncompatibleError: `task.unknown`, or `task.plugin` for an installed one that cannot be imported or made.
        InputError: `task.option` for an option the task does not have, or one out of range.
    """
    try:
        task = _kind_of(spec)(spec)
    except JetfleetError:
        raise
    except Exception as error:
        raise IncompatibleError("task.plugin", f"task {spec.kind[:40]!r} does not load: {type(error).__name__}: {error}"[:300],
                                remedy="update or remove the package that has the task") from error
    if not isinstance(task, Task):
        raise IncompatibleError("task.plugin", f"what is installed as task {spec.kind[:40]!r} is no jetfleet task",
                                remedy="its entry point must name a subclass of jetfleet_agent.pipeline.tasks.Task")
    return Guarded(task)


def _kind_of(spec: TaskSpec) -> Any:
    if spec.kind in _OURS:
        module, _, name = _OURS[spec.kind].partition(":")
        return getattr(importlib.import_module(module), name)
    entry = installed().get(spec.kind)
    if entry is None:
        raise IncompatibleError("task.unknown", f"there is no task {spec.kind[:40]!r} on this board",
                                remedy=f"install a package that has it in the entry points group {GROUP}; "
                                       f"there are {', '.join(sorted({*_OURS, *installed()}))}")
    return entry.load()


@functools.cache
def installed() -> dict[str, EntryPoint]:
    """Tasks of installed packages by kind. Read once a process: the look-up opens every distribution's metadata."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def number(spec: TaskSpec, name: str, default: Number, low: Number, high: Number) -> Number:
    """A numeric option within bounds, else InputError `task.option`."""
    value = spec.options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError("task.option", f"option {name!r} is {value!r}, it must be a number from {low} to {high}")
    return type(default)(value)


def choice(spec: TaskSpec, name: str, allowed: tuple[str, ...]) -> str:
    """One of `allowed`, the first by default, else InputError `task.option`."""
    value = spec.options.get(name, allowed[0])
    if value not in allowed:
        raise InputError("task.option", f"option {name!r} is {str(value)[:40]!r}", remedy=f"use one of {', '.join(allowed)}")
    return str(value)


def flag(spec: TaskSpec, name: str, *, default: bool) -> bool:
    """True or false, else InputError `task.option`."""
    value = spec.options.get(name, default)
    if not isinstance(value, bool):
        raise InputError("task.option", f"option {name!r} is {str(value)[:40]!r}, it must be true or false")
    return value


def _crop_labels(spec: TaskSpec) -> frozenset[str]:
    value = spec.options.get("crop_labels", "")
    names = frozenset(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else frozenset({str(value)})
    unknown = sorted(names - set(spec.labels)) if spec.labels else []
    if unknown:
        raise InputError("task.option", f"option 'crop_labels' names {unknown[0][:40]!r}, which the model does not know",
                         remedy=f"its labels are {', '.join(spec.labels[:20])}")
    return names
