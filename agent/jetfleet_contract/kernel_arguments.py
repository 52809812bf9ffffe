"""What a launch of the pre-processing kernel is told: where the picture lies, how it is sampled, what its values become.

Figures are float32 here already, so that twin and kernel start from the same bits. `Frame` (80 bytes) and `Rules` (100 bytes) are laid out
as the structures of the same names in `jetfleet_host/kernels/preprocess.cu`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Literal

import msgspec

from .bundle import InputSpec
from .errors import InputError
from .kernels import PixelFormat

Fit = Literal["stretch", "letterbox", "crop"]
Matrix = Literal["bt601", "bt601-full", "bt709", "bt709-full"]

THREADS = 256  # the most a block may have
ONE = 1 << 15
"""Positions are counted in 1/ONE of a pixel, and the four weights of a blend add up to ONE."""
MAX_SIDE = 32_768
FRAME_BYTES = 80
RULES_BYTES = 100
_FRAME = struct.Struct("<QQiiiiiiffffffffq")
_RULES = struct.Struct("<6i19f")
_LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # red's and blue's part of luma: ITU-R BT.601-7, BT.709-6
_EVEN = {"nv12": (2, 2), "yuyv": (2, 1), "bgr": (1, 1), "rgba": (1, 1), "gray": (1, 1)}
_ROW_BYTES = {"nv12": 1, "yuyv": 2, "bgr": 3, "rgba": 4, "gray": 1}
_BYTE_ORDER = {("bgr", "bgr"): (0, 1, 2), ("bgr", "rgb"): (2, 1, 0), ("rgba", "rgb"): (0, 1, 2), ("rgba", "bgr"): (2, 1, 0)}


def single(value: float) -> float:
    """`value` rounded to float32."""
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


def _below(value: int) -> float:
    """The float32 just below a whole number over 0."""
    below: float = struct.unpack("<f", struct.pack("<I", struct.unpack("<I", struct.pack("<f", value))[0] - 1))[0]
    return below


class Region(msgspec.Struct, frozen=True):
    """A rectangle of the frame, in pixels; taps never leave it."""

    x: int
    y: int
    width: int
    height: int


class Sampling(msgspec.Struct, frozen=True):
    """Where a frame lies in the tensor (`left` ... `height`, in tensor pixels) and where it is sampled, in frame pixels as float32:
    tensor pixel i of the picture at ``clamp((i + 0.5) * step + start, low, high)``, where the last pixel itself is just not reached."""

    left: int
    top: int
    width: int
    height: int
    step_x: float
    start_x: float
    low_x: float
    high_x: float
    step_y: float
    start_y: float
    low_y: float
    high_y: float

    @property
    def fixed(self) -> tuple[float, ...]:
        """Step, start, low and high in 1/ONE of a pixel, of x and then of y. ONE is a power of two: nothing is rounded."""
        return tuple(ONE * value for value in (self.step_x, self.start_x, self.low_x, self.high_x,
                                               self.step_y, self.start_y, self.low_y, self.high_y))

    def pack(self, first: int, first_pitch: int, second: int = 0, second_pitch: int = 0, offset: int = 0) -> bytes:
        """The kernel's `Frame`: device addresses, bytes from row to row, and the picture's first element in the output."""
        return _FRAME.pack(first, second, first_pitch, second_pitch, self.left, self.top, self.width, self.height, *self.fixed, offset)

    @property
    def grid(self) -> tuple[int, int, int]:
        """(threads a block, blocks in x, blocks in y) that cover the picture. A batch takes the most of each."""
        quads = (self.left + self.width + 3) // 4 - self.left // 4
        threads = min(THREADS, -(-quads // 32) * 32)
        return threads, -(-quads // threads), self.height


def sampling(spec: InputSpec, width: int, height: int, fit: Fit, region: Region | None = None) -> Sampling:
    """How a frame of `width` x `height` (or a region of it) gets into the tensor of `spec`.

    `stretch` and `letterbox` place it as the CPU's `Preprocessor` does, to the pixel; `crop` keeps the aspect ratio, fills the tensor and
    loses what hangs over, alike on both sides.

    Raises:
        InputError: `frame.shape` when a size is not positive or over `MAX_SIDE`, `frame.region` when the region is not inside of the frame,
            or has no two pixels to blend in a direction.
    """
    if min(width, height, spec.width, spec.height) < 1:
        raise InputError("frame.shape", f"a frame of {width} x {height} and a tensor of {spec.width} x {spec.height}: all must be positive")
    if max(width, height) > MAX_SIDE:
        raise InputError("frame.shape", f"a frame of {width} x {height} is over the limit of {MAX_SIDE} pixels a side")
    part = region or Region(0, 0, width, height)
    if min(part.x, part.y) < 0 or min(part.width, part.height) < 1 or part.x + part.width > width or part.y + part.height > height:
        raise InputError("frame.region", f"the region {part.x},{part.y} {part.width} x {part.height} is not inside of {width} x {height}")
    if min(part.width, part.height) < 2:
        raise InputError("frame.region", f"{part.width} x {part.height} pixels: at least two are blended in each direction")
    wide, high, over_x, over_y = spec.width, spec.height, 0.0, 0.0
    step_x, step_y = part.width / wide, part.height / high
    if fit == "letterbox":
        ratio = min(spec.width / part.width, spec.height / part.height)
        wide, high = (min(most, max(1, round(size * ratio))) for most, size in ((spec.width, part.width), (spec.height, part.height)))
        step_x, step_y = part.width / wide, part.height / high
    elif fit == "crop":
        step_x = step_y = min(step_x, step_y)
        over_x, over_y = (part.width - wide * step_x) / 2, (part.height - high * step_y) / 2
    return Sampling((spec.width - wide) // 2, (spec.height - high) // 2, wide, high,
                    single(step_x), single(part.x + over_x - 0.5), float(part.x), _below(part.x + part.width - 1),
                    single(step_y), single(part.y + over_y - 0.5), float(part.y), _below(part.y + part.height - 1))


class Rules(msgspec.Struct, frozen=True):
    """What values become, the same for a whole batch; every figure is float32. See the formula in the twin.

    `luma`, `from_u` and `from_v` take a blended byte, which is ONE times too large, to colours of 0 .. 1, as `base` is; `gain` takes those
    on, or, where there is no YUV, the blended byte itself.
    """

    width: int
    height: int
    order: tuple[int, int, int]
    luma: float
    from_u: tuple[float, float, float]
    from_v: tuple[float, float, float]
    base: tuple[float, float, float]
    gain: tuple[float, float, float]
    bias: tuple[float, float, float]
    pad: tuple[float, float, float]

    def pack(self) -> bytes:
        """The kernel's `Rules`."""
        return _RULES.pack(self.width, self.height, int(self.width % 4 == 0), *self.order, self.luma, *self.from_u, *self.from_v,
                           *self.base, *self.gain, *self.bias, *self.pad)


