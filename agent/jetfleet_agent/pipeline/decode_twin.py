"""The decoding kernels in numpy: their oracle, equal in every bit of every survivor, and far too slow for a camera.

For an image, every float32 operation rounded once as written:

    scan      score = max of the class scores, NaN when one of them is NaN; v5: times objectness, which must be over the threshold too.
              An anchor is a candidate when score > threshold. Its class is the first that has the best score; its box is
              (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2). float16 heads are widened first, so all of that is float32.
    rank      score descending, of equal ones anchor ascending; the best `slots` (2000) go on.
    compare   a box that is not finite or has no area is out, now that it has used up a place. Box a covers b, which comes later and is of
              its class (any, when agnostic), when float32(1) - float32(1 - shared / union) > iou, with areas in float64 of the float32
              corners; two boxes whose areas together are at most 2^-52 cover each other. This is what OpenCV's NMSBoxes does.
    keep      greedy, best first: who is covered by none that stays, stays; the first `most`.

The kernels decide far from the limit in float32 and near it in float64, which gives the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.decoded import SLOT, Records, record_type
from jetfleet_contract.decode_arguments import HeadRules

Array = npt.NDArray[Any]
_SPECK = float(np.finfo(np.float64).eps)


def decode(head: Array, rules: HeadRules) -> Records:
    """What the kernels leave of a head of shape ``rules.shape``, float32 or float16: one record an image, zeros behind the survivors."""
    out = np.zeros(rules.images, record_type(rules))
    for record, image in zip(out, head, strict=True):
        numbers = (image.T if rules.layout == "v8" else image).astype(np.float32)
        found = _scan(numbers, rules)
        best = found[np.lexsort((found["anchor"], -found["score"]))][:rules.slots]
        kept = best[_kept(best, rules)]
        record["kept"], record["considered"], record["passed"] = len(kept), len(best), len(found)
        record["slots"][:len(kept)] = kept
        record["rest"][:len(kept)] = numbers[kept["anchor"], numbers.shape[1] - rules.extra:]
    return out


def _scan(numbers: Array, rules: HeadRules) -> Array:
    """The candidates of (anchors, row) float32, anchor ascending, as `SLOT`."""
    first = 5 if rules.layout == "v5" else 4
    chances = numbers[:, first:first + rules.classes]
    threshold = np.float32(rules.threshold)
    scores = chances.max(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        sure = np.ones(len(numbers), np.bool_)
        if rules.layout == "v5":
            sure, scores = numbers[:, 4] > threshold, scores * numbers[:, 4]
        anchors = np.flatnonzero(sure & (scores > threshold))
        half = numbers[anchors, 2:4] / np.float32(2)
        out = np.zeros(len(anchors), SLOT)
        out["box"][:, :2], out["box"][:, 2:] = numbers[anchors, :2] - half, numbers[anchors, :2] + half
    out["score"], out["class"], out["anchor"] = scores[anchors], chances[anchors].argmax(axis=1), anchors
    return out


def _kept(best: Array, rules: HeadRules) -> list[int]:
    boxes = best["box"].astype(np.float64)
    alive = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    kept: list[int] = []
    for index in range(len(best)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == rules.most:
            break
        others = np.arange(index + 1, len(best))[alive[index + 1:]]
        if not rules.agnostic:
            others = others[best["class"][others] == best["class"][index]]
        alive[others[_overlap(boxes[index], boxes[others]) > np.float32(rules.iou)]] = False
    return kept


def _overlap(box: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """IoU of a box with each of the others, corners in float64, all with an area."""
    both = (box[2] - box[0]) * (box[3] - box[1]) + (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = np.where((width > 0) & (height > 0), width * height, 0.0)
    speck = both <= _SPECK
    apart = 1.0 - shared / np.where(speck, 1.0, both - shared)
    return np.where(speck, np.float32(1), np.float32(1) - apart.astype(np.float32))
