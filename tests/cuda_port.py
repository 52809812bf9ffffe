"""The few driver calls that tests of kernels need, by NVIDIA's cuda-bindings or by pycuda: whichever is installed."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest


class CudaPort(Protocol):
    """One GPU. Addresses are integers; what is allocated lives as long as the process."""

    sm: int
    cuda: int  # the driver's major version

    def load(self, cubin: bytes) -> Any: ...

    def upload(self, data: bytes) -> int: ...

    def download(self, address: int, out: npt.NDArray[Any]) -> None: ...

    def launch(self, module: Any, kernel: str, grid: tuple[int, int, int], threads: int, arguments: list[Any]) -> None:
        """Queue a launch; `download` waits for it. An argument is an address (int) or the bytes of a structure."""

    def milliseconds(self, work: Any) -> float:
        """GPU time of what the function `work` queues."""

    def copy(self, to: int, source: int, size: int) -> None: ...


def open_gpu() -> CudaPort:
    """The first GPU; skips, or fails under CI, without a binding."""
    for kind in (_Bindings, _PyCuda):
        try:
            return kind()
        except ImportError:
            continue
    if os.environ.get("CI"):
        pytest.fail("neither cuda-bindings nor pycuda is installed")
    pytest.skip("neither cuda-bindings nor pycuda is installed")


def _packed(arguments: list[Any]) -> list[npt.NDArray[Any]]:
    return [np.frombuffer(one, np.uint8).copy() if isinstance(one, bytes) else np.array([one], np.uint64) for one in arguments]


class _Bindings:
    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._do(driver.cuInit(0))
        device = self._do(driver.cuDeviceGet(0))
        self._do(driver.cuCtxSetCurrent(self._do(driver.cuDevicePrimaryCtxRetain(device))))
        of = driver.CUdevice_attribute
        self.sm = 10 * self._do(driver.cuDeviceGetAttribute(of.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)) + self._do(
            driver.cuDeviceGetAttribute(of.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
        self.cuda = self._do(driver.cuDriverGetVersion()) // 1000

    def _do(self, answer: Any) -> Any:
        status, *values = answer
        if int(status):
            raise RuntimeError(f"CUDA driver: {status}")
        return values[0] if values else None

    def load(self, cubin: bytes) -> Any:
        return self._do(self._driver.cuModuleLoadData(cubin))

    def upload(self, data: bytes) -> int:
        address = self._do(self._driver.cuMemAlloc(len(data)))
        self._do(self._driver.cuMemcpyHtoD(address, data, len(data)))
        return int(address)

    def download(self, address: int, out: npt.NDArray[Any]) -> None:
        self._do(self._driver.cuMemcpyDtoH(out.ctypes.data, address, out.nbytes))

    def launch(self, module: Any, kernel: str, grid: tuple[int, int, int], threads: int, arguments: list[Any]) -> None:
        function = self._do(self._driver.cuModuleGetFunction(module, kernel.encode()))
        packed = _packed(arguments)
        pointers = np.array([one.ctypes.data for one in packed], np.uint64)
        self._do(self._driver.cuLaunchKernel(function, *grid, threads, 1, 1, 0, 0, pointers.ctypes.data, 0))

    def milliseconds(self, work: Any) -> float:
        begin, end = (self._do(self._driver.cuEventCreate(0)) for _ in range(2))
        self._do(self._driver.cuEventRecord(begin, 0))
        work()
        self._do(self._driver.cuEventRecord(end, 0))
        self._do(self._driver.cuEventSynchronize(end))
        return float(self._do(self._driver.cuEventElapsedTime(begin, end)))

    def copy(self, to: int, source: int, size: int) -> None:
        self._do(self._driver.cuMemcpyDtoD(to, source, size))


class _PyCuda:
    def __init__(self) -> None:
        import pycuda.driver as driver

        driver.init()
        self._driver = driver
        self._context = driver.Device(0).retain_primary_context()
        self._context.push()
        major, minor = driver.Device(0).compute_capability()
        self.sm, self.cuda = 10 * major + minor, driver.get_driver_version() // 1000
        self._kept: list[Any] = []

    def load(self, cubin: bytes) -> Any:
        return self._driver.module_from_buffer(cubin)

    def upload(self, data: bytes) -> int:
        self._kept.append(self._driver.to_device(np.frombuffer(data, np.uint8)))
        return int(self._kept[-1])

    def download(self, address: int, out: npt.NDArray[Any]) -> None:
        self._driver.memcpy_dtoh(out, address)

    def launch(self, module: Any, kernel: str, grid: tuple[int, int, int], threads: int, arguments: list[Any]) -> None:
        module.get_function(kernel)(*_packed(arguments), grid=grid, block=(threads, 1, 1))

    def milliseconds(self, work: Any) -> float:
        begin, end = self._driver.Event(), self._driver.Event()
        begin.record()
        work()
        end.record().synchronize()
        return float(begin.time_till(end))

    def copy(self, to: int, source: int, size: int) -> None:
        self._driver.memcpy_dtod(to, source, size)
