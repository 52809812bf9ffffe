"""A folder of images in the order of their names, or one image."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from jetfleet_agent.pipeline.sources import Buffers, FrameSource, Shot, missing
from jetfleet_contract.errors import SourceError


class ImageFolder(FrameSource):
    """An unreadable image is one error that names it; the next `read` goes on behind it."""

    SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._files: list[Path] = []

    def open(self) -> None:
        if not self._path.exists():
            raise missing(self._path)
        if self._path.is_file():
            self._files = [self._path]
        else:
            self._files = sorted(p for p in self._path.iterdir() if p.suffix.lower() in self.SUFFIXES and p.is_file())
        if not self._files:
            raise SourceError("source.empty", f"the folder {self._path.name} has no images", where=str(self._path),
                              remedy=f"put files of type {', '.join(sorted(self.SUFFIXES))} there")
        self.position = -1

    def read(self, buffers: Buffers) -> Shot | None:  # noqa: ARG002  an image's size is known only once it is decoded
        import cv2

        if self.position + 1 >= len(self._files):
            return None
        self.position += 1
        file = self._files[self.position]
        image = cv2.imread(str(file), cv2.IMREAD_COLOR)
        if image is None:
            raise SourceError("source.image", f"the image {file.name} cannot be decoded", where=str(file),
                              remedy="remove it from the folder, or save it again as PNG or JPEG")
        return Shot(np.asarray(image, np.uint8), time.monotonic())

    def close(self) -> None:
        self._files = []
