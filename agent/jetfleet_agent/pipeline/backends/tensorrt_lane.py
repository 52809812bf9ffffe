"""One lane of TensorRT: context, stream, the way into the engine, its outputs, and the graph that holds all of it.

There are two ways in: tensors that the host has filled (`Tensors`), and frames that a kernel makes the input of (`tensorrt_frames.Frames`).
Behind the engine a YOLO head may be decoded where it is: then its survivors are copied to the host, a few kilobytes, and not the head.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.backends.tensorrt_plan import Port
from jetfleet_agent.pipeline.cuda.decode_launch import DecodeLaunch
from jetfleet_agent.pipeline.cuda.port import Cuda, page_aligned
from jetfleet_agent.pipeline.decoded import HeadDecode, record_type
from jetfleet_contract.errors import JetfleetError, RuntimeFailure
from jetfleet_contract.kernels import Layout

log = logging.getLogger(__name__)


class Inlet(Protocol):
    """A way into the engine."""

    def open(self) -> int:
        """Allocate; the address of the engine's input."""

    def stage(self, stream: int) -> None:
        """Do, or queue, what is of the next run alone."""

    def enqueue(self, stream: int) -> None:
        """Queue what every run has alike."""

    def done(self) -> None:
        """The run is over."""

    def free(self) -> None: ...


class Tensors:
    """The host's `tensor`, (N, 3, h, w) float32 of `page_aligned`, as the engine wants it.

    It is uploaded as it is where the engine takes just that; else it is converted for each run: float16, int8 (``round(tensor /
    input_scale)``, saturated), channels last.
    """

    def __init__(self, cuda: Cuda, tensor: npt.NDArray[np.float32], source: Port, layout: Layout, input_scale: float) -> None:
        self._cuda = cuda
        self._tensor = tensor
        self._source = source
        self._layout = layout
        self._scale = input_scale
        self._is_as_wanted = (layout, source.dtype) == ("nchw", "float32")
        self._host: npt.NDArray[Any] = tensor
        self._block = 0
        self._is_pinned = False

    def open(self) -> int:
        if not self._is_as_wanted:
            self._host = page_aligned(self._source.shape, np.dtype(self._source.dtype))
        mapped = self._cuda.pin(self._host)
        self._is_pinned = True
        if self._cuda.integrated:
            return mapped
        self._block = self._cuda.allocate(self._source.size)
        return self._block

    def stage(self, stream: int) -> None:  # noqa: ARG002
        if self._is_as_wanted:
            return
        encode(self._tensor, self._host, self._layout, self._scale)

    def enqueue(self, stream: int) -> None:
        if self._block:
            self._cuda.upload(self._block, self._host, stream)

    def done(self) -> None:
        """The tensor stays as it is."""

    def free(self) -> None:
        if self._block:
            self._cuda.free(self._block)
        if self._is_pinned:
            self._cuda.unpin(self._host)
        self._block, self._is_pinned = 0, False


def encode(tensor: npt.NDArray[np.float32], out: npt.NDArray[Any], layout: Layout, input_scale: float) -> None:
    """Write (n, 3, h, w) float32 into `out`, (n, 3, h, w) or (n, h, w, 3) float32, float16 or int8."""
    told = tensor if layout == "nchw" else tensor.transpose(0, 2, 3, 1)
    if out.dtype == np.int8:
        told = np.clip(np.rint(told / np.float32(input_scale)), -128, 127)
    np.copyto(out, told, casting="unsafe")


