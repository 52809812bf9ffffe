"""Runtimes behind one interface: activate, infer, deactivate. Buffers are allocated once, at activation.

A backend owns a fixed number of **lanes**. A lane is everything one frame in flight needs: an input tensor that the
pre-processing writes into, output tensors that the decoder reads, and the runtime's own binding between them. So no
frame allocates, and an output stays valid until its lane is used again. The runtime's vendor library is imported
inside the class that needs it: this package imports on any machine.

    backend = open_backend("openvino", path, precision="bf16", threads=2, input_shape=(1, 3, 480, 640))
    with backend:
        backend.lanes[0].tensor[...] = ...
        outputs = backend.infer(backend.lanes[0])

What a runtime really did is read back after loading: where it ran and in which precision. A runtime that quietly did something
else than it was asked for is refused with `backend.fallback`: its speed and its accuracy were measured for another candidate.
"""

from __future__ import annotations

import hashlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from jetfleet_agent.durable import write_file
from jetfleet_agent.pipeline.decoded import HeadDecode, OutputPort
from jetfleet_agent.pipeline.preprocess import Geometry, Image
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.engines import EngineFile
from jetfleet_contract.errors import IncompatibleError, InputError, OrderError, RuntimeFailure, UntrustedError
from jetfleet_contract.tuning import Tuning, ran_in

Tensor = npt.NDArray[Any]
Outputs = tuple[npt.NDArray[Any], ...]

DEFAULTS = Tuning()

_CLASSES = {
    "onnxruntime": ("onnxruntime", "OnnxRuntime"),
    "openvino": ("openvino", "OpenVino"),
    "tensorrt": ("tensorrt", "TensorRt"),
    "tensorrt-rtx": ("tensorrt_rtx", "TensorRtRtx"),
}


class Lane:
    """One frame in flight, or a batch of N: `tensor` is (N, 3, H, W) float32, or (N, H, W, 3) uint8 BGR where normalising is folded into
    the graph; `binding` is the runtime's own, `outputs` are its results. Where the backend takes frames itself nothing reads `tensor`."""

    __slots__ = ("binding", "index", "outputs", "tensor")

    def __init__(self, index: int, tensor: Tensor, binding: Any, outputs: Outputs = ()) -> None:
        self.index = index
        self.tensor = tensor
        self.binding = binding
        self.outputs = outputs


