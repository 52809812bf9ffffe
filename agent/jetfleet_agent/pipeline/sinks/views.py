"""What previews show: one small, drawn, encoded picture a source, made only while somebody looks, shared by all who look.

The decode thread makes the small copy (when one is due and watched), a thread of its own draws and encodes; whoever looks waits for a newer
picture than the last. Where encoding is slower than the frames, the newest one wins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_contract.predictions import Detection

from .drawing import Image, draw, jpeg, shrunk

log = logging.getLogger(__name__)

MAX_SOURCES = 64


class _View:
    __slots__ = ("due", "encoded", "number", "pending", "watchers")

    def __init__(self) -> None:
        self.watchers = 0
        self.due = 0.0
        self.number = 0
        self.encoded = b""
        self.pending: _Scene | None = None


class _Scene:
    """A small copy with what is to be drawn into it."""

    __slots__ = ("detections", "footer", "image", "origin", "scale")

    def __init__(self, image: Image, detections: Sequence[Detection], scale: float, origin: tuple[float, float], footer: str) -> None:
        self.image = image
        self.detections = detections
        self.scale = scale
        self.origin = origin
        self.footer = footer


class Views:
    """See the module. Safe from any thread.

    Args:
        fps: most pictures a second of one source.
        width: most pixels across.
    """

    def __init__(self, fps: float, width: int) -> None:
        self._period = 1.0 / fps
        self._width = width
        self._views: dict[str, _View] = {}
        self._changed = threading.Condition()
        self._closed = False
        self.encoded = self.superseded = 0
        self._thread = threading.Thread(target=self._run, name="preview-encode", daemon=True)
        self._thread.start()

    def take(self, frame: Frame, title: str, now: float) -> None:
        """One answered frame: one look at a dictionary unless somebody watches its source and a picture is due."""
        view = self._views.get(frame.source)
        if view is None:
            self._add(frame.source)
            return
        if not view.watchers or now < view.due:
            return
        view.due = max(view.due + self._period, now)
        small = shrunk(frame.image, self._width)
        origin = (frame.box[0], frame.box[1]) if frame.box is not None else (0.0, 0.0)
        scene = _Scene(small, frame.detections, small.shape[1] / frame.image.shape[1], origin, f"{frame.source}  {title}  #{frame.number}")
        with self._changed:
            self.superseded += view.pending is not None
            view.pending = scene
            self._changed.notify_all()

    def sources(self) -> list[str]:
        """Sources whose frames came."""
        return sorted(self._views)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def watchers(self) -> int:
        return sum(view.watchers for view in list(self._views.values()))

    def watch(self, source: str) -> bool:
        """Somebody looks from now on. False when there is no such source."""
        with self._changed:
            view = self._views.get(source)
            if view is None:
                return False
            view.watchers += 1
            return True

    def leave(self, source: str) -> None:
        with self._changed:
            view = self._views[source]
            view.watchers -= 1
            if not view.watchers:
                view.pending, view.encoded = None, b""  # no memory, and no old picture for who comes next

    def next(self, source: str, after: int, timeout_s: float) -> tuple[int, bytes] | None:
        """The newest picture with a number above `after`; None when none came in time, or the previews ended."""
        view = self._views[source]
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (view.number > after and view.encoded), timeout_s)
            return (view.number, view.encoded) if not self._closed and view.number > after and view.encoded else None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(3.0)

    def _add(self, source: str) -> None:
        with self._changed:
            if len(self._views) < MAX_SOURCES:
                self._views = {**self._views, source: _View()}

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or any(view.pending for view in self._views.values()))
                if self._closed:
                    return
                view = next(view for view in self._views.values() if view.pending)
                scene, view.pending = view.pending, None
            assert scene is not None  # noqa: S101  the condition above
            data = _picture(scene)
            with self._changed:
                self.encoded += 1
                view.number += 1
                if view.watchers:
                    view.encoded = data
                self._changed.notify_all()


def _picture(scene: _Scene) -> bytes:
    """Drawn and encoded; empty when that failed, which costs this picture only."""
    try:
        draw(scene.image, scene.detections, scene.scale, scene.origin, scene.footer)
        return jpeg(scene.image)
    except Exception:  # OpenCV's own error class is only known where it is imported
        log.exception("a preview's picture could not be made")
        return b""
