"""What the exports of the YOLO family give, told from the shapes of their tensors, as one thing: boxes with scores and classes.

Layouts (N candidates, C classes, E further numbers a candidate: mask coefficients or key points):

    v5         (1, N, 5+C+E)   cx, cy, w, h, objectness, C scores, E    YOLOv5, v7, YOLOX
    v8         (1, 4+C+E, N)   cx, cy, w, h, C scores, E                YOLOv8, 9, 11, 12
    v8-rows    (1, N, 4+C+E)   the same, transposed
    end2end    (1, N, 6+E)     x0, y0, x1, y1, score, class, E          YOLOv10, YOLO26, any export with built-in NMS
    nms        three or four tensors: (1, 1) count [optional], (1, K, 4) x0, y0, x1, y1, (1, K) scores, (1, K) classes
               TensorRT's EfficientNMS, exports that end in boxes, scores and labels
    onnx-nms   (M, 3) int64 batch, class, candidate, as ONNX's NonMaxSuppression gives, beside its inputs
               (1, N, 4) boxes (cx, cy, w, h) and (1, C, N) scores

All coordinates are tensor pixels. The rule - what scores, in which order, what covers what - is that of `pipeline.decode_twin`, which the
GPU's kernels follow: whoever decodes, the same candidates survive.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.decoded import Records
from jetfleet_contract.decode_arguments import MAX_CANDIDATES
from jetfleet_contract.errors import IncompatibleError

Array = npt.NDArray[Any]
Outputs = tuple[Array, ...]

LAYOUTS = ("auto", "v5", "v8", "v8-rows", "end2end", "nms", "onnx-nms")
_END2END_MOST = 1000
_AT_ONCE = 500  # candidates up to which one call for all classes is faster than one a class
_SPECK = float(np.finfo(np.float64).eps)
_PER_CELL = {"v5": 3, "v8": 1, "v8-rows": 1}


class Candidates(NamedTuple):
    """`boxes` (n, 4) float32 x0, y0, x1, y1; `scores` (n,) float32; `classes` (n,) int32; `rest` (n, E) float32."""

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int32]
    rest: npt.NDArray[np.float32]


class Reading(msgspec.Struct, frozen=True):
    """How to read a model's outputs. `classes` is 0 where only its answers tell (nms, end2end)."""

    layout: str
    classes: int = 0

    @property
    def suppressed(self) -> bool:
        """Whether the model has done its own non-maximum suppression."""
        return self.layout in ("end2end", "nms", "onnx-nms")


def tell_layout(shapes: tuple[tuple[int, ...], ...], layout: str, *, labels: int, extra: int, height: int, width: int) -> Reading:
    """The reading that fits the outputs' shapes.

    Args:
        layout: one of `LAYOUTS`; ``auto`` looks at the shapes.
        labels: how many labels the bundle names, 0 when it names none.
        extra: E, numbers a candidate beside box and scores.
        height, width: the input's, in pixels; they tell how many candidates there must be.

    Raises:
        IncompatibleError: `task.output` when none fits, `task.layout` when several do.
    """
    fitting = _several(shapes) if len(shapes) > 1 else _readings(shapes[0], labels, extra) if shapes else []
    if layout != "auto":
        fitting = [reading for reading in fitting if reading.layout == layout]
    if len(fitting) > 1:
        fitting = _narrowed(fitting, shapes[0], height, width)
    if not fitting:
        named = f", with {labels} labels" if labels else ""
        raise IncompatibleError("task.output", f"the outputs {list(shapes)} are of no YOLO layout{named}"
                                               f"{'' if layout == 'auto' else f' {layout}'}",
                                remedy="check the bundle's labels and the option layout")
    if len(fitting) > 1:
        raise IncompatibleError("task.layout", f"the output {shapes[0]} could be {' or '.join(r.layout for r in fitting)}",
                                remedy="set the task's option layout, or give the bundle its labels")
    return fitting[0]


def _readings(shape: tuple[int, ...], labels: int, extra: int) -> list[Reading]:
    if len(shape) != 3 or shape[0] != 1:
        return []
    _, rows, columns = shape

    def fits(classes: int) -> bool:
        return classes >= 1 and labels in (0, classes)

    found = [Reading("v8", rows - 4 - extra)] if fits(rows - 4 - extra) else []
    found += [Reading("v5", columns - 5 - extra)] if fits(columns - 5 - extra) else []
    found += [Reading("v8-rows", columns - 4 - extra)] if fits(columns - 4 - extra) else []
    return [*found, Reading("end2end")] if columns == 6 + extra else found


def _narrowed(fitting: list[Reading], shape: tuple[int, ...], height: int, width: int) -> list[Reading]:
    """Leave out what the number of candidates speaks against: there are more of them than numbers each, v5 has three anchors a cell of its
    strides 8, 16 and 32, the others one; a model with built-in suppression gives a short and round number (100, 300)."""
    _, rows, columns = shape
    cells = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    on_grid = [reading for reading in fitting if (columns if reading.layout == "v8" else rows) == _PER_CELL.get(reading.layout, 0) * cells]
    if on_grid:
        return on_grid
    short = [reading for reading in fitting if reading.layout == "end2end" and rows % 50 == 0 and rows <= _END2END_MOST]
    return short or [r for r in fitting if (columns > rows if r.layout == "v8" else rows > columns)] or fitting


