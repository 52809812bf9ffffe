"""The decode of a YOLO head on the GPU: what is launched, in which order, with which arguments."""

from __future__ import annotations

from typing import Any

from jetfleet_agent.pipeline.cuda.port import Cuda
from jetfleet_contract.decode_arguments import COMPARE_THREADS, KEEP_THREADS, SCAN_THREADS, HeadRules
from jetfleet_contract.kernels import DECODE_CLEAR, DECODE_COMPARE, DECODE_KEEP, DECODE_RANK, HeadVariant


class DecodeLaunch:
    """One decode of a batch of heads: five launches, six where numbers go along. Nothing is copied, allocated or waited for, so all of it
    can be captured in a CUDA graph behind the engine.

    The caller owns the memory: a workspace of ``rules.workspace_bytes`` on the GPU, which need not be set, and an output of
    ``rules.output_bytes``, which the host reads as (images,) records of `decoded.record_type` after a download (or where it is, when
    the GPU is integrated). Both start at multiples of 16 bytes, as all allocations of CUDA do. One workspace serves one stream at a time.

    Args:
        module: the loaded cubin, which holds ``rules.kernels``.
        rules: from `head_rules`, which has checked every bound.
    """

    def __init__(self, cuda: Cuda, module: Any, rules: HeadRules) -> None:
        self.rules = rules
        self._cuda = cuda
        self._module = module
        self._packed = rules.pack()
        self._scan = HeadVariant("scan", rules.layout, rules.type).name
        self._gather = HeadVariant("gather", rules.layout, rules.type).name

    def enqueue(self, head: int, workspace: int, output: int, stream: int) -> None:
        """Queue the decode of the heads at address `head` (shape ``rules.shape``, contiguous) on the stream, behind what writes them.

        Raises:
            RuntimeFailure: `cuda.error` of the driver.
        """
        rules, packed = self.rules, self._packed
        self._launch(DECODE_CLEAR, rules.image_grid, 1, (workspace, packed), stream)
        self._launch(self._scan, rules.scan_grid, SCAN_THREADS, (head, workspace, packed), stream)
        self._launch(DECODE_RANK, rules.scan_grid, SCAN_THREADS, (workspace, packed), stream)
        self._launch(DECODE_COMPARE, rules.compare_grid, COMPARE_THREADS, (workspace, packed), stream)
        self._launch(DECODE_KEEP, rules.image_grid, KEEP_THREADS, (workspace, output, packed), stream)
        if rules.extra:
            self._launch(self._gather, rules.gather_grid, SCAN_THREADS, (head, output, packed), stream)

    def _launch(self, kernel: str, grid: tuple[int, int, int], threads: int, arguments: tuple[Any, ...], stream: int) -> None:
        self._cuda.launch(self._module, kernel, grid, threads, arguments, stream)
