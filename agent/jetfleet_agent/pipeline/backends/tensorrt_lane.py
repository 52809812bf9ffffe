"""One lane of TensorRT: context, stream, the way into the engine, its outputs, and the graph that holds all of it.

There are two ways in: tensors that the host has filled (`Tensors`), and frames that a kernel makes the input of (`tensorrt_frames.Frames`).
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.backends.tensorrt_plan import Port
from jetfleet_agent.pipeline.cuda.port import Cuda, page_aligned
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
        tensor = self._tensor if self._layout == "nchw" else self._tensor.transpose(0, 2, 3, 1)
        if self._source.dtype == "int8":
            np.copyto(self._host, np.clip(np.rint(tensor / np.float32(self._scale)), -128, 127), casting="unsafe")
        else:
            np.copyto(self._host, tensor, casting="same_kind")

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


class LaneBinding:
    """A lane's context, stream and memory. `downloads` pair a host array with its copy on the GPU; `graph` holds a whole run."""

    def __init__(self, cuda: Cuda, model: str) -> None:
        self.cuda = cuda
        self.context: Any = None
        self.stream = cuda.stream()
        self.graph: Any = None
        self.inlet: Any = None  # an Inlet, from `lead_in` on
        self.downloads: list[tuple[npt.NDArray[Any], int]] = []
        self._model = model
        self._pinned: list[npt.NDArray[Any]] = []
        self._blocks: list[int] = []

    def lead_in(self, name: str, inlet: Inlet) -> None:
        """Make `inlet` the way to the engine's input `name`, in the place of the one there was. Errors as `Cuda.allocate`."""
        self.drop_graph()
        if self.inlet is not None:
            self.inlet.free()
        self.inlet = inlet
        self.context.set_tensor_address(name, inlet.open())

    def lead_out(self, port: Port) -> npt.NDArray[Any]:
        """Memory for an output, the host's array of it. Errors as `Cuda.allocate`."""
        array = page_aligned(port.shape, np.dtype(port.dtype))
        address = self.cuda.pin(array)
        self._pinned.append(array)
        if not self.cuda.integrated:
            address = self.cuda.allocate(port.size)
            self._blocks.append(address)
            self.downloads.append((array, address))
        self.context.set_tensor_address(port.name, address)
        return array

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
        for array, address in self.downloads:
            self.cuda.download(array, address, self.stream)

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
        for block in self._blocks:
            self.cuda.free(block)
        for array in self._pinned:
            self.cuda.unpin(array)
        self._blocks, self._pinned = [], []
        self.cuda.end_stream(self.stream)