def _several(shapes: tuple[tuple[int, ...], ...]) -> list[Reading]:
    if len(shapes) == 3 and any(len(shape) == 2 and shape[1] == 3 for shape in shapes) and any(len(s) == 3 and s[2] != 4 for s in shapes):
        return [Reading("onnx-nms")]
    flat = [_without_batch(shape) for shape in shapes]
    boxes = [shape for shape in flat if len(shape) == 2 and shape[1] == 4]
    lists = [shape for shape in flat if len(shape) == 1 and boxes and shape[0] == boxes[0][0]]
    return [Reading("nms")] if len(shapes) in (3, 4) and len(boxes) == 1 and len(lists) >= 2 else []


def _without_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def read(outputs: Outputs, reading: Reading, threshold: float) -> Candidates:
    """What scores over `threshold`, the best `MAX_CANDIDATES`, of equal ones the first; NaN scores nothing.

    The scores are looked at in place; only what passes is gathered: (1, 84, 8400) costs 0.15 ms on one x86 core when little does.
    """
    if reading.layout == "nms":
        return _read_nms(outputs, threshold)
    if reading.layout == "onnx-nms":
        return _read_onnx_nms(outputs, threshold)
    raw = outputs[0][0]
    if reading.layout == "end2end":
        return _read_end2end(raw, threshold)
    if reading.layout == "v5":
        return _read_v5(raw, reading.classes, threshold)
    return _read_v8(raw if reading.layout == "v8" else raw.T, reading.classes, threshold)


def read_decoded(records: Records, extra: int) -> Candidates:
    """The survivors of the first record, which the GPU left; views of its memory.

    Raises:
        IncompatibleError: `task.output` when they are not of this task.
    """
    record = records[0]
    kept, rest = int(record["kept"]), record["rest"]
    if rest.shape[1] != extra or not 0 <= kept <= len(rest):
        raise IncompatibleError("task.output", f"a decode of {kept} of {len(rest)} slots with {rest.shape[1]} numbers more, not {extra}")
    slots = record["slots"][:kept]
    return Candidates(slots["box"], slots["score"], slots["class"], rest[:kept])


def _read_v8(raw: Array, classes: int, threshold: float) -> Candidates:
    best = (raw[4] if classes == 1 else raw[4:4 + classes].max(axis=0)).astype(np.float32, copy=False)
    chosen = _passing(best, threshold)
    picked = raw[:, chosen].astype(np.float32, copy=False)
    return Candidates(_corners(picked[:4].T), best[chosen],
                      picked[4:4 + classes].argmax(axis=0).astype(np.int32), picked[4 + classes:].T)


def _read_v5(raw: Array, classes: int, threshold: float) -> Candidates:
    objectness = raw[:, 4].astype(np.float32, copy=False)
    likely = np.flatnonzero(objectness > np.float32(threshold))  # a score is objectness times a chance, so it is no more than objectness
    picked = raw[likely].astype(np.float32, copy=False)
    scores = picked[:, 5:5 + classes].max(axis=1) * picked[:, 4]
    chosen = _passing(scores, threshold)
    picked = picked[chosen]
    return Candidates(_corners(picked[:, :4]), scores[chosen], picked[:, 5:5 + classes].argmax(axis=1).astype(np.int32),
                      picked[:, 5 + classes:])


def _read_end2end(raw: Array, threshold: float) -> Candidates:
    picked = raw[_passing(raw[:, 4], threshold)].astype(np.float32, copy=False)
    return Candidates(picked[:, :4], picked[:, 4], _indices(picked[:, 5]), picked[:, 6:])


def _read_nms(outputs: Outputs, threshold: float) -> Candidates:
    flat = [output.reshape(_without_batch(output.shape)) for output in outputs]
    boxes = next(output for output in flat if output.ndim == 2 and output.shape[1] == 4)
    lists = [output for output in flat if output.ndim == 1 and output.shape[0] == len(boxes)]
    counts = [output for output in flat if output.size == 1 and output.dtype.kind in "iu"] if len(flat) == 4 else []
    lists = [output for output in lists if not any(output is count for count in counts)]
    # Classes are integers in most exports; where both are floats, scores come first (EfficientNMS's order).
    scores, classes = (lists[1], lists[0]) if lists[0].dtype.kind in "iu" else (lists[0], lists[1])
    count = min(max(int(counts[0].reshape(-1)[0]), 0), len(boxes)) if counts else len(boxes)
    chosen = _passing(scores[:count], threshold)
    return Candidates(boxes[chosen].astype(np.float32, copy=False), scores[chosen].astype(np.float32, copy=False),
                      _indices(classes[chosen]), np.empty((len(chosen), 0), np.float32))


