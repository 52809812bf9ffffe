"""The two adapters of the CUDA port: every name they use exists in the real binding, and its errors become ours with CUDA's own name."""

from __future__ import annotations

import inspect
import re
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda

from jetfleet_agent.pipeline.cuda import cuda_bindings, port, pycuda
from jetfleet_contract.errors import RuntimeFailure


def real_driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        pytest.skip("cuda-bindings is not installed")
    return driver


def test_every_name_of_the_driver_is_in_the_real_binding() -> None:
    driver = real_driver()
    source = inspect.getsource(cuda_bindings)
    used = set(re.findall(r"driver\.(c[uU]\w+|CU\w+)", source))
    assert len(used) > 25
    assert sorted(name for name in used if not hasattr(driver, name)) == []
    kinds = set(re.findall(r"(CU_DEVICE_ATTRIBUTE_\w+)", source))
    assert kinds
    assert sorted(kind for kind in kinds if not hasattr(driver.CUdevice_attribute, kind)) == []


@pytest.mark.parametrize(("call", "parameters"), [
    ("cuMemHostRegister", "p, size_t bytesize, unsigned int Flags"), ("cuMemcpyHtoDAsync", "dstDevice, srcHost, size_t ByteCount, hStream"),
    ("cuMemcpyDtoHAsync", "dstHost, srcDevice, size_t ByteCount, hStream"), ("cuMemHostGetDevicePointer", "p, unsigned int Flags"),
    ("cuStreamBeginCapture", "hStream, mode: CUstreamCaptureMode"), ("cuGraphInstantiate", "hGraph, unsigned long long flags"),
    ("cuGraphLaunch", "hGraphExec, hStream"), ("cuDeviceGetName", "int length, dev")])
def test_calls_take_what_they_are_given(call: str, parameters: str) -> None:
    """As the binding's own documentation has it."""
    assert getattr(real_driver(), call).__doc__.splitlines()[0] == f"{call}({parameters})"


@pytest.mark.parametrize(("name", "code"), [("CUDA_ERROR_OUT_OF_MEMORY", "cuda.memory"), ("CUDA_ERROR_ILLEGAL_ADDRESS", "cuda.error")])
@pytest.mark.parametrize("adapter", ["cuda_bindings", "pycuda"])
def test_an_error_has_its_name_and_what_was_being_done(monkeypatch: pytest.MonkeyPatch, adapter: str, name: str, code: str) -> None:
    module = ModuleType("driver")

    class Error(Exception):
        pass

    def fails(*_: object) -> Any:
        if adapter == "pycuda":
            raise Error("init failed: out of memory" if "MEMORY" in name else f"init failed: {name}")
        return Status(name), None

    class Status(str):
        __slots__ = ()

        @property
        def name(self) -> str:
            return str(self)

        def __int__(self) -> int:
            return 2

    vars(module).update(cuInit=fails, init=fails, Error=Error)
    for parent in ("cuda", "cuda.bindings", "pycuda"):
        package = ModuleType(parent)
        vars(package)["driver"] = module
        monkeypatch.setitem(sys.modules, parent, package)
    for child in ("cuda.bindings.driver", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, child, module)
    with pytest.raises(RuntimeFailure) as caught:
        (cuda_bindings.CudaBindings if adapter == "cuda_bindings" else pycuda.PyCuda)()
    assert caught.value.code == code
    assert name in caught.value.what
    assert "starting the driver" in caught.value.what


@pytest.mark.parametrize("shape", [(1,), (3, 5), (1, 3, 641, 639), (4096,)])
def test_what_is_pinned_has_its_pages_for_itself(shape: tuple[int, ...]) -> None:
    arrays = [port.page_aligned(shape, np.float32) for _ in range(3)]
    pages = [set(range(array.ctypes.data // port.PAGE, (array.ctypes.data + array.nbytes - 1) // port.PAGE + 1)) for array in arrays]
    assert all(array.ctypes.data % port.PAGE == 0 and array.shape == shape and not array.any() for array in arrays)
    assert not pages[0] & pages[1]
    assert not pages[1] & pages[2]


def test_the_stand_in_punishes_what_a_driver_would() -> None:
    """Use after free, copies of memory that is not pinned, a second free."""
    cuda = FakeCuda()
    stream, block, array = cuda.stream(), cuda.allocate(64), port.page_aligned((16,), np.float32)
    with pytest.raises(AssertionError):
        cuda.upload(block, array, stream)
    cuda.pin(array)
    cuda.upload(block, array, stream)
    cuda.free(block)
    with pytest.raises(AssertionError):
        cuda.upload(block, array, stream)
    with pytest.raises(KeyError):
        cuda.free(block)