def rules(spec: InputSpec, pixels: PixelFormat, matrix: Matrix = "bt601", input_scale: float = 1.0) -> Rules:
    """``out = ((color * scale - mean) / std) / input_scale`` folded into one gain and one bias a channel, computed in float64.

    Args:
        matrix: of YUV frames. OpenCV's NV12 and YUYV conversions are `bt601` (studio range).
        input_scale: of the engine's int8 input: real = int8 * input_scale. 1.0 for float tensors.

    Raises:
        InputError: `input.bad` when a standard deviation or the input's scale is not positive.
    """
    if min(spec.std) <= 0 or input_scale <= 0:
        raise InputError("input.bad", f"input {spec.name!r}: std and the input's scale must be positive")
    gain = tuple(spec.scale / std / input_scale for std in spec.std)
    bias = _three(-mean / std / input_scale for mean, std in zip(spec.mean, spec.std, strict=True))
    pad = _three(spec.pad * g + b for g, b in zip(gain, bias, strict=True))
    luma, from_u, from_v, base = _matrix(matrix)
    if spec.color == "bgr":
        from_u, from_v, base = from_u[::-1], from_v[::-1], base[::-1]
    order = _BYTE_ORDER.get((pixels, spec.color), (0, 1, 2))
    in_levels = 255.0 if pixels in ("nv12", "yuyv") else 1 / ONE
    return Rules(spec.width, spec.height, order, single(luma / 255 / ONE), _three(u / 255 / ONE for u in from_u),
                 _three(v / 255 / ONE for v in from_v), _three(b / 255 for b in base), _three(g * in_levels for g in gain), bias, pad)


def check_frame(pixels: PixelFormat, width: int, height: int, pitch: int) -> None:
    """That a frame of this format can have this size and row length.

    Raises:
        InputError: `frame.shape`.
    """
    even_x, even_y = _EVEN[pixels]
    if width % even_x or height % even_y:
        raise InputError("frame.shape", f"{pixels} shares chroma between neighbours, so {width} x {height} must be even",
                         remedy="ask the camera for an even size, or give a region of an even frame")
    if pitch < width * _ROW_BYTES[pixels] or (pixels in ("yuyv", "rgba") and pitch % 4) or (pixels == "nv12" and pitch % 2):
        raise InputError("frame.shape", f"rows of {pitch} bytes cannot hold {width} pixels of {pixels}, or are not aligned to its words")


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    first, second, third = (single(value) for value in values)
    return first, second, third


def _matrix(matrix: Matrix) -> tuple[float, tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """(luma's gain, what U gives to red, green, blue, what V gives, constants): R = luma * Y + V's part + constant, and so on."""
    red, blue = _LUMA[matrix.removesuffix("-full")]
    full = matrix.endswith("-full")
    luma, chroma, black = (1.0, 1.0, 0.0) if full else (255 / 219, 255 / 224, 16.0)
    green = 1 - red - blue
    from_u = (0.0, -2 * (1 - blue) * blue / green * chroma, 2 * (1 - blue) * chroma)
    from_v = (2 * (1 - red) * chroma, -2 * (1 - red) * red / green * chroma, 0.0)
    base = tuple(-luma * black - 128 * (u + v) for u, v in zip(from_u, from_v, strict=True))
    return luma, from_u, from_v, base
