"""Which images train, which validate and which calibrate. No image does two of the first, and the rule is the same everywhere.

A data folder with a sub-folder ``train`` and one of ``validation``, ``val``, ``valid`` or ``test`` is split as it lies there, and
``calibration`` may stand beside. Otherwise one image in five of each label validates: those whose SHA-256 of seed and name is
smallest. Calibration images come from the training images, in that order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.dataset import DataSet, load_data

TRAIN, CALIBRATION = "train", "calibration"
VALIDATION = ("validation", "val", "valid", "test")
SPLITS = (TRAIN, *VALIDATION, CALIBRATION)
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class Splits:
    """The three sets of a build; each tells its own digest. `calibration` has no labels to lose: they are not read."""

    train: DataSet
    validation: DataSet
    calibration: DataSet


def load_splits(folder: Path, seed: int, calibration: int) -> Splits:
    """Read a data folder and split it.

    Args:
        calibration: number of calibration images that are wanted; fewer when there are not so many.

    Raises:
        InputError: those of `load_data`; `data.split` when one of the sets would be empty; `data.calibration` for one image or none;
            `data.labels` when a validation label was never trained.
    """
    parts = _prepared(folder)
    if parts is None:
        whole = load_data(folder)
        chosen = set(validation_indices(whole, seed))
        parts = {TRAIN: subset(whole, [i for i in range(len(whole.images)) if i not in chosen], TRAIN),
                 "validation": subset(whole, sorted(chosen), "validation")}
    train, validation = parts[TRAIN], next(parts[name] for name in VALIDATION if name in parts)
    if not train.images or not validation.images:
        raise InputError("data.split", f"{len(train.images) + len(validation.images)} images cannot be split into two sets",
                         where=str(folder), remedy="give more images")
    _check_labels(train, validation, folder)
    given = parts.get(CALIBRATION, train)
    held = subset(given, ranked(given, seed)[:calibration], CALIBRATION)
    if len(held.images) < 2:
        raise InputError("data.calibration", f"a calibration set of {len(held.images)} images gives no ranges", where=str(folder),
                         remedy="give at least 2; 32 or more that look like the camera's are good")
    return Splits(train, validation, held)


def validation_indices(data: DataSet, seed: int) -> list[int]:
    """One in five of each label, at least one when the label has two: the stated rule."""
    by_label: dict[str, list[int]] = {}
    for index in ranked(data, seed):
        by_label.setdefault(_label(data, index), []).append(index)
    return [index for members in by_label.values()
            for index in members[:min(len(members) - 1, math.ceil(len(members) * VALIDATION_SHARE))]]


def ranked(data: DataSet, seed: int) -> list[int]:
    """All indices in the order of the SHA-256 of seed and name."""
    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{data.images[index].relative_to(data.folder)}".encode()).digest()

    return sorted(range(len(data.images)), key=rank)


def subset(data: DataSet, indices: Sequence[int], name: str) -> DataSet:
    """These images in this order, as a set of its own."""
    digest = hashlib.sha256(f"{data.digest}\0{name}\0{list(indices)}".encode()).hexdigest()
    return DataSet(data.folder, tuple(data.images[i] for i in indices),
                   None if data.truth is None else tuple(data.truth[i] for i in indices), digest)


def joined(parts: Sequence[DataSet]) -> DataSet:
    """The images of all parts, one behind the other, with their labels where all parts have some."""
    digest = hashlib.sha256("\0".join(part.digest for part in parts).encode()).hexdigest()
    truths = [part.truth for part in parts if part.truth is not None]
    truth = tuple(answer for part in truths for answer in part) if len(truths) == len(parts) else None
    return DataSet(parts[0].folder, tuple(image for part in parts for image in part.images), truth, digest)


def _prepared(folder: Path) -> dict[str, DataSet] | None:
    """The splits that lie in the folder as such, when they are there."""
    if not folder.is_dir():
        return None
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if TRAIN not in found or not set(found) <= set(SPLITS) or not set(found) & set(VALIDATION):
        return None
    return {name: load_data(folder / name) for name in found}


def _label(data: DataSet, index: int) -> str:
    """The one label of an image; the same for all where there are none or many."""
    answer = data.truth[index] if data.truth is not None else ()
    return answer[0].label if len(answer) == 1 else ""


def _check_labels(train: DataSet, validation: DataSet, folder: Path) -> None:
    if (train.truth is None) != (validation.truth is None):
        raise InputError("data.labels", "one of train and validation has labels and the other has none", where=str(folder),
                         remedy="label both or none")
    strange = sorted(set(validation.labels()) - set(train.labels()))
    if strange:
        raise InputError("data.labels", f"the label {strange[0]!r} is in the validation set but was never trained ({len(strange)} such)",
                         where=str(folder), remedy="labels of all splits must be those of one set of classes")
