"""What a model said about a frame, and how two such answers compare. Pure arithmetic, no numpy.

The builder scores variants with these functions, and a board's trial compares challenger and champion with the
same ones, so "agreement" means one thing everywhere.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from .similarity import Box, iou, key_point_similarity, outline_area, outline_iou, relative_error, total_variation

MAX_DETECTIONS = 1000
MAX_OUTLINE_POINTS = 64
MAX_KEY_POINTS = 200
MAX_VALUES = 4096
# All numbers of one frame's answer. With two decimals each, the JSON text stays under `messages.MAX_MESSAGE_BYTES`.
MAX_NUMBERS = 12_000
_EXACT_NUMBERS = 6_000  # as many fit whatever their digits
MIN_IOU = 0.5
MAX_RAW_ERROR = 0.1
_PLAIN_FIELDS = 4  # what a detection was before it had outlines, points, values and tracks


class Detection(msgspec.Struct, frozen=True, array_like=True):
    """One thing seen. On the wire an array, cut after the last field that is not empty.

    `box` is (x0, y0, x1, y1) in source pixels, x right, y down, exclusive end; None for a whole-frame label.
    `quad` is four corners clockwise from top-left as 8 numbers, empty when the task has only boxes.
    `outline` is the thing's mask as a polygon x, y, x, y ... in source pixels, at most `MAX_OUTLINE_POINTS` points.
    `points` are key points as x, y, score (0..1) each, in the skeleton's order, at most `MAX_KEY_POINTS`.
    `values` are a raw tensor's numbers, or its summary, at most `MAX_VALUES`.
    `track` is the thing's identity over time within its source, from 1; 0 without one.
    """

    label: str
    score: float
    box: Box | None = None
    quad: tuple[float, ...] = ()
    outline: tuple[float, ...] = ()
    points: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    track: int = 0

    @property
    def numbers(self) -> int:
        """How many numbers it holds, label and track aside."""
        return 1 + len(self.box or ()) + len(self.quad) + len(self.outline) + len(self.points) + len(self.values)


Prediction = tuple[Detection, ...]


def placed(prediction: Prediction, box: Box) -> Prediction:
    """What was seen in a crop, where it is in the frame that the crop was cut from: `box` in frame pixels, same scale. A whole-frame label
    becomes the box's own."""
    return tuple(_moved(d, box) for d in prediction)


def _moved(d: Detection, box: Box) -> Detection:
    if d.box is None:
        return msgspec.structs.replace(d, box=box)
    x, y = box[0], box[1]
    return Detection(d.label, d.score, (d.box[0] + x, d.box[1] + y, d.box[2] + x, d.box[3] + y), _shifted(d.quad, (x, y)),
                     _shifted(d.outline, (x, y)), _shifted(d.points, (x, y, 0.0)), d.values, d.track)


