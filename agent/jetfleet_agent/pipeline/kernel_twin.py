"""The pre-processing kernel in numpy: its oracle, bit for bit what the GPU should give, and far too slow for a camera.

Figures are float32, every operation rounds once to nearest even, as written, and fma(a, b, c) is a * b + c with one rounding (emulated in
float64, where the product is exact: wrong by one float32 unit at most, in about one of 2^29 cases). Positions are whole numbers of 1/32768
pixel, weights too, and blending them is exact. For pixel (x, y) of the picture:

    fx = int(min(max(fma(x + 0.5, step_x, start_x), low_x), high_x))     x0 = fx >> 15   wx = fx & 32767     (y alike)
    w11 = (wx * wy + 16384) >> 15   w10 = wy - w11   w01 = wx - w11   w00 = 32768 - wx - w10
    p = w00 * p00 + w01 * p01 + w10 * p10 + w11 * p11     of the pixels (x0, y0), (x0 + 1, y0), (x0, y0 + 1), (x0 + 1, y0 + 1)
    c = p of the byte `order[c]` of the pixel (BGR, RGBA), of the one byte there is (GRAY), or, of YUV,
        min(max(fma(Y, luma, fma(U, from_u[c], fma(V, from_v[c], base[c]))), 0), 1)
    out[c] = fma(c, gain[c], bias[c])

float16 is that, rounded to nearest even; int8 is that, rounded to nearest even and saturated to -128 .. 127. Chroma is read at
the luma's taps (x0 >> 1, (x0 + 1) >> 1), which is what converting first and resizing after gives.

Against the CPU's `Preprocessor`, which resizes with OpenCV's 11-bit weights and rounds to a byte: at most 1 level (of 255) apart for BGR,
RGBA and GRAY; at most 3 levels for NV12 and YUYV of colours that exist (conversion and resize round one after the other there).
A YUV triple that is no colour is clipped after the blend here and before it in OpenCV, and may differ more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_contract.kernel_arguments import ONE, Rules, Sampling
from jetfleet_contract.kernels import ElementType, Layout, PixelFormat

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_DTYPES: dict[ElementType, Any] = {"f32": np.float32, "f16": np.float16, "i8": np.int8}


def new_tensor(images: int, rules: Rules, layout: Layout, kind: ElementType) -> npt.NDArray[Any]:
    """A batch with nothing but its band's value: what ``jf_fill_*`` leaves. (n, 3, h, w) or (n, h, w, 3)."""
    colors = np.broadcast_to(_rounded(np.array(rules.pad, np.float32), kind), (images, rules.height, rules.width, 3))
    return np.array(colors if layout == "nhwc" else colors.transpose(0, 3, 1, 2), order="C")


def preprocess(planes: tuple[Bytes, ...], pixels: PixelFormat, where: Sampling, rules: Rules, out: npt.NDArray[Any], layout: Layout,
               kind: ElementType) -> None:
    """Write one picture into its tensor `out`, (3, h, w) or (h, w, 3); the band is left as it is.

    Args:
        planes: rows of bytes with their pitch, (rows, pitch) uint8: one plane, or NV12's two.
    """
    x, y = _taps(where.width, *where.fixed[:4]), _taps(where.height, *where.fixed[4:])
    colors = np.stack([fma(color, rules.gain[c], rules.bias[c]) for c, color in enumerate(_colors(planes, pixels, x, y, rules))])
    values = _rounded(colors, kind)
    rows, columns = slice(where.top, where.top + where.height), slice(where.left, where.left + where.width)
    if layout == "nchw":
        out[:, rows, columns] = values
    else:
        out[rows, columns] = values.transpose(1, 2, 0)


def fma(a: Any, b: Any, c: Any) -> Floats:
    """a * b + c of float32 with one rounding."""
    exact = np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)
    return exact.astype(np.float32)


_Taps = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _taps(count: int, step: float, start: float, low: float, high: float) -> _Taps:
    """(lower tap, weight of the upper one), one for each pixel of an axis."""
    at = np.clip(fma(np.arange(count, dtype=np.float32) + np.float32(0.5), step, start), np.float32(low), np.float32(high)).astype(np.int64)
    return at // ONE, at % ONE


def _blend(plane: Bytes, xs: tuple[Any, Any], ys: tuple[Any, Any], wx: Any, wy: Any) -> Floats:
    w11 = (wx * wy[:, None] + ONE // 2) // ONE
    w10, w01 = wy[:, None] - w11, wx - w11
    p00, p01, p10, p11 = (plane[y[:, None], x[None, :]].astype(np.int64) for y in ys for x in xs)
    return np.asarray((ONE - wx - w10) * p00 + w01 * p01 + w10 * p10 + w11 * p11, np.float32)


def _colors(planes: tuple[Bytes, ...], pixels: PixelFormat, x: _Taps, y: _Taps, rules: Rules) -> list[Floats]:
    (x0, wx), (y0, wy) = x, y
    x1, y1 = x0 + 1, y0 + 1
    rows = (y0, y1)
    first = planes[0]
    if pixels == "gray":
        return [_blend(first, (x0, x1), rows, wx, wy)] * 3
    if pixels in ("bgr", "rgba"):
        size = 3 if pixels == "bgr" else 4
        return [_blend(first, (x0 * size + byte, x1 * size + byte), rows, wx, wy) for byte in rules.order]
    if pixels == "nv12":
        luma = _blend(first, (x0, x1), rows, wx, wy)
        u, v = (_blend(planes[1], ((x0 >> 1) * 2 + byte, (x1 >> 1) * 2 + byte), (y0 >> 1, y1 >> 1), wx, wy) for byte in (0, 1))
    else:
        luma = _blend(first, (x0 * 2, x1 * 2), rows, wx, wy)
        u, v = (_blend(first, ((x0 >> 1) * 4 + byte, (x1 >> 1) * 4 + byte), rows, wx, wy) for byte in (1, 3))
    mixed = (fma(luma, rules.luma, fma(u, rules.from_u[c], fma(v, rules.from_v[c], rules.base[c]))) for c in range(3))
    return [np.clip(color, np.float32(0), np.float32(1)) for color in mixed]


def _rounded(values: Floats, kind: ElementType) -> npt.NDArray[Any]:
    if kind == "i8":
        values = np.clip(np.rint(values), -128, 127)
    return values.astype(_DTYPES[kind])
