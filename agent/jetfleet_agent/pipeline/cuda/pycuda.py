"""The port over pycuda. Graphs are not captured here: pycuda's releases differ in whether they can, and the plain order does the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.cuda.port import Argument, refused


class PyCuda:
    """The first GPU's primary context, which TensorRT uses too. Objects that pycuda frees once forgotten are kept by their number."""

    def __init__(self) -> None:
        import pycuda.driver as driver

        self._driver = driver
        self._here = threading.local()
        self._call("starting the driver", driver.init)
        device = self._call("opening the GPU", driver.Device, 0)
        self._context = self._call("opening the GPU", device.retain_primary_context)
        major, minor = device.compute_capability()
        self.sm, self.name = 10 * major + minor, str(device.name())
        self.integrated = bool(device.get_attribute(driver.device_attribute.INTEGRATED))
        self.cuda = int(driver.get_driver_version()) // 1000
        self._blocks: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self.enter()

    def enter(self) -> None:
        if not getattr(self._here, "entered", False):
            self._call("entering the context", self._context.push)
            self._here.entered = True

    def close(self) -> None:
        if getattr(self._here, "entered", False):
            self._call("leaving the GPU", self._driver.Context.pop)
        self._here = threading.local()
        self._context = None

    def free_memory(self) -> int:
        return int(self._call("asking for memory", self._driver.mem_get_info)[0])

    def allocate(self, size: int) -> int:
        block = self._call(f"allocating {size} bytes", self._driver.mem_alloc, size)
        self._blocks[int(block)] = block
        return int(block)

    def free(self, address: int) -> None:
        self._call("freeing memory", self._blocks.pop(address).free)

    def pin(self, array: npt.NDArray[Any]) -> int:
        flags = self._driver.mem_host_register_flags.DEVICEMAP
        registered = self._call("pinning memory", self._driver.register_host_memory, array, flags)
        self._pinned[array.ctypes.data] = registered
        return int(self._call("mapping memory", registered.base.get_device_pointer))

    def unpin(self, array: npt.NDArray[Any]) -> None:
        self._call("unpinning memory", self._pinned.pop(array.ctypes.data).base.unregister)

    def stream(self) -> int:
        stream = self._call("making a stream", self._driver.Stream)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def end_stream(self, stream: int) -> None:
        self._streams.pop(stream)  # destroyed with its last reference

    def wait(self, stream: int) -> None:
        self._call("waiting for the GPU", self._streams[stream].synchronize)

    def upload(self, to: int, array: npt.NDArray[Any], stream: int) -> None:
        self._call("uploading", self._driver.memcpy_htod_async, to, array, self._streams[stream])

    def download(self, array: npt.NDArray[Any], source: int, stream: int) -> None:
        self._call("downloading", self._driver.memcpy_dtoh_async, array, source, self._streams[stream])

    def load(self, cubin: bytes) -> Any:
        return self._call("loading a cubin", self._driver.module_from_buffer, cubin)

    def unload(self, module: Any) -> None:
        """pycuda unloads a module with its last reference."""

    def launch(self, module: Any, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument],
               stream: int) -> None:
        packed = [np.frombuffer(one, np.uint8) if isinstance(one, bytes) else np.uint64(one) for one in arguments]
        function = self._call(f"looking for {kernel}", module.get_function, kernel)
        self._call(f"launching {kernel}", lambda: function(*packed, grid=grid, block=(threads, 1, 1), stream=self._streams[stream]))

    def begin_capture(self, stream: int) -> None:  # noqa: ARG002
        refused("graphs are not captured with pycuda", "beginning a graph")

    def end_capture(self, stream: int) -> Any:  # noqa: ARG002
        refused("graphs are not captured with pycuda", "capturing a graph")

    def launch_graph(self, graph: Any, stream: int) -> None:  # noqa: ARG002
        refused("graphs are not captured with pycuda", "launching a graph")

    def end_graph(self, graph: Any) -> None:  # noqa: ARG002
        refused("graphs are not captured with pycuda", "ending a graph")

    def _call(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:
            refused(_name_of(error), doing)


def _name_of(error: BaseException) -> str:
    """``cuMemAlloc failed: out of memory``, or MemoryError's kind, as CUDA names it."""
    text = " ".join(str(error).split())[:200]
    return f"CUDA_ERROR_OUT_OF_MEMORY ({text})" if "out of memory" in text else text
