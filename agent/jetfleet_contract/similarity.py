"""How alike two seen things are: boxes, outlines, key points, numbers. Pure arithmetic on plain tuples, no numpy; every cost is bounded.

Each measure is symmetric, 1 for equal things and 0 for things that have nothing in common; what is not finite is like nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Box = tuple[float, float, float, float]

SCAN_LINES = 48
VISIBLE = 0.5  # a key point counts from this score on
# Per-point spread of the 17 COCO key points (pycocotools/cocoeval.py, kpt_oks_sigmas); any other skeleton gets one spread for all.
_COCO_SPREADS = (0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089)
_OTHER_SPREAD = 0.05
# An object's area as a share of its box's, where no outline tells it (COCO's own mean, used by ultralytics' pose metric).
_AREA_OF_BOX = 0.53


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0..1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


def outline_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two polygons (x, y, x, y ...; even-odd rule), 0..1.

    Both are cut by `SCAN_LINES` horizontal lines, exactly in x, sampled in y: the cost is edges times lines at most, and the
    error for a shape of h pixels is that of sampling it every h / `SCAN_LINES` pixels.
    """
    ys = [*a[1::2], *b[1::2]]
    if len(a) < 6 or len(b) < 6:
        return 0.0
    top, bottom = min(ys), max(ys)
    if not 0.0 < bottom - top < math.inf:
        return 0.0
    step = (bottom - top) / SCAN_LINES
    shared = whole = 0.0
    for first, second in zip(_crossings(a, top, step), _crossings(b, top, step), strict=True):
        overlap = _shared_length(first, second)
        shared += overlap
        whole += _length(first) + _length(second) - overlap
    return min(1.0, shared / whole) if whole > 0.0 else 0.0


def _crossings(outline: Sequence[float], top: float, step: float) -> list[list[float]]:
    """Where each scan line enters and leaves the polygon: sorted x, an even number a line."""
    lines: list[list[float]] = [[] for _ in range(SCAN_LINES)]
    x0, y0 = outline[-2], outline[-1]
    for x1, y1 in zip(outline[::2], outline[1::2], strict=False):
        if y0 != y1:
            low, high = (y0, y1) if y0 < y1 else (y1, y0)
            # Line i is at top + (i + 0.5) * step; an edge owns its lower end, not its upper one, so a corner is counted once.
            first = max(0, math.ceil((low - top) / step - 0.5))
            after = min(SCAN_LINES, math.ceil((high - top) / step - 0.5))
            slope = (x1 - x0) / (y1 - y0)
            for index in range(first, after):
                lines[index].append(x0 + (top + (index + 0.5) * step - y0) * slope)
        x0, y0 = x1, y1
    for line in lines:
        line.sort()
    return lines


def _length(line: list[float]) -> float:
    return sum(line[1::2]) - sum(line[::2])


def _shared_length(first: list[float], second: list[float]) -> float:
    """Length that two sorted lists of [enter, leave, enter, leave ...] have in common."""
    i = j = 0
    shared = 0.0
    while i + 1 < len(first) and j + 1 < len(second):
        shared += max(0.0, min(first[i + 1], second[j + 1]) - max(first[i], second[j]))
        if first[i + 1] < second[j + 1]:
            i += 2
        else:
            j += 2
    return shared


def outline_area(outline: Sequence[float]) -> float:
    """Area of a polygon that does not cross itself (shoelace formula)."""
    xs, ys = outline[::2], outline[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2.0


def key_point_similarity(a: Sequence[float], b: Sequence[float], box_a: Box, box_b: Box) -> float | None:
    """Object key point similarity of two skeletons (x, y, score, x, y, score ...), 0..1; None when neither shows a point.

    COCO's OKS (cocodataset.org, key point evaluation): the mean of ``exp(-d^2 / (2 s^2 k^2))`` over visible points, k twice the point's
    spread, s^2 the object's area. Made symmetric: s^2 is the mean of both boxes' areas times 0.53, a point that only one of
    the two shows counts as 0.
    """
    count = len(a) // 3
    if len(a) != len(b) or not count:
        return 0.0
    spreads = _COCO_SPREADS if count == len(_COCO_SPREADS) else (_OTHER_SPREAD,) * count
    area = (_box_area(box_a) + _box_area(box_b)) / 2.0 * _AREA_OF_BOX
    if not area > 0.0:
        return 0.0
    total, seen = 0.0, 0
    for index, spread in enumerate(spreads):
        at = 3 * index
        in_a, in_b = a[at + 2] >= VISIBLE, b[at + 2] >= VISIBLE
        seen += in_a or in_b
        if in_a and in_b:
            squared = (a[at] - b[at]) ** 2 + (a[at + 1] - b[at + 1]) ** 2
            total += math.exp(-squared / (2.0 * area * (2.0 * spread) ** 2))
    return total / seen if seen else None


def _box_area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def relative_error(a: Sequence[float], b: Sequence[float]) -> float:
    """``|a - b| / max(|a|, |b|)`` with Euclidean norms, 0..1 (more is 1); 0 when both are all zero, 1 when their lengths differ."""
    if len(a) != len(b):
        return 1.0
    size = max(math.hypot(*a), math.hypot(*b))
    if size == 0.0:
        return 0.0
    error = math.dist(a, b) / size
    return min(1.0, error) if math.isfinite(error) else 1.0


def total_variation(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Half the sum of differences of two distributions of which only the best labels were told, 0..1: what a side leaves to labels that it
    did not tell counts as one label, so this is the least that the whole distributions can differ by."""
    apart = sum(abs(a.get(label, 0.0) - b.get(label, 0.0)) for label in a.keys() | b.keys())
    rest = abs(max(0.0, 1.0 - sum(a.values())) - max(0.0, 1.0 - sum(b.values())))
    return min(1.0, (apart + rest) / 2.0)
