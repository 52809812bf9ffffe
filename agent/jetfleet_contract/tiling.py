"""Large frames in tiles: where the tiles lie, and how their answers become the frame's. Pure arithmetic.

An object on a seam is seen, in part or whole, by every tile that it reaches into. Its pieces are merged greedily as SAHI does (Akyon,
Altinuc, Temizel, ICIP 2022): by falling score, same label, intersection over the *smaller* box (a piece lies inside the whole,
so its IoU with it may be small), and the merged box is the hull. Only answers of different tiles are merged: what one tile said
twice, the model meant twice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import msgspec

from .app_config import Tile
from .predictions import Detection
from .similarity import Box

Cut = tuple[int, int, int, int]

MIN_IOS = 0.5
SEEN_WHOLE = 1.1  # a hull is hardly larger than the piece that saw all of it


@functools.lru_cache(maxsize=64)
def cuts(width: int, height: int, tile: Tile) -> tuple[Cut, ...]:
    """Tiles (x0, y0, x1, y1) in pixels, exclusive end, row by row. Together they cover every pixel; the last of a row or column is flush
    with the border; all have `tile.size` (or the frame's side, when that is less), neighbours share at least `tile.overlap` of it.
    """
    return tuple((x, y, x + min(tile.size, width), y + min(tile.size, height))
                 for y in _starts(height, tile) for x in _starts(width, tile))


def _starts(length: int, tile: Tile) -> list[int]:
    if length <= tile.size:
        return [0]
    step = max(1, math.floor(tile.size * (1.0 - tile.overlap)))
    return [*range(0, length - tile.size, step), length - tile.size]


def merged(tiles: Sequence[Sequence[Detection]]) -> tuple[Detection, ...]:
    """The answers of one frame's tiles, already in frame pixels, as the frame's: seams mended, by falling score.

    A merged answer has the score of its best piece and, where one piece has seen (nearly) all of it, that one's corners, outline and key
    points; else its corners are the hull's, and it has no outline.
    """
    rest = sorted(((d, number) for number, answers in enumerate(tiles) for d in answers), key=lambda item: -item[0].score)
    done: list[Detection] = []
    while rest:
        (best, number), *rest = rest
        pieces, tiles_used, left = [best], {number}, []
        for other, theirs in rest:
            if theirs not in tiles_used and other.label == best.label and _ios(_hull(pieces), other.box) > MIN_IOS:
                pieces.append(other)
                tiles_used.add(theirs)
            else:
                left.append((other, theirs))
        rest = left
        done.append(_joined(pieces))
    return tuple(done)


def _joined(pieces: list[Detection]) -> Detection:
    if len(pieces) == 1:
        return pieces[0]
    hull = _hull(pieces)
    assert hull is not None  # noqa: S101  only boxes are merged
    largest = max(pieces, key=lambda piece: _area(piece.box))
    whole = msgspec.structs.replace(largest, score=pieces[0].score, box=hull)
    if _area(hull) <= SEEN_WHOLE * _area(largest.box):
        return whole
    x0, y0, x1, y1 = hull
    return msgspec.structs.replace(whole, quad=(x0, y0, x1, y0, x1, y1, x0, y1) if largest.quad else (), outline=())


def _hull(pieces: list[Detection]) -> Box | None:
    boxes = [piece.box for piece in pieces if piece.box is not None]
    if not boxes:
        return None
    return min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)


def _area(box: Box | None) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) if box is not None else 0.0


def _ios(a: Box | None, b: Box | None) -> float:
    """Intersection over the smaller of two boxes, 0..1; 0 without boxes."""
    if a is None or b is None:
        return 0.0
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min(_area(a), _area(b))
    return width * height / smaller if width > 0 and height > 0 and smaller > 0 else 0.0
