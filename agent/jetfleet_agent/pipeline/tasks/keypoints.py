"""Key points of things (YOLO-pose): a box, and K points with a score each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.decoded import HeadDecode, OutputPort
from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import number
from jetfleet_agent.pipeline.tasks.detect_yolo import YoloTask
from jetfleet_agent.pipeline.tasks.placing import points_in_frame, shares
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.predictions import MAX_KEY_POINTS, Detection


class KeyPoints(YoloTask):
    """Outputs (1, 4+C+K*D, N) and the other layouts of `yolo_outputs` with E = K*D: x, y and, where D is 3, a score 0..1 a point.

    Options: those of `YoloTask`, `points` 17 (K, COCO's person), `dimensions` 3 (D; 2 for points without a score).
    """

    options = YoloTask.options | {"points", "dimensions"}

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self._points = number(spec, "points", 17, 1, MAX_KEY_POINTS)
        self._dimensions = number(spec, "dimensions", 3, 2, 3)

    def on_gpu(self, outputs: Sequence[OutputPort]) -> HeadDecode | None:
        return self.head(outputs, self._points * self._dimensions)

    def decode(self, outputs: tuple[npt.NDArray[Any], ...], geometry: Geometry) -> tuple[Detection, ...]:
        found, boxes = self.found(outputs, geometry, self._points * self._dimensions)
        told = found.rest.reshape(-1, self._dimensions)
        placed = np.ones((len(told), 3))
        placed[:, :2] = points_in_frame(told[:, :2], geometry)
        if self._dimensions == 3:
            placed[:, 2] = np.round(np.clip(told[:, 2].astype(np.float64), 0.0, 1.0), 3)
        skeletons = placed.reshape(-1, 3 * self._points).tolist()
        return tuple(Detection(self.label(index), score, (x0, y0, x1, y1), points=tuple(skeleton))
                     for index, score, (x0, y0, x1, y1), skeleton
                     in zip(found.classes.tolist(), shares(found.scores), boxes.tolist(), skeletons, strict=True))
