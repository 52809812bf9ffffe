"""TensorRT 10 and 11 on the board's own GPU: a serialized plan, or the ONNX file built here (`tensorrt_build`).

TensorRT comes from JetPack; memory and streams go through the port `pipeline.cuda`. Everything a frame needs is allocated at activation.
Pre-processing, engine and download are captured once a lane as a CUDA graph, so that a frame is one launch and one wait; where that cannot
be done they are queued one after the other, and the log says why. On a Jetson the GPU reads frames where they are: nothing is copied.

Frames become the engine's input in one kernel (`tensorrt_frames`) where this GPU has it, and a YOLO head is decoded behind the engine;
`preparation` and `decoding` say so, or why the CPU does it. A kernel that fails while the pipeline runs costs the one run that is done
again: from then on the CPU prepares and decodes.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.backends import Backend, Lane, Outputs, Tensor, read_engine
from jetfleet_agent.pipeline.backends.tensorrt_build import build_plan
from jetfleet_agent.pipeline.backends.tensorrt_frames import Frames
from jetfleet_agent.pipeline.backends.tensorrt_kernels import Kernels, open_kernels
from jetfleet_agent.pipeline.backends.tensorrt_lane import LaneBinding, Tensors
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
from jetfleet_agent.pipeline.cuda.decode_launch import DecodeLaunch
from jetfleet_agent.pipeline.cuda.port import Cuda, page_aligned
from jetfleet_agent.pipeline.decoded import HeadDecode, OutputPort
from jetfleet_agent.pipeline.preprocess import Geometry, Image, Preprocessor
from jetfleet_contract.errors import IncompatibleError, JetfleetError, RuntimeFailure
from jetfleet_contract.footings import DLA

log = logging.getLogger(__name__)

DLA_PRECISIONS = ("fp16", "int8")


class TensorRt(Backend):
    """One execution context, one stream and one set of buffers a lane. `tuning.provider` ``DLA0`` or ``DLA1`` builds for that core."""

    name = "tensorrt"
    precisions = ("fp32", "fp16", "int8")
    has_engines = True
    timed = True
    module = "tensorrt"
    remedy = "run on a Jetson with JetPack 6 or newer (TensorRT 10), with cuda-bindings installed in the agent's environment"

    _trt: Any = None
    _cuda: Cuda | None = None
    _runtime: Any = None
    _engine: Any = None
    _bindings: tuple[LaneBinding, ...] = ()
    _source: Port = Port("", (), "float32")
    _kernels: Kernels | None = None
    _outputs: tuple[Port, ...] = ()
    _decode: tuple[HeadDecode | None, DecodeLaunch | None] = (None, None)  # one value: another thread sets it
    _failed = False  # a kernel did, while it ran

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
            if core >= self._runtime.num_DLA_cores:
                raise IncompatibleError("backend.dla", f"{DLA}{core} was asked for, this {self.module} sees "
                                                       f"{self._runtime.num_DLA_cores} DLA cores", remedy="run the model on the GPU")
            self._runtime.DLA_core = core
        self.versions = {self.module: trt.__version__}
        self.provider = f"{DLA}{core}" if core is not None else cuda.name
        outputs, profile = self._opened(trt, logger, plan)
        check_memory(cuda.free_memory(), count * activation_bytes(self._engine), f"{self.path.name} with {count} frames in flight")
        self._kernels = self._found_kernels(cuda)
        return tuple(self._lane(cuda, index, outputs, profile) for index in range(count))

    def _plan(self, trt: Any, logger: Any, core: int | None) -> bytes:
        if self.engine is not None:
            return read_engine(self.engine)
        if self.path.suffix in (".plan", ".engine"):
            return self.path.read_bytes()
        return build_plan(trt, logger, self.path, self.input_shape, exact=self.requested == "fp32", dla_core=core,
                          timing=self.timing if self.timed else None)

    def _opened(self, trt: Any, logger: Any, plan: bytes) -> tuple[tuple[str, ...], int]:
        """Load the plan: its outputs and the profile to use. A signed engine that does not fit is no fault of the model."""
        try:
            self._engine = open_engine(trt, self._runtime, logger, plan, self.path.name)
            self._source, outputs = ports_of(trt, self._engine, self.path.name, self.input_shape)
            return outputs, choose_profile(self._engine, self._source.name, self._source.shape, self.path.name)
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
        if self.requested not in DLA_PRECISIONS:
            raise IncompatibleError("backend.dla", f"a DLA core does not run in {self.requested}: {self.path.name} stays on the GPU",
                                    remedy=f"use the bundle's variant in {' or '.join(DLA_PRECISIONS)}")
        return int(wanted.removeprefix(DLA))

    def _found_kernels(self, cuda: Cuda) -> Kernels | None:
        """None when the CPU has to prepare; `preparation` then says why."""
        try:
            kernels = open_kernels(cuda, self.spec, self._source, self.kernels)
        except JetfleetError as error:
            self.preparation = f"CPU: {error.what} [{error.code}]"
            log.info("frames for %s are prepared by the CPU: %s", self.path.name, error.what)
            return None
        self.preparation = kernels.text
        return kernels

    def _lane(self, cuda: Cuda, index: int, outputs: tuple[str, ...], profile: int) -> Lane:
        binding = LaneBinding(cuda, self.path.name)
        self._bindings = (*self._bindings, binding)
        binding.context = context = self._context()
        source = self._source
        if context is None:
            raise RuntimeFailure("backend.memory", f"{self.module} gives no execution context for {self.path.name}: too little GPU memory")
        if profile and not context.set_optimization_profile_async(profile, binding.stream):
            raise IncompatibleError("backend.input", f"{self.path.name} refuses its profile {profile}")
        if not context.set_input_shape(source.name, source.shape):
            raise IncompatibleError("backend.input", f"{self.path.name}'s input {source.name!r} refuses {list(source.shape)}")
        tensor = page_aligned(self.input_shape, np.float32)
        binding.lead_in(source.name, self._tensors(cuda, tensor) if self._kernels is None or self.spec is None
                        else Frames(cuda, self._kernels.launch, self.spec, tensor))
        self._outputs = outputs_of(self._trt, self._engine, context, outputs, self.path.name)
        for port in self._outputs:
            binding.lead_out(port)
        binding.start()
        return Lane(index, tensor, binding, binding.outputs)

    def _tensors(self, cuda: Cuda, tensor: Tensor) -> Tensors:
        scale = self.spec.input_scale if self.spec is not None else 0.0
        if self._source.dtype == "int8" and scale <= 0:
            raise IncompatibleError("backend.input", f"{self.path.name} takes int8, and its scale is not told",
                                    remedy="give the bundle's input its input_scale")
        return Tensors(cuda, tensor, self._source, "nchw" if self._source.shape == self.input_shape else "nhwc", scale)

    def _context(self) -> Any:
        return self._engine.create_execution_context()

    def prepare(self, image: Image, lane: Lane, index: int, fill: Callable[[Image, Tensor], Geometry]) -> Geometry:
        inlet = lane.binding.inlet
        geometry = inlet.give(index, image) if isinstance(inlet, Frames) and not self._failed else None
        return super().prepare(image, lane, index, fill) if geometry is None else geometry

    def decode_by(self, plan: Callable[[Sequence[OutputPort]], HeadDecode | None]) -> None:
        if self._kernels is None or self._cuda is None or self._failed:
            return
        self._cuda.enter()
        head, decoder = self._decode
        try:
            wanted = plan(self._outputs)
            if wanted != head:
                decoder = self._kernels.decoder(wanted.rules) if wanted is not None else None
        except JetfleetError as error:
            wanted = decoder = None
            self.decoding = f"CPU: {error.what} [{error.code}]"
            log.info("answers of %s are decoded by the CPU: %s", self.path.name, error.what)
        else:
            self.decoding = f"GPU, a {wanted.rules.layout} head" if wanted is not None else "CPU: no kernel decodes such outputs"
        self._decode = wanted, decoder  # each lane takes it with its next run

    def _run(self, lane: Lane) -> Outputs:
        binding: LaneBinding = lane.binding
        binding.cuda.enter()
        if not isinstance(binding.inlet, Frames):
            binding.run()
        elif self._failed or not self._is_run_by_kernels(binding):
            self._fill(lane, binding.inlet)
            binding.decode(None, None)
            binding.lead_in(self._source.name, self._tensors(binding.cuda, lane.tensor))
            binding.start()
        return binding.outputs

    def _is_run_by_kernels(self, binding: LaneBinding) -> bool:
        """False when a kernel failed: the run is still to be done."""
        head, decoder = self._decode
        try:
            if binding.head == head:
                binding.run()
            else:
                binding.decode(head, decoder)
                binding.start()
        except RuntimeFailure as error:
            if not error.code.startswith("cuda."):
                raise
            self._failed = True
            self.preparation = self.decoding = f"CPU: {error.what} [{error.code}]"
            log.warning("frames for %s are prepared by the CPU from now on: %s", self.path.name, error.what)
            return False
        return True

    def _fill(self, lane: Lane, frames: Frames) -> None:
        """The CPU's turn, with what the lane was given."""
        assert self.spec is not None  # noqa: S101  there are no Frames without
        preprocessor = Preprocessor(self.spec)
        for index, image in enumerate(frames.given):
            if image is not None:
                preprocessor.run(image, lane.tensor[index:index + 1])

    def _unload(self) -> None:
        if self._cuda is None:
            return
        self._cuda.enter()
        for binding in self._bindings:
            binding.free()
        self._bindings = ()
        if self._kernels is not None:
            self._kernels.close()
        self._engine = self._runtime = self._kernels = None
        self._decode, self._failed = (None, None), False
        self._cuda.close()
        self._cuda = None
