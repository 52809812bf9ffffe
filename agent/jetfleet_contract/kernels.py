"""The CUDA kernels that jetfleet ships: which there are, how each is called, and what a folder of them says of itself.

One cubin holds them all. Each source of `jetfleet_host/kernels` has its oracle in `jetfleet_agent/pipeline`, its launches' arguments here:

    preprocess.cu   kernel_twin.py   kernel_arguments   ``jf_preprocess_FORMAT_LAYOUT_TYPE``, ``jf_fill_LAYOUT_TYPE``
    decode.cu       decode_twin.py   decode_arguments   ``jf_decode_STEP_HEAD_TYPE`` for what reads a head, else ``jf_decode_STEP``
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
HeadLayout = Literal["v5", "v8", "v8-rows"]
HeadType = Literal["f32", "f16"]
HeadStep = Literal["scan", "gather"]

FORMATS: tuple[PixelFormat, ...] = ("nv12", "yuyv", "bgr", "rgba", "gray")
LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc")
TYPES: tuple[ElementType, ...] = ("f32", "f16", "i8")
HEADS: tuple[HeadLayout, ...] = ("v5", "v8", "v8-rows")
HEAD_TYPES: tuple[HeadType, ...] = ("f32", "f16")
HEAD_STEPS: tuple[HeadStep, ...] = ("scan", "gather")

MANIFEST = "kernels.json"
MAX_MANIFEST_BYTES = 64 * 1024


class Variant(msgspec.Struct, frozen=True):
    """One compiled kernel of pre-processing: what comes in (None: nothing, it fills the band), and what goes out."""

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


class HeadVariant(msgspec.Struct, frozen=True):
    """One compiled kernel of decoding that reads a head: `scan` finds candidates, `gather` takes what goes along with the survivors."""

    step: HeadStep
    head: HeadLayout
    type: HeadType

    @property
    def name(self) -> str:
        """The kernel's symbol."""
        return f"jf_decode_{self.step}_{self._head}_{self.type}"

    @property
    def instance(self) -> str:
        """The source line that makes it."""
        return f"JF_DECODE_{self.step.upper()}({self._head}, {self.type})"

    @property
    def _head(self) -> str:
        return self.head.replace("-", "_")


VARIANTS: tuple[Variant, ...] = tuple(
    Variant(pixels, layout, kind) for pixels in (*FORMATS, None) for layout in LAYOUTS for kind in TYPES)
HEAD_VARIANTS: tuple[HeadVariant, ...] = tuple(
    HeadVariant(step, head, kind) for step in HEAD_STEPS for head in HEADS for kind in HEAD_TYPES)
# Of decoding, what reads no head.
DECODE_CLEAR, DECODE_RANK, DECODE_COMPARE, DECODE_KEEP = DECODE_STEPS = tuple(
    f"jf_decode_{step}" for step in ("clear", "rank", "compare", "keep"))
# The sources, and the lines that are compiled at the end of each.
SOURCES: dict[str, tuple[str, ...]] = {
    "preprocess.cu": tuple(variant.instance for variant in VARIANTS),
    "decode.cu": tuple(variant.instance for variant in HEAD_VARIANTS),
}
NAMES: frozenset[str] = frozenset((*(variant.name for variant in VARIANTS), *(variant.name for variant in HEAD_VARIANTS), *DECODE_STEPS))


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
