"""Pre-processing on the GPU: what is launched, with which arguments. See `preprocess.cu` and `jetfleet_contract.kernel_arguments`."""

from __future__ import annotations

from typing import Any

from jetfleet_agent.pipeline.cuda.port import Cuda, page_aligned
from jetfleet_contract.gpu_path import Fold
from jetfleet_contract.kernel_arguments import FRAME_BYTES, THREADS


class PreprocessLaunch:
    """One launch a batch. The grid covers the whole tensor, wherever the pictures lie in it, and a row without a picture ends at once: a
    captured launch stays right for cameras of any size, and for fewer pictures than the batch holds.

    Args:
        module: the loaded cubin, which holds ``fold.names``.
    """

    def __init__(self, cuda: Cuda, module: Any, fold: Fold) -> None:
        self.fold = fold
        self._cuda = cuda
        self._module = module
        self._packed = fold.rules.pack()
        quads = -(-fold.rules.width // 4)
        self._threads = min(THREADS, -(-quads // 32) * 32)
        self._grid = (-(-quads // self._threads), fold.rules.height, fold.images)
        self._cover = -(-fold.rules.width // THREADS), fold.rules.height, 1

    def enqueue(self, frames: int, out: int, stream: int) -> None:
        """Queue the pictures of the table at address `frames` into the tensor at `out`, whose band was written before. The table has
        ``fold.images`` rows of `FRAME_BYTES`; all zeros: no picture. Errors as `Cuda.launch`."""
        self._cuda.launch(self._module, self.fold.kernel.name, self._grid, self._threads, (frames, out, self._packed), stream)

    def fill(self, out: int, stream: int) -> None:
        """Queue the band's value over the one picture's tensor at `out`. Errors as `Cuda.launch`."""
        self._cuda.launch(self._module, self.fold.band.name, self._cover, THREADS, (out, self._packed), stream)

    def try_out(self) -> None:
        """Launch both kernels on memory of their own, and wait.

        Raises:
            RuntimeFailure: `cuda.error`, `cuda.memory`: the cubin lacks a kernel, or the GPU cannot run it.
        """
        cuda, blocks = self._cuda, list[int]()
        stream = cuda.stream()
        table = page_aligned((self.fold.images, FRAME_BYTES), "uint8")
        try:
            for size in (table.nbytes, self.fold.images * self.fold.image_bytes):
                blocks.append(cuda.allocate(size))
            cuda.pin(table)
            try:
                cuda.upload(blocks[0], table, stream)
                self.fill(blocks[1], stream)
                self.enqueue(blocks[0], blocks[1], stream)
                cuda.wait(stream)
            finally:
                cuda.unpin(table)
        finally:
            for block in blocks:
                cuda.free(block)
            cuda.end_stream(stream)
