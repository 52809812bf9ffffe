"""A GPU for tests: its memory is the host's, streams run at once, and whatever a driver would punish fails an assertion here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.cuda.port import Argument, refused


class FakeCuda:
    """The port `Cuda`. `room` is free memory in bytes; `log` has every copy, run and launch of a graph in order."""

    def __init__(self, *, integrated: bool = False, room: int = 1 << 30, captures: bool = True) -> None:
        self.name, self.sm, self.cuda, self.integrated = "Fake GPU", 87, 12, integrated
        self.room, self.captures = room, captures
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, int] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.log: list[str] = []
        self.closed = 0
        self._capturing: list[Callable[[], None]] | None = None
        self._numbers = iter(range(1, 10_000))

    @property
    def leaks(self) -> tuple[int, ...]:
        """Blocks, pinned arrays, streams and graphs that were not given back."""
        return len(self.blocks), len(self.pinned), len(self.streams), len(self.graphs)

    def enter(self) -> None:
        assert not self.closed, "used after it was closed"

    def close(self) -> None:
        self.closed += 1

    def free_memory(self) -> int:
        return self.room

    def allocate(self, size: int) -> int:
        if size > self.room:
            refused("CUDA_ERROR_OUT_OF_MEMORY", f"allocating {size} bytes")
        self.room -= size
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        self.room += len(self.blocks.pop(address))

    def pin(self, array: Any) -> int:
        assert array.ctypes.data % 4096 == 0
        assert array.ctypes.data not in self.pinned
        self.pinned[array.ctypes.data] = array.nbytes
        return int(array.ctypes.data)

    def unpin(self, array: Any) -> None:
        del self.pinned[array.ctypes.data]

    def stream(self) -> int:
        self.streams.add(number := next(self._numbers))
        return number

    def end_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def wait(self, stream: int) -> None:
        assert stream in self.streams

    def upload(self, to: int, array: Any, stream: int) -> None:
        assert array.ctypes.data in self.pinned
        self.queue(stream, "upload", lambda: self.move(to, array.ctypes.data, array.nbytes))

    def download(self, array: Any, source: int, stream: int) -> None:
        assert array.ctypes.data in self.pinned
        self.queue(stream, "download", lambda: self.move(array.ctypes.data, source, array.nbytes))

    def move(self, to: int, source: int, size: int) -> None:
        for address in (to, source):
            assert address in self.blocks or address in self.pinned, "memory that is not the GPU's, or not any more"
        ctypes.memmove(to, source, size)

    def queue(self, stream: int, what: str, work: Callable[[], None]) -> None:
        """Do it, or keep it for the graph that is being captured."""
        assert stream in self.streams
        if self._capturing is not None:
            self._capturing.append(work)
            return
        self.log.append(what)
        work()

    def load(self, cubin: bytes) -> Any:
        return cubin

    def unload(self, module: Any) -> None:
        assert module

    def launch(self, module: Any, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument],
               stream: int) -> None:
        self.queue(stream, kernel, lambda: None)

    def begin_capture(self, stream: int) -> None:
        if not self.captures:
            refused("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "beginning a graph")
        assert self._capturing is None
        self._capturing = []

    def end_capture(self, stream: int) -> Any:
        assert self._capturing is not None
        number = next(self._numbers)
        self.graphs[number], self._capturing = self._capturing, None
        return number

    def launch_graph(self, graph: Any, stream: int) -> None:
        assert stream in self.streams
        self.log.append("graph")
        for work in self.graphs[graph]:
            work()

    def end_graph(self, graph: Any) -> None:
        del self.graphs[graph]

    def read(self, address: int, shape: tuple[int, ...]) -> Any:
        """float32 of the GPU's memory."""
        assert address in self.blocks or address in self.pinned
        return np.frombuffer(ctypes.string_at(address, 4 * int(np.prod(shape))), np.float32).reshape(shape)

    def write(self, address: int, values: Any) -> None:
        assert address in self.blocks or address in self.pinned
        whole = np.ascontiguousarray(values, np.float32)
        ctypes.memmove(address, whole.ctypes.data, whole.nbytes)
