"""Frames on their way: what one frame carries, and the one bounded queue in front of inference.

Two policies in one queue. **Every frame counts** (files): `put` waits for room. **Newest frame wins** (cameras, fed
crops): `offer` never waits; the oldest waiting frame of the same source is dropped and handed back, so that its drop
is counted. `take` takes turns between sources, and gives frames of different sources together to those who want several.
"""

from __future__ import annotations

import math
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
    `box` is where a fed crop was in its own frame. `deadline` is when a live frame is too old to be worth a session.
    `image` belongs to a `FramePool`: its memory is used again once nobody refers to it. Who needs it longer keeps the frame, the image
    or a view of it, for as long as he likes; nothing has to be given back.
    """

    __slots__ = ("arrived", "box", "capture_ms", "captured", "deadline", "detections", "geometry", "image", "infer_ms", "is_answered",
                 "kpis", "lane", "model", "number", "ordinal", "position", "pre_ms", "queued", "source", "wait_ms", "wall", "work_ms")

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
        self.deadline = math.inf
        self.is_answered = False
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
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)  # the one consumer waits here
        self._room = threading.Condition(self._lock)
        self._closed = False
        self._woken = False
        self._ordinals = 0

    def put(self, frame: Frame) -> bool:
        """Wait for room, then queue the frame. False when the queue was closed meanwhile."""
        with self._lock:
            while not self._closed and len(self._waiting.get(frame.source, ())) >= self._depth:
                self._room.wait()
            if self._closed:
                return False
            frame.ordinal = self._ordinals
            self._ordinals += 1
            self._append(frame)
            return True

    def offer(self, frame: Frame, depth: int = 1) -> Frame | None:
        """Queue the frame at once; the oldest one of its source comes back when there were `depth` already."""
        with self._lock:
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
        self._filled.notify()

    def take(self, timeout: float, most: int = 1, wait_s: float = 0.0) -> list[Frame]:
        """The next frame; up to `most` of different sources when so many come before the first has waited for `wait_s`.

        Empty after `timeout` seconds, after `wake`, or when drained.
        """
        with self._lock:
            if not self._turns and not self._closed and not self._woken:
                self._filled.wait(timeout)
            self._woken = False
            if not self._turns:
                return []
            if most > 1:
                return self._gather(most, wait_s)
            frame = self._waiting[self._turns.popleft()].popleft()
            self._room.notify_all()
            return [frame]

    def _gather(self, most: int, wait_s: float) -> list[Frame]:
        due = self._waiting[self._turns[0]][0].queued + wait_s
        while not self._closed and not self._woken and len(set(self._turns)) < most and (left := due - time.monotonic()) > 0:
            self._filled.wait(left)
        chosen: dict[str, Frame] = {}
        rest: deque[str] = deque()
        for source in self._turns:
            if source in chosen or len(chosen) == most:
                rest.append(source)
            else:
                chosen[source] = self._waiting[source].popleft()
        self._turns = rest
        self._room.notify_all()
        return list(chosen.values())

    def remove(self, source: str) -> list[Frame]:
        """Take out what still waits of a source."""
        with self._lock:
            taken = list(self._waiting.pop(source, ()))
            self._turns = deque(name for name in self._turns if name != source)
            self._room.notify_all()
            return taken

    def wake(self) -> None:
        with self._lock:
            self._woken = True
            self._filled.notify()

    def close(self) -> None:
        """Take no more; what waits can still be got."""
        with self._lock:
            self._closed = True
            self._filled.notify()
            self._room.notify_all()

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def is_drained(self) -> bool:
        """Closed, and everything was got."""
        with self._lock:
            return self._closed and not self._turns

    def __len__(self) -> int:
        with self._lock:
            return len(self._turns)
