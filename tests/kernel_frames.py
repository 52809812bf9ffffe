"""Frames for tests of the pre-processing kernel: random pictures in each of its formats, with any pitch."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from jetfleet_contract.kernels import PixelFormat

Bytes = npt.NDArray[np.uint8]
Frame = tuple[tuple[Bytes, ...], Bytes]


def random_colors(random: np.random.Generator, width: int, height: int) -> Bytes:
    """(height, width, 3) of full noise."""
    return random.integers(0, 256, (height, width, 3), np.uint8)


def pitched(plane: Bytes, extra: int) -> Bytes:
    """The rows with `extra` more bytes behind each, which nobody may read: they are 0xA5."""
    wide = np.full((plane.shape[0], plane.shape[1] + extra), 0xA5, np.uint8)
    wide[:, :plane.shape[1]] = plane
    return wide


def in_format(bgr: Bytes, pixels: PixelFormat) -> Frame:
    """(planes as rows of bytes, what OpenCV makes of them as BGR). The YUV frames hold nothing but colours that exist."""
    height = bgr.shape[0]
    if pixels == "bgr":
        return (bgr.reshape(height, -1),), bgr
    if pixels == "rgba":
        return (np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGBA), np.uint8).reshape(height, -1),), bgr
    if pixels == "gray":
        gray = np.ascontiguousarray(bgr[:, :, 1])
        return (gray,), np.repeat(gray[:, :, None], 3, axis=2)
    return _nv12(bgr) if pixels == "nv12" else _yuyv(bgr)


def _nv12(bgr: Bytes) -> Frame:
    height, width = bgr.shape[:2]
    luma, chroma = _studio(bgr, 2, 2)
    whole = np.concatenate([luma, chroma.reshape(height // 2, width)])
    return (luma, chroma.reshape(height // 2, width)), np.asarray(cv2.cvtColor(whole, cv2.COLOR_YUV2BGR_NV12), np.uint8)


def _yuyv(bgr: Bytes) -> Frame:
    height, width = bgr.shape[:2]
    luma, chroma = _studio(bgr, 2, 1)
    packed = np.stack([luma, chroma.reshape(height, width)], axis=2)
    return (packed.reshape(height, width * 2),), np.asarray(cv2.cvtColor(packed, cv2.COLOR_YUV2BGR_YUYV), np.uint8)


def _studio(bgr: Bytes, across: int, down: int) -> tuple[Bytes, Bytes]:
    """BT.601 in studio range. Blocks share one hue and differ in lightness only a little, so that every pixel is a colour."""
    height, width = bgr.shape[:2]
    blocks = bgr[::down, ::across].astype(np.float64) * 0.6 + 51
    blue, green, red = (blocks[..., c] for c in range(3))
    y = 16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255
    u = 128 + (-37.797 * red - 74.203 * green + 112.0 * blue) / 255
    v = 128 + (112.0 * red - 93.786 * green - 18.214 * blue) / 255
    luma = np.repeat(np.repeat(y, down, 0), across, 1)[:height, :width] + bgr[:, :, 0] / 255 * 40 - 20
    return np.rint(luma).astype(np.uint8), np.rint(np.stack([u, v], axis=2)).astype(np.uint8)
