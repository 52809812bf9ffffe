"""The cascade's station behind decoding: picks what the model is not sure of, puts crops of it down for the supervisor, and amends a
frame's result when the host's answer comes in time.

Publishing never waits: the frame's own result goes out at once, the amended one follows under the same frame number. The decode thread
only looks at scores and copies pixels; a thread of its own encodes. Nothing is cut unless the signed settings allow a purpose, and the
supervisor enforces that once more.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from jetfleet_agent.crop_spool import CropSpool
from jetfleet_agent.ipc import Answered, CropReady
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_contract.app_config import AppConfig, Cascade
from jetfleet_contract.cascade import Memory, amended, select, window_of
from jetfleet_contract.crops import CROP_BYTES, Note
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Result
from jetfleet_contract.predictions import Detection, placed
from jetfleet_contract.similarity import iou

log = logging.getLogger(__name__)

LOOK = 8
MAX_ENCODING = 8
MAX_OPEN = 256
LATE_AFTER = 10.0
_QUALITIES = (90, 75, 60)
_LEAST_SIDE = 16
_PURPOSES = frozenset({"cascade", "harvest"})
Window = tuple[int, int, int, int]


class _Told:
    """A frame whose result is out; `result` changes as answers come."""

    __slots__ = ("began", "result")

    def __init__(self, result: Result, began: float) -> None:
        self.result = result
        self.began = began


class _Open:
    """A crop without an answer yet. `origin` is where its canvas lies in the frame."""

    __slots__ = ("asked", "options", "origin", "told", "window")

    def __init__(self, told: _Told, asked: Detection, window: Window, origin: tuple[int, int], options: Cascade) -> None:
        self.told, self.asked, self.window, self.origin, self.options = told, asked, window, origin, options


class _Cut:
    """Pixels on their way to the encoder: `image` is a copy, `size` (width, height) is what it is brought to."""

    __slots__ = ("image", "note", "open", "size")

    def __init__(self, image: Image, size: tuple[int, int], note: Note, open_: _Open | None) -> None:
        self.image, self.size, self.note, self.open = image, size, note, open_


class CascadeStep:
    """See the module. `take` belongs to the decode thread, everything else to the controller's.

    Args:
        send: hands an event to the supervisor. amend: where an amended result goes; neither waits.
    """

    def __init__(self, app: str, spool: CropSpool, send: Callable[[msgspec.Struct], None], amend: Callable[[Result], None]) -> None:
        self._app = app
        self._spool = spool
        self._send = send
        self._amend = amend
        self._options: Cascade | None = None
        self._tile = 0
        self._answers = False
        self._memory: Memory = ()
        self._open: dict[str, _Open] = {}
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("asked", "in_time", "late", "never", "refused", "left_out", "changed"), 0)
        self._cuts: queue.Queue[_Cut | None] = queue.Queue(MAX_ENCODING)
        self._encoder: threading.Thread | None = None

    def configure(self, config: AppConfig) -> None:
        """On with `[APP.cascade]` and a purpose that allows it; everything open is dropped when it goes off."""
        purposes = _PURPOSES & set(config.privacy.purposes)
        self._options = config.cascade if purposes else None
        self._answers = "cascade" in purposes
        self._tile = config.tile.size if config.tile else 0
        if self._options is None:
            with self._lock:
                self._open.clear()
            self._memory = ()
        elif self._encoder is None:
            self._encoder = threading.Thread(target=self._encode_loop, name="crops", daemon=True)
            self._encoder.start()

    def take(self, frame: Frame, model: LoadedModel, now: float) -> None:
        """Cut what is uncertain in this frame; a frame without doubt costs one comparison a detection."""
        options = self._options
        if options is None or not frame.detections:
            return
        self._memory, chosen = select(self._memory, options, frame.source, frame.detections,
                                      lambda index: _look(frame.image, frame.detections[index].box), now)
        if not chosen:
            return
        bundle, version, candidate = model.key
        told = _Told(Result(self._app, frame.source, frame.number, frame.wall, (now - frame.captured) * 1e3, version, candidate,
                            frame.detections, frame.position, dict(frame.kpis)), now)
        for index in chosen:
            self._cut(frame, model, frame.detections[index], told, options, bundle)

    def answered(self, order: Answered) -> None:
        """The host has spoken, or the supervisor says that it will not."""
        with self._lock:
            open_ = self._open.pop(order.name, None)
        if open_ is None:
            return
        if order.code:
            self._counts["refused"] += 1
            return
        now = time.monotonic()
        if now - open_.told.began > open_.options.deadline_s:
            self._counts["late"] += 1
            return
        self._counts["in_time"] += 1
        said = tuple(moved(found, *open_.origin) for found in order.detections)
        before = open_.told.result
        after = amended(open_.options, before.detections, open_.asked, open_.window, said)
        if after == before.detections:
            return
        self._counts["changed"] += 1
        open_.told.result = msgspec.structs.replace(before, detections=after, amended=True, age_ms=before.age_ms + (
            now - open_.told.began) * 1e3)
        self._amend(open_.told.result)

    def take_counts(self) -> dict[str, float]:
        """Gauges since the start: crops by what became of them. Empty while the cascade is off and never was on."""
        now = time.monotonic()
        with self._lock:
            for name, open_ in list(self._open.items()):
                if now - open_.told.began > LATE_AFTER * open_.options.deadline_s:
                    del self._open[name]
                    self._counts["never"] += 1
        return {f"cascade_{name}": float(count) for name, count in self._counts.items()} if self._encoder is not None else {}

    def close(self) -> None:
        """Idempotent; what is not encoded yet is dropped."""
        if self._encoder is None or not self._encoder.is_alive():
            return
        while True:
            try:
                self._cuts.put_nowait(None)
                break
            except queue.Full:
                self._drain()
        self._encoder.join(5.0)

    def _drain(self) -> None:
        try:
            self._cuts.get_nowait()
        except queue.Empty:
            return

    # --- decode thread ----------------------------------------------------------------------------------------

    def _cut(self, frame: Frame, model: LoadedModel, asked: Detection, told: _Told, options: Cascade, bundle: str) -> None:
        height, width = frame.image.shape[:2]
        box = asked.box if frame.box is None else _shifted(asked.box, -frame.box[0], -frame.box[1])
        window = window_of(box, width, height, options.margin)
        origin, canvas = _canvas(window, width, height, self._tile)
        place = (window[0] - origin[0], window[1] - origin[1], window[2] - origin[0], window[3] - origin[1])
        shift = origin if frame.box is None else (origin[0] + int(frame.box[0]), origin[1] + int(frame.box[1]))
        within = tuple(_plain(found, shift) for found in frame.detections
                       if found is not asked and found.box is not None and asked.box is not None
                       and iou(found.box, _window_box(window, shift, origin)) > 0.0)[:16]
        note = Note(self._app, frame.source, frame.number, bundle, model.key[1], model.key[2], canvas, place,
                    (_plain(asked, shift), *within))
        shown = (place[0] + shift[0], place[1] + shift[1], place[2] + shift[0], place[3] + shift[1])
        open_ = _Open(told, asked, shown, shift, options) if self._answers else None
        image = frame.image[window[1]:window[3], window[0]:window[2]].copy()
        try:
            self._cuts.put_nowait(_Cut(image, _useful_size(window, canvas, model, options), note, open_))
        except queue.Full:
            self._counts["left_out"] += 1

    # --- the encoder's thread ---------------------------------------------------------------------------------

    def _encode_loop(self) -> None:
        while (cut := self._cuts.get()) is not None:
            self._put_down(cut)

    def _put_down(self, cut: _Cut) -> None:
        try:
            name = self._spool.write(encode_within(cut.image, cut.size, CROP_BYTES))
        except JetfleetError as error:
            self._counts["left_out"] += 1
            log.warning("a crop is left out: %s [%s]", error.what, error.code)
            return
        self._counts["asked"] += 1
        if cut.open is not None:
            with self._lock:
                while len(self._open) >= MAX_OPEN:
                    del self._open[next(iter(self._open))]
                    self._counts["never"] += 1
                self._open[name] = cut.open
        self._send(CropReady(name, cut.note))


def encode_within(image: Image, size: tuple[int, int], most: int) -> bytes:
    """A JPEG of (H, W, 3) uint8 BGR, brought to `size` (width, height), of at most `most` bytes: quality gives way first, then the size."""
    import cv2

    width, height = size
    while True:
        same = (width, height) == (image.shape[1], image.shape[0])
        small: Any = image if same else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        for quality in _QUALITIES:
            encoded: Any = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
            if len(encoded) <= most or max(width, height) <= _LEAST_SIDE:
                return bytes(encoded)
        width, height = max(1, width * 7 // 10), max(1, height * 7 // 10)


def _useful_size(window: Window, canvas: tuple[int, int], model: LoadedModel, options: Cascade) -> tuple[int, int]:
    """Width and height beyond which the model would see no more: it brings the canvas to its own input. Another model may see more."""
    width, height = window[2] - window[0], window[3] - window[1]
    if options.model:
        return width, height
    spec = model.task.spec.input
    ratio = min(1.0, max(spec.width / canvas[0], spec.height / canvas[1]))
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def _canvas(window: Window, width: int, height: int, tile: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Origin and size of what the model was shown: the frame, or about the tile of a tiled frame that holds the window."""
    if not tile:
        return (0, 0), (width, height)
    across, down = min(width, max(tile, window[2] - window[0])), min(height, max(tile, window[3] - window[1]))
    x = min(max(0, (window[0] + window[2] - across) // 2), width - across)
    y = min(max(0, (window[1] + window[3] - down) // 2), height - down)
    return (x, y), (across, down)


def _look(image: Image, box: tuple[float, float, float, float] | None) -> bytes:
    """8 x 8 grey levels of what a box shows."""
    import cv2

    height, width = image.shape[:2]
    x0, y0, x1, y1 = window_of(box, width, height, 0.0, LOOK)
    small = cv2.resize(image[y0:y1, x0:x1], (LOOK, LOOK), interpolation=cv2.INTER_AREA)
    return bytes(np.asarray(small, np.uint8).mean(axis=2).astype(np.uint8))


def _window_box(window: Window, shift: tuple[int, int], origin: tuple[int, int]) -> tuple[float, float, float, float]:
    x, y = shift[0] - origin[0], shift[1] - origin[1]
    return float(window[0] + x), float(window[1] + y), float(window[2] + x), float(window[3] + y)


def _shifted(box: tuple[float, float, float, float] | None, x: float, y: float) -> tuple[float, float, float, float] | None:
    return None if box is None else (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def moved(found: Detection, x: int, y: int) -> Detection:
    """A detection as it is seen from (-x, -y); one without a box stays as it is."""
    return found if found.box is None else placed((found,), (float(x), float(y), float(x), float(y)))[0]


def _plain(found: Detection, shift: tuple[int, int]) -> Detection:
    """What the note tells of a detection: where it is, not its outline to the last point."""
    return moved(Detection(found.label, found.score, found.box, found.quad), -shift[0], -shift[1])
