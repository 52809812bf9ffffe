"""A lane's pictures on their way into the engine: what is copied for each run, and the one launch that makes them the engine's input.

Frames in the pool's memory are read where they are on a GPU that shares the host's memory, else copied over once each, also when several
tiles are cut from one; others are copied into the lane's own memory first. A frame that the kernel cannot sample, of one row or column or
more than 32768, is prepared by the CPU and its tensor copied into its place.

What differs from run to run (the copies, the band of a picture that now lies elsewhere) is queued in front of the graph; in it are the
table of pictures, the launch and what comes after.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.backends.tensorrt_lane import encode
from jetfleet_agent.pipeline.cuda.frame_memory import FRAME_MEMORY, Bytes, Pixels
from jetfleet_agent.pipeline.cuda.port import Cuda, page_aligned
from jetfleet_agent.pipeline.cuda.preprocess_launch import PreprocessLaunch
from jetfleet_agent.pipeline.preprocess import Geometry, Image
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import InputError
from jetfleet_contract.kernel_arguments import FRAME_BYTES, Sampling, sampling

MAX_SIZES = 64  # of frames whose sampling is kept
_DTYPES: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "i8": np.int8}


class Frames:
    """Pictures of one lane. `give` may be called by any thread that has the lane, the rest by the one that runs it.

    `address` is the engine's input: memory of the GPU's own, for nobody else looks at it.

    Args:
        tensor: of the lane, (N, 3, h, w) float32: what the CPU has prepared.
    """

    def __init__(self, cuda: Cuda, launch: PreprocessLaunch, spec: InputSpec, tensor: npt.NDArray[np.float32]) -> None:
        self.address = 0
        self._cuda = cuda
        self._launch = launch
        self._spec = spec
        self._tensor = tensor
        self._input = _Block(cuda)
        count = launch.fold.images
        self.given: list[Image | None] = [None] * count
        self._filled = [False] * count  # by the CPU
        self._bands: list[tuple[int, int, int, int] | None] = [None] * count
        self._copies = [_Locked(cuda) for _ in range(count)]
        self._blocks = [_Block(cuda) for _ in range(0 if cuda.integrated else count)]
        self._samplings: dict[tuple[int, int], Sampling] = {}
        self._rows, self._rows_block = _Locked(cuda), _Block(cuda)
        self._table: Bytes = np.empty((0, FRAME_BYTES), np.uint8)
        self._table_at = 0

    def open(self) -> int:
        """Allocate; the address of the engine's input. Errors as `Cuda.allocate`; `free` gives back what there was."""
        fold = self._launch.fold
        memory, self._table_at = self._rows.of(fold.images * FRAME_BYTES)
        self._table = memory.reshape(fold.images, FRAME_BYTES)
        if not self._cuda.integrated:
            self._table_at = self._rows_block.of(self._table.nbytes)
        self.address = self._input.of(fold.images * fold.image_bytes)
        return self.address

    def give(self, index: int, image: Image) -> Geometry | None:
        """The lane's next run has `image`, (H, W, 3) uint8 BGR, as picture `index`. It is read when the lane is run. None when it must be
        written into picture `index` of `tensor` instead, before the lane is run.

        Raises:
            InputError: `frame.shape`.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError("frame.shape", f"a frame of shape {image.shape} and type {image.dtype} is no BGR image")
        height, width = image.shape[:2]
        try:
            where = self._where(width, height)
        except InputError:
            self.given[index], self._filled[index] = None, True
            return None
        self.given[index], self._filled[index] = image, False
        return Geometry(width, height, where.width / width, where.height / height, float(where.left), float(where.top))

    def _where(self, width: int, height: int) -> Sampling:
        where = self._samplings.get((width, height))
        if where is None:
            if len(self._samplings) >= MAX_SIZES:
                self._samplings.clear()
            where = self._samplings[width, height] = sampling(self._spec, width, height, self._spec.resize)
        return where

    def stage(self, stream: int) -> None:
        """Queue what is of this run alone. Without new pictures the engine runs once more on what it had. Errors as `Cuda.upload`."""
        self._table.fill(0)
        found = [None if image is None else self._pixels(index, image) for index, image in enumerate(self.given)]
        moved = self._moved([pixels for pixels in found if pixels is not None], stream)
        for index, (image, pixels) in enumerate(zip(self.given, found, strict=True)):
            if image is None or pixels is None:
                continue
            where = self._where(image.shape[1], image.shape[0])
            self._band(index, where, stream)
            row = where.pack(moved[id(pixels.flat)] + pixels.start, pixels.pitch, offset=index * self._launch.fold.image_elements)
            self._table[index] = np.frombuffer(row, np.uint8)
        for index, filled in enumerate(self._filled):
            if filled:
                self._copy_in(index, stream)

    def _copy_in(self, index: int, stream: int) -> None:
        """What the CPU has prepared, as the engine wants it."""
        fold = self._launch.fold
        memory, _ = self._copies[index].of(fold.image_bytes)
        layout, (width, height) = fold.kernel.layout, (fold.rules.width, fold.rules.height)
        out = memory[:fold.image_bytes].view(_DTYPES[fold.kernel.type])
        encode(self._tensor[index:index + 1], out.reshape((1, 3, height, width) if layout == "nchw" else (1, height, width, 3)), layout,
               self._spec.input_scale)
        self._bands[index] = None
        self._cuda.upload(self.address + index * fold.image_bytes, memory[:fold.image_bytes], stream)

    def _pixels(self, index: int, image: Image) -> Pixels:
        found = FRAME_MEMORY.find(self._cuda, image)
        if found is not None:
            return found
        memory, address = self._copies[index].of(image.size)
        np.copyto(memory[:image.size].reshape(image.shape), image)
        return Pixels(memory, address, 0, image.shape[1] * 3, image.size)

    def _moved(self, pixels: list[Pixels], stream: int) -> dict[int, int]:
        """By memory: the address on the GPU that its byte 0 has, or would have; of what is uploaded, only the bytes in use."""
        if self._cuda.integrated:
            return {id(one.flat): one.address for one in pixels}
        spans: dict[int, tuple[Bytes, int, int]] = {}
        for one in pixels:
            _, low, high = spans.get(id(one.flat), (one.flat, one.start, one.end))
            spans[id(one.flat)] = one.flat, min(low, one.start), max(high, one.end)
        moved = {}
        for block, (key, (flat, low, high)) in zip(self._blocks, spans.items(), strict=False):
            address = block.of(high - low)
            self._cuda.upload(address, flat[low:high], stream)
            moved[key] = address - low
        return moved

    def _band(self, index: int, where: Sampling, stream: int) -> None:
        """Write the band where the picture does not lie as the last one did."""
        place = where.left, where.top, where.width, where.height
        if self._bands[index] == place:
            return
        self._bands[index] = None
        fold = self._launch.fold
        if (where.width, where.height) != (fold.rules.width, fold.rules.height):
            self._launch.fill(self.address + index * fold.image_bytes, stream)
        self._bands[index] = place

    def enqueue(self, stream: int) -> None:
        """Queue the table and the launch: always the same, so it can be captured. Errors as `Cuda.launch`."""
        if not self._cuda.integrated:
            self._cuda.upload(self._table_at, self._table, stream)
        self._launch.enqueue(self._table_at, self.address, stream)

    def done(self) -> None:
        """The run is over: frames may go back to their pool."""
        for index in range(len(self.given)):
            self.given[index], self._filled[index] = None, False

    def free(self) -> None:
        self.done()
        for memory in (*self._copies, self._rows):
            memory.free()
        for block in (*self._blocks, self._rows_block, self._input):
            block.free()


class _Locked:
    """The host's memory that the GPU sees; grows with what is put there."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._memory: Bytes | None = None
        self._address = 0

    def of(self, size: int) -> tuple[Bytes, int]:
        """At least `size` bytes, and their address as the GPU sees it."""
        if self._memory is None or self._memory.size < size:
            self.free()
            memory = page_aligned((size,), np.uint8)
            self._address = self._cuda.pin(memory)
            self._memory = memory
        return self._memory, self._address

    def free(self) -> None:
        if self._memory is not None:
            self._cuda.unpin(self._memory)
        self._memory = None


class _Block:
    """Memory of the GPU's own; grows with what is put there."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._address = self._size = 0

    def of(self, size: int) -> int:
        if self._size < size:
            self.free()
            self._address = self._cuda.allocate(size)
            self._size = size
        return self._address

    def free(self) -> None:
        if self._size:
            self._cuda.free(self._address)
        self._address = self._size = 0
