"""Where a frame becomes an engine's input: in one kernel on the GPU, or on the CPU with the tensor copied over; and why. Pure."""

from __future__ import annotations

import msgspec

from .bundle import InputSpec
from .errors import InputError
from .kernel_arguments import Rules, rules
from .kernels import FORMATS, ElementType, Layout, PixelFormat, Variant

MAX_GRID = 65_535  # blocks in y and z, of every GPU
CAMERA: PixelFormat = "bgr"  # what sources hand over: sinks, drift, tracking and crops look at the same picture
_TYPES: dict[str, ElementType] = {"float32": "f32", "float16": "f16", "int8": "i8"}
_RESIZES = ("stretch", "letterbox")


class EngineInput(msgspec.Struct, frozen=True):
    """What an engine takes: (N, 3, h, w) or (N, h, w, 3) of a type as numpy names it."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def layout(self) -> Layout | None:
        """None when the shape is that of no three-channel picture. Channels first where it could be either."""
        if len(self.shape) != 4 or min(self.shape) < 1:
            return None
        return "nchw" if self.shape[1] == 3 else "nhwc" if self.shape[3] == 3 else None

    @property
    def sides(self) -> tuple[int, int]:
        """(width, height) of a picture; (0, 0) when there is no layout."""
        if self.layout is None:
            return 0, 0
        return (self.shape[3], self.shape[2]) if self.layout == "nchw" else (self.shape[2], self.shape[1])


class Fold(msgspec.Struct, frozen=True):
    """The kernel that writes an engine's input of `images` pictures, the one that fills its band, and what both are told."""

    kernel: Variant
    band: Variant
    rules: Rules
    images: int

    @property
    def names(self) -> frozenset[str]:
        """What a cubin must hold."""
        return frozenset({self.kernel.name, self.band.name})

    @property
    def image_elements(self) -> int:
        """Elements of one picture's tensor."""
        return 3 * self.rules.width * self.rules.height

    @property
    def image_bytes(self) -> int:
        return self.image_elements * {"f32": 4, "f16": 2, "i8": 1}[self.kernel.type]


class GpuPath(msgspec.Struct, frozen=True):
    """The decision: `fold`, or None and the `reason` why the CPU prepares the frames."""

    fold: Fold | None
    reason: str = ""


def gpu_path(spec: InputSpec | None, source: EngineInput, pixels: str = CAMERA) -> GpuPath:
    """Whether one kernel can write `source` from frames of format `pixels`, by the input's rules alone; this board may still not have it.

    Args:
        spec: of the bundle; None where the caller has none, and fills tensors himself.
    """
    if spec is None:
        return _no("whoever opened the model gives tensors, not frames")
    if pixels not in FORMATS:
        return _no(f"no kernel reads frames of {pixels[:20]!r}")
    layout, kind = source.layout, _TYPES.get(source.dtype)
    if layout is None or source.sides != (spec.width, spec.height):
        return _no(f"the engine takes {list(source.shape)}, no pictures of {spec.width} x {spec.height}")
    if kind is None:
        return _no(f"no kernel writes {source.dtype}")
    if kind == "i8" and spec.input_scale <= 0:
        return _no("the engine takes int8, and the bundle does not tell its scale (input_scale)")
    if spec.resize not in _RESIZES:
        return _no(f"no kernel resizes by {spec.resize!r}")
    if max(spec.height, source.shape[0]) > MAX_GRID:
        return _no(f"a tensor of {list(source.shape)} is beyond a launch's {MAX_GRID} rows and pictures")
    try:
        told = rules(spec, pixels, input_scale=spec.input_scale if kind == "i8" else 1.0)
    except InputError as error:
        return _no(error.what)
    return GpuPath(Fold(Variant(pixels, layout, kind), Variant(None, layout, kind), told, source.shape[0]))


def _no(reason: str) -> GpuPath:
    return GpuPath(None, reason)
