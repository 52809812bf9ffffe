"""What the NVIDIA driver says of the first GPU, asked through its C library. Only programs that may end with it call this: `backend_probe`.

Numbers are those of `cuda.h`: CUdevice_attribute and CUresult.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.messages import GpuInfo

LIBRARY = "libcuda.so.1"
_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76
_MAX_NAME = 256


def read_gpu(load: Callable[[str], Any] = ctypes.CDLL) -> GpuInfo:
    """The first GPU. `load` opens the library by its name.

    Raises:
        IncompatibleError: `cuda.driver` when there is no driver, it does not start, or it has no GPU.
    """
    try:
        cuda = load(LIBRARY)
    except OSError:
        raise IncompatibleError("cuda.driver", f"the NVIDIA driver ({LIBRARY}) is not installed") from None
    status = cuda.cuInit(0)
    if status != 0:
        raise IncompatibleError("cuda.driver", f"the NVIDIA driver refuses to start (cuInit gives {status}): no GPU, or no access to it")
    device, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(_MAX_NAME)
    if cuda.cuDeviceGet(ctypes.byref(device), 0) != 0 or cuda.cuDeviceGetName(name, _MAX_NAME, device) != 0:
        raise IncompatibleError("cuda.driver", "the NVIDIA driver has no GPU")
    cuda.cuDriverGetVersion(ctypes.byref(version))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        return value.value if cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device) == 0 else 0

    text = f"{version.value // 1000}.{version.value % 1000 // 10}" if version.value else ""
    return GpuInfo(name.value.decode(errors="replace"), 10 * attribute(_MAJOR) + attribute(_MINOR), attribute(_MULTIPROCESSORS),
                   bool(attribute(_INTEGRATED)), text)
