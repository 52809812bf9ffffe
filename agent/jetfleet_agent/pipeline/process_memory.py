"""This process's memory, and whether an error means that there was not enough of it.

Runtimes say so in words of their own: ONNX Runtime passes on ``std::bad_alloc`` or its arena's text, OpenVINO the same, TensorRT
and CUDA a code's name.
"""

from __future__ import annotations

import os
from pathlib import Path

from jetfleet_contract.errors import JetfleetError

_SIGNS = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory", "cannot allocate memory", "outofmemory", "out_of_memory",
          "memory allocation fail", "memoryerror")


def resident_mb() -> float:
    """Resident memory in MB (1e6 bytes), 0 where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a runtime's error, or Python's own, says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    text = (error.what if isinstance(error, JetfleetError) else str(error)).lower()
    return any(sign in text for sign in _SIGNS)