class Backend(ABC):
    """One model in one runtime.

    Args:
        path: the ONNX file (TensorRT: also a serialized ``.plan``).
        precision: execution precision asked for: fp32, bf16, fp16 or int8.
        threads: CPU threads for the session; 0 lets the runtime decide.
        input_shape: (N, 3, H, W) of the file, N frames a batch; fixes its dynamic axes.
        lanes: frames (or batches) that may be in flight together.
        tuning: how the runtime is set up.
        spec: the bundle's input, needed where `tuning` folds its normalisation into the graph.
        engine: what this runtime, or that of a board alike, compiled from the file in the same set-up; loaded instead of compiling.
        kernels: the agent's state folder, where kernels that the host signed may lie; None where there is none.
        timing: file of kernels' timings that a build reads and writes (TensorRT; others have none).

    After `activate`, also one that ended in `backend.fallback`, `provider` is what the runtime really uses, `precision` what it really runs
    in, and `layers` how many layers with weights run in which (empty: the runtime does not tell). `preparation` says where frames become
    tensors and `decoding` where outputs become answers, and on a GPU's runtime also why not there.
    """

    name = ""
    precisions: tuple[str, ...] = ()
    can_fold = False
    has_engines = False

    def __init__(self, path: Path, *, precision: str, threads: int, input_shape: tuple[int, ...], lanes: int = 1,
                 tuning: Tuning = DEFAULTS, spec: InputSpec | None = None, engine: EngineFile | None = None,
                 kernels: Path | None = None, timing: Path | None = None) -> None:
        if precision not in self.precisions:
            raise IncompatibleError("backend.precision", f"{self.name} does not run in {precision}",
                                    remedy=f"use one of {', '.join(self.precisions)}")
        if tuning.folded and (spec is None or not self.can_fold):
            raise IncompatibleError("backend.fold", f"{self.name} cannot take uint8 frames for {path.name}",
                                    remedy="only openvino folds the normalisation of a frame into the graph")
        if engine is not None and not self.has_engines:
            raise IncompatibleError("engine.backend", f"{self.name} loads no engines", remedy="run the model from its ONNX file")
        self.path = path
        self.engine = engine
        self.timing = timing
        self.requested = precision
        self.precision = precision
        self.threads = threads
        self.input_shape = input_shape
        self.tuning = tuning
        self.spec = spec
        self.kernels = kernels
        self.preparation = self.decoding = "CPU"
        self.provider = ""
        self.layers: dict[str, int] = {}
        self.versions: dict[str, str] = {}
        self.lanes: tuple[Lane, ...] = ()
        self._lane_count = lanes

    def activate(self) -> None:
        """Load the model and allocate every buffer.

        Raises:
            IncompatibleError: `backend.missing` when the runtime is not installed, `backend.input` when the model's
                input cannot take `input_shape`, `backend.fallback` when the runtime ran somewhere else, or in another precision.
            RuntimeFailure: `backend.load` when the runtime refuses the model, `engine.load` when it refuses the engine.
            UntrustedError: `engine.digest` when the engine's bytes are not those that were vouched for.
        """
        if self.lanes:
            raise OrderError("backend.active", f"{self.name} was activated twice")
        if not self.path.is_file():
            raise InputError("model.missing", f"the model file {self.path.name} is not there", where=str(self.path))
        try:
            self.lanes = self._load(self._lane_count)
            self._refuse_fallback()
        except BaseException:
            self.deactivate()  # what was allocated before the failure
            raise

    def _refuse_fallback(self) -> None:
        wanted = self.tuning.provider
        if wanted and wanted != self.provider:
            raise IncompatibleError("backend.fallback", f"{self.name} was asked for {wanted} and ran {self.path.name} on {self.provider}",
                                    remedy=f"install what {wanted} needs, or do without it")
        self.precision = ran_in(self.requested, self.layers)
        if self.precision != self.requested:
            total, same = sum(self.layers.values()), self.layers.get(self.precision, 0)
            raise IncompatibleError(
                "backend.fallback", f"{self.name} was asked for {self.requested} and ran {same} of {total} layers in {self.precision}",
                remedy=f"ask for {self.precision}, or use a CPU and a file that {self.name} can run in {self.requested}")

    def prepare(self, image: Image, lane: Lane, index: int, fill: Callable[[Image, Tensor], Geometry]) -> Geometry:
        """The frame becomes picture `index` of the lane's next run: here, when that is run, or by `fill`, which gets its part of the lane's
        tensor, (1, ...). Called by whoever has the lane, from any thread.

        Raises:
            InputError: `frame.shape`.
        """
        return fill(image, lane.tensor if len(lane.tensor) == 1 else lane.tensor[index:index + 1])

    def decode_by(self, plan: Callable[[Sequence[OutputPort]], HeadDecode | None]) -> None:  # noqa: ARG002
        """Decode here what `plan` (`Task.on_gpu`) says, as far as this runtime can: outputs then have records in the place of a head. From
        each lane's next run on; called again when the task's options change. Never fails: the task decodes what is not decoded here."""
        self.decoding = "CPU"

    @property
    def gpu_work(self) -> str:
        """Where frames are prepared and answers decoded, and why not on the GPU; empty where nobody would expect it there."""
        if self.preparation == self.decoding == "CPU":
            return ""
        return f"frames: {self.preparation}; answers: {self.decoding}"

    def infer(self, lane: Lane) -> Outputs:
        """Run what the lane was given; the outputs are valid until the lane is run again.

        Raises:
            RuntimeFailure: `backend.run`.
        """
        if not self.lanes:
            raise OrderError("backend.inactive", f"{self.name} was asked to infer before it was activated")
        lane.outputs = self._run(lane)
        return lane.outputs

    def export(self, path: Path) -> EngineFile:
        """Write what was compiled to `path`, durably and whole or not at all.

        Raises:
            IncompatibleError: `engine.backend` when the runtime cannot. RuntimeFailure: `engine.export`. StorageError: `store.write`.
        """
        if not self.has_engines:
            raise IncompatibleError("engine.backend", f"{self.name} makes no engines", remedy="run the model from its ONNX file")
        if not self.lanes:
            raise OrderError("backend.inactive", f"{self.name} was asked for its engine before it was activated")
        try:
            data = self._exported()
        except Exception as error:  # noqa: BLE001  a vendor's binding raises what it likes
            raise RuntimeFailure("engine.export", f"{self.name} cannot write its engine of {self.path.name}: {error}"[:400]) from None
        write_file(path, data)
        return EngineFile(str(path), hashlib.sha256(data).hexdigest())

    def _exported(self) -> bytes:
        """The engine's bytes; asked only of a runtime that says `has_engines`."""
        raise NotImplementedError

    def deactivate(self) -> None:
        """Free the model and its buffers. Idempotent."""
        for lane in self.lanes:
            lane.binding = None
            lane.outputs = ()
        self.lanes = ()
        self._unload()

    def __enter__(self) -> Backend:
        self.activate()
        return self

    def __exit__(self, *_: object) -> None:
        self.deactivate()

    @abstractmethod
    def _load(self, count: int) -> tuple[Lane, ...]: ...

    @abstractmethod
    def _run(self, lane: Lane) -> Outputs: ...

    @abstractmethod
    def _unload(self) -> None: ...


