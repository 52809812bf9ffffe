"""Answers drawn over a small copy of their frame, to be read at 640 pixels and by the colour-blind: boxes, masks, key points, labels.

Colours: Okabe and Ito's palette of eight (2008), told apart with every common kind of colour-blindness; each label keeps its colour. A line
has a dark edge below it, so that it shows on bright and dark pictures alike; a label stands on a ground of its colour, black or white by
that ground's luminance (ITU-R BT.601).
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jetfleet_contract.predictions import Detection

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[int, int]

PALETTE: tuple[Colour, ...] = ((0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (178, 114, 0), (0, 94, 213), (167, 121, 204))
"""BGR of Okabe and Ito's orange, sky blue, bluish green, yellow, blue, vermilion and reddish purple."""
MAX_DRAWN = 100
MAX_TEXT = 40
LEAST_POINT_SCORE = 0.3
_EDGE: Colour = (20, 20, 20)


def shrunk(image: Image, width: int) -> Image:
    """A copy of at most `width` pixels' width, proportions kept; image uint8 (H, W, 3), BGR."""
    import cv2

    height, wide = image.shape[:2]
    if wide <= width:
        return image.copy()
    tall = max(1, round(height * width / wide))
    small: Image = cv2.resize(image, (width, tall), interpolation=cv2.INTER_AREA if wide >= 2 * width else cv2.INTER_LINEAR)
    return small


def colour_of(label: str) -> Colour:
    """The same colour for a label in every frame, process and board."""
    return PALETTE[zlib.crc32(label.encode()) % len(PALETTE)]


def draw(image: Image, detections: Sequence[Detection], scale: float, origin: tuple[float, float], footer: str) -> None:
    """Draw the first `MAX_DRAWN` answers into `image`, uint8 (H, W, 3), BGR.

    Args:
        scale: pixels of `image` per pixel of the answers' frame.
        origin: where the frame's top left corner is in the answers' coordinates (a fed crop's is not 0, 0).
        footer: a line at the lower left.
    """
    pen = _Pen(image)
    whole = [d for d in detections if d.box is None]
    placed = [d for d in detections if d.box is not None][:MAX_DRAWN]
    for found in placed:
        pen.fill(_outline(found, scale, origin), colour_of(found.label))
    for found in placed:
        pen.shape(_outline(found, scale, origin) or _corners(found, scale, origin), colour_of(found.label))
        pen.dots(_key_points(found, scale, origin), colour_of(found.label))
    for found in placed:  # above all shapes
        corners = _corners(found, scale, origin)
        pen.tag(_text(found), (min(x for x, _ in corners), min(y for _, y in corners)), colour_of(found.label))
    for row, found in enumerate(whole[:5]):
        pen.line_of_text(_text(found), row, colour_of(found.label))
    if footer:
        pen.footer(plain(footer))


def plain(text: str) -> str:
    """What the drawing's font has: accents are dropped, anything else that is not ASCII becomes a question mark."""
    flat = unicodedata.normalize("NFKD", text[:MAX_TEXT])
    return "".join(c if " " <= c <= "~" else "?" for c in flat if not unicodedata.combining(c))


def _text(found: Detection) -> str:
    number = f"#{found.track} " if found.track else ""
    return f"{number}{plain(found.label)} {found.score * 100:.0f}%"


def _corners(found: Detection, scale: float, origin: tuple[float, float]) -> list[Point]:
    if len(found.quad) == 8:
        return _scaled(found.quad, scale, origin)
    x0, y0, x1, y1 = found.box or (0.0, 0.0, 0.0, 0.0)
    return _scaled((x0, y0, x1, y0, x1, y1, x0, y1), scale, origin)


def _outline(found: Detection, scale: float, origin: tuple[float, float]) -> list[Point]:
    return _scaled(found.outline, scale, origin) if len(found.outline) >= 6 else []


