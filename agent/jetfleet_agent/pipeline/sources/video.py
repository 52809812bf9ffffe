"""A video file: every frame, in order. A file that ends before its own count says is reported as truncated."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.sources import Buffers, FrameSource, Shot, missing
from jetfleet_contract.errors import SourceError

# Containers estimate their count from duration and rate; a frame or two short is how they end.
_COUNT_SLACK = 2


class VideoFile(FrameSource):
    """Read through OpenCV's FFmpeg."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._capture: Any = None
        self._size: tuple[int, int] | None = None  # of the last frame: what the next one is read into
        self._expected = 0

    def open(self) -> None:
        import cv2

        self.close()
        if not self._path.is_file():
            raise missing(self._path)
        self._capture = cv2.VideoCapture(str(self._path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            self.close()
            raise SourceError("source.open", f"{self._path.name} is no video that can be decoded", where=str(self._path),
                              remedy="play it with ffplay; convert it with ffmpeg -i IN -c:v libx264 OUT.mp4")
        self._expected = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.position = -1

    def read(self, buffers: Buffers) -> Shot | None:
        good, image = self._capture.read(buffers.take(*self._size)) if self._size else self._capture.read()
        if good:
            self.position += 1
            self._size = image.shape[:2]
            return Shot(np.asarray(image, np.uint8), time.monotonic())
        answered = self.position + 1
        if answered == 0 or answered < self._expected - _COUNT_SLACK:
            raise SourceError("source.truncated", f"{self._path.name} ends after {answered} of {max(self._expected, 0)} frames",
                              where=str(self._path), remedy="copy the file again; its end is missing or damaged")
        return None

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
