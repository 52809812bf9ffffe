"""How alike two models' answers were over their last frames."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from jetfleet_contract.predictions import FrameComparison, Prediction, compare_frame


class Alike(NamedTuple):
    """`agreement` (F1), `mean_iou` of what both found, `score_distance` of their scores, each 0..1, over so many frames."""

    frames: int
    agreement: float
    mean_iou: float
    score_distance: float


class SimilarityWindow:
    """The last `size` frames. Not safe for several threads."""

    def __init__(self, size: int) -> None:
        self._frames: deque[FrameComparison] = deque(maxlen=size)

    def add(self, truth: Prediction, found: Prediction) -> None:
        """One frame's answers of both models."""
        self._frames.append(compare_frame(truth, found))

    @property
    def figures(self) -> Alike:
        """Over the frames in the window; all alike when there are none."""
        total = FrameComparison()
        for one in self._frames:
            total = total.plus(one)
        return Alike(len(self._frames), total.f1, total.mean_iou, total.score_distance)
