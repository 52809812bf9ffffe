"""Frames that the GPU reads where the camera wrote them.

The pool's buffers (`pipeline.pool`) are pages of their own, so each is locked in memory when a frame in it is first seen, and its address
as the GPU sees it is kept. Memory can be locked once a process, whichever model looks at it, so there is one register a process: the
champion, a challenger and a session for batches share it.

A register must not keep a buffer from going back to its pool, which tells by who refers to the array. So it refers to the memory below
the array, and gives a buffer up when nobody else does.
"""

from __future__ import annotations

import logging
import mmap
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.cuda.port import Cuda
from jetfleet_contract.errors import RuntimeFailure

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]


def frame_buffer(height: int, width: int) -> Bytes:
    """(height, width, 3) uint8 on pages of its own; its views, and they alone, refer to it."""
    memory = mmap.mmap(-1, max(height * width * 3, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.ndarray((height, width, 3), np.uint8, memory)


class Pixels:
    """Where an image's bytes are: `flat` is locked memory that the GPU sees at `address`; the image begins at byte `start` of it, its rows
    follow each other in `pitch` bytes, and it ends before byte `end`."""

    __slots__ = ("address", "end", "flat", "pitch", "start")

    def __init__(self, flat: Bytes, address: int, start: int, pitch: int, end: int) -> None:
        self.flat = flat
        self.address = address
        self.start = start
        self.pitch = pitch
        self.end = end


class FrameMemory:
    """The register. `find` may be called by one thread at a time that runs sessions; `join` and `leave` by any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._known: dict[int, _Locked] = {}
        self._refused = False

    def join(self) -> None:
        """A backend begins to use it; each `leave` undoes one `join`."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """The last one gives all memory back. Before its `Cuda.close`."""
        with self._lock:
            self._users -= 1
            if not self._users:
                for locked in self._known.values():
                    locked.cuda.unpin(locked.flat)
                self._known, self._refused = {}, False

    def find(self, cuda: Cuda, image: Bytes) -> Pixels | None:
        """Where the GPU finds the image; None when its memory is not the pool's, its rows are not whole pixels one after the other, or
        it cannot be locked."""
        memory = _memory_of(image)
        pitch, *steps = image.strides
        if memory is None or steps != [3, 1] or pitch < image.shape[1] * 3:
            return None
        with self._lock:
            locked = self._known.get(id(memory)) or self._lock_in(cuda, memory)
        if locked is None:
            return None
        start = image.__array_interface__["data"][0] - locked.at
        return Pixels(locked.flat, locked.address, start, pitch, start + (image.shape[0] - 1) * pitch + image.shape[1] * 3)

    def _lock_in(self, cuda: Cuda, memory: mmap.mmap) -> _Locked | None:
        if self._refused:
            return None
        for key in [key for key, locked in self._known.items() if locked.is_idle]:
            gone = self._known.pop(key)
            gone.cuda.unpin(gone.flat)
        flat: Bytes = np.ndarray(len(memory), np.uint8, memory)
        try:
            self._known[id(memory)] = locked = _Locked(cuda, memory, flat, cuda.pin(flat))
        except RuntimeFailure as error:
            self._refused = True
            log.warning("frames are copied before the GPU reads them: %s", error.what)
            return None
        return locked


class _Locked:
    __slots__ = ("address", "at", "cuda", "flat", "memory")

    def __init__(self, cuda: Cuda | None, memory: mmap.mmap, flat: Bytes, address: int) -> None:
        self.cuda: Any = cuda
        self.memory = memory
        self.flat = flat
        self.address = address
        self.at: int = flat.ctypes.data

    @property
    def users(self) -> int:
        return sys.getrefcount(self.memory)

    @property
    def is_idle(self) -> bool:
        """Nobody but the register refers to the memory."""
        return self.users <= _IDLE


def _memory_of(image: Bytes) -> mmap.mmap | None:
    base = image.base
    if isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def _alone() -> _Locked:
    memory = mmap.mmap(-1, 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return _Locked(None, memory, np.ndarray(1, np.uint8, memory), 0)


_IDLE = _alone().users  # interpreters differ in what the call itself adds
FRAME_MEMORY = FrameMemory()
