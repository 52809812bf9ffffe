"""A local camera through OpenCV's V4L2: the driver's own stamps, and what stands in the way told apart before OpenCV hides it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.sources import Buffers, FrameSource, Shot
from jetfleet_contract.errors import SourceError

_PLAUSIBLE_S = 10.0


class LocalCamera(FrameSource):
    """`device`: /dev/videoN."""

    live = True
    keeps_time = True

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self._capture: Any = None
        self._size: tuple[int, int] | None = None  # of the last frame: what the next one is read into

    def open(self) -> None:
        import cv2

        self.close()
        self._check()
        self._capture = cv2.VideoCapture(self._device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            self.close()
            raise self._error("source.open", "gives no pictures", "see whether another program holds it: fuser -v " + self._device)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def _check(self) -> None:
        if not Path(self._device).exists():
            raise self._error("source.missing", "is not there", "plug it in; list what is there with: v4l2-ctl --list-devices")
        if not os.access(self._device, os.R_OK | os.W_OK):
            raise self._error("source.permission", "may not be opened by this user", "add the agent's user to the group video")

    def read(self, buffers: Buffers) -> Shot | None:
        import cv2

        while True:
            if not self._capture.grab():
                raise self._error("source.gone", "stopped giving pictures", "it is tried again by itself; check the plug")
            if self.wanted():
                break
        taken = stamp(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3, time.monotonic())
        good, image = self._capture.retrieve(buffers.take(*self._size)) if self._size else self._capture.retrieve()
        if not good:
            raise self._error("source.gone", "gave a picture that cannot be read", "it is tried again by itself; check the plug")
        self._size = image.shape[:2]
        shot = Shot(np.asarray(image, np.uint8), time.monotonic())
        return shot if taken is None else Shot(shot.image, taken, "sensor")

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _error(self, code: str, what: str, remedy: str) -> SourceError:
        return SourceError(code, f"the camera {self._device} {what}", where=self._device, remedy=remedy)


def stamp(seconds: float, now: float) -> float | None:
    """A driver's buffer stamp when it is on our monotonic clock (what V4L2 drivers use by default), else None."""
    return seconds if 0 <= now - seconds < _PLAUSIBLE_S and seconds > 0 else None
