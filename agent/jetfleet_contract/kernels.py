"""The CUDA kernels that jetfleet ships: which there are, how each is called, and what a folder of them says of itself.

The source is `jetfleet_host/kernels/preprocess.cu`, the oracle `jetfleet_agent/pipeline/kernel_twin.py`, the arguments of a launch are
`kernel_arguments`. A kernel's name is ``jf_preprocess_FORMAT_LAYOUT_TYPE`` or ``jf_fill_LAYOUT_TYPE``; one cubin holds them all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from .errors import IncompatibleError, MalformedError
from .messages import Message, decode
from .topics import is_name

PixelFormat = Literal["nv12", "yuyv", "bgr", "rgba", "gray"]
Layout = Literal["nchw", "nhwc"]
ElementType = Literal["f32", "f16", "i8"]

FORMATS: tuple[PixelFormat, ...] = ("nv12", "yuyv", "bgr", "rgba", "gray")
LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc")
TYPES: tuple[ElementType, ...] = ("f32", "f16", "i8")

MANIFEST = "kernels.json"
MAX_MANIFEST_BYTES = 64 * 1024


class Variant(msgspec.Struct, frozen=True):
    """One compiled kernel: what comes in (None: nothing, it fills the band), and what goes out."""

    pixels: PixelFormat | None
    layout: Layout
    type: ElementType

    @property
    def name(self) -> str:
        """The kernel's symbol."""
        parts = ("preprocess", self.pixels) if self.pixels else ("fill",)
        return "_".join(("jf", *parts, self.layout, self.type))

    @property
    def instance(self) -> str:
        """The source line that makes it."""
        return f"JF_PREPROCESS({self.pixels}, {self.layout}, {self.type})" if self.pixels else f"JF_FILL({self.layout}, {self.type})"


VARIANTS: tuple[Variant, ...] = tuple(
    Variant(pixels, layout, kind) for pixels in (*FORMATS, None) for layout in LAYOUTS for kind in TYPES)
NAMES: frozenset[str] = frozenset(variant.name for variant in VARIANTS)


class CubinFile(Message, frozen=True):
    """One cubin of a folder. `cuda` is the CUDA major that its driver must have at least, `nvrtc` the compiler's full version."""

    file: str
    sm: int
    cuda: int
    nvrtc: str
    digest: str
    size: int


class KernelSet(Message, frozen=True):
    """The manifest of a folder of cubins. `source` is the digest of the source with its instances; `options` are the compiler's;
    `interface` is what a launch is given, see `kernel_sets`."""

    source: str
    options: tuple[str, ...]
    kernels: tuple[str, ...]
    cubins: tuple[CubinFile, ...]
    interface: int = 1

    def choose(self, sm: int, cuda: int) -> CubinFile:
        """The cubin for a GPU whose driver knows CUDA `cuda`: the newest that this driver loads. SM must match exactly.

        Raises:
            IncompatibleError: `kernels.sm`, `kernels.driver`.
        """
        exact = [cubin for cubin in self.cubins if cubin.sm == sm]
        if not exact:
            raise IncompatibleError("kernels.sm", f"there is no cubin for sm_{sm}, only for {named(cubin.sm for cubin in self.cubins)}",
                                    remedy=f"jetfleet kernels build --sm {sm}")
        fit = [cubin for cubin in exact if cubin.cuda <= cuda]
        if not fit:
            least = min(cubin.cuda for cubin in exact)
            raise IncompatibleError("kernels.driver", f"the cubins for sm_{sm} need a driver of CUDA {least}, this is {cuda}",
                                    remedy="install a newer driver (JetPack)")
        return max(fit, key=lambda cubin: cubin.cuda)


def named(sms: Iterable[int]) -> str:
    """``sm_72, sm_87`` of numbers."""
    return ", ".join(f"sm_{sm}" for sm in sorted(set(sms))) or "nothing"


def read_kernel_set(data: bytes) -> KernelSet:
    """Decode a manifest.

    Raises:
        MalformedError: as `decode`; `kernels.file` when a file's name could lead out of the folder or a digest is none.
    """
    found = decode(data, KernelSet, limit=MAX_MANIFEST_BYTES)
    for cubin in found.cubins:
        if not is_name(cubin.file):
            raise MalformedError("kernels.file", f"{cubin.file[:80]!r} is no name of a file in the folder")
        if len(cubin.digest) != 71 or not cubin.digest.startswith("sha256:"):
            raise MalformedError("kernels.file", f"the digest of {cubin.file} is no SHA-256")
    return found
