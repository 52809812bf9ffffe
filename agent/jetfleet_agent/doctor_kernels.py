"""The doctor's look at the CUDA kernels: which cubin serves this board's GPU, or why none does."""

from __future__ import annotations

from pathlib import Path

from jetfleet_contract.errors import IncompatibleError

from .checks import Check
from .cubin_files import find_cubin, places
from .gpu_probe import Gpu

_ORIGIN = {"signed": "signed by the host", "wheel": "from this agent's wheel"}


def kernels_line(sm: int, cuda: int) -> str:
    """What `probe` says: the cubin of this agent's wheel that serves a GPU, or why none does."""
    try:
        found = find_cubin(sm, cuda, places(None))
    except IncompatibleError as error:
        return f"{error.what} [{error.code}]"
    return f"{found.cubin.file} {_ORIGIN[found.origin]}, NVRTC {found.cubin.nvrtc}, source {found.source[7:19]}"


def kernels(gpu: Gpu, state: Path) -> Check | None:
    """None where there is no GPU. `state`: the agent's state folder.

    Without a cubin frames are prepared by the CPU: slower, no fault.
    """
    if not gpu.sm:
        return None
    if not gpu.cuda:
        return Check("kernels", "warning", f"sm_{gpu.sm} by the {gpu.told_by}, but no driver: {gpu.missing}",
                     "install the driver (it comes with JetPack); until then frames are prepared by the CPU")
    try:
        found = find_cubin(gpu.sm, gpu.cuda, places(state))
    except IncompatibleError as error:
        return Check("kernels", "warning", error.what, error.remedy)
    finding = (f"sm_{gpu.sm}, CUDA {gpu.cuda} (by the {gpu.told_by}): {found.cubin.file} {_ORIGIN[found.origin]}, "
               f"NVRTC {found.cubin.nvrtc}, source {found.source[7:19]}")
    return Check("kernels", "ok", f"{finding}; not {found.passed}" if found.passed else finding)
