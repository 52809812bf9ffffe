"""The frame's way: (capture threads) -> inference thread -> decode thread -> sinks.

The inference thread runs sessions, on frames that capture threads have prepared ahead where every frame counts; decoding and sinks run
beside the next frame's session. Where that does not pay (`overlap`) the same steps run one after the other: the inference thread decodes,
and a file is read on when its last frame was answered. What ties the stages together is a lane: it belongs to one run of the session from
its pre-processing until its answer, so every queue is bounded by the number of lanes.

A swap happens in the inference thread between two frames: frames already prepared for the old model are prepared again
for the new one, so none is lost. The decoder, which sees results in order, measures the gap.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Union

import msgspec

from jetfleet_agent.pipeline.decoding import Decoder, Swapped
from jetfleet_agent.pipeline.frames import Frame, FrameQueue
from jetfleet_agent.pipeline.inference import Answered, Work, runs
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_agent.pipeline.overlap import Overlap
from jetfleet_agent.pipeline.pool import FramePool
from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.pulse import Pulses
from jetfleet_agent.pipeline.rhythm import Rhythm
from jetfleet_agent.pipeline.shadow import Shadow, blame, quantile
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Source

FEED_DEPTH = 64
_POLL_S = 0.2


class Broken(msgspec.Struct, frozen=True):
    """The running model failed."""

    code: str
    detail: str


Note = Union[Swapped, Broken]


class Stages:
    """Runs one app's champion. Implements `capture.Intake`; `pool` is the memory that captures read into.

    Args:
        deliver: called with each answered frame and its model, in order, by one thread at a time.
        note: called from any thread with what the controller must know.
        overlap: for measurements: stages beside each other or not; None measures which is better here.
    """

    def __init__(self, champion: LoadedModel, meter: Meter, deliver: Callable[[Frame, LoadedModel], None],
                 note: Callable[[Note], None], overlap: bool | None = None) -> None:
        self.frames = FrameQueue()
        self.pulses = Pulses()
        self.pool = FramePool()
        self.rhythms: dict[str, Rhythm] = {}
        self.overlap = Overlap(len(os.sched_getaffinity(0)), champion.model.threads, overlap)
        self._champion = champion
        self._next: LoadedModel | None = None
        self._shadow: Shadow | None = None
        self._meter = meter
        self._note = note
        self._decoder = Decoder(meter, deliver, note, self.pulses)
        self._numbers: dict[str, int] = {}
        self._sources = 0
        self._decoding: queue.SimpleQueue[Answered | None] = queue.SimpleQueue()
        self._handed = self._taken = 0  # runs given to the decode thread, and those it is done with
        self._answered = threading.Condition()
        self._stopping = False
        self._threads = [threading.Thread(target=self._guard, args=(body,), name=name, daemon=True)
                         for name, body in (("inference", self._infer_loop), ("decode", self._decode_loop))]

    # --- controller's side ------------------------------------------------------------------------------------

    @property
    def champion(self) -> LoadedModel:
        return self._champion

    @property
    def answered(self) -> int:
        """Frames answered so far."""
        return self._decoder.answered

    @property
    def answered_at(self) -> float:
        """When the first frame was answered, `time.monotonic` seconds; 0 before that."""
        return self._decoder.answered_at

    @property
    def work_p99_ms(self) -> float:
        """The champion's own time a frame over its last frames that nothing was shadowed beside; 0 when there are none."""
        return quantile(self._decoder.work_ms.copy(), 0.99)

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

    def set_shadow(self, shadow: Shadow | None) -> None:
        """What else runs on the champion's frames from now on."""
        self._shadow = self._decoder.shadow = shadow

    def set_sources(self, sources: tuple[Source, ...]) -> None:
        """The sources that will hand in frames, with their age budgets; those no longer named are forgotten."""
        kept = {s.name: self.rhythms[s.name] for s in sources if s.name in self.rhythms}
        for source in sources:
            kept.setdefault(source.name, Rhythm()).max_age_ms = source.max_age_ms
        self.rhythms = kept
        self._sources = len(sources)
        self.overlap.begin_again()

    def gauges(self) -> dict[str, float]:
        """How it runs: `frame_allocs` and `frame_strays` since the last call (no frame needs one in steady state), `pool_frames` that the
        pool holds, whether stages `overlap` (1) and whether that was `overlap_decided` yet."""
        allocated, strays = self.pool.counts()
        return {"frame_allocs": float(allocated), "frame_strays": float(strays), "pool_frames": float(self.pool.held),
                "overlap": float(self.overlap.on), "overlap_decided": float(self.overlap.is_decided)}

    # --- capture's side (Intake) -------------------------------------------------------------------------------

    def number(self, source: str) -> int:
        number = self._numbers.get(source, 0)
        self._numbers[source] = number + 1
        return number

    def every(self, frame: Frame, stopped: threading.Event) -> None:
        """Prepare ahead, then wait for room in the queue; without overlap also for the answer."""
        if not self._is_taken_in(frame):
            return
        while not self._stopping and not stopped.is_set():
            model = self._champion
            if model.prepares_ahead and not self._prepare(model, frame):
                continue
            if self.frames.put(frame):
                self._wait_for(frame, stopped)
                return
            _give_back_lane(frame)
        self.skipped(frame.source, "stopped", seen=True)

    def _prepare(self, model: LoadedModel, frame: Frame) -> bool:
        """False when no lane became free for a while."""
        lane = model.lane_ahead(0.1)
        if lane is None:
            return False
        began = time.monotonic()
        frame.geometry = model.prepare(frame.image, lane)
        frame.model, frame.lane = model, lane
        frame.pre_ms = (time.monotonic() - began) * 1e3
        return True

    def _wait_for(self, frame: Frame, stopped: threading.Event) -> None:
        with self._answered:
            while not (self.overlap.on or frame.is_answered or self._stopping or stopped.is_set()):
                self._answered.wait(_POLL_S)

    def newest(self, frame: Frame) -> None:
        rhythm = self.rhythms.get(frame.source)
        if rhythm is not None:
            frame.deadline = rhythm.deadline(frame.captured, frame.arrived)
        self._offer(frame, 1, "superseded")

    def fed(self, frame: Frame) -> None:
        """A crop from another app: a short queue, the oldest go first."""
        self._offer(frame, FEED_DEPTH, "feed")

    def _offer(self, frame: Frame, depth: int, cause: str) -> None:
        if not self._is_taken_in(frame):
            return
        dropped = self.frames.offer(frame, depth)
        if dropped is not None:
            self.skipped(dropped.source, "stopped" if dropped is frame else cause, seen=True)

    def _is_taken_in(self, frame: Frame) -> bool:
        """Count the frame; one that is no picture goes no further."""
        self._meter.seen(self._champion.key, frame.source)
        self.pool.saw(frame.image)
        if _is_picture(frame.image):
            return True
        self.skipped(frame.source, "unreadable", seen=True)
        return False

    def skipped(self, source: str, cause: str, *, seen: bool = False) -> None:
        if not seen:
            self._meter.seen(self._champion.key, source)
        self._meter.dropped(self._champion.key, source, cause)

    def remove(self, source: str) -> None:
        """A source left the deployment: its waiting frames are dropped, counted."""
        for frame in self.frames.remove(source):
            _give_back_lane(frame)
            self.skipped(source, "stopped", seen=True)

    # --- inference thread --------------------------------------------------------------------------------------

    def _infer_loop(self) -> None:
        try:
            while not self.frames.is_drained:
                if self._next is not None:
                    self._champion, self._next = self._next, None
                    self.overlap.begin_again()
                frames = self._take()
                if frames:
                    self._infer(frames)
                    self.overlap.answered(time.monotonic())
        finally:
            self._decoding.put(None)

    def _take(self) -> list[Frame]:
        """What to run next: all of it young enough."""
        batching = self._champion.batching
        frames = self.frames.take(_POLL_S, min(batching.most, self._sources or batching.most), batching.wait_ms / 1e3)
        now = time.monotonic()
        return [frame for frame in frames if self._is_young(frame, now)]

    def _is_young(self, frame: Frame, now: float) -> bool:
        frame.wait_ms = (now - frame.queued) * 1e3
        if now <= frame.deadline:
            return True
        self.skipped(frame.source, "too-old", seen=True)
        return False

    def _infer(self, frames: list[Frame]) -> None:
        model = self._champion
        for frame in frames:
            if frame.lane is not None and frame.model is not model:
                _give_back_lane(frame)
                frame.pre_ms = 0.0
            frame.model = model
        works = [Work(frame, model) for frame in frames]
        self._run(model, works)
        shadow = self._shadow
        if shadow is not None:
            self._run_shadow(works, shadow)

    def _run_shadow(self, champions: list[Work], shadow: Shadow) -> None:
        """As many at once as the champion had, so that both models' times a frame can be compared."""
        now = time.monotonic()
        works = [Work(work.frame, model, shadow, work) for work in champions if (model := shadow.take_turn(work.frame, now)) is not None]
        if not works:
            return
        try:
            with shadow.running:
                self._run(works[0].model, works)
        except Exception as error:  # noqa: BLE001  whatever it is, it is the shadow's doing: the champion goes on
            blame(shadow, error)

    def _run(self, model: LoadedModel, works: list[Work]) -> None:
        answered = runs(model, works)
        while True:
            began = time.monotonic()
            with self.pulses.infer:
                run = next(answered, None)
            if run is None:
                return
            shadow = works[0].shadow
            if shadow is not None:
                ended = time.monotonic()
                shadow.spend(ended, ended - began)
            self._hand_on(run)

    def _hand_on(self, run: Answered) -> None:
        """To the decode thread, or decoded here; never here while that one still has some, for answers keep their order."""
        if self.overlap.on or self._handed != self._taken:
            self._handed += 1
            self._decoding.put(run)
        else:
            self._decode(run)

    # --- decode thread -----------------------------------------------------------------------------------------

    def _decode_loop(self) -> None:
        while (run := self._decoding.get()) is not None:
            self._decode(run)
            run = None
            self._taken += 1

    def _decode(self, run: Answered) -> None:
        for frame in self._decoder.take(run):
            with self._answered:
                frame.is_answered = True
                self._answered.notify_all()

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except JetfleetError as error:
            self._note(Broken(error.code, error.what))
        except Exception as error:  # noqa: BLE001  reported with its type; the process ends
            self._note(Broken("pipeline.crash", f"{type(error).__name__}: {error}"[:300]))


def _give_back_lane(frame: Frame) -> None:
    """A lane that was filled for nothing."""
    if frame.model is not None and frame.lane is not None:
        frame.model.release(frame.lane)
    frame.lane = None


def _is_picture(image: Image) -> bool:
    return image.ndim == 3 and image.shape[2] == 3 and image.dtype == "uint8" and image.size > 0
