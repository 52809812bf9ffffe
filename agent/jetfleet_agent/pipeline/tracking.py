"""Identities over time: which thing of this frame is which of the last one. A step of `answers.Answers`, before all others.

The library is norfair (its maintained fork norfair-enough): a Kalman filter a thing, matching by IoU within a label. Tracks belong to the
source, not to the model, so they outlive a swap of models. Frames that were never answered (dropped, superseded) still pass for
the filters: a thing keeps moving while nobody looks.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from jetfleet_agent.ipc import Raised
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.sinks.port import Voice
from jetfleet_contract.app_config import Tracking
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.predictions import Detection

MAX_TRACKED = 200  # things a frame; the best scores
MAX_SOURCES = 64
_MOST_SKIPPED = 30  # frames that are passed over without a look before all tracks of the source end
_FOR_EVER = 1 << 30  # the library counts frames; we end tracks by time


class TrackStep:
    """Sets `Detection.track`: 0 until a thing was seen twice, then its number, from 1, that no other thing of the source gets. Without the
    library, answers go on without tracks and the alarm ``tracking.missing`` stands.

    Args:
        send: hands an event to the supervisor; never waits.
    """

    def __init__(self, send: Callable[[Raised], None]) -> None:
        self._voice = Voice("tracking", send)
        self._settings: Tracking | None = None
        self._sources: dict[str, _SourceTracks] = {}
        self._lock = threading.Lock()

    def configure(self, config: AppConfig) -> None:
        """Tracks go on where only `keep_s` or `least_score` changed."""
        settings = config.tracking
        try:
            if settings is not None:
                _library()  # its import takes a second or two; not in the decode thread
            self._voice.up()
        except IncompatibleError as error:
            self._voice.down(error)
            settings = None
        with self._lock:
            if settings is None or self._settings is None or settings.min_iou != self._settings.min_iou:
                self._sources.clear()
            self._settings = settings

    def take(self, frame: Frame, model: LoadedModel, now: float) -> None:  # noqa: ARG002
        """Crops of another app are no frames of a camera; they are left alone."""
        if self._settings is None or frame.box is not None:
            return
        with self._lock:
            if self._settings is not None:
                frame.detections = self._tracks_of(frame, self._settings).follow(frame, self._settings)

    def _tracks_of(self, frame: Frame, settings: Tracking) -> _SourceTracks:
        tracks = self._sources.get(frame.source)
        if tracks is None:
            if len(self._sources) >= MAX_SOURCES:
                self._sources.pop(min(self._sources, key=lambda name: self._sources[name].seen))
            tracks = self._sources[frame.source] = _SourceTracks(settings)
        return tracks

    def close(self) -> None:
        with self._lock:
            self._sources.clear()


class _SourceTracks:
    """One source's tracks."""

    def __init__(self, settings: Tracking) -> None:
        self.seen = 0.0
        self._min_iou = settings.min_iou
        self._tracker: Any = None
        self._named = 0
        self._names: dict[int, int] = {}  # by the identity of the library's object, for those that it still holds
        self._last: dict[int, float] = {}
        self._number = self._position = -1
        self._size = (0, 0)

    def follow(self, frame: Frame, settings: Tracking) -> tuple[Detection, ...]:
        """The frame's detections with their tracks."""
        self._begin_anew_if_another_scene(frame, settings)
        tracker = self._tracker
        for _ in range(frame.number - self._number - 1):
            tracker.update()
        self.seen, self._number, self._position, self._size = frame.captured, frame.number, frame.position, frame.image.shape[:2]
        tracker.update(_as_points(frame.detections, frame.number))
        tracks = self._read(frame, settings)
        if not tracks:
            return frame.detections
        return tuple(msgspec.structs.replace(d, track=tracks[i]) if i in tracks else d for i, d in enumerate(frame.detections))

    def _begin_anew_if_another_scene(self, frame: Frame, settings: Tracking) -> None:
        """After too long a gap, in a file that began again, or at another size, nothing is where it was."""
        skipped = frame.number - self._number - 1
        same = (0 <= skipped <= _MOST_SKIPPED and frame.captured - self.seen <= settings.keep_s and frame.image.shape[:2] == self._size
                and not frame.position < self._position)
        if same and self._tracker is not None:
            return
        library = _library()
        self._tracker = library.Tracker(distance_function="iou", distance_threshold=1.0 - self._min_iou, hit_counter_max=_FOR_EVER,
                                        initialization_delay=1, past_detections_length=0)
        self._names.clear()
        self._last.clear()
        self._number = frame.number - 1

    def _read(self, frame: Frame, settings: Tracking) -> dict[int, int]:
        """Track by index of the detection; forgets what was not seen for too long."""
        tracks: dict[int, int] = {}
        alive = []
        for thing in self._tracker.tracked_objects:
            key, (number, index) = id(thing), thing.last_detection.data
            if number != frame.number:
                if frame.captured - self._last.get(key, frame.captured) <= settings.keep_s:
                    alive.append(thing)
                continue
            alive.append(thing)
            self._last[key] = frame.captured
            if key not in self._names and not thing.is_initializing and frame.detections[index].score >= settings.least_score:
                self._named += 1
                self._names[key] = self._named
            if key in self._names:
                tracks[index] = self._names[key]
        self._tracker.tracked_objects = alive
        keys = {id(thing) for thing in alive}
        self._names = {key: name for key, name in self._names.items() if key in keys}
        self._last = {key: at for key, at in self._last.items() if key in keys}
        return tracks


def _as_points(detections: tuple[Detection, ...], number: int) -> list[Any]:
    """The best `MAX_TRACKED` boxes as the library takes them: two corners, with frame and index to know them again."""
    library = _library()
    located = [(i, d, d.box) for i, d in enumerate(detections) if d.box is not None and d.box[0] < d.box[2] and d.box[1] < d.box[3]]
    if len(located) > MAX_TRACKED:
        located = sorted(located, key=lambda item: -item[1].score)[:MAX_TRACKED]
    return [library.Detection(points=np.array(box).reshape(2, 2), label=d.label, data=(number, i)) for i, d, box in located]


@functools.cache
def _library() -> Any:
    try:
        import norfair
    except ImportError as error:
        raise IncompatibleError("tracking.missing", f"tracking needs norfair, which this board does not have: {error}"[:300],
                                remedy="install jetfleet-agent[tracking] on the board") from None
    logging.getLogger("norfair").setLevel(logging.ERROR)  # it warns of every box that a filter predicts inside out
    return norfair
