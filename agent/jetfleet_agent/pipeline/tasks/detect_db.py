"""Text detection with a differentiable-binarization map (Liao et al., AAAI 2020; PP-OCR's detector).

The model gives a probability map (1, 1, H, W). Threshold, optional 2x2 dilation, contours, minimum-area rectangle, mean probability
inside it, then the rectangle grows by ``area * unclip_ratio / perimeter`` on each side. PP-OCR grows it with a polygon
clipper and takes the minimum-area rectangle again; for a rectangle that is this closed form, so no clipper is needed
(a test compares the two).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import Task, number
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.predictions import MAX_DETECTIONS, Detection

_MIN_SIDE = 3.0
Rect = tuple[tuple[float, float], tuple[float, float], float]


class DetectDb(Task):
    """Options: `threshold` 0.3, `box_threshold` 0.5, `unclip_ratio` 1.6, `max_candidates` 1000, `dilation` True."""

    options = frozenset({"threshold", "box_threshold", "unclip_ratio", "max_candidates", "dilation"})

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self._threshold = number(spec, "threshold", 0.3, 0.0, 1.0)
        self._box_threshold = number(spec, "box_threshold", 0.5, 0.0, 1.0)
        self._unclip = number(spec, "unclip_ratio", 1.6, 0.0, 10.0)
        self._most = number(spec, "max_candidates", MAX_DETECTIONS, 1, MAX_DETECTIONS)
        self._kernel = np.ones((2, 2), np.uint8) if spec.options.get("dilation", True) else None
        self._label = spec.labels[0] if spec.labels else "text"
        self._mask = np.empty((spec.input.height, spec.input.width), np.uint8)

    def decode(self, outputs: tuple[npt.NDArray[Any], ...], geometry: Geometry) -> tuple[Detection, ...]:
        import cv2

        spec = self.spec.input
        if not outputs or outputs[0].shape != (1, 1, spec.height, spec.width):
            raise IncompatibleError("task.output", f"detect-db needs one (1, 1, {spec.height}, {spec.width}) output, "
                                                   f"the model gives {[o.shape for o in outputs]}")
        probabilities = outputs[0][0, 0]
        mask = self._binarize(cv2, probabilities)
        if mask is None:
            return ()
        contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        found = (self._detection(cv2, probabilities, contour, geometry) for contour in contours[:self._most])
        return tuple(detection for detection in found if detection is not None)

    def _binarize(self, cv2: Any, probabilities: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
        """255 where the map is over the threshold; None when it is nowhere (NaN, from a broken model, counts as nowhere)."""
        mask = np.greater(probabilities, self._threshold, out=self._mask.view(np.bool_)).view(np.uint8)
        if not mask.any():
            return None
        return mask if self._kernel is None else np.asarray(cv2.dilate(mask, self._kernel), np.uint8)

    def _detection(self, cv2: Any, probabilities: npt.NDArray[Any], contour: Any, geometry: Geometry) -> Detection | None:
        rect: Rect = cv2.minAreaRect(contour)
        (centre, (width, height), angle) = rect
        if min(width, height) < _MIN_SIDE:
            return None
        score = _mean_inside(cv2, probabilities, cv2.boxPoints(rect))
        if not score >= self._box_threshold:
            return None
        grow = 2.0 * width * height * self._unclip / (2.0 * (width + height))
        grown = (centre, (width + grow, height + grow), angle)
        quad = [geometry.to_frame(x, y) for x, y in _from_top_left(cv2.boxPoints(grown).tolist())]
        x0, x1 = min(x for x, _ in quad), max(x for x, _ in quad)
        y0, y1 = min(y for _, y in quad), max(y for _, y in quad)
        if min(x1 - x0, y1 - y0) < _MIN_SIDE:
            return None
        return Detection(self._label, min(score, 1.0), (x0, y0, x1, y1), tuple(value for point in quad for value in point))


def _mean_inside(cv2: Any, probabilities: npt.NDArray[Any], corners: npt.NDArray[np.float32]) -> float:
    """Mean probability inside the rectangle, 0..1 (PP-OCR's "fast" score)."""
    height, width = probabilities.shape
    points = corners.tolist()  # four points: plain floats are faster than numpy's reductions
    x0, y0 = max(0, math.floor(min(x for x, _ in points))), max(0, math.floor(min(y for _, y in points)))
    x1, y1 = min(width - 1, math.ceil(max(x for x, _ in points))), min(height - 1, math.ceil(max(y for _, y in points)))
    if x1 < x0 or y1 < y0:
        return 0.0
    mask = np.zeros((y1 - y0 + 1, x1 - x0 + 1), np.uint8)
    cv2.fillConvexPoly(mask, (corners - (x0, y0)).astype(np.int32), 1)
    return float(cv2.mean(probabilities[y0:y1 + 1, x0:x1 + 1], mask)[0])


def _from_top_left(corners: list[list[float]]) -> list[list[float]]:
    """`cv2.boxPoints` goes clockwise on the screen already; begin at the corner nearest to the top-left."""
    first = min(range(4), key=lambda i: corners[i][0] + corners[i][1])
    return corners[first:] + corners[:first]
