"""The TensorRT backend over a stand-in for `tensorrt` and `cuda.bindings` at the port: memory, order of calls, errors, and cleaning up.

What it cannot show is that TensorRT itself behaves so; that takes a board. Device memory is host memory here, and the engine
gives 1 - mean of the channels, so that a swapped pointer or a forgotten copy shows in the numbers.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from jetfleet_agent.pipeline.backends import Backend, open_backend
from jetfleet_contract.errors import IncompatibleError, RuntimeFailure

SHAPE = (1, 3, 4, 6)


class Device:
    """Allocations by address, and what was done."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.streams = 0
        self.room = 100


class Context:
    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return (name, shape) == ("x", SHAPE)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return SHAPE if name == "x" else (1, 1, 4, 6)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        x = np.frombuffer(ctypes.string_at(self.addresses["x"], 72 * 4), np.float32).reshape(SHAPE)
        y = (1 - x.mean(axis=1, keepdims=True)).astype(np.float32)
        ctypes.memmove(self.addresses["y"], y.ctypes.data, y.nbytes)
        return True


class Engine:
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return ("y", "x")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "x" else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3, 4, 6) if name == "x" else (-1, 1, 4, 6)

    def create_execution_context(self) -> Context:
        return Context()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()

    class Logger:
        ERROR = 1

        def __init__(self, level: int) -> None:
            pass

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            return Engine() if plan == b"plan" else None

    class TensorIOMode:
        INPUT = "INPUT"

    class Kind:
        cudaMemcpyHostToDevice = 1  # noqa: N815
        cudaMemcpyDeviceToHost = 2  # noqa: N815

    def malloc(size: int) -> tuple[int, int]:
        if len(device.blocks) >= device.room:
            return 2, 0  # cudaErrorMemoryAllocation
        block = ctypes.create_string_buffer(size)
        device.blocks[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def free(pointer: int) -> tuple[int]:
        del device.blocks[pointer]
        return (0,)

    def copy(target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        assert stream == 7
        assert (target if kind == 1 else source) in device.blocks
        ctypes.memmove(target, source, size)
        return (0,)

    def stream_create() -> tuple[int, int]:
        device.streams += 1
        return 0, 7

    def stream_destroy(stream: int) -> tuple[int]:
        device.streams -= 1
        return (0,)

    trt, cuda, bindings = ModuleType("tensorrt"), ModuleType("cuda"), ModuleType("cuda.bindings")
    runtime = ModuleType("cuda.bindings.runtime")
    vars(trt).update(Logger=Logger, Runtime=Runtime, TensorIOMode=TensorIOMode, float32="float32", nptype=np.dtype, __version__="10.3.0")
    vars(runtime).update(cudaMalloc=malloc, cudaFree=free, cudaMemcpyAsync=copy, cudaMemcpyKind=Kind, cudaStreamCreate=stream_create,
                         cudaStreamDestroy=stream_destroy, cudaStreamSynchronize=lambda stream: (0,), cudaGetDevice=lambda: (0, 0))
    vars(bindings)["runtime"] = runtime
    for module in (trt, cuda, bindings, runtime):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return device


def opened(folder: Path, content: bytes = b"plan", shape: tuple[int, ...] = SHAPE) -> Backend:
    (folder / "m.plan").write_bytes(content)
    return open_backend("tensorrt", folder / "m.plan", precision="fp16", threads=0, input_shape=shape, lanes=2)


def test_each_lane_has_its_own_memory_and_all_is_given_back(device: Device, tmp_path: Path) -> None:
    backend = opened(tmp_path)
    with backend:
        assert (backend.provider, backend.versions) == ("CUDA device 0", {"tensorrt": "10.3.0"})
        assert len(device.blocks) == 4
        backend.lanes[0].tensor.fill(0.25)
        backend.lanes[1].tensor.fill(1.0)
        first, second = backend.infer(backend.lanes[0])[0], backend.infer(backend.lanes[1])[0]
        np.testing.assert_allclose(first, np.full((1, 1, 4, 6), 0.75))
        np.testing.assert_allclose(second, np.zeros((1, 1, 4, 6)))
    assert device.blocks == {}
    assert device.streams == 0


def test_a_plan_of_another_board_has_a_remedy(device: Device, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        opened(tmp_path, b"plan of another GPU").activate()
    assert caught.value.code == "backend.load"
    assert "ONNX" in caught.value.remedy


def test_a_plan_of_another_size_is_named(device: Device, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError) as caught:
        opened(tmp_path, shape=(1, 3, 8, 8)).activate()
    assert caught.value.code == "backend.input"


def test_cuda_out_of_memory_is_a_typed_error_and_leaks_nothing(device: Device, tmp_path: Path) -> None:
    backend = opened(tmp_path)
    device.room = 3  # the second lane's output finds none
    with pytest.raises(RuntimeFailure) as caught:
        backend.activate()
    assert "CUDA error 2" in caught.value.what
    assert device.blocks == {}
    assert device.streams == 0