def _read_onnx_nms(outputs: Outputs, threshold: float) -> Candidates:
    picked = next(output for output in outputs if output.ndim == 2 and output.shape[1] == 3)
    boxes = next(output for output in outputs if output.ndim == 3 and output.shape[2] == 4)[0]
    scores = next(output for output in outputs if output.ndim == 3 and output.shape[2] != 4)[0]
    classes, candidates = picked[:, 1].astype(np.int64), picked[:, 2].astype(np.int64)
    inside = (picked[:, 0] == 0) & (classes >= 0) & (classes < scores.shape[0]) & (candidates >= 0) & (candidates < len(boxes))
    classes, candidates = classes[inside], candidates[inside]
    told = scores[classes, candidates]
    chosen = _passing(told, threshold)
    return Candidates(_corners(boxes[candidates[chosen]].astype(np.float32, copy=False)), told[chosen].astype(np.float32, copy=False),
                      classes[chosen].astype(np.int32), np.empty((len(chosen), 0), np.float32))


def _passing(scores: Array, threshold: float) -> npt.NDArray[np.intp]:
    """Who scores over the threshold, ascending; of more than `MAX_CANDIDATES` the best, of equal ones the lower. Compared as float32."""
    single = scores.astype(np.float32, copy=False)
    chosen = np.flatnonzero(single > np.float32(threshold))
    if len(chosen) <= MAX_CANDIDATES:
        return chosen
    told = single[chosen]
    least = np.partition(told, -MAX_CANDIDATES)[-MAX_CANDIDATES]
    best = told > least
    best[np.flatnonzero(told == least)[:MAX_CANDIDATES - np.count_nonzero(best)]] = True
    passing: npt.NDArray[np.intp] = chosen[best]
    return passing


def _corners(middles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(n, 4) cx, cy, w, h as x0, y0, x1, y1."""
    with np.errstate(invalid="ignore", over="ignore"):  # of a broken model; what is not finite is left out later
        half = middles[:, 2:4] / 2.0
        return np.concatenate([middles[:, :2] - half, middles[:, :2] + half], axis=1)


def _indices(classes: Array) -> npt.NDArray[np.int32]:
    """Class numbers; -1, which has no label, for what is none."""
    known = np.isfinite(classes) & (classes >= 0) & (classes < np.iinfo(np.int32).max)
    return np.where(known, classes, -1).astype(np.int32)


def suppress(found: Candidates, *, min_iou: float, most: int, agnostic: bool) -> npt.NDArray[np.intp]:
    """Greedy non-maximum suppression: indices of at most `most` candidates, best first, of equal ones the first. A box goes when a better
    one of its class (of any class when `agnostic`) covers it with an IoU over `min_iou`, or when it is not finite or has no area.

    OpenCV's is used, equal to the twin's loop in numpy and faster (benchmarks/suppression.py). Its `NMSBoxesBatched` is not: it lets
    classes cover each other where boxes begin below 0, and is quadratic over all of them.
    """
    solid = np.flatnonzero(_have_area(found.boxes))
    if not len(solid):
        return solid
    rects: Any = found.boxes[solid].astype(np.float64)  # OpenCV's stubs ask for sequences; it takes arrays, and faster
    rects[:, 2:] -= rects[:, :2]
    scores: Any = found.scores[solid]
    classes = found.classes[solid]
    if agnostic or (len(solid) <= _AT_ONCE and _moved_apart(rects, classes)):
        kept = _uncovered(rects, scores, min_iou)
    else:
        kept = np.concatenate([group[_uncovered(rects[group], scores[group], min_iou)] for group in _by_class(classes)])
        kept = kept[np.lexsort((kept, -scores[kept]))]
    best: npt.NDArray[np.intp] = solid[kept[:most]]
    return best


def _have_area(boxes: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        solid: npt.NDArray[np.bool_] = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    finite = np.isfinite(boxes)
    if not finite.all():
        solid &= finite.all(axis=1)
    return solid


def _moved_apart(rects: npt.NDArray[np.float64], classes: npt.NDArray[np.int32]) -> bool:
    """Move classes beside each other along x, to the right of 0, so that none covers another; False, and nothing is moved, when that would
    round a coordinate, or when there are specks, which OpenCV takes for one wherever they are."""
    left = np.floor(rects[:, 0].min())
    shift = classes * (np.ceil((rects[:, 0] + rects[:, 2]).max()) - left + 1.0) - left
    moved = rects[:, 0] + shift
    if not np.array_equal(moved - shift, rects[:, 0]) or (rects[:, 2] * rects[:, 3]).min() <= _SPECK:
        return False
    rects[:, 0] = moved
    return True


def _by_class(classes: npt.NDArray[np.int32]) -> list[npt.NDArray[np.intp]]:
    """Indices of each class, ascending."""
    order = np.argsort(classes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)


def _uncovered(rects: Any, scores: Any, min_iou: float) -> npt.NDArray[np.intp]:
    import cv2

    return np.asarray(cv2.dnn.NMSBoxes(rects, scores, 0.0, min_iou), np.intp).reshape(-1)
