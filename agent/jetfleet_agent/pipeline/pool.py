"""Memory for frames, used again and again: in steady state no frame allocates.

Python already counts who uses an array; a second count beside it (hold, release) could only be wrong: forgotten, and the buffer is
lost; done twice, and somebody's picture changes under his eyes. So the pool keeps every buffer that it made and hands out one that
nobody but itself refers to. Whoever keeps a frame (a trial, a chained crop, a preview, a view of a part of it) just keeps it:
its memory comes back by itself when the last one lets go, and one that never lets go costs the pool a buffer, counted, never a wait.
"""

from __future__ import annotations

import sys
import threading

import numpy as np

from jetfleet_agent.pipeline.cuda.frame_memory import frame_buffer
from jetfleet_agent.pipeline.preprocess import Image

MOST = 96
STALE = 512  # takes after which a size that nobody asked for is given up


class FramePool:
    """Implements `sources.Buffers`. Safe from any thread.

    `allocated` counts buffers that had to be made, `strays` frames that came in memory of somebody else's.

    Args:
        most: buffers that the pool keeps; past that it still gives memory, but keeps none of it.
    """

    def __init__(self, most: int = MOST) -> None:
        self.allocated = 0
        self.strays = 0
        self._most = most
        self._lock = threading.Lock()
        self._sizes: dict[tuple[int, int], _Size] = {}
        self._ids: set[int] = set()
        self._takes = 0
        self._told = (0, 0)

    def take(self, height: int, width: int) -> Image:
        """(height, width, 3) uint8 with anything in it; the caller's until nobody refers to it any more."""
        with self._lock:
            self._takes += 1
            size = self._sizes.get((height, width))
            if size is None:
                size = self._sizes[height, width] = _Size()
            size.last_take = self._takes
            for index in range(len(size.buffers)):
                if _users(size.buffers, index) == _IDLE:
                    return size.buffers[index]
            return self._make(size, height, width)

    def _make(self, size: _Size, height: int, width: int) -> Image:
        self._give_up_stale()
        buffer = frame_buffer(height, width)
        self.allocated += 1
        if len(self._ids) < self._most:
            size.buffers.append(buffer)
            self._ids.add(id(buffer))
        return buffer

    def _give_up_stale(self) -> None:
        """Buffers of sizes that are not used any more; those still in somebody's hands are merely forgotten."""
        for key in [key for key, size in self._sizes.items() if self._takes - size.last_take > STALE]:
            self._ids.difference_update(id(buffer) for buffer in self._sizes.pop(key).buffers)

    def saw(self, image: Image) -> None:
        """A frame came in; counted when its memory is not the pool's."""
        if id(image) not in self._ids and id(image.base) not in self._ids:
            with self._lock:
                self.strays += 1

    def counts(self) -> tuple[int, int]:
        """Buffers made and strays seen since the last call."""
        with self._lock:
            counts = self.allocated - self._told[0], self.strays - self._told[1]
            self._told = self.allocated, self.strays
            return counts

    @property
    def held(self) -> int:
        """Buffers that the pool keeps, lent or not."""
        return len(self._ids)


class _Size:
    __slots__ = ("buffers", "last_take")

    def __init__(self) -> None:
        self.buffers: list[Image] = []
        self.last_take = 0


def _users(buffers: list[Image], index: int) -> int:
    return sys.getrefcount(buffers[index])


# What the count is when only the list refers to the array; interpreters differ in what the call itself adds.
_IDLE = _users([np.empty(1, np.uint8)], 0)
