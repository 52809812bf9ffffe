"""Frames on their way: what one frame carries, and the one bounded queue in front of inference.

Two policies in one queue. **Every frame counts** (files): `put` waits for room. **Newest frame wins** (cameras, fed
crops): `offer` never waits; the oldest waiting frame of the same source is dropped and handed back, so that its drop
is counted. `get` takes turns between sources.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from jetfleet_agent.pipeline.preprocess import Geometry, Image
from jetfleet_contract.predictions import Detection

if TYPE_CHECKING:
    from jetfleet_agent.pipeline.backends import Lane
    from jetfleet_agent.pipeline.loaded import LoadedModel

Box = tuple[float, float, float, float]


class Frame:
    """One frame in flight. Times are `time.monotonic` seconds, durations milliseconds.

    `captured` is the frame's own time, `arrived` when this process had it (they differ for fed crops).
    `number` counts the source's frames over the pipeline's life, `position` its place in the file (-1: live).
    `ordinal` counts the frames of all every-frame sources together (-1: live), so that a lost one shows.
    `work_ms` is the champion's pre-processing, session and decoding together: what a trial compares.
    `box` is where a fed crop was in its own frame.
    """

    __slots__ = ("arrived", "box", "capture_ms", "captured", "detections", "geometry", "image", "infer_ms", "kpis", "lane", "model",
                 "number", "ordinal", "position", "pre_ms", "queued", "source", "wait_ms", "wall", "work_ms")

    def __init__(self, source: str, number: int, position: int, image: Image, captured: float, wall: float, *,
                 arrived: float = 0.0, capture_ms: float = 0.0, box: Box | None = None) -> None:
        self.source = source
        self.number = number
        self.position = position
        self.image = image
        self.captured = captured
        self.arrived = arrived or captured
        self.wall = wall
        self.capture_ms = capture_ms
        self.box = box
        self.ordinal = -1
        self.queued = 0.0
        self.wait_ms = 0.0
        self.pre_ms = 0.0
        self.infer_ms = 0.0
        self.work_ms = 0.0
        self.model: LoadedModel | None = None
        self.lane: Lane | None = None
        self.geometry: Geometry | None = None
        self.detections: tuple[Detection, ...] = ()
        self.kpis: dict[str, float] = {}


class FrameQueue:
    """Bounded per source, fair between sources. Safe for many producers and one consumer."""

    def __init__(self, depth: int = 2) -> None:
        self._depth = depth
        self._waiting: dict[str, deque[Frame]] = {}
        self._turns: deque[str] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._woken = False
        self._ordinals = 0

    def put(self, frame: Frame) -> bool:
        """Wait for room, then queue the frame. False when the queue was closed meanwhile."""
        with self._changed:
            while not self._closed and len(self._waiting.get(frame.source, ())) >= self._depth:
                self._changed.wait()
            if self._closed:
                return False
            frame.ordinal = self._ordinals
            self._ordinals += 1
            self._append(frame)
            return True

    def offer(self, frame: Frame, depth: int = 1) -> Frame | None:
        """Queue the frame at once; the oldest one of its source comes back when there were `depth` already."""
        with self._changed:
            if self._closed:
                return frame
            waiting = self._waiting.get(frame.source)
            dropped = waiting.popleft() if waiting and len(waiting) >= depth else None
            if dropped is not None:
                self._turns.remove(frame.source)
            self._append(frame)
            return dropped

    def _append(self, frame: Frame) -> None:
        frame.queued = time.monotonic()
        self._waiting.setdefault(frame.source, deque()).append(frame)
        self._turns.append(frame.source)
        self._changed.notify_all()

    def get(self, timeout: float) -> Frame | None:
        """The next frame; None after `timeout` seconds, after `wake`, or when drained."""
        with self._changed:
            if not self._turns and not self._closed and not self._woken:
                self._changed.wait(timeout)
            self._woken = False
            if not self._turns:
                return None
            frame = self._waiting[self._turns.popleft()].popleft()
            self._changed.notify_all()
            return frame

    def remove(self, source: str) -> list[Frame]:
        """Take out what still waits of a source."""
        with self._changed:
            taken = list(self._waiting.pop(source, ()))
            self._turns = deque(name for name in self._turns if name != source)
            self._changed.notify_all()
            return taken

    def wake(self) -> None:
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more; what waits can still be got."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def is_drained(self) -> bool:
        """Closed, and everything was got."""
        with self._changed:
            return self._closed and not self._turns

    def __len__(self) -> int:
        with self._changed:
            return len(self._turns)
