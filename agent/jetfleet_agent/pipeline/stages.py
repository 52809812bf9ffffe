"""The frame's way: (capture threads) -> inference thread -> decode thread -> sinks.

The inference thread does nothing but run sessions, on frames that capture threads have prepared ahead where every frame counts;
decoding and sinks run beside the next frame's session. What ties the stages together is a lane: it belongs to one frame from
its pre-processing until its answer, so every queue is bounded by the number of lanes.

A swap happens in the inference thread between two frames: frames already prepared for the old model are prepared again
for the new one, so none is lost. The decode thread, which sees results in order, measures the gap.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Union

import msgspec

from jetfleet_agent.pipeline.backends import Lane, Outputs
from jetfleet_agent.pipeline.frames import Frame, FrameQueue
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.pulse import Pulses
from jetfleet_agent.pipeline.trial import Trial
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.predictions import Prediction, placed
from jetfleet_contract.similarity import Box

FEED_DEPTH = 64
STEADY_SAMPLE = 512


class Swapped(msgspec.Struct, frozen=True):
    """The first result of another model is out. Times in ms; `steady_p99_ms` is of gaps between results while no trial ran."""

    model: LoadedModel
    gap_ms: float
    frames_lost: int
    steady_p99_ms: float


class Broken(msgspec.Struct, frozen=True):
    """The running model failed."""

    code: str
    detail: str


Note = Union[Swapped, Broken]


class _Answer:
    """What the decode thread gets: the champion's outputs, or a challenger's (`trial` set) for the same frame."""

    __slots__ = ("frame", "geometry", "lane", "model", "outputs", "trial", "work_ms")

    def __init__(self, frame: Frame, model: LoadedModel, lane: Lane, outputs: Outputs, geometry: Geometry, work_ms: float,
                 trial: Trial | None = None) -> None:
        self.frame = frame
        self.model = model
        self.lane = lane
        self.outputs = outputs
        self.geometry = geometry
        self.work_ms = work_ms
        self.trial = trial


class Stages:
    """Runs one app's champion. Implements `capture.Intake`.

    Args:
        deliver: called in the decode thread with each answered frame and its model, in order.
        note: called from any thread with what the controller must know.
    """

    def __init__(self, champion: LoadedModel, meter: Meter, deliver: Callable[[Frame, LoadedModel], None],
                 note: Callable[[Note], None]) -> None:
        self.frames = FrameQueue()
        self.pulses = Pulses()
        self.answered = 0
        self._champion = champion
        self._next: LoadedModel | None = None
        self._trial: Trial | None = None
        self._meter = meter
        self._deliver = deliver
        self._note = note
        self._numbers: dict[str, int] = {}
        self._decoding: queue.SimpleQueue[_Answer | None] = queue.SimpleQueue()
        self._stopping = False
        self._gaps = _Gaps()
        self._threads = [threading.Thread(target=self._guard, args=(body,), name=name, daemon=True)
                         for name, body in (("inference", self._infer_loop), ("decode", self._decode_loop))]

    # --- controller's side ------------------------------------------------------------------------------------

    @property
    def champion(self) -> LoadedModel:
        return self._champion

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer the few frames that were taken in, then end both threads."""
        self._stopping = True
        self.frames.close()
        for thread in self._threads:
            thread.join(10.0)

    def swap(self, model: LoadedModel) -> None:
        """Put `model` in the champion's place between two frames; `Swapped` is noted with its first result."""
        self._next = model
        self.frames.wake()

    def set_trial(self, trial: Trial | None) -> None:
        self._trial = trial

    # --- capture's side (Intake) -------------------------------------------------------------------------------

    def number(self, source: str) -> int:
        number = self._numbers.get(source, 0)
        self._numbers[source] = number + 1
        return number

    def every(self, frame: Frame, stopped: threading.Event) -> None:
        """Prepare ahead, then wait for room in the queue."""
        self._meter.seen(self._champion.key, frame.source)
        while not self._stopping and not stopped.is_set():
            model = self._champion
            lane = model.lane_ahead(0.1)
            if lane is None:
                continue
            began = time.monotonic()
            try:
                frame.geometry = model.prepare(frame.image, lane)
            except JetfleetError:
                model.release(lane)
                self.skipped(frame.source, "unreadable", seen=True)
                return
            frame.model, frame.lane = model, lane
            frame.pre_ms = (time.monotonic() - began) * 1e3
            if self.frames.put(frame):
                return
            model.release(lane)
        self.skipped(frame.source, "stopped", seen=True)

    def newest(self, frame: Frame) -> None:
        self._offer(frame, 1, "superseded")

    def fed(self, frame: Frame) -> None:
        """A crop from another app: a short queue, the oldest go first."""
        self._offer(frame, FEED_DEPTH, "feed")

    def _offer(self, frame: Frame, depth: int, cause: str) -> None:
        self._meter.seen(self._champion.key, frame.source)
        dropped = self.frames.offer(frame, depth)
        if dropped is not None:
            self.skipped(dropped.source, cause, seen=True)

    def skipped(self, source: str, cause: str, *, seen: bool = False) -> None:
        if not seen:
            self._meter.seen(self._champion.key, source)
        self._meter.dropped(self._champion.key, source, cause)

    def remove(self, source: str) -> None:
        """A source left the deployment: its waiting frames are dropped, counted."""
        for frame in self.frames.remove(source):
            if frame.model is not None and frame.lane is not None:
                frame.model.release(frame.lane)
            self.skipped(source, "stopped", seen=True)

    # --- inference thread --------------------------------------------------------------------------------------

    def _infer_loop(self) -> None:
        while not self.frames.is_drained:
            if self._next is not None:
                self._champion, self._next = self._next, None
            frame = self.frames.get(0.2)
            if frame is not None:
                with self.pulses.infer:
                    self._infer(frame)
        self._decoding.put(None)

    def _infer(self, frame: Frame) -> None:
        began = time.monotonic()
        frame.wait_ms = (began - frame.queued) * 1e3
        model = self._champion
        if frame.lane is not None and frame.model is not None and frame.model is not model:
            frame.model.release(frame.lane)
            frame.lane = None
        if frame.lane is None:
            frame.lane = model.lane_inline()
            began = time.monotonic()
            frame.geometry = model.prepare(frame.image, frame.lane)
            frame.model = model
            frame.pre_ms = (time.monotonic() - began) * 1e3
            began = time.monotonic()
        outputs = model.backend.infer(frame.lane)
        frame.infer_ms = (time.monotonic() - began) * 1e3
        assert frame.geometry is not None  # noqa: S101  set beside the lane
        self._decoding.put(_Answer(frame, model, frame.lane, outputs, frame.geometry, frame.pre_ms + frame.infer_ms))
        if self._trial is not None:
            self._shadow(frame, self._trial)

    def _shadow(self, frame: Frame, trial: Trial) -> None:
        model = trial.take_turn()
        if model is None:
            return
        lane = model.lane_inline()
        try:
            with trial.running:
                began = time.monotonic()
                geometry = model.prepare(frame.image, lane)
                outputs = model.backend.infer(lane)
            work_ms = (time.monotonic() - began) * 1e3
        except JetfleetError as error:
            trial.fail(error.code, error.what)
            return
        self._decoding.put(_Answer(frame, model, lane, outputs, geometry, work_ms, trial))

    # --- decode thread -----------------------------------------------------------------------------------------

    def _decode_loop(self) -> None:
        while (answer := self._decoding.get()) is not None:
            if answer.trial is not None:
                self._compare(answer, answer.trial)
            else:
                self._answer(answer)

    def _answer(self, answer: _Answer) -> None:
        frame, model = answer.frame, answer.model
        began = time.monotonic()
        with self.pulses.decode:
            frame.detections = _placed(model.task.decode(answer.outputs, answer.geometry), frame.box)
        decoded = time.monotonic()
        model.release(answer.lane)
        decode_ms = (decoded - began) * 1e3
        frame.work_ms = answer.work_ms + decode_ms
        with self.pulses.sink:
            self._deliver(frame, model)
        now = time.monotonic()
        self.answered += 1
        swapped = self._gaps.result(model, frame.ordinal, now, on_trial=self._trial is not None)
        if swapped is not None:
            self._note(swapped)
        self._meter.done(model.key, frame.source, {
            "capture": frame.capture_ms, "wait": frame.wait_ms, "pre": frame.pre_ms, "infer": frame.infer_ms, "decode": decode_ms,
            "sink": (now - decoded) * 1e3, "total": (now - frame.arrived) * 1e3, "age": (now - frame.captured) * 1e3})

    def _compare(self, answer: _Answer, trial: Trial) -> None:
        began = time.monotonic()
        try:
            detections = _placed(answer.model.task.decode(answer.outputs, answer.geometry), answer.frame.box)
        except JetfleetError as error:
            trial.fail(error.code, error.what)
            return
        finally:
            answer.model.release(answer.lane)
        work_ms = answer.work_ms + (time.monotonic() - began) * 1e3
        trial.compare(answer.frame.detections, detections, answer.frame.work_ms, work_ms)

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except JetfleetError as error:
            self._note(Broken(error.code, error.what))
        except Exception as error:  # noqa: BLE001  reported with its type; the process ends
            self._note(Broken("pipeline.crash", f"{type(error).__name__}: {error}"[:300]))


class _Gaps:
    """Time between results, and what was lost between them. Used by the decode thread only."""

    def __init__(self) -> None:
        self._steady: deque[float] = deque(maxlen=STEADY_SAMPLE)
        self._model: LoadedModel | None = None
        self._at = 0.0
        self._ordinal = -1

    def result(self, model: LoadedModel, ordinal: int, now: float, *, on_trial: bool) -> Swapped | None:
        """Count a result; a `Swapped` when it is the first of another model."""
        previous, self._model = self._model, model
        gap_ms, self._at = (now - self._at) * 1e3, now
        last, self._ordinal = self._ordinal, (ordinal if ordinal >= 0 else self._ordinal)
        if previous is None:
            return None
        if previous is model:
            if not on_trial:
                self._steady.append(gap_ms)
            return None
        lost = ordinal - last - 1 if ordinal >= 0 and last >= 0 else 0
        return Swapped(model, gap_ms, lost, _p99(self._steady))


def _p99(values: deque[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else 0.0


def _placed(detections: Prediction, box: Box | None) -> Prediction:
    """A fed crop's answers where they are in the frame that it was cut from."""
    return detections if box is None else placed(detections, box)
