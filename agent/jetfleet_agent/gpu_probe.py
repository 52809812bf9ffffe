"""Which GPU CUDA's driver sees, asked in a process of its own: ``python -m jetfleet_agent.gpu_probe`` prints one JSON line.

The driver costs the process that starts it tens of megabytes for good, so the supervisor never does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import msgspec

from jetfleet_contract.boards import BoardFile
from jetfleet_contract.errors import IncompatibleError

from .gpu_driver import read_gpu

TIMEOUT_S = 30.0


class Gpu(msgspec.Struct, frozen=True):
    """`sm` is the compute capability times ten, `cuda` the driver's CUDA major; both 0 where there is none. `told_by`: ``driver``, or
    ``board file`` where no driver answers; `missing` then says why."""

    sm: int = 0
    cuda: int = 0
    told_by: str = ""
    missing: str = ""


def gpu_of(board: BoardFile, l4t: str, ask: Callable[[], Gpu] | None = None) -> Gpu:
    """This board's GPU: what its driver says, else what the board's file and its release say.

    Args:
        l4t: the release that runs, as 36.4.3; empty: not told. ask: `ask_driver` when None.
    """
    if board.gpu is None and not board.driver:
        return Gpu(missing=f"{board.title} has no NVIDIA GPU")
    asked = (ask or ask_driver)()
    if not asked.missing or board.gpu is None:
        return asked
    release = board.release(l4t)
    return Gpu(int(board.gpu.sm.replace(".", "")), int(release.cuda.partition(".")[0] or 0) if release is not None else 0, "board file",
               asked.missing)


def ask_driver() -> Gpu:
    """`look` in a process of its own; a crash or a hang is an answer too."""
    try:
        done = subprocess.run([sys.executable, "-m", "jetfleet_agent.gpu_probe"], stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=TIMEOUT_S, check=False)
        return msgspec.json.decode(done.stdout[:4096], type=Gpu)
    except subprocess.TimeoutExpired:
        return Gpu(missing=f"CUDA's driver did not answer within {TIMEOUT_S:.0f} s")
    except (OSError, msgspec.DecodeError):
        return Gpu(missing="CUDA's driver ends the process that asks it")


def look() -> Gpu:
    """Start the driver and ask it about its first GPU."""
    try:
        gpu = read_gpu()
    except IncompatibleError as error:
        return Gpu(missing=error.what)
    return Gpu(gpu.sm, int(gpu.driver.partition(".")[0] or 0), "driver")


if __name__ == "__main__":
    print(msgspec.json.encode(look()).decode())
