"""Labelled images that do not lie in a folder: a ``.npz`` file, or a factory that gives splits or loaders. They are written out as PNG
files with their labels, so that training, calibration, scoring and probes all read the very same pixels in the very same way.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.errors import InputError, StorageError
from jetfleet_host.compress.dataset import LABELS, TARGET

from .factories import call_factory, is_factory, said
from .splitting import SPLITS

Image = NDArray[np.uint8]
MAX_IMAGES = 2_000_000
_NUMBERS = ("box", "quad", "outline", "points")


@dataclass(frozen=True)
class DataInput:
    """Where the images are, and the classes' names in the order of their indices; no names when the data does not tell them."""

    folder: Path
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part:
    images: list[Image]
    labels: list[Any] | None


def data_folder(text: str, cache: Path) -> DataInput:
    """The folder that a build reads, whatever form DATA has.

    A ``.npz`` holds `images`, (N, H, W, 3) RGB or (N, H, W) grey, uint8; `labels` (N,), indices or names, where there are some; `classes`,
    the names in the order of the indices; `split` (N,) of names of splits. A factory gives a mapping of names of splits to (images, labels)
    to a loader of such batches, or to images alone, with `classes` beside; images there may also be (N, 3, H, W) and floats of 0..1. A
    label may then also be a list of boxes as ``labels.json`` has them, or an array of numbers, for a task of the user's own.

    Raises:
        InputError: `data.not-found`, `data.npz`, `data.images`, `data.not-finite`, `data.labels`, `data.empty`, `data.split`, and those
            of `factories`. StorageError: `build.cache`.
    """
    path = Path(text)
    if path.suffix.lower() == ".npz" and path.is_file():
        return _written(*_read_npz(path), text, cache)
    if not path.exists() and is_factory(text):
        return _written(*_from_factory(text), text, cache)
    return DataInput(path)


