"""TensorRT 10 and 11 on the board's own GPU: a serialized plan, or the ONNX file built here (`tensorrt_build`).

TensorRT comes from JetPack; memory and streams go through the port `pipeline.cuda`. Everything a frame needs is allocated at activation.
Upload, engine and download are captured once a lane as a CUDA graph, so that a frame is one launch and one wait; where that cannot be done
they are queued one after the other, and the log says why. On a Jetson the GPU reads the lane's tensor where it is: nothing is copied.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.backends import Backend, Lane, Outputs, read_engine
from jetfleet_agent.pipeline.backends.tensorrt_build import build_plan
from jetfleet_agent.pipeline.backends.tensorrt_plan import (
    Port,
    activation_bytes,
    check_memory,
    choose_profile,
    new_logger,
    open_engine,
    outputs_of,
    ports_of,
)
from jetfleet_agent.pipeline.cuda import check_driver, open_cuda
from jetfleet_agent.pipeline.cuda.port import Cuda, page_aligned
from jetfleet_contract.errors import IncompatibleError, JetfleetError, RuntimeFailure

log = logging.getLogger(__name__)

DLA = "DLA"


class _Binding:
    """A lane's context, stream and memory. `uploads` and `downloads` pair a host array with its copy on the GPU; `graph` does all of it."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.context: Any = None
        self.stream = cuda.stream()
        self.graph: Any = None
        self.uploads: list[tuple[Any, int]] = []
        self.downloads: list[tuple[Any, int]] = []
        self._pinned: list[Any] = []
        self._blocks: list[int] = []

    def memory(self, port: Port) -> tuple[Any, int]:
        """(the host's array, the address that the GPU uses): the same memory where the GPU is integrated."""
        array = page_aligned(port.shape, np.dtype(port.dtype))
        mapped = self.cuda.pin(array)
        self._pinned.append(array)
        if self.cuda.integrated:
            return array, mapped
        self._blocks.append(self.cuda.allocate(port.size))
        return array, self._blocks[-1]

    def queue(self, model: str) -> None:
        for array, address in self.uploads:
            self.cuda.upload(address, array, self.stream)
        if not self.context.execute_async_v3(self.stream):
            raise RuntimeFailure("backend.run", f"TensorRT failed on {model}")
        for array, address in self.downloads:
            self.cuda.download(array, address, self.stream)

    def capture(self, model: str) -> None:
        """Make the graph. The context has run once before: its first run may allocate, which no graph can."""
        self.cuda.begin_capture(self.stream)
        try:
            self.queue(model)
        except BaseException:
            self._abandon_capture()
            raise
        self.graph = self.cuda.end_capture(self.stream)

    def _abandon_capture(self) -> None:
        try:
            self.cuda.end_graph(self.cuda.end_capture(self.stream))
        except RuntimeFailure as error:
            log.debug("the failed capture ended with: %s", error.what)

    def free(self) -> None:
        """What the GPU gave, the stream last."""
        if self.graph is not None:
            self.cuda.end_graph(self.graph)
        self.graph = self.context = None
        for block in self._blocks:
            self.cuda.free(block)
        for array in self._pinned:
            self.cuda.unpin(array)
        self._blocks, self._pinned = [], []
        self.cuda.end_stream(self.stream)