def open_backend(
    name: str, path: Path, *, precision: str, threads: int, input_shape: tuple[int, ...], lanes: int = 1, tuning: Tuning = DEFAULTS,
    spec: InputSpec | None = None, engine: EngineFile | None = None, kernels: Path | None = None, timing: Path | None = None,
) -> Backend:
    """The backend of that name, not yet activated.

    Raises:
        IncompatibleError: `backend.unknown`, `backend.precision`, `backend.fold` or `engine.backend`.
    """
    if name not in _CLASSES:
        raise IncompatibleError("backend.unknown", f"there is no backend {name[:40]!r}", remedy=f"use one of {', '.join(_CLASSES)}")
    module, kind = _CLASSES[name]
    backend: type[Backend] = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    return backend(path, precision=precision, threads=tuning.threads or threads, input_shape=input_shape, lanes=lanes, tuning=tuning,
                   spec=spec, engine=engine, kernels=kernels, timing=timing)


def read_engine(engine: EngineFile) -> bytes:
    """The engine's bytes, hashed after they were read: what is loaded is what was checked. A runtime takes a flipped bit without a word.

    Raises:
        UntrustedError: `engine.digest`, also when it was cut short. RuntimeFailure: `engine.load` when it cannot be read.
    """
    path = Path(engine.path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RuntimeFailure("engine.load", f"the engine {path.name} cannot be read: {error.strerror}", where=str(path)) from None
    if hashlib.sha256(data).hexdigest() != engine.digest:
        raise UntrustedError("engine.digest", f"the engine {path.name}, {len(data)} bytes, is not the one that was vouched for",
                             where=str(path), remedy="it is compiled here instead, and fetched again")
    return data


def check_input_shape(model: str, declared: list[Any], wanted: tuple[int, ...]) -> None:
    """Compare a model's declared input shape (names or -1 for free axes) with the tensor we make.

    Raises:
        IncompatibleError: `backend.input`.
    """
    fits = len(declared) == len(wanted) and all(
        not isinstance(have, int) or have < 0 or have == want for have, want in zip(declared, wanted, strict=True))
    if not fits:
        raise IncompatibleError("backend.input", f"{model} takes {declared}, the bundle's input is {list(wanted)}",
                                remedy="build the bundle again with the model's own width and height")
