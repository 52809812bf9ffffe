"""A stand-in for TensorRT over the fake GPU.

Its engine gives 1 - mean of the channels, so that a swapped pointer or a forgotten copy shows in the numbers.
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from small_cubins import fill

from jetfleet_agent import cubin_files
from jetfleet_agent.pipeline.backends import tensorrt

SHAPE = (1, 3, 4, 6)


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class Diagnostics(enum.IntFlag):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4
    OLD_CUDA_RUNTIME = 8
    INSUFFICIENT_GPU_MEMORY = 16
    MALFORMED_ENGINE = 32
    CUDA_ERROR = 64


class Board:
    """What the stand-in does next, and what was done with it."""

    def __init__(self) -> None:
        self.cuda = FakeCuda()
        self.answer: tuple[int, ...] = (-1, 1, 4, 6)
        self.input: tuple[int, ...] = (-1, 3, 4, 6)
        self.dtype = "float32"  # of the input
        self.profiles: list[tuple[tuple[int, ...], ...]] = [((1, 3, 4, 6), (1, 3, 4, 6), (1, 3, 4, 6))]
        self.chosen: list[int] = []
        self.activation = 1000
        self.reason = "IRuntime::deserializeCudaEngine: Error Code 1: Internal Error"
        self.validity = ("VALID", 0)
        self.errors: list[Any] = []
        self.flags: list[Any] = []
        self.cleared: list[Any] = []
        self.network_flags: list[int] = []
        self.dla_cores = 0
        self.on_dla: tuple[str, ...] = ("/conv", "/act")
        self.host_code: list[bool] = []
        self.runs = True
        self.serializes = True
        self.seen: Any = None  # the input of the last run
        self.head: Any = None  # what the engine gives instead of its own answer


class Context:
    def __init__(self, board: Board) -> None:
        self.board, self.addresses = board, dict[str, int]()
        self.shape: tuple[int, ...] = SHAPE

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.board.chosen.append(index)
        return stream in self.board.cuda.streams

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "x"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], *self.board.answer[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda = self.board.cuda
        source, target, shape = self.addresses["x"], self.addresses["y"], self.shape

        def run() -> None:
            self.board.seen = cuda.array(source, shape, self.board.dtype).copy()
            channels = self.board.seen if self.board.input[1] == 3 else self.board.seen.transpose(0, 3, 1, 2)
            if self.board.head is not None:
                head = self.board.head[:shape[0]]
                cuda.array(target, head.shape, head.dtype)[...] = head
                return
            cuda.write(target, 1 - channels.astype(np.float32).mean(axis=1, keepdims=True))

        cuda.queue(stream, "run", run)
        return self.board.runs


class Engine:
    num_io_tensors = 2

    def __init__(self, board: Board) -> None:
        self.board = board
        self.device_memory_size_v2 = board.activation
        self.num_optimization_profiles = len(board.profiles)

    def get_tensor_name(self, index: int) -> str:
        return ("y", "x")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == "x" else "OUTPUT"

    def get_tensor_dtype(self, name: str) -> str:
        return self.board.dtype if name == "x" else "float32" if self.board.head is None else str(self.board.head.dtype)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.board.input

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        return self.board.profiles[index]

    def serialize(self) -> bytes | None:
        return b"plan" if self.board.serializes else None

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(create_runtime_cache=lambda: "cache", set_runtime_cache=lambda cache: self.board.chosen.append(-1))

    def create_execution_context(self, config: Any = None) -> Context:
        return Context(self.board)


def stand_in(board: Board, name: str, version: str) -> ModuleType:  # noqa: C901  one module's classes
    class ILogger:
        Severity = Severity

        def __init__(self) -> None:
            pass

    class Runtime:
        engine_host_code_allowed = True

        def __init__(self, logger: Any) -> None:
            self.logger = logger
            self.num_DLA_cores = board.dla_cores

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            board.host_code.append(self.engine_host_code_allowed)
            if plan == b"plan":
                return Engine(board)
            self.logger.log(Severity.ERROR, board.reason)
            self.logger.log(Severity.WARNING, "something of no weight")
            return None

    class Judge(Runtime):
        def get_engine_validity(self, plan: bytes) -> Any:
            return SimpleNamespace(name=board.validity[0]), board.validity[1]

    class Network:
        num_inputs = 1
        num_layers = 3

        def get_input(self, index: int) -> Any:
            return SimpleNamespace(name="x", shape=board.input)

        def get_layer(self, index: int) -> Any:
            return SimpleNamespace(name=("/conv", "/act", "/head/softmax")[index])

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.num_DLA_cores = board.dla_cores

        def create_network(self, flags: int) -> Network:
            board.network_flags.append(flags)
            return Network()

        def create_builder_config(self) -> Any:
            return SimpleNamespace(
                can_run_on_DLA=lambda layer: layer.name in board.on_dla,
                clear_flag=board.cleared.append, set_flag=board.flags.append, add_optimization_profile=lambda profile: 0,
                create_timing_cache=lambda kept: SimpleNamespace(serialize=lambda: kept + b"+"),
                set_timing_cache=lambda cache, ignore: not ignore and cache.serialize() != b"foreign+")

        def create_optimization_profile(self) -> Any:
            return SimpleNamespace(set_shape=lambda name, low, best, high: None)

        def build_serialized_network(self, network: Network, config: Any) -> bytes:
            return b"plan"

    class Parser:
        def __init__(self, network: Network, logger: Any) -> None:
            self.num_errors = len(board.errors)

        def parse_from_file(self, path: str) -> bool:
            return not board.errors

        def get_error(self, index: int) -> Any:
            return board.errors[index]

    trt = ModuleType(name)
    typed = SimpleNamespace(STRONGLY_TYPED=1) if version.startswith("10") else SimpleNamespace()
    vars(trt).update(ILogger=ILogger, Runtime=Judge if name == "tensorrt_rtx" else Runtime, Builder=Builder, OnnxParser=Parser,
                     TensorIOMode=SimpleNamespace(INPUT="INPUT"), NetworkDefinitionCreationFlag=typed, float32="float32",
                     BuilderFlag=SimpleNamespace(TF32="TF32", GPU_FALLBACK="GPU_FALLBACK", EDITABLE_TIMING_CACHE="EDITABLE_TIMING_CACHE"),
                     DeviceType=SimpleNamespace(DLA="DLA"), EngineInvalidityDiagnostics=Diagnostics,
                     nptype=lambda kind: np.dtype(kind).type, __version__=version)
    return trt


def installed(board: Board, monkeypatch: pytest.MonkeyPatch, wheel: Path) -> Board:
    """This machine has that board's GPU with TensorRT 10, and cubins for it in its wheel."""
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(board, "tensorrt", "10.3.0"))
    monkeypatch.setattr(tensorrt, "check_driver", lambda: None)
    monkeypatch.setattr(tensorrt, "open_cuda", lambda: board.cuda)
    monkeypatch.setattr(cubin_files, "IN_WHEEL", wheel)
    fill(wheel, ((87, 12),))
    return board
