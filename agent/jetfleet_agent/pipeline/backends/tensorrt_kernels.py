"""The cubin that a session uses: found, checked, loaded and tried out, or a named reason why frames are prepared by the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jetfleet_agent.cubin_files import find_cubin, places
from jetfleet_agent.pipeline.backends.tensorrt_plan import Port
from jetfleet_agent.pipeline.cuda.decode_launch import DecodeLaunch
from jetfleet_agent.pipeline.cuda.frame_memory import FRAME_MEMORY
from jetfleet_agent.pipeline.cuda.port import Cuda
from jetfleet_agent.pipeline.cuda.preprocess_launch import PreprocessLaunch
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.cubins import read_cubin
from jetfleet_contract.decode_arguments import HeadRules
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.gpu_path import EngineInput, gpu_path


class Kernels:
    """One loaded cubin with the launch of one input's pre-processing. `text` says which it is.

    Args:
        names: of all kernels in the cubin.
    """

    def __init__(self, cuda: Cuda, module: Any, names: frozenset[str], launch: PreprocessLaunch, text: str) -> None:
        self.launch = launch
        self.text = text
        self._cuda = cuda
        self._module = module
        self._names = names
        FRAME_MEMORY.join()

    def decoder(self, rules: HeadRules) -> DecodeLaunch:
        """The decode of such heads, tried out on memory of its own.

        Raises:
            IncompatibleError: `cubin.kernels`. RuntimeFailure: `cuda.error`, `cuda.memory`.
        """
        missing = sorted(rules.kernels - self._names)
        if missing:
            raise IncompatibleError("cubin.kernels", f"the cubin lacks {missing[0]}")
        launch = DecodeLaunch(self._cuda, self._module, rules)
        stream, blocks = self._cuda.stream(), list[int]()
        try:
            for size in (rules.head_bytes, rules.workspace_bytes, rules.output_bytes):
                blocks.append(self._cuda.allocate(size))
            launch.enqueue(blocks[0], blocks[1], blocks[2], stream)
            self._cuda.wait(stream)
        finally:
            for block in blocks:
                self._cuda.free(block)
            self._cuda.end_stream(stream)
        return launch

    def close(self) -> None:
        """After every graph that launches from it has ended."""
        FRAME_MEMORY.leave()
        self._cuda.unload(self._module)


def open_kernels(cuda: Cuda, spec: InputSpec | None, source: Port, state: Path | None) -> Kernels:
    """The kernels for an engine's input, tried out on this GPU.

    Args:
        state: the agent's state folder; None where there is none.

    Raises:
        IncompatibleError: `kernels.input` with the reason of `gpu_path`, `kernels.none` with that of every place.
        RuntimeFailure: `cuda.error`, `cuda.memory`.
    """
    path = gpu_path(spec, EngineInput(source.shape, source.dtype))
    if path.fold is None:
        raise IncompatibleError("kernels.input", path.reason)
    found = find_cubin(cuda.sm, cuda.cuda, places(state), path.fold.names)
    module = cuda.load(found.data)
    try:
        launch = PreprocessLaunch(cuda, module, path.fold)
        launch.try_out()
    except BaseException:
        cuda.unload(module)
        raise
    return Kernels(cuda, module, frozenset(read_cubin(found.data).kernels), launch,
                   f"GPU, {path.fold.kernel.name} of {found.cubin.file} ({found.origin})")