def _key_points(found: Detection, scale: float, origin: tuple[float, float]) -> list[Point]:
    """Those that the model is sure enough of."""
    points = found.points
    sure = [value for i in range(0, len(points) - 2, 3) if points[i + 2] >= LEAST_POINT_SCORE for value in points[i:i + 2]]
    return _scaled(sure, scale, origin)


def _scaled(numbers: Sequence[float], scale: float, origin: tuple[float, float]) -> list[Point]:
    return [(_bounded((numbers[i] - origin[0]) * scale), _bounded((numbers[i + 1] - origin[1]) * scale))
            for i in range(0, len(numbers) - 1, 2)]


def _bounded(value: float) -> int:
    """A model may answer anything; the drawing takes 16 bits."""
    return int(min(max(value, -16000.0), 16000.0)) if value == value else 0


class _Pen:
    """Widths and letters in proportion to the picture."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._height, self._width = image.shape[:2]
        self._thick = max(2, round(self._width / 480))
        self._size = min(max(self._width / 1600, 0.42), 1.2)

    def shape(self, corners: list[Point], colour: Colour) -> None:
        import cv2

        points = [np.array(corners, np.int32).reshape(-1, 1, 2)]
        cv2.polylines(self._image, points, True, _EDGE, self._thick + 2, cv2.LINE_AA)
        cv2.polylines(self._image, points, True, colour, self._thick, cv2.LINE_AA)

    def fill(self, corners: list[Point], colour: Colour) -> None:
        """A mask, a third of it its colour, so that the thing below stays to be seen."""
        import cv2

        if not corners:
            return
        points = np.array(corners, np.int32)
        x0, y0 = (max(int(v), 0) for v in points.min(axis=0))
        x1, y1 = min(int(points[:, 0].max()) + 1, self._width), min(int(points[:, 1].max()) + 1, self._height)
        if x0 >= x1 or y0 >= y1:
            return
        part = self._image[y0:y1, x0:x1]
        painted = part.copy()
        cv2.fillPoly(painted, [(points - (x0, y0)).reshape(-1, 1, 2)], colour)
        cv2.addWeighted(painted, 0.35, part, 0.65, 0.0, dst=part)

    def dots(self, places: list[Point], colour: Colour) -> None:
        import cv2

        for place in places:
            cv2.circle(self._image, place, self._thick + 2, _EDGE, cv2.FILLED, cv2.LINE_AA)
            cv2.circle(self._image, place, self._thick + 1, colour, cv2.FILLED, cv2.LINE_AA)

    def tag(self, text: str, corner: Point, colour: Colour) -> None:
        """On top of the shape where there is room above it, else inside."""
        wide, tall = self._extent(text)
        x = min(max(corner[0] - self._thick // 2, 0), max(self._width - wide, 0))
        y = corner[1] - tall if corner[1] >= tall else max(corner[1], 0)
        self._write(text, x, y, colour)

    def line_of_text(self, text: str, row: int, colour: Colour) -> None:
        _, tall = self._extent(text)
        self._write(text, 0, row * tall, colour)

    def footer(self, text: str) -> None:
        _, tall = self._extent(text)
        self._write(text, 0, self._height - tall, _EDGE)

    def _extent(self, text: str) -> Point:
        import cv2

        (wide, tall), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, self._size, 1)
        return wide + 10, tall + base + 8

    def _write(self, text: str, x: int, y: int, ground: Colour) -> None:
        import cv2

        wide, tall = self._extent(text)
        _, base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, self._size, 1)
        cv2.rectangle(self._image, (x, y), (x + wide - 1, y + tall - 1), ground, cv2.FILLED)
        bright = 0.114 * ground[0] + 0.587 * ground[1] + 0.299 * ground[2] > 127
        letters = (0, 0, 0) if bright else (255, 255, 255)
        cv2.putText(self._image, text, (x + 5, y + tall - base - 3), cv2.FONT_HERSHEY_SIMPLEX, self._size, letters, 1, cv2.LINE_AA)


def jpeg(image: Image, quality: int = 80) -> bytes:
    """The picture as baseline JPEG."""
    import cv2

    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError("the picture cannot be encoded")
    return data.tobytes()