def _read_npz(path: Path) -> tuple[dict[str, _Part], tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            held = {name: archive[name] for name in archive.files if name in ("images", "labels", "classes", "split")}
    except Exception as error:  # noqa: BLE001  a zip file of a stranger
        raise InputError("data.npz", f"{path.name} cannot be read: {said(error)}", where=str(path),
                         remedy="save it with numpy.savez(images=..., labels=...), labels as numbers or fixed-width text") from None
    if "images" not in held:
        raise InputError("data.npz", f"{path.name} has no array 'images'", where=str(path), remedy="numpy.savez(images=..., labels=...)")
    images, labels = _pixels(held["images"], str(path)), held.get("labels")
    names = held.get("split", np.full(len(images), ""))
    for name, array in (("labels", labels), ("split", names)):
        if array is not None and array.shape != (len(images),):
            raise InputError("data.labels" if name == "labels" else "data.split",
                             f"{path.name} has {len(images)} images and {name} of shape {array.shape}", where=str(path))
    parts = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    return ({name: _Part([images[i] for i in rows], None if labels is None else [labels[i].item() for i in rows])
             for name, rows in parts.items()}, tuple(str(name) for name in held.get("classes", ())))


def _from_factory(text: str) -> tuple[dict[str, _Part], tuple[str, ...]]:
    made = call_factory(text)
    if not isinstance(made, Mapping) or "train" not in made:
        raise InputError("factory.type", f"{text} gives a {type(made).__name__}, not a mapping with the split 'train'", where=text,
                         remedy="return {'train': (images, labels), 'validation': (images, labels), 'classes': [...]}")
    parts = {}
    for name in (name for name in made if name != "classes"):
        if hasattr(made[name], "shape"):
            parts[str(name)] = _Part(list(_pixels(np.asarray(made[name]), f"{text}, split {name!r}")), None)
            continue
        images: list[Image] = []
        labels: list[Any] = []
        for batch, answers in _batches(made[name], text):
            images += list(_pixels(batch, f"{text}, split {name!r}"))
            labels += answers
        if len(images) > MAX_IMAGES:
            raise InputError("data.images", f"split {name!r} has more than {MAX_IMAGES} images", where=text)
        parts[str(name)] = _Part(images, labels)
    return parts, tuple(str(name) for name in made.get("classes", ()))


def _batches(split: Any, text: str) -> Iterator[tuple[NDArray[Any], list[Any]]]:
    pairs: Iterable[Any] = [split] if isinstance(split, tuple) and len(split) == 2 and hasattr(split[0], "shape") else split
    try:
        for pair in pairs:
            yield _batch(np.asarray(pair[0]), _answers(pair[1]), text)
    except InputError:
        raise
    except Exception as error:  # the user's loader raises whatever it likes
        raise InputError("factory.raised", f"the loader of {text} raised {said(error)}", where=text,
                         remedy="a loader gives pairs of images and labels") from error


def _batch(images: NDArray[Any], labels: Any, text: str) -> tuple[NDArray[Any], list[Any]]:
    if images.ndim in (2, 3) and not isinstance(labels, list):
        images, labels = images[None], [labels]
    if not isinstance(labels, list) or len(labels) != len(images):
        found = f"{len(labels)} labels" if isinstance(labels, list) else "one label"
        raise InputError("data.labels", f"a batch has {len(images)} images and {found}", where=text)
    return images, labels


def _answers(labels: Any) -> Any:
    """A list of one label a sample: an index, a name, a list of boxes or an array; or one such label."""
    if hasattr(labels, "shape"):
        array = np.asarray(labels)
        return list(array) if array.ndim > 1 else array.tolist()
    if isinstance(labels, (list, tuple)):
        return [_answer(label) for label in labels]
    return labels


def _answer(label: Any) -> Any:
    if not hasattr(label, "shape"):
        return label
    array = np.asarray(label)
    return array if array.ndim else array.item()


def _pixels(images: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8 RGB of any layout that leaves no doubt."""
    if images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise InputError("data.images", f"images of shape {images.shape} are not (N, H, W, 3) or (N, H, W)", where=where)
    if images.dtype.kind == "f":
        if not np.isfinite(images).all():
            bad = int(np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))[0])
            raise InputError("data.not-finite", f"image {bad} holds NaN or infinity", where=where, remedy="mend or remove it")
        if images.min() < 0.0 or images.max() > 1.0:
            raise InputError("data.images", f"float images are 0..1, these are {images.min():.3g}..{images.max():.3g}", where=where,
                             remedy="give pixels as they come from a camera: --mean and --std tell the normalisation")
        images = np.rint(images * 255.0).astype(np.uint8)
    if images.dtype != np.uint8:
        raise InputError("data.images", f"images are {images.dtype}, not uint8", where=where, remedy="give 0..255 as uint8")
    return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))


def _written(parts: dict[str, _Part], classes: tuple[str, ...], text: str, cache: Path) -> DataInput:
    """One folder of PNG files and labels.json a split, named by the digest of what is in it; it appears whole or not at all."""
    if set(parts) != {""} and not set(parts) <= set(SPLITS):
        unknown = min(set(parts) - set(SPLITS))
        raise InputError("data.split", f"there is no split {unknown!r}", where=text, remedy=f"splits are {', '.join(SPLITS)}")
    targets = {name: _targets(part.labels, text) for name, part in parts.items()}
    named = {name: None if targets[name] else _names(part.labels, classes, text) for name, part in parts.items()}
    hasher = hashlib.sha256(json.dumps([sorted(parts), named, classes], sort_keys=True).encode())
    for name in sorted(parts):
        for image in parts[name].images:
            hasher.update(f"{image.shape}".encode() + image.tobytes())
        for target in targets[name]:
            hasher.update(f"{target.dtype} {target.shape}".encode() + target.tobytes())
    folder = cache / f"images-{hasher.hexdigest()[:32]}"
    if folder.is_dir():
        return DataInput(folder, classes)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")  # two builds may write the same images at once
    try:
        for name, part in parts.items():
            _write_part(partial / name, part.images, named[name], targets[name])
        if not folder.is_dir():
            _put_in_place(partial, folder)
    except OSError as error:
        raise StorageError("build.cache", f"cannot write the images of {text}: {error.strerror or error}", where=str(folder),
                           remedy="free some space, or give another folder with --cache") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return DataInput(folder, classes)


def _put_in_place(partial: Path, folder: Path) -> None:
    try:
        partial.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another build was first, with the same content
            raise


def _targets(labels: list[Any] | None, text: str) -> list[NDArray[Any]]:
    """Labels that are arrays, as they are; none when they are of another kind."""
    arrays = [label for label in labels or () if isinstance(label, np.ndarray)]
    for array in arrays:
        if len(arrays) != len(labels or ()) or array.dtype.kind not in "biuf":
            raise InputError("data.labels", "some labels are arrays of numbers and some are none", where=text, remedy="give one kind")
    return arrays


def _names(labels: list[Any] | None, classes: tuple[str, ...], text: str) -> list[Any] | None:
    """Labels as ``labels.json`` has them; an index becomes the name of its class where there are names."""
    if labels is None:
        return None
    return [[_thing(item, classes, text) for item in label] if isinstance(label, (list, tuple)) else _name(label, classes, text)
            for label in labels]


def _name(label: Any, classes: tuple[str, ...], text: str) -> str:
    if isinstance(label, bool) or not isinstance(label, (int, str)) or (isinstance(label, int) and label < 0):
        raise InputError("data.labels", f"the label {label!r} is no index and no name", where=text)
    if classes and (label not in classes if isinstance(label, str) else label >= len(classes)):
        raise InputError("data.labels", f"the label {label!r} is none of the {len(classes)} classes", where=text,
                         remedy="labels are indices into the classes, or their names")
    return classes[label] if classes and isinstance(label, int) else str(label)


def _thing(item: Any, classes: tuple[str, ...], text: str) -> dict[str, Any]:
    """One labelled thing of ``labels.json``; its numbers are looked at when that is read."""
    try:
        numbers = {key: np.asarray(item[key], np.float64).reshape(-1).tolist() for key in _NUMBERS if key in item}
        return {"label": _name(item["label"], classes, text), **numbers}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("data.labels", f"a label is malformed: {said(error)}", where=text,
                         remedy='each thing is {"label": name or index, "box": [x0, y0, x1, y1]}') from None


def _write_part(folder: Path, images: list[Image], labels: list[Any] | None, targets: list[NDArray[Any]]) -> None:
    import cv2

    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        ok, data = cv2.imencode(".png", image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        if not ok:
            raise InputError("data.images", f"image {index} of shape {image.shape} cannot be written as PNG")
        (folder / f"{index:07d}.png").write_bytes(data.tobytes())
    for index, target in enumerate(targets):
        np.save(folder / f"{index:07d}{TARGET}", target, allow_pickle=False)
    if labels is not None:
        table = {f"{index:07d}.png": label for index, label in enumerate(labels)}
        (folder / LABELS).write_text(json.dumps(table), "utf-8")
