"""Labels that move over a plain ground: a camera for boards without one. The same position is always the same picture."""

from __future__ import annotations

import time

from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.sources import Buffers, FrameSource, Shot

_WORDS = ("jetfleet", "camera 7", "hello", "42 km/h")


class Synthetic(FrameSource):
    """Endless and live, or `frames` long and every frame counts."""

    def __init__(self, width: int, height: int, frames: int | None = None) -> None:
        super().__init__()
        self.live = frames is None
        self._size = (width, height)
        self._frames = frames
        self._next = 0

    def open(self) -> None:
        self._next = 0
        self.position = -1

    def read(self, buffers: Buffers) -> Shot | None:
        if self._frames is not None and self._next >= self._frames:
            return None
        index, self._next = self._next, self._next + 1
        self.position = -1 if self.live else index
        return Shot(self.picture(index, buffers.take(self._size[1], self._size[0])), time.monotonic())

    def picture(self, index: int, image: Image) -> Image:
        """Draw frame `index` into `image`, (H, W, 3) uint8 BGR."""
        import cv2

        width, height = self._size
        image.fill(205)
        scale = height / 320.0
        for row, word in enumerate(_WORDS):
            x = (index * (2 + row) + row * width // 4) % max(1, width - int(110 * scale))
            y = int((row + 0.7) * height / len(_WORDS))
            cv2.putText(image, word, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (25, 25, 25), max(1, round(2 * scale)), cv2.LINE_AA)
        return image

    def close(self) -> None:
        """Nothing is held."""