class _Outlet:
    """Memory of one output: the host's `array`, and the `address` that the GPU uses, which is the same memory where it is integrated."""

    def __init__(self, cuda: Cuda, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.name = name
        self._cuda = cuda
        self.array = page_aligned(shape, np.dtype(dtype))
        self.address = cuda.pin(self.array)
        self._block = 0
        if not cuda.integrated:
            try:
                self._block = self.address = cuda.allocate(self.array.nbytes)
            except BaseException:
                self.free()
                raise

    def free(self) -> None:
        if self._block:
            self._cuda.free(self._block)
        self._cuda.unpin(self.array)


class _Decode:
    """A head's decode in one lane: scratch memory, and the records in the place of the head."""

    def __init__(self, cuda: Cuda, launch: DecodeLaunch, head: _Outlet) -> None:
        self._cuda = cuda
        self._launch = launch
        self._head = head
        rules = launch.rules
        self._workspace = cuda.allocate(rules.workspace_bytes)
        try:
            self.records = _Outlet(cuda, head.name, (rules.images,), record_type(rules))
        except BaseException:
            cuda.free(self._workspace)
            raise

    def enqueue(self, stream: int) -> None:
        self._launch.enqueue(self._head.address, self._workspace, self.records.address, stream)

    def free(self) -> None:
        self.records.free()
        self._cuda.free(self._workspace)


class LaneBinding:
    """A lane's context, stream and memory; `graph` holds a whole run, `head` is what is decoded behind the engine."""

    def __init__(self, cuda: Cuda, model: str) -> None:
        self.cuda = cuda
        self.context: Any = None
        self.stream = cuda.stream()
        self.graph: Any = None
        self.inlet: Any = None  # an Inlet, from `lead_in` on
        self.head: HeadDecode | None = None
        self.outputs: tuple[npt.NDArray[Any], ...] = ()
        self._model = model
        self._outlets: list[_Outlet] = []
        self._given: tuple[_Outlet, ...] = ()
        self._decode: _Decode | None = None

    def lead_in(self, name: str, inlet: Inlet) -> None:
        """Make `inlet` the way to the engine's input `name`, in the place of the one there was. Errors as `Cuda.allocate`."""
        self.drop_graph()
        if self.inlet is not None:
            self.inlet.free()
        self.inlet = inlet
        self.context.set_tensor_address(name, inlet.open())

    def lead_out(self, port: Port) -> None:
        """Memory for an output. Errors as `Cuda.allocate`."""
        self._outlets.append(_Outlet(self.cuda, port.name, port.shape, port.dtype))
        self.context.set_tensor_address(port.name, self._outlets[-1].address)
        self._settle()

    def decode(self, head: HeadDecode | None, launch: DecodeLaunch | None) -> None:
        """Decode that output behind the engine from the next `start` on, or none. Errors as `Cuda.allocate`."""
        self.drop_graph()
        self.head = None
        if self._decode is not None:
            self._decode.free()
            self._decode = None
        if head is not None and launch is not None:
            self._decode = _Decode(self.cuda, launch, next(outlet for outlet in self._outlets if outlet.name == head.output))
            self.head = head
        self._settle()

    def _settle(self) -> None:
        """What the host gets: the engine's outputs, with records in the place of a head that is decoded."""
        records = self._decode.records if self._decode is not None else None
        self._given = tuple(records if records is not None and records.name == one.name else one for one in self._outlets)
        self.outputs = tuple(outlet.array for outlet in self._given)

    def start(self) -> None:
        """Run once, for a context's first run may allocate, which no graph can; then make the graph, where that can be done.

        Raises:
            RuntimeFailure: `backend.run`, `cuda.error`, `cuda.memory`.
        """
        self.inlet.stage(self.stream)
        self._queue()
        self._finish()
        try:
            self._capture()
        except JetfleetError as error:
            log.warning("%s runs without a CUDA graph: %s", self._model, error.what)

    def run(self) -> None:
        """One run of what was given, to its end. Raises as `start`."""
        self.inlet.stage(self.stream)
        if self.graph is not None:
            self.cuda.launch_graph(self.graph, self.stream)
        else:
            self._queue()
        self._finish()

    def _queue(self) -> None:
        self.inlet.enqueue(self.stream)
        if not self.context.execute_async_v3(self.stream):
            raise RuntimeFailure("backend.run", f"TensorRT failed on {self._model}")
        if self._decode is not None:
            self._decode.enqueue(self.stream)
        if not self.cuda.integrated:
            for outlet in self._given:
                self.cuda.download(outlet.array, outlet.address, self.stream)

    def _finish(self) -> None:
        self.cuda.wait(self.stream)
        self.inlet.done()

    def _capture(self) -> None:
        self.cuda.begin_capture(self.stream)
        try:
            self._queue()
        except BaseException:
            self._abandon_capture()
            raise
        self.graph = self.cuda.end_capture(self.stream)

    def _abandon_capture(self) -> None:
        try:
            self.cuda.end_graph(self.cuda.end_capture(self.stream))
        except RuntimeFailure as error:
            log.debug("the failed capture ended with: %s", error.what)

    def drop_graph(self) -> None:
        if self.graph is not None:
            self.cuda.end_graph(self.graph)
        self.graph = None

    def free(self) -> None:
        """What the GPU gave, the stream last."""
        self.drop_graph()
        self.context = None
        if self.inlet is not None:
            self.inlet.free()
        self.inlet = None
        self.decode(None, None)
        for outlet in self._outlets:
            outlet.free()
        self._outlets = []
        self.cuda.end_stream(self.stream)
