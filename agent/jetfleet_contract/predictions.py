"""What a model said about a frame, and how two such answers compare. Pure arithmetic, no numpy.

The builder scores variants with these functions, and a board's trial compares challenger and champion with the
same ones, so "agreement" means one thing everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

MAX_DETECTIONS = 1000


class Detection(msgspec.Struct, frozen=True, array_like=True):
    """One thing seen.

    `box` is (x0, y0, x1, y1) in source pixels, x right, y down, exclusive end; None for a whole-frame label.
    `quad` is four corners clockwise from top-left as 8 numbers, empty when the task has only boxes.
    """

    label: str
    score: float
    box: tuple[float, float, float, float] | None = None
    quad: tuple[float, ...] = ()


Prediction = tuple[Detection, ...]


class MatchCount(msgspec.Struct, frozen=True):
    """Matched, missed and extra detections, summed over frames."""

    matched: int = 0
    missed: int = 0
    extra: int = 0

    def plus(self, other: MatchCount) -> MatchCount:
        return MatchCount(self.matched + other.matched, self.missed + other.missed, self.extra + other.extra)

    @property
    def f1(self) -> float:
        """2TP / (2TP + FP + FN); 1.0 when there was nothing to find and nothing was found."""
        total = 2 * self.matched + self.missed + self.extra
        return 2 * self.matched / total if total else 1.0


def iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes, 0..1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def match_boxes(truth: Sequence[Detection], found: Sequence[Detection], *, min_iou: float = 0.5) -> MatchCount:
    """Greedy one-to-one matching by falling IoU (the PASCAL VOC rule, threshold 0.5); labels must be equal."""
    pairs = sorted(
        ((iou(t.box, f.box), i, j) for i, t in enumerate(truth) for j, f in enumerate(found)
         if t.box is not None and f.box is not None and t.label == f.label),
        reverse=True,
    )
    used_truth: set[int] = set()
    used_found: set[int] = set()
    for overlap, i, j in pairs:
        if overlap < min_iou:
            break
        if i in used_truth or j in used_found:
            continue
        used_truth.add(i)
        used_found.add(j)
    matched = len(used_truth)
    return MatchCount(matched, len(truth) - matched, len(found) - matched)


def match_frame(truth: Prediction, found: Prediction, *, min_iou: float = 0.5) -> MatchCount:
    """Match one frame: boxes by IoU, whole-frame labels (classification) by the first label of each."""
    boxes = match_boxes([t for t in truth if t.box is not None], [f for f in found if f.box is not None], min_iou=min_iou)
    top_truth = next((t.label for t in truth if t.box is None), None)
    top_found = next((f.label for f in found if f.box is None), None)
    if top_truth is None and top_found is None:
        return boxes
    if top_truth == top_found:
        return boxes.plus(MatchCount(matched=1))
    return boxes.plus(MatchCount(missed=int(top_truth is not None), extra=int(top_found is not None)))


def agreement(reference: Sequence[Prediction], found: Sequence[Prediction], *, min_iou: float = 0.5) -> float:
    """F1 of one model's answers taken as truth for another's, over the same frames, 0..1."""
    total = MatchCount()
    for expected, actual in zip(reference, found, strict=True):
        total = total.plus(match_frame(expected, actual, min_iou=min_iou))
    return total.f1
