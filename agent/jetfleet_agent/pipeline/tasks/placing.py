"""From tensor pixels to frame pixels, many at once; two decimals, so that results stay short as text."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_contract.predictions import MAX_OUTLINE_POINTS

Floats = npt.NDArray[np.floating[Any]]
_DECIMALS = 2


def boxes_in_frame(boxes: Floats, geometry: Geometry) -> npt.NDArray[np.float64]:
    """(n, 4) x0, y0, x1, y1 in tensor pixels as frame pixels, clipped to the frame."""
    return points_in_frame(boxes.reshape(-1, 2), geometry).reshape(-1, 4)


def points_in_frame(points: Floats, geometry: Geometry) -> npt.NDArray[np.float64]:
    """(n, 2) x, y in tensor pixels as float64 frame pixels, clipped to the frame."""
    placed = (points.astype(np.float64) - (geometry.pad_x, geometry.pad_y)) / (geometry.scale_x, geometry.scale_y)
    np.clip(placed, 0.0, (geometry.width, geometry.height), out=placed)
    return np.round(placed, _DECIMALS, out=placed)


def shares(scores: Floats) -> list[float]:
    """Scores as numbers of at most 1, with four decimals."""
    return np.minimum(scores.astype(np.float64), 1.0).round(4).tolist()  # type: ignore[no-any-return]


def outline_of(mask: npt.NDArray[np.uint8], left: float, top: float, geometry: Geometry) -> tuple[float, ...]:
    """The largest region of a (h, w) mask whose corner lies at (left, top) of the tensor, as a polygon in frame pixels; empty for none."""
    import cv2

    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return ()
    return outline_in_frame(max(contours, key=cv2.contourArea), left, top, geometry)


def outline_in_frame(contour: Any, left: float, top: float, geometry: Geometry) -> tuple[float, ...]:
    """A contour of OpenCV (n, 1, 2) as a polygon of at most `MAX_OUTLINE_POINTS` points; empty when it has no area.

    Simplified (Douglas and Peucker) with the least tolerance, doubled from half a pixel on, that leaves few enough points.
    """
    import cv2

    tolerance = 0.5
    simple = cv2.approxPolyDP(contour, tolerance, closed=True)
    while len(simple) > MAX_OUTLINE_POINTS:
        tolerance *= 2.0
        simple = cv2.approxPolyDP(contour, tolerance, closed=True)
    if len(simple) < 3:
        return ()
    # A contour runs through the middles of pixels.
    points = points_in_frame(simple.reshape(-1, 2) + (left + 0.5, top + 0.5), geometry)
    return tuple(points.reshape(-1).tolist())