class TensorRt(Backend):
    """One execution context, one stream and one set of buffers a lane. `tuning.provider` ``DLA0`` or ``DLA1`` builds for that core."""

    name = "tensorrt"
    precisions = ("fp32", "fp16", "int8")
    has_engines = True
    module = "tensorrt"
    remedy = "run on a Jetson with JetPack 6 or newer (TensorRT 10), with cuda-bindings installed in the agent's environment"

    _trt: Any = None
    _cuda: Cuda | None = None
    _runtime: Any = None
    _engine: Any = None
    _bindings: tuple[_Binding, ...] = ()

    def _load(self, count: int) -> tuple[Lane, ...]:
        check_driver()  # before the import: without a driver the runtime has ended the process
        try:
            self._trt = trt = importlib.import_module(self.module)
        except ImportError as error:
            raise IncompatibleError("backend.missing", f"{self.module} cannot be imported: {error}", remedy=self.remedy) from None
        self._cuda = cuda = open_cuda()
        logger = new_logger(trt)
        core = self._dla_core()
        plan = self._plan(trt, logger, core)
        check_memory(cuda.free_memory(), len(plan), f"{self.path.name}, whose weights alone")
        self._runtime = trt.Runtime(logger)
        if self._runtime is None:
            raise RuntimeFailure("backend.load", f"{self.module} {trt.__version__} does not start: {logger.reason}")
        if core is not None:
            self._runtime.DLA_core = core
        self.versions = {self.module: trt.__version__}
        self.provider = f"{DLA}{core}" if core is not None else cuda.name
        source, outputs, profile = self._opened(trt, logger, plan)
        check_memory(cuda.free_memory(), count * activation_bytes(self._engine), f"{self.path.name} with {count} frames in flight")
        return tuple(self._lane(cuda, index, source, outputs, profile) for index in range(count))

    def _plan(self, trt: Any, logger: Any, core: int | None) -> bytes:
        if self.engine is not None:
            return read_engine(self.engine)
        if self.path.suffix in (".plan", ".engine"):
            return self.path.read_bytes()
        return build_plan(trt, logger, self.path, self.input_shape, exact=self.requested == "fp32", dla_core=core)

    def _opened(self, trt: Any, logger: Any, plan: bytes) -> tuple[str, tuple[str, ...], int]:
        """Load the plan: its input, its outputs and the profile to use. A signed engine that does not fit is no fault of the model."""
        try:
            self._engine = open_engine(trt, self._runtime, logger, plan, self.path.name)
            source, outputs = ports_of(trt, self._engine, self.path.name)
            return source, outputs, choose_profile(self._engine, source, self.input_shape, self.path.name)
        except JetfleetError as error:
            if self.engine is None or error.code not in ("backend.load", "backend.input"):
                raise
            raise RuntimeFailure("engine.load", f"the engine of {self.path.name} does not load: {error.what}"[:400],
                                 remedy="it is compiled here instead") from None

    def _exported(self) -> bytes:
        plan = self._engine.serialize()
        if plan is None:
            raise RuntimeFailure("engine.export", "it gives no plan")
        return bytes(plan)

    def _dla_core(self) -> int | None:
        wanted = self.tuning.provider
        if not wanted.startswith(DLA):
            return None
        if wanted not in ("DLA0", "DLA1"):
            raise IncompatibleError("backend.dla", f"there is no DLA core {wanted!r}", remedy="use DLA0 or DLA1")
        return int(wanted.removeprefix(DLA))

    def _lane(self, cuda: Cuda, index: int, source: str, outputs: tuple[str, ...], profile: int) -> Lane:
        binding = _Binding(cuda)
        self._bindings = (*self._bindings, binding)
        binding.context = context = self._context()
        if context is None:
            raise RuntimeFailure("backend.memory", f"{self.module} gives no execution context for {self.path.name}: too little GPU memory")
        if profile and not context.set_optimization_profile_async(profile, binding.stream):
            raise IncompatibleError("backend.input", f"{self.path.name} refuses its profile {profile}")
        if not context.set_input_shape(source, self.input_shape):
            raise IncompatibleError("backend.input", f"{self.path.name}'s input {source!r} refuses {list(self.input_shape)}")
        tensor, address = binding.memory(Port(source, self.input_shape, "float32"))
        context.set_tensor_address(source, address)
        results = []
        for port in outputs_of(self._trt, self._engine, context, outputs, self.path.name):
            array, target = binding.memory(port)
            context.set_tensor_address(port.name, target)
            results.append(array)
            if not cuda.integrated:
                binding.downloads.append((array, target))
        if not cuda.integrated:
            binding.uploads.append((tensor, address))
        binding.queue(self.path.name)
        cuda.wait(binding.stream)
        try:
            binding.capture(self.path.name)
        except JetfleetError as error:
            log.warning("%s runs without a CUDA graph: %s", self.path.name, error.what)
        return Lane(index, tensor, binding, tuple(results))

    def _context(self) -> Any:
        return self._engine.create_execution_context()

    def _run(self, lane: Lane) -> Outputs:
        binding: _Binding = lane.binding
        cuda = binding.cuda
        cuda.enter()
        if binding.graph is not None:
            cuda.launch_graph(binding.graph, binding.stream)
        else:
            binding.queue(self.path.name)
        cuda.wait(binding.stream)
        return lane.outputs

    def _unload(self) -> None:
        if self._cuda is None:
            return
        self._cuda.enter()
        for binding in self._bindings:
            binding.free()
        self._bindings = ()
        self._engine = self._runtime = None
        self._cuda.close()
        self._cuda = None
