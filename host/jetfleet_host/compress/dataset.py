"""The data folder: images, and labels where there are some.

Three forms: images alone; images and ``labels.json`` ({image: [{"label", "box" or "quad" or "outline", "points"}, ...]} for detection,
masks and key points (of "points", x, y, visible each, a box goes along),
{image: "label"} for classification); or one sub-folder a class. Order is by name, so it is the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import InputError
from jetfleet_contract.predictions import Detection, Prediction

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
LABELS = "labels.json"
TARGET = ".npy"  # an array of the user's own beside the image, for a task of the user's own
MAX_LABEL_BYTES = 64 << 20
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class DataSet:
    """Images in order; `truth` is None when there are no labels. `digest` covers names, bytes, labels and own targets."""

    folder: Path
    images: tuple[Path, ...]
    truth: tuple[Prediction, ...] | None
    digest: str

    def labels(self) -> tuple[str, ...]:
        """All labels in the truth, sorted."""
        return tuple(sorted({item.label for answer in self.truth or () for item in answer}))


def load_data(folder: Path) -> DataSet:
    """Read and check a data folder; every image is decoded once.

    Raises:
        InputError: `data.not-found`, `data.empty`, `data.unreadable` (names the image), `data.labels` (malformed, or labels
            for an image that is not there), `data.unlabelled` (an image without an entry).
    """
    if not folder.is_dir():
        raise InputError("data.not-found", f"there is no data folder {folder}", where=str(folder), remedy="give a folder with images")
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    flat = _images_in(folder)
    if not flat and classes:
        pairs = [(image, (Detection(entry.name, 1.0),)) for entry in classes for image in _images_in(entry)]
        images = tuple(image for image, _ in pairs)
        truth: tuple[Prediction, ...] | None = tuple(answer for _, answer in pairs)
        labels = b""
    else:
        images = flat
        labels = _label_bytes(folder)
        truth = _truth(folder, images, labels) if labels else None
    if not images:
        raise InputError("data.empty", f"the data folder {folder} has no images", where=str(folder),
                         remedy=f"put images there ({', '.join(SUFFIXES)}); 20 or more that look like the camera's are good")
    hasher = hashlib.sha256(labels)
    for image in images:
        data = image.read_bytes()
        _check_image(image, data)
        hasher.update(f"{image.relative_to(folder)}\0{hashlib.sha256(data).hexdigest()}\n".encode())
        if (target := image.with_suffix(TARGET)).is_file():
            hasher.update(hashlib.sha256(target.read_bytes()).digest())
    return DataSet(folder, images, truth, hasher.hexdigest())


def read_image(path: Path) -> Image:
    """(H, W, 3) uint8, BGR. InputError `data.unreadable` when it cannot be decoded."""
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise _unreadable(path)
    return np.asarray(image, np.uint8)


def to_tensor(image: Image, spec: InputSpec) -> NDArray[np.float32]:
    """The input tensor (1, 3, H, W) that `InputSpec` describes; a test compares it with the board's own code."""
    import cv2

    frame = image if spec.resize == "stretch" else _letterboxed(image, spec)
    if frame.shape[:2] != (spec.height, spec.width):
        frame = np.asarray(cv2.resize(frame, (spec.width, spec.height), interpolation=cv2.INTER_LINEAR))
    planes = frame[:, :, ::-1] if spec.color == "rgb" else frame
    values = (planes.astype(np.float64) * spec.scale - np.asarray(spec.mean)) / np.asarray(spec.std)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None].astype(np.float32))


def inner_place(height: int, width: int, spec: InputSpec) -> tuple[float, float, int, int]:
    """Where an image comes to lie in its input tensor: x * scale_x + left, y * scale_y + top, as (scale_x, scale_y, left, top)."""
    if spec.resize == "stretch":
        return spec.width / width, spec.height / height, 0, 0
    inner, left, top = _inner(height, width, spec)
    return inner[0] / width, inner[1] / height, left, top


def _letterboxed(image: Image, spec: InputSpec) -> Image:
    import cv2

    inner, left, top = _inner(image.shape[0], image.shape[1], spec)
    canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
    canvas[top:top + inner[1], left:left + inner[0]] = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
    return canvas


