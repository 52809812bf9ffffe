"""Pieces of a frame for chained apps: detector, crop, classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_contract.predictions import Detection

MAX_CROPS = 64
_MAX_SIDE = 4096
_UPRIGHT = math.tan(math.radians(3.0))  # a quad that leans less is cut as its box


class Crop:
    """A piece of a frame for a chained app: `image` (H, W, 3) uint8 BGR, `box` (x0, y0, x1, y1) in frame pixels."""

    __slots__ = ("box", "image")

    def __init__(self, image: Image, box: tuple[float, float, float, float]) -> None:
        self.image = image
        self.box = box


class Cutter:
    """Cuts detections out of frames.

    Args:
        labels: only these; all when empty.
        most: the best scores, at most so many a frame.
        deskew: turn leaning quads upright. What a chained app finds inside such a crop has no place in the frame but the crop's own
            box, so this is for classifiers and readers.
    """

    def __init__(self, labels: frozenset[str], most: int, *, deskew: bool) -> None:
        self._labels = labels
        self._most = most
        self._deskew = deskew

    def cut(self, frame: Image, detections: tuple[Detection, ...]) -> list[Crop]:
        """One crop a detection with a box inside the frame, in the detections' order. Upright crops are views of the frame."""
        wanted = [d for d in detections if d.box is not None and (not self._labels or d.label in self._labels)]
        if len(wanted) > self._most:
            best = sorted(range(len(wanted)), key=lambda i: -wanted[i].score)[:self._most]
            wanted = [wanted[i] for i in sorted(best)]
        return list(self._pieces(frame, wanted))

    def _pieces(self, frame: Image, wanted: list[Detection]) -> Iterator[Crop]:
        height, width = frame.shape[:2]
        for detection in wanted:
            if detection.box is None:
                continue
            x0, y0 = max(0, int(detection.box[0])), max(0, int(detection.box[1]))
            x1, y1 = min(width, round(detection.box[2])), min(height, round(detection.box[3]))
            if x1 <= x0 or y1 <= y0:
                continue
            turned = _upright(frame, detection.quad) if self._deskew and detection.quad else None
            yield Crop(frame[y0:y1, x0:x1] if turned is None else turned, (float(x0), float(y0), float(x1), float(y1)))


def _upright(frame: Image, quad: tuple[float, ...]) -> Image | None:
    """The quad (clockwise from the top-left) as an upright picture; None when it is upright already, or has no size.

    PP-OCR's rule: as wide as the longer of top and bottom, as high as the longer of the sides, and a quarter turn back when it then stands.
    """
    import cv2

    corners = np.array(quad, np.float32).reshape(4, 2)
    top, right, bottom, left = np.roll(corners, -1, axis=0) - corners
    if abs(float(top[1])) <= _UPRIGHT * abs(float(top[0])) and abs(float(left[0])) <= _UPRIGHT * abs(float(left[1])):
        return None
    width = round(float(max(np.hypot(*top), np.hypot(*bottom))))
    height = round(float(max(np.hypot(*left), np.hypot(*right))))
    if not 1 <= width <= _MAX_SIDE or not 1 <= height <= _MAX_SIDE:
        return None
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix: Any = cv2.getPerspectiveTransform(corners, target)
    turned = cv2.warpPerspective(frame, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cv2.rotate(turned, cv2.ROTATE_90_COUNTERCLOCKWISE) if height >= 1.5 * width else turned, np.uint8)
