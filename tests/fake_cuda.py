"""A GPU for tests: its memory is the host's, streams run at once, kernels are their numpy twins, and whatever a driver would
punish fails an assertion here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fake_kernels import run_kernel

from jetfleet_agent.pipeline.cuda.port import Argument, refused
from jetfleet_contract.cubins import read_cubin


class FakeCuda:
    """The port `Cuda`. `room` is free memory in bytes; `log` has every copy, run and launch of a graph in order, `ran` every
    kernel that ran, in a graph or not. Kernels in `broken` fail when they are launched, in a graph too; those it
    `lacks` are in no cubin. `users` backends have opened it."""

    def __init__(self, *, integrated: bool = False, room: int = 1 << 30, captures: bool = True) -> None:
        self.name, self.sm, self.cuda, self.integrated = "Fake GPU", 87, 12, integrated
        self.room, self.captures = room, captures
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, int] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.log: list[str] = []
        self.ran: list[str] = []
        self.broken: set[str] = set()
        self.lacks: set[str] = set()
        self.refuses_cubins = False
        self.modules: list[Any] = []
        self.users, self.closed = 1, 0
        self._capturing: list[Callable[[], None]] | None = None
        self._numbers = iter(range(1, 10_000))

    @property
    def leaks(self) -> tuple[int, ...]:
        """Blocks, pinned arrays, streams and graphs that were not given back."""
        return len(self.blocks), len(self.pinned), len(self.streams), len(self.graphs)

    def enter(self) -> None:
        assert self.closed < self.users, "used after it was closed"

    def close(self) -> None:
        self.closed += 1
        assert self.closed < self.users or not self.modules, "a cubin that was not unloaded"

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
        assert array.flags.c_contiguous
        self.owned(array.ctypes.data, array.nbytes, (self.pinned,))
        self.queue(stream, "upload", lambda: self.move(to, array.ctypes.data, array.nbytes))

    def download(self, array: Any, source: int, stream: int) -> None:
        assert array.ctypes.data in self.pinned
        self.queue(stream, "download", lambda: self.move(array.ctypes.data, source, array.nbytes))

    def move(self, to: int, source: int, size: int) -> None:
        for address in (to, source):
            self.owned(address, size)
        ctypes.memmove(to, source, size)

    def owned(self, address: int, size: int, kinds: tuple[Any, ...] = ()) -> None:
        """Assert that these bytes are the GPU's, all in one piece of it."""
        pieces = [(start, held if isinstance(held, int) else len(held)) for kind in kinds or (self.blocks, self.pinned)
                  for start, held in kind.items()]
        assert any(start <= address and address + size <= start + length for start, length in pieces), \
            "memory that is not the GPU's, or not any more"

    def queue(self, stream: int, what: str, work: Callable[[], None]) -> None:
        """Do it, or keep it for the graph that is being captured."""
        assert stream in self.streams
        if self._capturing is not None:
            self._capturing.append(work)
            return
        self.log.append(what)
        work()

    def load(self, cubin: bytes) -> Any:
        found = read_cubin(cubin)
        if self.refuses_cubins:
            refused("CUDA_ERROR_INVALID_IMAGE", "loading a cubin")
        if found.sm != self.sm:
            refused("CUDA_ERROR_NO_BINARY_FOR_GPU", "loading a cubin")
        self.modules.append(found)
        return found

    def unload(self, module: Any) -> None:
        self.modules.remove(module)

    def launch(self, module: Any, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument],
               stream: int) -> None:
        assert module in self.modules
        if kernel not in module.kernels or kernel in self.lacks:
            refused("CUDA_ERROR_NOT_FOUND", f"looking for {kernel}")
        self.queue(stream, kernel, lambda: self._run(kernel, grid, threads, arguments))

    def _run(self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument]) -> None:
        if kernel in self.broken:
            refused("CUDA_ERROR_LAUNCH_FAILED", f"launching {kernel}")
        self.ran.append(kernel)
        run_kernel(self, kernel, grid, threads, arguments)

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

    def array(self, address: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
        """The GPU's own memory as an array."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.owned(address, size)
        return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def read(self, address: int, shape: tuple[int, ...]) -> Any:
        """A copy of float32 of the GPU's memory."""
        return self.array(address, shape).copy()

    def write(self, address: int, values: Any) -> None:
        self.array(address, np.shape(values))[...] = values