def _inner(height: int, width: int, spec: InputSpec) -> tuple[tuple[int, int], int, int]:
    """Width and height of a letterboxed image within the input, and its left and top."""
    ratio = min(spec.width / width, spec.height / height)
    inner = (min(spec.width, max(1, round(width * ratio))), min(spec.height, max(1, round(height * ratio))))
    return inner, (spec.width - inner[0]) // 2, (spec.height - inner[1]) // 2


def _images_in(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(entry for entry in folder.iterdir()
                        if entry.is_file() and entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")))


def _check_image(path: Path, data: bytes) -> None:
    import cv2

    if not data or cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None:
        raise _unreadable(path)


def _unreadable(path: Path) -> InputError:
    return InputError("data.unreadable", f"the image {path.name} cannot be decoded", where=str(path),
                      remedy="remove it from the data folder, or save it again")


def _label_bytes(folder: Path) -> bytes:
    path = folder / LABELS
    if not path.is_file():
        return b""
    if path.stat().st_size > MAX_LABEL_BYTES:
        raise InputError("data.labels", f"{LABELS} is over the limit of {MAX_LABEL_BYTES} bytes", where=str(path))
    return path.read_bytes()


def _truth(folder: Path, images: Sequence[Path], data: bytes) -> tuple[Prediction, ...]:
    where = str(folder / LABELS)
    try:
        table = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError("data.labels", f"{LABELS} is not valid JSON: {error}", where=where) from None
    if not isinstance(table, dict):
        raise InputError("data.labels", f"{LABELS} must be an object of image name to labels", where=where)
    names = {image.name for image in images}
    missing = sorted(set(table) - names)
    if missing:
        raise InputError("data.labels", f"{LABELS} has labels for {missing[0]!r}, which is not in the folder ({len(missing)} such)",
                         where=where, remedy="add the image, or remove its entry")
    unlabelled = sorted(names - set(table))
    if unlabelled:
        raise InputError("data.unlabelled", f"{LABELS} has no entry for {unlabelled[0]!r} ({len(unlabelled)} such)", where=where,
                         remedy="add an entry (an empty list when there is nothing to find), or move the image away")
    return tuple(_answer(table[image.name], image.name, where) for image in images)


def _answer(entry: Any, image: str, where: str) -> Prediction:
    if isinstance(entry, str):
        return (Detection(entry, 1.0),)
    try:
        return tuple(_detection(item) for item in entry)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("data.labels", f"the labels of {image!r} are malformed: {error!r}", where=where,
                         remedy='each is {"label": "...", "box": [x0, y0, x1, y1]} or {"label": "...", "quad": [8 numbers]}') from None


def _detection(item: Mapping[str, Any]) -> Detection:
    label = str(item["label"])
    if "quad" in item:
        quad = tuple(float(v) for v in np.asarray(item["quad"], np.float64).reshape(-1))
        if len(quad) != 8:
            raise ValueError(f"a quad has 8 numbers, not {len(quad)}")
        return Detection(label, 1.0, (min(quad[::2]), min(quad[1::2]), max(quad[::2]), max(quad[1::2])), quad)
    points = _numbers(item, "points", 3)
    outline = _numbers(item, "outline", 2)
    if outline and "box" not in item:
        return Detection(label, 1.0, (min(outline[::2]), min(outline[1::2]), max(outline[::2]), max(outline[1::2])), outline=outline)
    x0, y0, x1, y1 = (float(v) for v in item["box"])
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"box {item['box']} is empty")
    return Detection(label, 1.0, (x0, y0, x1, y1), outline=outline, points=tuple(min(v, 1.0) if i % 3 == 2 else v
                                                                                 for i, v in enumerate(points)))


def _numbers(item: Mapping[str, Any], name: str, each: int) -> tuple[float, ...]:
    values = tuple(float(v) for v in np.asarray(item.get(name, ()), np.float64).reshape(-1))
    if len(values) % each or (name == "outline" and 0 < len(values) < 6) or not np.isfinite(values).all():
        raise ValueError(f"{name} has {len(values)} numbers, it needs {each} a point and all finite")
    return values
