"""A plan becomes an engine, or a named reason why not; what an engine takes, gives and needs is asked before anything is allocated."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import numpy as np

from jetfleet_agent.pipeline.backends import check_input_shape
from jetfleet_contract.errors import IncompatibleError, JetfleetError, RuntimeFailure

log = logging.getLogger(__name__)

_INPUT_TYPES = ("float32", "float16", "int8")
_REMEDY = "a plan runs only on the GPU and TensorRT build it was made for; build it here from the ONNX file"
# What the runtime logs before it gives no engine (NVIDIA/TensorRT and forum threads quote these lines).
_TOLD = (("compute capability", "engine.sm"), ("expecting compute", "engine.sm"), ("target gpu", "engine.sm"),
         ("version tag", "engine.version"), ("serialization version", "engine.version"), ("version mismatch", "engine.version"),
         ("not compatible with this version", "engine.version"), ("incompatible", "engine.device"))
# `EngineInvalidityDiagnostics` of TensorRT for RTX, the most telling first.
_DIAGNOSED = (("MALFORMED_ENGINE", "engine.broken", "is damaged, or no engine"),
              ("VERSION_MISMATCH", "engine.version", "was built by another version"),
              ("UNSUPPORTED_CC", "engine.sm", "was not built for this GPU"),
              ("INSUFFICIENT_GPU_MEMORY", "backend.memory", "needs more memory than the GPU has"),
              ("OLD_CUDA_DRIVER", "cuda.driver", "needs a newer driver"), ("OLD_CUDA_RUNTIME", "cuda.driver", "needs a newer CUDA runtime"),
              ("CUDA_ERROR", "cuda.error", "cannot be judged: CUDA fails"))


class Port(msgspec.Struct, frozen=True):
    """One input or output of an engine, at the chosen profile's shape; `dtype` as numpy names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def new_logger(trt: Any) -> Any:
    """A logger that passes on to ours and keeps the last error as `reason`: TensorRT gives None, and tells why only there."""

    class Heard(trt.ILogger):  # type: ignore[misc]  # the base is the module's
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.reason = ""

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(message.split())[:300]
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.reason = text
                log.info("TensorRT: %s", text)

    return Heard()


def open_engine(trt: Any, runtime: Any, logger: Any, plan: bytes, name: str) -> Any:
    """The engine of a plan; it may not run host code.

    Raises:
        IncompatibleError: `engine.version`, `engine.sm`, `engine.device`, `cuda.driver`, `engine.broken`.
        RuntimeFailure: `backend.load`, `backend.memory`, `cuda.error`.
    """
    runtime.engine_host_code_allowed = False
    judge = getattr(runtime, "get_engine_validity", None)
    if judge is not None:
        verdict, diagnostics = judge(plan)
        if verdict.name == "INVALID":
            raise _diagnosed(int(diagnostics), trt.EngineInvalidityDiagnostics, name, trt.__version__, logger.reason)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise _told(logger.reason, name, trt.__version__)
    return engine


def _diagnosed(bits: int, kinds: Any, name: str, version: str, reason: str) -> JetfleetError:
    for kind, code, sentence in _DIAGNOSED:
        if bits & int(getattr(kinds, kind)):
            failure = RuntimeFailure if code in ("backend.memory", "cuda.error") else IncompatibleError
            return failure(code, f"{name} {sentence} (TensorRT for RTX {version})", remedy=_REMEDY)
    what = f"TensorRT for RTX {version} calls {name} invalid: {reason or 'it gives no reason'}"
    return RuntimeFailure("backend.load", what, remedy=_REMEDY)


def _told(reason: str, name: str, version: str) -> JetfleetError:
    low = reason.lower()
    code = next((code for part, code in _TOLD if part in low), "")
    what = f"TensorRT {version} cannot load {name}: {reason or 'it gives no reason'}"
    return IncompatibleError(code, what, remedy=_REMEDY) if code else RuntimeFailure("backend.load", what, remedy=_REMEDY)


