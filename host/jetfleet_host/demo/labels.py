"""Printed labels: a line of text in a real font on paper, on a dark plate, or straight on the picture."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Colour = tuple[int, int, int]
Style = Literal["paper", "plate", "bare", "faint"]

TEXTS = ("GATE A12", "FRAGILE", "THIS WAY UP", "BATCH 4071", "EDGE BOX 07", "Platform 9", "Invoice 2291", "OPEN", "Coffee 2.40",
         "LOT 88-K", "Made in Lisbon", "CAMERA 3", "Do not stack", "KEEP DRY", "Row 14 Seat C", "EXIT", "Best before June",
         "SN 5520-1187", "Warehouse East", "Net 750 ml", "HANDLE WITH CARE", "Pump 2", "Tested OK", "ORIN NANO", "Shelf 31")
FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif-Bold.ttf")
SIZES = (11, 12, 13, 14, 16, 20, 24, 30, 36)
STYLES: tuple[Style, ...] = ("paper", "paper", "plate", "bare", "faint")
TURNED_SHARE = 0.35


@dataclass(frozen=True)
class Label:
    """What is printed. `size` is the font's em in pixels; `turn` is 0 or 180 degrees; colours are BGR."""

    text: str
    font: str
    size: int
    turn: int
    ink: Colour
    ground: Colour | None
    outline: Colour | None = None


@dataclass(frozen=True)
class Patch:
    """A drawn label. `colour` is h x w x 3 uint8 BGR, `cover` h x w float32 0..1; `ink` is the text's box in the patch."""

    label: Label
    colour: NDArray[np.uint8]
    cover: NDArray[np.float32]
    ink: tuple[int, int, int, int]

    @property
    def width(self) -> int:
        return int(self.colour.shape[1])

    @property
    def height(self) -> int:
        return int(self.colour.shape[0])

    def paste(self, picture: NDArray[np.uint8], x: int, y: int) -> None:
        """Blend the patch into `picture` (h x w x 3 BGR) with its top-left corner at (x, y), inside the picture."""
        window = picture[y:y + self.height, x:x + self.width]
        cover = self.cover[:, :, None]
        window[:] = (window * (1 - cover) + self.colour * cover + 0.5).astype(picture.dtype)


def random_label(rng: random.Random, text: str) -> Label:
    """A label with `text` in a random style; `faint` ones keep some 50 grey levels between ink and ground."""
    style = rng.choice(STYLES)
    turn = 180 if rng.random() < TURNED_SHARE else 0
    ink, ground, outline = _colours(style, rng)
    return Label(text, rng.choice(FONTS), rng.choice(SIZES), turn, ink, ground, outline)


def _colours(style: Style, rng: random.Random) -> tuple[Colour, Colour | None, Colour | None]:
    if style == "paper":
        tint = rng.randint(215, 250)
        return _grey(rng.randint(10, 50)), (tint - rng.randint(0, 30), tint - 5, tint), None
    if style == "plate":
        return _grey(rng.randint(225, 255)), (rng.randint(40, 130), rng.randint(30, 80), rng.randint(10, 60)), None
    if style == "bare":
        return _grey(250), None, _grey(20)
    ground = rng.randint(120, 180)
    return _grey(ground - rng.randint(50, 70)), _grey(ground), None


def _grey(level: int) -> Colour:
    return (level, level, level)


def draw_label(label: Label, max_width: int, max_height: int) -> Patch:
    """Draw a label, with a smaller font where it would be larger than `max_width` x `max_height` pixels."""
    import cv2
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    size = label.size
    while True:
        font = ImageFont.truetype(str(_font_folder() / label.font), size)
        stroke = max(2, size // 12) if label.outline else 0
        left, top, right, bottom = (round(edge) for edge in font.getbbox(label.text))
        pad_x, pad_y = (round(0.5 * size), round(0.3 * size)) if label.ground else (stroke, stroke)
        width, height = right - left + 2 * pad_x, bottom - top + 2 * pad_y
        if (width <= max_width and height <= max_height) or size <= 10:
            break
        size -= 2
    text = Image.new("L", (width, height))
    ImageDraw.Draw(text).text((pad_x - left, pad_y - top), label.text, font=font, fill=255)
    edge = Image.new("L", (width, height))
    if stroke:
        ImageDraw.Draw(edge).text((pad_x - left, pad_y - top), label.text, font=font, fill=255, stroke_width=stroke, stroke_fill=255)
    inked = np.asarray(text, np.float32) / 255
    base = np.full((height, width, 3), label.ground or label.outline, np.float32)
    colour = base + (np.asarray(label.ink, np.float32) - base) * inked[:, :, None]
    cover = np.ones((height, width), np.float32) if label.ground else np.asarray(edge, np.float32) / 255
    ink = (pad_x, pad_y, pad_x + right - left, pad_y + bottom - top)
    if label.turn:
        colour, cover = colour[::-1, ::-1], cover[::-1, ::-1]
        ink = (width - ink[2], height - ink[3], width - ink[0], height - ink[1])
    # A printed label under a camera is never pixel-sharp.
    soft = cv2.GaussianBlur(np.ascontiguousarray(colour), (0, 0), 0.6)
    return Patch(label, np.clip(soft + 0.5, 0, 255).astype(np.uint8), np.ascontiguousarray(cover), ink)


def _font_folder() -> Path:
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "fonts" / "ttf"
