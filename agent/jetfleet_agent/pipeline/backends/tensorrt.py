"""TensorRT 10 on the board's own GPU: a serialized plan, or the ONNX file built here as a strongly typed network.

Strongly typed means that the file decides the precision (fp16 weights, or Q/DQ pairs for int8), so what was scored is what
runs. Plans load with host code not allowed (TensorRT's default, kept). TensorRT comes from JetPack; memory goes through
NVIDIA's `cuda-bindings`. Copies and the engine are queued on one stream; one wait a frame.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.backends import Backend, Lane, Outputs, check_input_shape
from jetfleet_contract.errors import IncompatibleError, RuntimeFailure

_REMEDY = "run on a Jetson with JetPack 6 or newer (TensorRT 10), with cuda-bindings installed in the agent's environment"


class _Binding:
    """A lane's device memory and stream. `copies_out` pairs (host array, device pointer)."""

    __slots__ = ("context", "copies_out", "device_input", "pointers", "stream")

    def __init__(self, context: Any, stream: Any) -> None:
        self.context = context
        self.stream = stream
        self.device_input = 0
        self.pointers: list[int] = []
        self.copies_out: list[tuple[Any, int]] = []


class TensorRt(Backend):
    """One execution context, one stream and one set of device buffers a lane."""

    name = "tensorrt"
    precisions = ("fp32", "fp16", "int8")

    _trt: Any = None
    _cuda: Any = None
    _engine: Any = None
    _bindings: tuple[_Binding, ...] = ()

    def _load(self, count: int) -> tuple[Lane, ...]:
        try:
            import tensorrt as trt
            from cuda.bindings import runtime as cuda
        except ImportError as error:
            raise IncompatibleError("backend.missing", f"TensorRT cannot be imported: {error}", remedy=_REMEDY) from None
        self._trt, self._cuda = trt, cuda
        logger = trt.Logger(trt.Logger.ERROR)
        plan = self.path.read_bytes() if self.path.suffix == ".plan" else self._build(logger)
        self._engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if self._engine is None:
            raise RuntimeFailure("backend.load", f"TensorRT {trt.__version__} cannot load {self.path.name}", where=str(self.path),
                                 remedy="a plan runs only on the GPU and TensorRT build it was made for; build it here from the ONNX file")
        self.versions = {"tensorrt": trt.__version__}
        self.provider = f"CUDA device {self._check(cuda.cudaGetDevice())}"
        return tuple(self._lane(index) for index in range(count))

    def _build(self, logger: Any) -> bytes:
        trt = self._trt
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(self.path)):
            reasons = "; ".join(parser.get_error(i).desc() for i in range(min(parser.num_errors, 3)))
            raise RuntimeFailure("backend.load", f"TensorRT cannot parse {self.path.name}: {reasons[:300]}", where=str(self.path))
        config = builder.create_builder_config()
        if self.requested == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32: TF32 keeps 10 bits of mantissa
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, self.input_shape, self.input_shape, self.input_shape)
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise RuntimeFailure("backend.load", f"TensorRT {trt.__version__} cannot build {self.path.name}", where=str(self.path))
        return bytes(plan)

    def _lane(self, index: int) -> Lane:
        trt, engine = self._trt, self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1 or engine.get_tensor_dtype(inputs[0]) != trt.float32:
            raise IncompatibleError("backend.input", f"{self.path.name} needs exactly one float32 input")
        check_input_shape(self.path.name, list(engine.get_tensor_shape(inputs[0])), self.input_shape)
        binding = _Binding(engine.create_execution_context(), self._check(self._cuda.cudaStreamCreate()))
        self._bindings = (*self._bindings, binding)
        binding.context.set_input_shape(inputs[0], self.input_shape)
        tensor = np.zeros(self.input_shape, np.float32)
        binding.device_input = self._malloc(binding, inputs[0], tensor.nbytes)
        for name in names:
            if name != inputs[0]:
                host = np.zeros(tuple(binding.context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name)))
                binding.copies_out.append((host, self._malloc(binding, name, host.nbytes)))
        return Lane(index, tensor, binding, tuple(host for host, _ in binding.copies_out))

    def _malloc(self, binding: _Binding, name: str, size: int) -> int:
        pointer = int(self._check(self._cuda.cudaMalloc(math.ceil(size / 256) * 256)))
        binding.pointers.append(pointer)
        binding.context.set_tensor_address(name, pointer)
        return pointer

    def _run(self, lane: Lane) -> Outputs:
        cuda, binding = self._cuda, lane.binding
        kinds = cuda.cudaMemcpyKind
        self._check(cuda.cudaMemcpyAsync(binding.device_input, lane.tensor.ctypes.data, lane.tensor.nbytes,
                                         kinds.cudaMemcpyHostToDevice, binding.stream))
        if not binding.context.execute_async_v3(int(binding.stream)):
            raise RuntimeFailure("backend.run", f"TensorRT failed on {self.path.name}")
        for host, pointer in binding.copies_out:
            self._check(cuda.cudaMemcpyAsync(host.ctypes.data, pointer, host.nbytes, kinds.cudaMemcpyDeviceToHost, binding.stream))
        self._check(cuda.cudaStreamSynchronize(binding.stream))
        return lane.outputs

    def _check(self, answer: tuple[Any, ...]) -> Any:
        """The value of a CUDA runtime call, whose first element is its error code."""
        error, *values = answer
        if int(error) != 0:
            raise RuntimeFailure("backend.run", f"CUDA error {int(error)} ({getattr(error, 'name', '')}) on {self.path.name}")
        return values[0] if values else None

    def _unload(self) -> None:
        for binding in self._bindings:
            for pointer in binding.pointers:
                self._cuda.cudaFree(pointer)
            self._cuda.cudaStreamDestroy(binding.stream)
        self._bindings = ()
        self._engine = None
