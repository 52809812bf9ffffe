"""Rendered characters: the labelled data set of the compression benchmarks, made on the spot from the machine's own fonts.

36 classes (A-Z, 0-9), 18,000 images to train on and 6,000 to test with, RGB. Each image is a character of one of the fonts under a random
view: turned, sheared, seen at an angle, small or large, off the centre, in little contrast, under a gradient of light, with pieces of
neighbours, a bar across it, blur, noise and JPEG's blocks. O and 0, I and 1 look alike in some fonts, so no network gets everything.

Every image depends on (seed, split, number) alone: same fonts, same bytes. Fonts are Debian's (fonts-dejavu, fonts-urw-base35 and what else
lies under /usr/share/fonts) and, where there are few, those inside matplotlib.

    python benchmarks/characters.py OUT.npz [--side 32] [--train 18000] [--test 6000] [--seed 0]

writes `images` (N, side, side, 3) uint8, `labels` (N,) int64, `classes` (36,), `split` (N,) "train" or "test", and prints their digest.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
FONTS = Path("/usr/share/fonts")
FEW = 8  # fonts; below that, matplotlib's are taken too
_GLYPH = 96  # pixels of the em square at which a character is drawn once
_NO_LETTERS = ("symbol", "d050000l", "dingbat", "math", "emoji", "lastresort", "cmex", "cmsy", "cmmi", "siz", "nonuni", "fallback")
Array = NDArray[Any]


@dataclass(frozen=True)
class Characters:
    """Images (N, side, side, 3) uint8 RGB, labels (N,) int64 into `CLASSES`, split (N,) of "train" and "test"."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    split: NDArray[np.str_]

    @property
    def digest(self) -> str:
        """SHA-256 over images, labels and splits."""
        parts = (self.images.tobytes(), self.labels.tobytes(), "\n".join(self.split.tolist()).encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def part(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        chosen = self.split == name
        return self.images[chosen], self.labels[chosen]


def render(side: int = 32, train: int = 18_000, test: int = 6_000, seed: int = 0) -> Characters:
    """The whole set. Labels go round the classes, so each has as many images as any other, give or take one."""
    fonts = find_fonts()
    images = np.empty((train + test, side, side, 3), np.uint8)
    labels = np.empty(train + test, np.int64)
    for at in range(train + test):
        part, number = (0, at) if at < train else (1, at - train)
        labels[at] = number % len(CLASSES)
        images[at] = _picture(CLASSES[labels[at]], fonts, side, np.random.default_rng((seed, part, number)))
    return Characters(images, labels, np.array(["train"] * train + ["test"] * test))


@cache
def find_fonts() -> tuple[str, ...]:
    """Font files with Latin letters, by name.

    Raises:
        FileNotFoundError: when the machine has none and matplotlib is not installed.
    """
    found = _usable(FONTS)
    if len(found) < FEW:
        import matplotlib as mpl

        found += _usable(Path(mpl.get_data_path()) / "fonts" / "ttf")
    if not found:
        raise FileNotFoundError(f"no font under {FONTS}: install fonts-dejavu")
    return tuple(sorted(found, key=lambda path: (Path(path).name, path)))


def _usable(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf")
            and not any(word in path.name.lower() for word in _NO_LETTERS)]


@cache
def _glyph(font: str, character: str) -> NDArray[np.uint8]:
    """Coverage 0..255 of the character, cut to its ink and set into the middle of a square with a margin."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.new("L", (3 * _GLYPH, 3 * _GLYPH))
    ImageDraw.Draw(canvas).text((_GLYPH, _GLYPH // 2), character, fill=255, font=ImageFont.truetype(font, _GLYPH))
    ink = np.asarray(canvas)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if not len(rows):
        return np.zeros((8, 8), np.uint8)
    cut = ink[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top:top + cut.shape[0], left:left + cut.shape[1]] = cut
    return square


def _picture(character: str, fonts: Sequence[str], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    import cv2

    font = fonts[int(rng.integers(len(fonts)))]
    paper, ink = _colours(rng)
    cover = _seen(_glyph(font, character), side, rng, rng.uniform(0.5, 0.9), rng.uniform(-0.1, 0.1, 2))
    if rng.random() < 0.35:  # a neighbour reaches into the picture
        other = CLASSES[int(rng.integers(len(CLASSES)))]
        away = np.array([rng.choice((-1.0, 1.0)) * rng.uniform(0.5, 0.7), rng.uniform(-0.2, 0.2)])
        cover = np.maximum(cover, _seen(_glyph(font, other), side, rng, rng.uniform(0.4, 0.8), away))
    picture = paper + (ink - paper) * cover[..., None]
    if rng.random() < 0.2:
        _bar(picture, rng)
    down, across = rng.uniform(0.65, 1.15, 2), rng.uniform(0.8, 1.1, 2)
    light = np.linspace(down[0], down[1], side)[:, None] * np.linspace(across[0], across[1], side)[None]
    picture = cv2.GaussianBlur(picture * light[..., None], (0, 0), rng.uniform(0.25, 1.05) * side / 32)
    picture = picture + rng.normal(0, rng.uniform(3, 20), picture.shape)
    data = cv2.imencode(".jpg", np.clip(picture, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def _colours(rng: np.random.Generator) -> tuple[Array, Array]:
    """Paper and ink, dark on light or light on dark, 50 to 160 grey levels apart."""
    contrast = rng.uniform(50, 160)
    middle = rng.uniform(contrast / 2 + 20, 235 - contrast / 2)
    sign = rng.choice((-1.0, 1.0))
    return (np.array([middle + sign * contrast / 2] * 3) + rng.uniform(-18, 18, 3),
            np.array([middle - sign * contrast / 2] * 3) + rng.uniform(-18, 18, 3))


def _seen(glyph: NDArray[np.uint8], side: int, rng: np.random.Generator, size: float, away: Array) -> Array:
    """Coverage 0..1 (side, side) of a glyph under a random view; `size` of it and distance from the centre in sides."""
    import cv2

    turn, shear = rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.2)
    corners = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]]) * size
    corners = corners @ np.array([[1.0, shear], [0.0, rng.uniform(0.75, 1.15)]]).T
    corners = corners @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]).T
    corners = (corners * (1 + rng.uniform(-0.1, 0.1, (4, 2))) + 0.5 + away) * side
    edge = float(len(glyph))
    source = np.array([[0, 0], [edge, 0], [edge, edge], [0, edge]], np.float32)
    smaller = cv2.GaussianBlur(glyph, (0, 0), max(0.1, 0.35 * edge / (size * side)))  # no aliasing on the way down
    view = cv2.getPerspectiveTransform(source, corners.astype(np.float32))
    return np.asarray(cv2.warpPerspective(smaller, view, (side, side), flags=cv2.INTER_LINEAR), np.float64) / 255.0


def _bar(picture: Array, rng: np.random.Generator) -> None:
    import cv2

    side = len(picture)
    ends = rng.uniform(0, side, (2, 2)).astype(int)
    cv2.line(picture, ends[0].tolist(), ends[1].tolist(), rng.uniform(20, 235, 3).tolist(), int(rng.integers(1, max(2, side // 11))))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, value in (("side", 32), ("train", 18_000), ("test", 6_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args(arguments)
    made = render(given.side, given.train, given.test, given.seed)
    np.savez(given.out, images=made.images, labels=made.labels, classes=np.array(list(CLASSES)), split=made.split)
    what = f"{len(made.images)} images of {len(CLASSES)} classes from {len(find_fonts())} fonts"
    sys.stdout.write(f"{what} in {given.out}, digest {made.digest}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
