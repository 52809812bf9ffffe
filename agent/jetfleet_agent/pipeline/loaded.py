"""A model that is loaded and ready: its task, its backend, and its lanes shared out between threads.

Lanes are in two pools. Capture threads of files prepare frames **ahead** of inference; the inference thread prepares live
frames (and, after a swap, frames that were prepared for the old model) **inline**. Two pools, because one would
deadlock: queued frames could hold every lane that the inference thread needs to get at them.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import msgspec
import numpy as np

from jetfleet_agent.ipc import Model
from jetfleet_agent.pipeline.backends import Backend, Lane, open_backend
from jetfleet_agent.pipeline.floor import measure_floor
from jetfleet_agent.pipeline.preprocess import Geometry, Image, Preprocessor
from jetfleet_agent.pipeline.tasks import Task, load_task
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.floor import Overhead
from jetfleet_contract.messages import AppConfig

AHEAD = 3
INLINE = 2


class LoadedModel:
    """One activated model. `key` (bundle, version, candidate) names its telemetry; `overhead` is kept by the window it is told in."""

    def __init__(self, model: Model, config: AppConfig) -> None:
        self.model = model
        self.task: Task = load_task(_with_options(model.spec.task, config))
        self.backend: Backend = open_backend(
            model.candidate.backend, Path(model.path), precision=model.candidate.precision, threads=model.threads,
            input_shape=self.task.input_shape, lanes=AHEAD + INLINE, tuning=model.tuning, spec=model.spec.task.input)
        self.key = (model.bundle, model.version, model.candidate.name)
        self.overhead = Overhead()
        self._ahead: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._inline: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._scratch = threading.local()

    def activate(self) -> None:
        """Load, then run on a gray frame, so that no live frame pays for first use, and measure the floor.

        Raises:
            JetfleetError: see `Backend.activate` and `Backend.infer`.
        """
        self.backend.activate()
        for lane in self.backend.lanes:
            (self._ahead if lane.index < AHEAD else self._inline).put(lane)
        _, _, height, width = self.task.input_shape
        gray = np.full((height, width, 3), 127, np.uint8)
        lane = self.backend.lanes[0]
        geometry = Geometry(width, height, 1.0, 1.0)
        try:
            self.overhead = Overhead(measure_floor(lambda: self.prepare(gray, lane), lambda: self.backend.infer(lane),
                                                   lambda: self.task.decode(lane.outputs, geometry)))
        except BaseException:
            self.deactivate()
            raise

    def deactivate(self) -> None:
        self.backend.deactivate()

    def reconfigure(self, config: AppConfig) -> None:
        """New options for the task; thresholds take effect with the next decoded frame.

        Raises:
            InputError: `task.option`; nothing has changed then.
        """
        self.task = load_task(_with_options(self.model.spec.task, config))

    def lane_ahead(self, timeout: float) -> Lane | None:
        """A lane for a capture thread, or None when all are in flight for `timeout` seconds."""
        try:
            return self._ahead.get(timeout=timeout)
        except queue.Empty:
            return None

    def lane_inline(self) -> Lane:
        """A lane for the inference thread; waits until the decoder gives one back."""
        return self._inline.get()

    def release(self, lane: Lane) -> None:
        (self._ahead if lane.index < AHEAD else self._inline).put(lane)

    def prepare(self, image: Image, lane: Lane) -> Geometry:
        """Fill the lane's tensor from a frame. Safe from any thread: scratch memory is kept per thread."""
        preprocessor: Preprocessor | None = getattr(self._scratch, "preprocessor", None)
        if preprocessor is None:
            preprocessor = self._scratch.preprocessor = Preprocessor(self.model.spec.task.input)
        return preprocessor.run(image, lane.tensor)


def _with_options(spec: TaskSpec, config: AppConfig) -> TaskSpec:
    return msgspec.structs.replace(spec, options={**spec.options, **config.options})
