"""NVRTC by ctypes: CUDA C++ in, cubin out, with no GPU and no driver.

Rival: `cuda-bindings`. It loads one NVRTC per process, the one it finds; we need three beside each other, each by its path.
The builtins library is loaded first, by its path: NVRTC looks for it by name only, where a wheel's folder is not searched.
"""

from __future__ import annotations

import contextlib
import ctypes
import locale
from collections.abc import Iterator
from typing import Any

from jetfleet_contract.errors import IncompatibleError, RuntimeFailure
from jetfleet_host.kernels.toolchains import Libraries

# A fused multiply-add stands in the source where it is wanted; anywhere else it would differ from the twin.
OPTIONS = ("--std=c++14", "--fmad=false")
_LOG_LINES = 12


@contextlib.contextmanager
def _own_locale() -> Iterator[None]:
    """NVRTC sets the process's locale to C and leaves it; all text that Python reads afterwards would be taken for ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


class Nvrtc:
    """One compiler. Not for use by several threads at once.

    Raises:
        IncompatibleError: `kernels.nvrtc` when the libraries do not load or are of another version.
    """

    def __init__(self, libraries: Libraries, version: str) -> None:
        try:
            self._builtins = ctypes.CDLL(str(libraries.builtins), mode=ctypes.RTLD_GLOBAL)
            self._library = ctypes.CDLL(str(libraries.library))
        except OSError as error:
            raise IncompatibleError("kernels.nvrtc", f"NVRTC does not load: {error}", where=str(libraries.library),
                                    remedy="delete that folder and build again; its wheels are for Linux with glibc") from None
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = version
        if not version.startswith(f"{major.value}.{minor.value}."):
            raise IncompatibleError("kernels.nvrtc", f"the library says it is NVRTC {major.value}.{minor.value}, not {version}",
                                    where=str(libraries.library), remedy="delete that folder and build again")

    def compile(self, source: str, name: str, sm: int) -> bytes:
        """The cubin of `source` for that SM. `name` is what messages call the source.

        Raises:
            RuntimeFailure: `kernels.compile` with the compiler's first lines.
        """
        program = ctypes.c_void_p()
        self._check(self._library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None))
        try:
            options = [option.encode() for option in (f"--gpu-architecture=sm_{sm}", *OPTIONS)]
            with _own_locale():
                status = self._library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
            if status:
                lines = self._text(program, "ProgramLog").decode(errors="replace").strip("\0\n ").splitlines()
                told = "; ".join(line.strip() for line in lines[:_LOG_LINES] if line.strip()) or self._meaning(status)
                raise RuntimeFailure("kernels.compile", f"NVRTC {self.version} does not compile {name} for sm_{sm}: {told}")
            return self._text(program, "CUBIN")
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: Any, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeFailure("kernels.compile", f"NVRTC: {self._meaning(status)}")

    def _meaning(self, status: int) -> str:
        return str(self._library.nvrtcGetErrorString(status).decode(errors="replace"))
