"""A model that is loaded and ready: its task, its backend, and its lanes shared out between threads.

Lanes are in pools. Capture threads of files prepare frames **ahead** of inference; the inference thread prepares live
frames (and, after a swap, frames that were prepared for the old model) **inline**. Two pools, because one would
deadlock: queued frames could hold every lane that the inference thread needs to get at them. A model that takes batches has a third
one, of lanes that hold several pictures; they belong to a second session of the same file, because a session's shape is fixed.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from pathlib import Path

import msgspec
import numpy as np

from jetfleet_agent.ipc import Model, Way
from jetfleet_agent.pipeline.backends import Backend, Lane, Outputs, open_backend
from jetfleet_agent.pipeline.floor import measure_floor
from jetfleet_agent.pipeline.preprocess import Geometry, Image, Preprocessor
from jetfleet_agent.pipeline.tasks import Task, load_task
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.engines import EngineFile
from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError, RuntimeFailure
from jetfleet_contract.floor import Overhead
from jetfleet_contract.messages import AppConfig

AHEAD = 3
INLINE = 2
WIDE = 2
BATCH_RUNS = 3


class LoadedModel:
    """One activated model. `key` (bundle, version, candidate) names its telemetry; `overhead` is kept by the window it is told in.

    `eco`: its runtime is set up as `Model.eco` says, where that is known; `lean`: it runs as `Model.lean` says, in the same sense.
    `tile` and `batching` are what it was configured with; `fewest` is how many pictures are worth a run of the batch's session, which takes
    as long for few as for many: measured at activation. A full batch always is. `refusal`: why the model's engine was not used.

    Raises:
        InputError: `task.option`, `tile.task`.
    """

    def __init__(self, model: Model, config: AppConfig, *, eco: bool = False, lean: bool = False) -> None:
        self.model = model
        self.lean = lean and model.lean is not None
        self._way = model.lean if lean and model.lean is not None else Way(model.candidate, model.path, model.tuning, model.eco)
        self.eco = eco and self._way.eco is not None
        self.tuning = self._way.eco if eco and self._way.eco is not None else self._way.tuning
        self.task: Task = load_task(_with_options(model.spec.task, config))
        check_tile(self.task, config)
        self.tile = config.tile
        self.batching = config.batching
        self.fewest = self.batching.most
        self.backend = self._open(1, AHEAD + INLINE, model.engine if self.tuning == model.tuning and not self.lean else None)
        self.refusal: JetfleetError | None = None
        self._wide = self._open(self.batching.most, WIDE) if self.batching.most > 1 else None
        self.key = (model.bundle, model.version, self._way.candidate.name)
        self.overhead = Overhead()
        self._ahead: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._inline: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._batches: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._scratch = threading.local()

    def _open(self, batch: int, lanes: int, engine: EngineFile | None = None) -> Backend:
        model, way = self.model, self._way
        return open_backend(
            way.candidate.backend, Path(way.path), precision=way.candidate.precision, threads=model.threads,
            input_shape=(batch, *self.task.input_shape[1:]), lanes=lanes, tuning=self.tuning, spec=model.spec.task.input,
            engine=engine, kernels=Path(model.kernels) if model.kernels else None)

    def activate(self) -> None:
        """Load, then run on a gray frame, so that no live frame pays for first use, and measure the floor.

        Raises:
            IncompatibleError: `backend.batch` when the model has no free batch axis and batches were asked for.
            JetfleetError: see `Backend.activate` and `Backend.infer`.
        """
        self._activate_first()
        self.backend.decode_by(self.task.on_gpu)
        for lane in self.backend.lanes:
            (self._ahead if lane.index < AHEAD else self._inline).put(lane)
        _, _, height, width = self.task.input_shape
        gray = np.full((height, width, 3), 127, np.uint8)
        lane = self.backend.lanes[0]
        geometry = Geometry(width, height, 1.0, 1.0)
        try:
            self.overhead = Overhead(measure_floor(lambda: self.prepare(gray, lane), lambda: self.backend.infer(lane),
                                                   lambda: self.task.decode(lane.outputs, geometry)))
            if self._wide is not None:
                self._activate_wide(self._wide)
                batch_ms = _batch_ms(self._wide)
                self.fewest = min(self.batching.most, max(2, math.ceil(batch_ms / self.overhead.floor.session_ms)))
        except BaseException:
            self.deactivate()
            raise

    def _activate_first(self) -> None:
        """Load the engine; one that cannot be used costs its time and nothing else: the model is compiled as if there were none."""
        try:
            self.backend.activate()
        except JetfleetError as error:
            if self.backend.engine is None or not error.code.startswith(("engine.", "backend.fallback")):
                raise
            self.refusal = error if error.code.startswith("engine.") else RuntimeFailure("engine.load", f"its engine: {error.what}")
            self.backend = self._open(1, AHEAD + INLINE)
            self.backend.activate()

    def _activate_wide(self, wide: Backend) -> None:
        try:
            wide.activate()
        except IncompatibleError as error:
            if error.code != "backend.input":
                raise
            raise IncompatibleError("backend.batch", f"{wide.path.name} takes no batch of {self.batching.most}: {error.what}",
                                    remedy="export the model with a free batch axis, or leave batching.most at 1") from None
        wide.decode_by(self.task.on_gpu)
        for lane in wide.lanes:
            self._batches.put(lane)

    def deactivate(self) -> None:
        self.backend.deactivate()
        if self._wide is not None:
            self._wide.deactivate()

    def reconfigure(self, config: AppConfig) -> None:
        """New options for the task, other tiles; they take effect with the next frame. The size of batches is fixed.

        Raises:
            InputError: `task.option`, `tile.task`; nothing has changed then.
        """
        task = load_task(_with_options(self.model.spec.task, config))
        check_tile(task, config)
        self.task, self.tile = task, config.tile
        self.batching = msgspec.structs.replace(self.batching, wait_ms=config.batching.wait_ms)
        for backend in (self.backend, self._wide):
            if backend is not None and backend.lanes:
                backend.decode_by(task.on_gpu)

    @property
    def prepares_ahead(self) -> bool:
        """Whether a frame is one picture in a lane of its own, so that a capture thread can prepare it."""
        return self.tile is None and self._wide is None

    def lane_ahead(self, timeout: float) -> Lane | None:
        """A lane for a capture thread, or None when all are in flight for `timeout` seconds."""
        try:
            return self._ahead.get(timeout=timeout)
        except queue.Empty:
            return None

    def lane_inline(self, pictures: int = 1) -> Lane:
        """A lane for the inference thread that holds so many; waits until the decoder gives one back."""
        return self._inline.get() if pictures == 1 else self._batches.get()

    def release(self, lane: Lane) -> None:
        if len(lane.tensor) > 1:
            self._batches.put(lane)
        else:
            (self._ahead if lane.index < AHEAD else self._inline).put(lane)

    def infer(self, lane: Lane) -> Outputs:
        """Run what the lane holds. Errors as `Backend.infer`."""
        return self._backend_of(lane).infer(lane)

    def _backend_of(self, lane: Lane) -> Backend:
        return self._wide if self._wide is not None and len(lane.tensor) > 1 else self.backend

    def prepare(self, image: Image, lane: Lane, index: int = 0) -> Geometry:
        """Give the lane the image as its picture `index`. Safe from any thread: scratch memory is kept per thread."""
        preprocessor: Preprocessor | None = getattr(self._scratch, "preprocessor", None)
        if preprocessor is None:
            preprocessor = self._scratch.preprocessor = Preprocessor(self.model.spec.task.input)
        return self._backend_of(lane).prepare(image, lane, index, preprocessor.run)


def _batch_ms(wide: Backend) -> float:
    """How long a batch takes once it is warm; IncompatibleError `backend.batch` when its answers cannot be told apart."""
    lane, took = wide.lanes[0], 0.0
    for _ in range(BATCH_RUNS):
        began = time.perf_counter()
        wide.infer(lane)
        took = time.perf_counter() - began
    if any(output.shape[:1] != lane.tensor.shape[:1] for output in lane.outputs):
        raise IncompatibleError("backend.batch", f"{wide.path.name}: a batch of {len(lane.tensor)} gives outputs of "
                                                 f"{[output.shape for output in lane.outputs]}",
                                remedy="export the model with the batch as first axis of every output")
    return took * 1e3


def picked(outputs: Outputs, index: int) -> Outputs:
    """One picture's part of a batch's outputs, as if it had been alone."""
    return tuple(output[index:index + 1] for output in outputs)


def check_tile(task: Task, config: AppConfig) -> None:
    """Tiles make sense for answers that have a place; else InputError `tile.task`."""
    if config.tile is not None and task.whole_frame:
        raise InputError("tile.task", f"task {task.spec.kind!r} judges the whole frame: it cannot be cut into tiles",
                         remedy="remove the app's tile setting, or use a detector")


def _with_options(spec: TaskSpec, config: AppConfig) -> TaskSpec:
    return msgspec.structs.replace(spec, options={**spec.options, **config.options})
