"""From outputs to answers: decode each picture, put a frame's pictures together, hand it on, measure it.

Used by one thread at a time: the decode thread where stages overlap, else the inference thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import msgspec

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.inference import Answered, Picture, Work
from jetfleet_agent.pipeline.loaded import LoadedModel, picked
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_agent.pipeline.pulse import Pulses
from jetfleet_agent.pipeline.shadow import Shadow, blame, quantile
from jetfleet_contract.predictions import Prediction, placed
from jetfleet_contract.tiling import merged

STEADY_SAMPLE = 512


class Swapped(msgspec.Struct, frozen=True):
    """The first result of another model is out. Times in ms; `steady_p99_ms` is of gaps between results while no trial ran."""

    model: LoadedModel
    gap_ms: float
    frames_lost: int
    steady_p99_ms: float


class Decoder:
    """Answers frames in order.

    Args:
        deliver: called with each answered frame and its model.
        swapped: called with the first result of another model.
        pulses: what the watchdog looks at.
    """

    def __init__(self, meter: Meter, deliver: Callable[[Frame, LoadedModel], None], swapped: Callable[[Swapped], None],
                 pulses: Pulses) -> None:
        self.answered = 0
        self.answered_at = 0.0  # when the first frame was
        self.shadow: Shadow | None = None
        self.work_ms: deque[float] = deque(maxlen=STEADY_SAMPLE)  # the model's own time a frame, of those that nothing was shadowed beside
        self._meter = meter
        self._deliver = deliver
        self._pulses = pulses
        self._swapped = swapped
        self._gaps = _Gaps()

    def take(self, run: Answered) -> list[Frame]:
        """One run; the frames that it completed are delivered, and come back."""
        began = time.monotonic()
        try:
            with self._pulses.decode:
                finished = [picture.work for index, picture in enumerate(run.pictures) if self._decode(run, index, picture)]
        finally:
            run.model.release(run.lane)
        ended = time.monotonic()
        took_ms = (ended - began) * 1e3
        for picture in run.pictures:
            picture.work.work_ms += took_ms / len(run.pictures)
        shadow = run.pictures[0].work.shadow
        if shadow is not None:
            shadow.spend(ended, ended - began)
        return [frame for work in finished if (frame := self._finish(work, took_ms)) is not None]

    def _decode(self, run: Answered, index: int, picture: Picture) -> bool:
        """True when the picture was the last of its frame. What breaks in a shadow is its own doing: the champion goes on."""
        work = picture.work
        outputs = run.outputs if len(run.pictures) == 1 else picked(run.outputs, index)
        assert picture.geometry is not None  # noqa: S101  set when it was prepared
        try:
            work.found.append(_placed(picture, run.model.task.decode(outputs, picture.geometry)))
        except Exception as error:
            if work.shadow is None:
                raise
            blame(work.shadow, error)
            return False
        work.missing -= 1
        return not work.missing

    def _finish(self, work: Work, decode_ms: float) -> Frame | None:
        work.answer = work.found[0] if len(work.found) == 1 else merged(work.found)
        if work.shadow is None:
            self._answer(work, decode_ms)
            return work.frame
        if work.champion is not None:
            work.shadow.compare(work.champion.answer, work.answer, work.champion.work_ms, work.work_ms)
        return None

    def _answer(self, work: Work, decode_ms: float) -> None:
        frame, model = work.frame, work.model
        began = time.monotonic()
        frame.detections = work.answer
        frame.work_ms = work.work_ms
        with self._pulses.sink:
            self._deliver(frame, model)
        now = time.monotonic()
        self.answered_at = self.answered_at or now
        self.answered += 1
        shadow = self.shadow
        swapped = self._gaps.result(model, frame.ordinal, now, on_trial=shadow is not None)
        if swapped is not None:
            self.work_ms.clear()
            self._swapped(swapped)
        if shadow is not None:
            shadow.answered(model, frame.work_ms)
        else:
            self.work_ms.append(frame.work_ms)
        self._meter.done(model.key, frame.source, {
            "capture": frame.capture_ms, "wait": frame.wait_ms, "pre": frame.pre_ms, "infer": frame.infer_ms, "decode": decode_ms,
            "sink": (now - began) * 1e3, "total": (now - frame.arrived) * 1e3, "age": (now - frame.captured) * 1e3})


def _placed(picture: Picture, found: Prediction) -> Prediction:
    """A tile's or fed crop's answers where they are in the frame that it was cut from."""
    box = picture.work.frame.box
    if picture.tile is not None:
        found = placed(found, picture.tile)
    return found if box is None else placed(found, box)


class _Gaps:
    """Time between results, and what was lost between them."""

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
        return Swapped(model, gap_ms, lost, quantile(self._steady, 0.99))
