"""The port over NVIDIA's cuda-bindings (12 or 13)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.cuda.port import Argument, refused


class CudaBindings:
    """The first GPU's primary context, which TensorRT uses too."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._here = threading.local()
        self._call("starting the driver", driver.cuInit, 0)
        self._device = self._call("opening the GPU", driver.cuDeviceGet, 0)
        self._context = self._call("opening the GPU", driver.cuDevicePrimaryCtxRetain, self._device)
        kinds = driver.CUdevice_attribute
        self.sm = 10 * self._attribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) + self._attribute(
            kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)
        self.integrated = bool(self._attribute(kinds.CU_DEVICE_ATTRIBUTE_INTEGRATED))
        self.cuda = int(self._call("asking the driver", driver.cuDriverGetVersion)) // 1000
        self.name = bytes(self._call("asking the GPU", driver.cuDeviceGetName, 128, self._device)).split(b"\0")[0].decode()
        self.enter()

    def enter(self) -> None:
        if not getattr(self._here, "entered", False):
            self._call("entering the context", self._driver.cuCtxSetCurrent, self._context)
            self._here.entered = True

    def close(self) -> None:
        self._call("leaving the GPU", self._driver.cuDevicePrimaryCtxRelease, self._device)
        self._here = threading.local()

    def free_memory(self) -> int:
        free, _total = self._calls("asking for memory", self._driver.cuMemGetInfo)
        return int(free)

    def allocate(self, size: int) -> int:
        return int(self._call(f"allocating {size} bytes", self._driver.cuMemAlloc, size))

    def free(self, address: int) -> None:
        self._call("freeing memory", self._driver.cuMemFree, address)

    def pin(self, array: npt.NDArray[Any]) -> int:
        at = array.ctypes.data
        self._call("pinning memory", self._driver.cuMemHostRegister, at, array.nbytes, self._driver.CU_MEMHOSTREGISTER_DEVICEMAP)
        return int(self._call("mapping memory", self._driver.cuMemHostGetDevicePointer, at, 0))

    def unpin(self, array: npt.NDArray[Any]) -> None:
        self._call("unpinning memory", self._driver.cuMemHostUnregister, array.ctypes.data)

    def stream(self) -> int:
        kind = self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        return int(self._call("making a stream", self._driver.cuStreamCreate, int(kind)))

    def end_stream(self, stream: int) -> None:
        self._call("ending a stream", self._driver.cuStreamDestroy, stream)

    def wait(self, stream: int) -> None:
        self._call("waiting for the GPU", self._driver.cuStreamSynchronize, stream)

    def upload(self, to: int, array: npt.NDArray[Any], stream: int) -> None:
        self._call("uploading", self._driver.cuMemcpyHtoDAsync, to, array.ctypes.data, array.nbytes, stream)

    def download(self, array: npt.NDArray[Any], source: int, stream: int) -> None:
        self._call("downloading", self._driver.cuMemcpyDtoHAsync, array.ctypes.data, source, array.nbytes, stream)

    def load(self, cubin: bytes) -> Any:
        return self._call("loading a cubin", self._driver.cuModuleLoadData, cubin)

    def unload(self, module: Any) -> None:
        self._call("unloading a cubin", self._driver.cuModuleUnload, module)

    def launch(self, module: Any, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument],
               stream: int) -> None:
        function = self._call(f"looking for {kernel}", self._driver.cuModuleGetFunction, module, kernel.encode())
        packed = [np.frombuffer(one, np.uint8) if isinstance(one, bytes) else np.array([one], np.uint64) for one in arguments]
        pointers = np.array([one.ctypes.data for one in packed], np.uint64)
        self._call(f"launching {kernel}", self._driver.cuLaunchKernel, function, *grid, threads, 1, 1, 0, stream, pointers.ctypes.data, 0)

    def begin_capture(self, stream: int) -> None:
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("beginning a graph", self._driver.cuStreamBeginCapture, stream, mode)

    def end_capture(self, stream: int) -> Any:
        graph = self._call("capturing a graph", self._driver.cuStreamEndCapture, stream)
        try:
            return self._call("instantiating a graph", self._driver.cuGraphInstantiate, graph, 0)
        finally:
            self._call("ending a graph", self._driver.cuGraphDestroy, graph)

    def launch_graph(self, graph: Any, stream: int) -> None:
        self._call("launching a graph", self._driver.cuGraphLaunch, graph, stream)

    def end_graph(self, graph: Any) -> None:
        self._call("ending a graph", self._driver.cuGraphExecDestroy, graph)

    def _attribute(self, kind: Any) -> int:
        return int(self._call("asking the GPU", self._driver.cuDeviceGetAttribute, kind, self._device))

    def _call(self, doing: str, function: Any, *arguments: Any) -> Any:
        values = self._calls(doing, function, *arguments)
        return values[0] if values else None

    def _calls(self, doing: str, function: Any, *arguments: Any) -> Sequence[Any]:
        status, *values = function(*arguments)
        if int(status):
            refused(str(getattr(status, "name", int(status))), doing)
        return tuple(values)
