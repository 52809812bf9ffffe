"""The cascade's decisions: which answers the host is asked about, and how its answers change a frame's. Pure.

Which: those whose score lies in the band of their label, at most `most` a frame, labels that were not asked about lately first, then the
least certain. What stands still and looks the same is asked about once in `repeat_s`, so that it does not eat the budget.
How: see `amended`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from .app_config import Cascade
from .predictions import Detection
from .similarity import Box, iou

SAME_PLACE = 0.6
SAME_LOOK = 10.0
"""Mean difference of two looks, in grey levels of 256, up to which they are one: a camera's noise is about 3."""
MATCH_IOU = 0.5
NEW_IOU = 0.3
EDGE_PX = 2.0
MAX_SEEN = 256


class Seen(msgspec.Struct, frozen=True):
    """Something that the host was asked about. `look` are grey levels of a small picture of it; `at` monotonic seconds."""

    source: str
    label: str
    box: Box | None
    look: bytes
    at: float


Memory = tuple[Seen, ...]
"""What was asked about lately, oldest first."""


def band(options: Cascade, label: str) -> tuple[float, float]:
    """[above, below) of a label."""
    return options.labels.get(label, (options.above, options.below))


def is_uncertain(options: Cascade, detection: Detection) -> bool:
    above, below = band(options, detection.label)
    return above <= detection.score < below


def doubt(options: Cascade, detection: Detection) -> float:
    """How little the score says, 0 at the edges of the label's band, 1 in its middle."""
    above, below = band(options, detection.label)
    half = (below - above) / 2.0
    return 1.0 - abs(detection.score - above - half) / half if half > 0 else 0.0


def select(memory: Memory, options: Cascade, source: str, detections: Sequence[Detection], look: Callable[[int], bytes],
           now: float) -> tuple[Memory, tuple[int, ...]]:
    """Which of a frame's detections the host is asked about, the most worthy first, and the memory afterwards.

    Args:
        look: grey levels of a small picture of a detection, always equally many; asked for those in the band only.
        now: monotonic seconds.
    """
    uncertain = [index for index, found in enumerate(detections) if is_uncertain(options, found)]
    if not uncertain:
        return memory, ()
    memory = tuple(seen for seen in memory if now - seen.at < options.repeat_s)
    known = {seen.label for seen in memory}
    uncertain.sort(key=lambda index: (detections[index].label in known, -doubt(options, detections[index]), index))
    chosen: list[int] = []
    for index in uncertain:
        found = detections[index]
        fresh = Seen(source, found.label, found.box, look(index), now)
        if any(_same(fresh, seen) for seen in memory):
            continue
        memory = (*memory, fresh)[-MAX_SEEN:]
        chosen.append(index)
        if len(chosen) == options.most:
            break
    return memory, tuple(chosen)


def _same(a: Seen, b: Seen) -> bool:
    if a.source != b.source or a.label != b.label or len(a.look) != len(b.look):
        return False
    if a.box is not None and b.box is not None and iou(a.box, b.box) < SAME_PLACE:
        return False
    return sum(abs(x - y) for x, y in zip(a.look, b.look, strict=True)) <= SAME_LOOK * len(a.look)


def window_of(box: Box | None, width: int, height: int, margin: float, least: int = 32) -> tuple[int, int, int, int]:
    """The piece of a frame of width x height that shows a box with `margin` of its size on each side, `least` pixels wide and high where
    the frame has them; the whole frame for None. Whole pixels, never empty."""
    if box is None:
        return 0, 0, width, height
    x0, x1 = _span(box[0], box[2], width, margin, least)
    y0, y1 = _span(box[1], box[3], height, margin, least)
    return x0, y0, x1, y1


def _span(low: float, high: float, end: int, margin: float, least: int) -> tuple[int, int]:
    grown = max((high - low) * (1.0 + 2.0 * margin), float(least))
    middle = min(max((low + high) / 2.0, 0.0), float(end))
    first = max(0, min(int(middle - grown / 2.0), end - 1))
    return first, max(first + 1, min(end, int(middle + grown / 2.0) + 1))


def amended(options: Cascade, before: Sequence[Detection], asked: Detection, window: tuple[int, int, int, int],
            said: Sequence[Detection]) -> tuple[Detection, ...]:
    """A frame's detections with the host's word on one of them.

    * What the host sees in the same place (IoU of 0.5 or more) takes the place of `asked`, label, score and box; the track stays.
    * If it sees nothing there, `asked` is gone.
    * What it sees besides, with a score that needs no second opinion, inside the window and where the board saw nothing, is added; not what
      touches the window's border, because it may be a part of something.
    * Whole-frame labels are all replaced, if the host gives any.

    Other detections stay as they are.

    Args:
        asked: as it is in `before`; if it is not, nothing changes. window: (x0, y0, x1, y1), what the host was shown.
        said: the host's detections, in the frame's pixels.
    """
    if asked not in before:
        return tuple(before)
    if asked.box is None:
        labels = tuple(found for found in said if found.box is None)
        return (*labels, *(found for found in before if found.box is not None)) if labels else tuple(before)
    boxed = [found for found in said if found.box is not None]
    matched = max(boxed, key=lambda found: iou(_box(found), _box(asked)), default=None)
    if matched is not None and iou(_box(matched), _box(asked)) < MATCH_IOU:
        matched = None
    if matched is not None and asked.track:
        boxed = [found for found in boxed if found is not matched]
        matched = msgspec.structs.replace(matched, track=asked.track)
    place = before.index(asked)
    others = (*before[:place], *before[place + 1:])
    taken = [_box(found) for found in (*others, matched) if found is not None and found.box is not None]
    added = [found for found in boxed if found is not matched and found.score >= band(options, found.label)[1]
             and _within(_box(found), window) and all(iou(_box(found), box) < NEW_IOU for box in taken)]
    return (*others[:place], *((matched,) if matched is not None else ()), *others[place:], *added)


def _box(detection: Detection) -> Box:
    return detection.box or (0.0, 0.0, 0.0, 0.0)


def _within(box: Box, window: tuple[int, int, int, int]) -> bool:
    return (box[0] > window[0] + EDGE_PX and box[1] > window[1] + EDGE_PX and box[2] < window[2] - EDGE_PX
            and box[3] < window[3] - EDGE_PX)
