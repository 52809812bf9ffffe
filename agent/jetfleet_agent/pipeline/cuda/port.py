"""What this package needs of a CUDA driver, and the error that every adapter raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, Union

import numpy as np
import numpy.typing as npt

from jetfleet_contract.errors import RuntimeFailure

PAGE = 4096
Argument = Union[int, bytes]


class Cuda(Protocol):
    """One GPU's primary context. Addresses are integers, sizes bytes, streams the driver's handles as integers.

    Every call belongs between `enter` and `close`; whoever calls from a new thread calls `enter` there first. Errors are RuntimeFailure
    `cuda.error` with CUDA's own name of it, `cuda.memory` when there is too little.

    `sm` is the compute capability times ten, `cuda` the driver's CUDA major. `integrated`: the GPU reads the host's memory, so a copy
    to it would be a copy for nothing (Jetson).
    """

    name: str
    sm: int
    cuda: int
    integrated: bool

    def enter(self) -> None:
        """Make the context this thread's own. Cheap when it is already."""

    def close(self) -> None: ...

    def free_memory(self) -> int:
        """Bytes that can be allocated now."""

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def pin(self, array: npt.NDArray[Any]) -> int:
        """Lock the array of `page_aligned` in memory; its address as the GPU sees it."""

    def unpin(self, array: npt.NDArray[Any]) -> None: ...

    def stream(self) -> int: ...

    def end_stream(self, stream: int) -> None: ...

    def wait(self, stream: int) -> None:
        """Until all that was queued on the stream is done."""

    def upload(self, to: int, array: npt.NDArray[Any], stream: int) -> None: ...

    def download(self, array: npt.NDArray[Any], source: int, stream: int) -> None: ...

    def load(self, cubin: bytes) -> Any: ...

    def unload(self, module: Any) -> None: ...

    def launch(self, module: Any, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Argument],
               stream: int) -> None:
        """Queue a kernel. An argument is an address (int) or the bytes of a structure."""

    def begin_capture(self, stream: int) -> None: ...

    def end_capture(self, stream: int) -> Any:
        """What was queued since `begin_capture`, as a graph that can be launched."""

    def launch_graph(self, graph: Any, stream: int) -> None: ...

    def end_graph(self, graph: Any) -> None: ...


def page_aligned(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """A zeroed array alone on its pages: what can be pinned without pinning a neighbour. Ordinary memory, so a view that somebody keeps
    stays valid after `unpin`."""
    size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
    room = np.zeros(-(-size // PAGE) * PAGE + PAGE, np.uint8)
    start = -room.ctypes.data % PAGE
    array: npt.NDArray[Any] = room[start:start + size].view(dtype).reshape(shape)
    return array


def refused(name: str, doing: str) -> NoReturn:
    """Raise what a CUDA error of that name means."""
    short = "OUT_OF_MEMORY" in name
    raise RuntimeFailure("cuda.memory" if short else "cuda.error", f"CUDA: {name} while {doing}",
                         remedy="close what else uses the GPU, or use a smaller model" if short else "")
