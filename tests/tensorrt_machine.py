"""A machine with a GPU and a TensorRT, for tests of what goes around both: ``python tensorrt_machine.py VERSION SM DLA_CORES JOB RESULT``
is the agent's evaluation there.

A plan of this TensorRT is a line that says what it was built by and for, and the ONNX file, which ONNX Runtime runs when the engine is
executed. Like the real one it gives no engine, and tells why in its log, when version or compute capability is another.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from fake_cuda import FakeCuda

CACHED = b"timings:"


class Machine:
    """One TensorRT on one GPU. A plan's line also says for which kind of device it is, and how many builds had filled the timing cache."""

    def __init__(self, version: str, sm: int, dla_cores: int = 0) -> None:
        self.version, self.sm, self.dla_cores = version, sm, dla_cores
        self.cuda = FakeCuda()
        self.cuda.sm = sm

    def module(self) -> ModuleType:
        made = ModuleType("tensorrt")
        vars(made).update(
            __version__=self.version.rpartition(".")[0], ILogger=_Logger, Runtime=lambda logger: _Runtime(self, logger),
            Builder=lambda logger: _Builder(self), OnnxParser=_Parser, TensorIOMode=SimpleNamespace(INPUT="INPUT"), float32="float32",
            NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1), DeviceType=SimpleNamespace(DLA="DLA"),
            BuilderFlag=SimpleNamespace(TF32="TF32", GPU_FALLBACK="GPU_FALLBACK", EDITABLE_TIMING_CACHE="EDITABLE_TIMING_CACHE"),
            nptype=lambda kind: np.dtype(kind).type)
        return made


class _Logger:
    Severity = SimpleNamespace(ERROR=1)


class _Network:
    num_inputs = num_layers = 1

    def __init__(self) -> None:
        self.model = b""

    def get_input(self, _index: int) -> Any:
        session = _session(self.model)
        return SimpleNamespace(name=session.get_inputs()[0].name, shape=session.get_inputs()[0].shape)

    def get_layer(self, _index: int) -> Any:
        return SimpleNamespace(name="all of it")


class _Parser:
    num_errors = 0

    def __init__(self, network: _Network, _logger: Any) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        self.network.model = Path(path).read_bytes()
        return True


class _Cache:
    """Timings of kernels: here, how many builds have filled it."""

    def __init__(self, kept: bytes) -> None:
        self.builds = int(kept.removeprefix(CACHED) or b"0") if kept.startswith(CACHED) else 0
        self.foreign = bool(kept) and not kept.startswith(CACHED)

    def serialize(self) -> bytes:
        return CACHED + str(self.builds).encode()


class _Config:
    def __init__(self) -> None:
        self.cache: _Cache | None = None
        self.default_device_type, self.DLA_core = "GPU", -1

    def can_run_on_DLA(self, _layer: Any) -> bool:  # noqa: N802  TensorRT's name
        return True

    def clear_flag(self, _flag: str) -> None: ...
    def set_flag(self, _flag: str) -> None: ...
    def add_optimization_profile(self, _profile: Any) -> int:
        return 0

    def create_timing_cache(self, kept: bytes) -> _Cache:
        return _Cache(kept)

    def set_timing_cache(self, cache: _Cache, ignore: bool) -> bool:
        self.cache = cache
        return ignore or not cache.foreign


class _Builder:
    def __init__(self, machine: Machine) -> None:
        self.machine, self.num_DLA_cores = machine, machine.dla_cores

    def create_network(self, _flags: int) -> _Network:
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *_: None)

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes:
        known = config.cache.builds if config.cache else 0
        if config.cache:
            config.cache.builds += 1
        told = {"version": self.machine.version, "sm": self.machine.sm, "device": config.default_device_type, "known": known}
        return json.dumps(told).encode() + b"\n" + network.model


class _Runtime:
    engine_host_code_allowed = True

    def __init__(self, machine: Machine, logger: Any) -> None:
        self.machine, self.logger, self.DLA_core, self.num_DLA_cores = machine, logger, -1, machine.dla_cores

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        line, _, model = plan.partition(b"\n")
        told = json.loads(line)
        if told["version"] != self.machine.version:
            self.logger.log(1, "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed. Version tag does not match")
            return None
        if told["sm"] != self.machine.sm:
            reason = f"incompatible device, expecting compute {told['sm'] / 10} got compute {self.machine.sm / 10}"
            self.logger.log(1, reason)
            return None
        return _Engine(self.machine, plan, model)


class _Engine:
    num_optimization_profiles = 1
    device_memory_size_v2 = 0

    def __init__(self, machine: Machine, plan: bytes, model: bytes) -> None:
        self.machine, self.plan, self.session = machine, plan, _session(model)
        self.ports = (*self.session.get_inputs(), *self.session.get_outputs())
        self.num_io_tensors = len(self.ports)

    def serialize(self) -> bytes:
        return self.plan

    def get_tensor_name(self, index: int) -> str:
        return str(self.ports[index].name)

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name == self.ports[0].name else "OUTPUT"

    def get_tensor_dtype(self, _name: str) -> str:
        return "float32"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return next(tuple(port.shape) for port in self.ports if port.name == name)

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine, self.addresses = engine, dict[str, int]()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self.engine.get_tensor_shape(name) == shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.get_tensor_shape(name)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda, source = self.engine.machine.cuda, self.engine.ports[0]

        def work() -> None:
            found = self.engine.session.run(None, {source.name: cuda.read(self.addresses[source.name], tuple(source.shape))})
            for port, values in zip(self.engine.ports[1:], found, strict=True):
                cuda.write(self.addresses[port.name], values)

        cuda.queue(stream, "run", work)
        return True


def _session(model: bytes) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def install(machine: Machine) -> None:
    """This process's TensorRT and GPU from now on."""
    from jetfleet_agent.pipeline.backends import tensorrt

    sys.modules["tensorrt"] = machine.module()
    vars(tensorrt).update(check_driver=lambda: None, open_cuda=lambda: machine.cuda)


def main() -> int:
    from jetfleet_agent.pipeline import evaluate

    version, sm, cores, *rest = sys.argv[1:]
    install(Machine(version, int(sm), int(cores)))
    return evaluate.main(rest)


if __name__ == "__main__":
    sys.exit(main())