def _shifted(numbers: tuple[float, ...], by: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(number + by[index % len(by)] for index, number in enumerate(numbers))


# --- bounds ------------------------------------------------------------------------------------------------


def bounded(prediction: Prediction) -> Prediction:
    """The answer within what may travel; the same object when it is already.

    A detection with a number that is not finite (a broken model) is left out. Over `MAX_DETECTIONS` the lowest scores go. Over
    `MAX_NUMBERS` all are rounded to 1/100, then the lowest scores lose outline, points and values, then they go.
    """
    kept = prediction if all(map(_is_finite, prediction)) else tuple(filter(_is_finite, prediction))
    if len(kept) > MAX_DETECTIONS:
        kept = _best(kept, MAX_DETECTIONS)
    if any(map(_is_long, kept)):
        kept = tuple(_plain(d) if _is_long(d) else d for d in kept)
    if sum(d.numbers for d in kept) <= _EXACT_NUMBERS:
        return kept
    return _within(tuple(map(_rounded, kept)))


def is_bounded(prediction: Prediction) -> bool:
    """Whether `bounded` would leave it as it is, but for rounding."""
    return (len(prediction) <= MAX_DETECTIONS and not any(map(_is_long, prediction)) and all(map(_is_finite, prediction))
            and sum(d.numbers for d in prediction) <= MAX_NUMBERS)


def _is_finite(d: Detection) -> bool:
    # A sum is finite only if all its parts are; one call instead of twelve.
    return math.isfinite(d.score + sum(d.box or ()) + sum(d.quad) + sum(d.outline) + sum(d.points) + sum(d.values))


def _is_long(d: Detection) -> bool:
    return len(d.outline) > 2 * MAX_OUTLINE_POINTS or len(d.points) > 3 * MAX_KEY_POINTS or len(d.values) > MAX_VALUES


def _best(prediction: Prediction, most: int) -> Prediction:
    """The `most` highest scores, in the order in which they were."""
    order = sorted(range(len(prediction)), key=lambda i: -prediction[i].score)[:most]
    return tuple(prediction[i] for i in sorted(order))


def _within(prediction: Prediction) -> Prediction:
    left = MAX_NUMBERS
    kept: dict[int, Detection] = {}
    for index in sorted(range(len(prediction)), key=lambda i: -prediction[i].score):
        detection = prediction[index]
        if detection.numbers > left:
            detection = _plain(detection)
        if detection.numbers > left:
            break
        left -= detection.numbers
        kept[index] = detection
    return tuple(kept[index] for index in sorted(kept))


def _plain(d: Detection) -> Detection:
    return msgspec.structs.replace(d, outline=(), points=(), values=())


def _rounded(d: Detection) -> Detection:
    def short(numbers: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(round(number, 2) for number in numbers)

    box = None if d.box is None else (round(d.box[0], 2), round(d.box[1], 2), round(d.box[2], 2), round(d.box[3], 2))
    return Detection(d.label, round(d.score, 4), box, short(d.quad), short(d.outline), short(d.points), short(d.values), d.track)


def trim(rows: list[list[Any]]) -> None:
    """Cut encoded detections, in place, after the last field that is not empty, but not before the fourth: what older builds wrote and
    read stays byte for byte the same."""
    for row in rows:
        while len(row) > _PLAIN_FIELDS and not row[-1]:
            row.pop()


# --- comparison --------------------------------------------------------------------------------------------


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


class FrameComparison(msgspec.Struct, frozen=True):
    """Two models' answers to the same frame, or sums over frames.

    `overlap` sums the similarity of the matched things that have a place (IoU of boxes or outlines, OKS of key points); `located` counts
    those. `distance` sums score distances, 0..1 each: of matched things the difference of their scores, of whole-frame labels the total
    variation of what was told, of raw values the relative error; `scored` counts those.
    """

    matches: MatchCount = MatchCount()
    overlap: float = 0.0
    located: int = 0
    distance: float = 0.0
    scored: int = 0

    def plus(self, other: FrameComparison) -> FrameComparison:
        return FrameComparison(self.matches.plus(other.matches), self.overlap + other.overlap, self.located + other.located,
                               self.distance + other.distance, self.scored + other.scored)

    @property
    def f1(self) -> float:
        return self.matches.f1

    @property
    def mean_iou(self) -> float:
        """Mean similarity of matched things, 0..1; 1.0 when none has a place."""
        return self.overlap / self.located if self.located else 1.0

    @property
    def score_distance(self) -> float:
        """Mean score distance, 0..1; 0.0 when there was nothing to compare."""
        return self.distance / self.scored if self.scored else 0.0


def compare_frame(a: Prediction, b: Prediction, *, min_iou: float = MIN_IOU) -> FrameComparison:
    """Two answers to one frame. What they hold tells how they compare:

    - things with a place: greedy one-to-one matching of equal labels by falling similarity, from `min_iou` on (the PASCAL VOC rule):
      OKS where both have key points, else IoU of outlines where both have one, else IoU of boxes;
    - whole-frame labels: the first of each must be the same;
    - raw values: outputs of one name match while their relative error is at most `MAX_RAW_ERROR`.
    """
    located = _compare_located([d for d in a if d.box is not None], [d for d in b if d.box is not None], min_iou)
    whole = _compare_whole([d for d in a if d.box is None and not d.values], [d for d in b if d.box is None and not d.values])
    return located.plus(whole).plus(_compare_values([d for d in a if d.values], [d for d in b if d.values]))


def _compare_located(a: Sequence[Detection], b: Sequence[Detection], min_iou: float) -> FrameComparison:
    # Ties by place, in a way that does not ask which side is which: (i, j) and (j, i) never compete.
    pairs = sorted(_similar(a, b, min_iou), key=lambda pair: (-pair[0], pair[1] + pair[2], abs(pair[1] - pair[2])))
    used_a: set[int] = set()
    used_b: set[int] = set()
    overlap = distance = 0.0
    for similarity, i, j in pairs:
        if i in used_a or j in used_b:
            continue
        used_a.add(i)
        used_b.add(j)
        overlap += similarity
        distance += min(1.0, abs(a[i].score - b[j].score))
    matched = len(used_a)
    return FrameComparison(MatchCount(matched, len(a) - matched, len(b) - matched), overlap, matched, distance, matched)


def _similar(a: Sequence[Detection], b: Sequence[Detection], least: float) -> Iterator[tuple[float, int, int]]:
    """(similarity, i, j) of all pairs of one label that are alike enough. Both sides are swept from left to right, so that boxes that lie
    beside each other never meet."""
    by_label: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for j, found in enumerate(b):
        if found.box is not None:
            by_label[found.label].append((found.box[0], found.box[2], j))
    for column in by_label.values():
        column.sort()
    for i, truth in enumerate(a):
        if truth.box is None:
            continue
        left, right = truth.box[0], truth.box[2]
        for x0, x1, j in by_label.get(truth.label, ()):
            if x0 >= right:
                break
            if x1 > left:
                similarity = _similarity(truth, b[j], least)
                if similarity >= least:
                    yield similarity, i, j


def _similarity(a: Detection, b: Detection, least: float) -> float:
    """Of two things whose boxes may touch; anything under `least` may be told as 0."""
    assert a.box is not None  # noqa: S101  the caller picked them
    assert b.box is not None  # noqa: S101
    boxes = iou(a.box, b.box)
    if not boxes > 0.0:
        return 0.0
    if a.points and b.points:
        similarity = key_point_similarity(a.points, b.points, a.box, b.box)
        return boxes if similarity is None else similarity
    if a.outline and b.outline:
        less, more = sorted((outline_area(a.outline), outline_area(b.outline)))
        if less < least * more:  # they can share no more than the smaller one is, so their IoU is below
            return 0.0
        return outline_iou(a.outline, b.outline)
    return boxes


def _compare_whole(a: Sequence[Detection], b: Sequence[Detection]) -> FrameComparison:
    if not a and not b:
        return FrameComparison()
    distance = total_variation({d.label: d.score for d in a}, {d.label: d.score for d in b})
    if a and b and a[0].label == b[0].label:
        return FrameComparison(MatchCount(matched=1), distance=distance, scored=1)
    return FrameComparison(MatchCount(missed=int(bool(a)), extra=int(bool(b))), distance=distance, scored=1)


def _compare_values(a: Sequence[Detection], b: Sequence[Detection]) -> FrameComparison:
    others = {d.label: d for d in b}
    matched, distance, scored = 0, 0.0, 0
    for mine in {d.label: d for d in a}.values():
        other = others.get(mine.label)
        if other is None:
            continue
        error = relative_error(mine.values, other.values)
        matched += error <= MAX_RAW_ERROR
        distance += error
        scored += 1
    return FrameComparison(MatchCount(matched, len(a) - matched, len(b) - matched), distance=distance, scored=scored)


def match_frame(truth: Prediction, found: Prediction, *, min_iou: float = MIN_IOU) -> MatchCount:
    """The counts of `compare_frame`."""
    return compare_frame(truth, found, min_iou=min_iou).matches


def compare_answers(reference: Sequence[Prediction], found: Sequence[Prediction], *, min_iou: float = MIN_IOU) -> FrameComparison:
    """The sum over the same frames of two models' answers."""
    total = FrameComparison()
    for expected, actual in zip(reference, found, strict=True):
        total = total.plus(compare_frame(expected, actual, min_iou=min_iou))
    return total


def agreement(reference: Sequence[Prediction], found: Sequence[Prediction], *, min_iou: float = MIN_IOU) -> float:
    """F1 of one model's answers taken as truth for another's, over the same frames, 0..1."""
    return compare_answers(reference, found, min_iou=min_iou).f1