def ports_of(trt: Any, engine: Any, model: str, shape: tuple[int, ...]) -> tuple[Port, tuple[str, ...]]:
    """(the input, the outputs' names) for images of `shape`, (N, 3, H, W). One image goes in: float32, float16 or int8, its channels first
    or last; the input's shape is as the engine has it.

    Raises:
        IncompatibleError: `backend.input`.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    types = [_type_of(trt, engine.get_tensor_dtype(name)) for name in inputs]
    if len(inputs) != 1 or types[0] not in _INPUT_TYPES:
        told = ", ".join(f"{name} ({kind})" for name, kind in zip(inputs, types, strict=True))
        raise IncompatibleError("backend.input", f"{model} takes {told or 'nothing'}; it needs exactly one input, of "
                                                 f"{' or '.join(_INPUT_TYPES)}")
    return Port(inputs[0], as_declared(list(engine.get_tensor_shape(inputs[0])), shape), types[0]), tuple(
        name for name in names if name != inputs[0])


def as_declared(declared: list[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    """(N, 3, H, W), or (N, H, W, 3) where a model declares its channels last and not first."""
    if len(declared) == len(shape) == 4 and declared[3] == 3 and declared[1] not in (3, -1):
        return shape[0], shape[2], shape[3], shape[1]
    return shape


def _type_of(trt: Any, kind: Any) -> str:
    """As numpy names it; TensorRT's own name of what numpy has not."""
    try:
        return str(trt.nptype(kind)().dtype)
    except TypeError:
        return str(getattr(kind, "name", kind)).lower()


def choose_profile(engine: Any, name: str, shape: tuple[int, ...], model: str) -> int:
    """The profile for inputs of this shape: one made for just this shape, else the first that allows it.

    Raises:
        IncompatibleError: `backend.input`, with what each profile allows.
    """
    declared = list(engine.get_tensor_shape(name))
    check_input_shape(f"{model}'s input {name!r}", declared, shape)
    if all(side >= 0 for side in declared):
        return 0
    profiles = range(engine.num_optimization_profiles)
    ranges = [tuple(tuple(part) for part in engine.get_tensor_profile_shape(name, index)) for index in profiles]
    fitting = [index for index, (low, _, high) in enumerate(ranges)
               if len(low) == len(shape) and all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True))]
    if not fitting:
        allowed = "; ".join(f"{list(low)} to {list(high)}" for low, _, high in ranges) or "nothing: it has no profile"
        raise IncompatibleError("backend.input", f"{model}'s input {name!r} is {list(shape)} here, its profiles allow {allowed}",
                                remedy=f"build the plan with an optimisation profile of {name!r} that holds {list(shape)}")
    return next((index for index in fitting if ranges[index][1] == shape), fitting[0])


def outputs_of(trt: Any, engine: Any, context: Any, names: tuple[str, ...], model: str) -> tuple[Port, ...]:
    """The outputs at the context's input shape.

    Raises:
        IncompatibleError: `backend.output` naming an output whose shape depends on what is seen.
    """
    found = []
    for name in names:
        shape = tuple(context.get_tensor_shape(name))
        if any(side < 0 for side in shape):
            raise IncompatibleError("backend.output", f"{model}'s output {name!r} is {list(shape)}: its size depends on what is seen",
                                    remedy="export the model without its non-maximum suppression, or with a fixed number of answers")
        found.append(Port(name, shape, str(trt.nptype(engine.get_tensor_dtype(name))().dtype)))
    return tuple(found)


def check_memory(free: int, needed: int, what: str) -> None:
    """Raises RuntimeFailure `backend.memory` when `needed` bytes are more than the GPU has free."""
    if needed > free:
        raise RuntimeFailure("backend.memory", f"{what} needs {needed / 1e6:.0f} MB of GPU memory, {free / 1e6:.0f} MB are free",
                             remedy="close what else uses the GPU, or use a smaller model or batch")


def activation_bytes(engine: Any) -> int:
    """Memory of one execution context; 0 where the engine does not tell."""
    return int(getattr(engine, "device_memory_size_v2", getattr(engine, "device_memory_size", 0)))
