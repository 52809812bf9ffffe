"""The CUDA driver behind one small port: NVIDIA's cuda-bindings, or pycuda where that is what is installed.

Whether there is a driver at all is asked in a process of its own, once: TensorRT's runtime has been seen to end the process without one.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys

from jetfleet_agent.pipeline.cuda.port import Cuda
from jetfleet_contract.errors import IncompatibleError

DRIVER_TIMEOUT_S = 30.0
_ASK = "import ctypes; print('cuInit', ctypes.CDLL('libcuda.so.1').cuInit(0))"
_REMEDY = "run on a machine with an NVIDIA GPU whose driver the agent may use, or let another backend run the model"
_ADAPTERS = (("cuda_bindings", "CudaBindings"), ("pycuda", "PyCuda"))


@functools.lru_cache(maxsize=1)
def why_no_driver() -> str:
    """Why this process cannot use a GPU; empty when it can. Asked in another process, whose crash or hang is an answer too."""
    try:
        ended = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, timeout=DRIVER_TIMEOUT_S, text=True, check=False)
    except subprocess.TimeoutExpired:
        return f"the NVIDIA driver does not answer within {DRIVER_TIMEOUT_S:.0f} s"
    if ended.returncode < 0:
        return f"the NVIDIA driver ends the process that asks it (signal {-ended.returncode})"
    if ended.returncode > 0:
        return "the NVIDIA driver (libcuda.so.1) is not installed"
    status = ended.stdout.rpartition("cuInit ")[2].strip()
    return "" if status == "0" else f"the NVIDIA driver refuses to start (cuInit gives {status[:8]}): no GPU, or no access to it"


def check_driver() -> None:
    """Raises IncompatibleError `cuda.driver` when there is no driver that starts."""
    reason = why_no_driver()
    if reason:
        raise IncompatibleError("cuda.driver", reason, remedy=_REMEDY)


def open_cuda() -> Cuda:
    """The first GPU, by the first binding that is installed.

    Raises:
        IncompatibleError: `cuda.driver`, `cuda.binding`.
        RuntimeFailure: `cuda.error`.
    """
    check_driver()
    missing: list[str] = []
    for module, kind in _ADAPTERS:
        adapter = _opened(module, kind, missing)
        if adapter is not None:
            return adapter
    raise IncompatibleError("cuda.binding", f"no Python binding of CUDA can be imported ({'; '.join(missing)})",
                            remedy="pip install cuda-bindings of the driver's CUDA major, or pycuda")


def _opened(module: str, kind: str, missing: list[str]) -> Cuda | None:
    try:
        adapter: Cuda = getattr(importlib.import_module(f"{__name__}.{module}"), kind)()
    except ImportError as error:
        missing.append(f"{module}: {' '.join(str(error).split())[:120]}")
        return None
    return adapter
