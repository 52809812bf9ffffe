"""Image files as what a float stage reads: the same pre-processing as on the board, and targets by one stated order of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import InputError

from .dataset import DataSet, read_image, to_tensor


class ImageSamples:
    """A `Split` over image files: (C, H, W) float32 as `spec` describes, and int64 targets.

    Args:
        targets: one index a sample; None gives -1 for all, which no loss takes.
    """

    def __init__(self, data: DataSet, spec: InputSpec, targets: NDArray[np.int64] | None) -> None:
        self._data, self._spec = data, spec
        self._targets = np.full(len(data.images), -1, np.int64) if targets is None else targets

    @cached_property
    def digest(self) -> str:
        spec = msgspec.json.encode(self._spec, order="sorted")
        return hashlib.sha256(self._data.digest.encode() + spec + self._targets.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._data.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return to_tensor(read_image(self._data.images[index]), self._spec)[0], self._targets[index:index + 1].reshape(())


def class_order(data: DataSet, labels: Sequence[str]) -> tuple[str, ...]:
    """The classes in the order of the model's outputs: as given, else the data's in sorted order; empty when they are indices already."""
    found = data.labels()
    if labels or all(label.isdigit() for label in found):
        return tuple(labels)
    return found


def class_targets(data: DataSet, classes: Sequence[str]) -> NDArray[np.int64] | None:
    """One index a sample, int64 (N,); None without labels.

    Args:
        classes: their names in the order of the model's outputs; empty when the labels are indices.

    Raises:
        InputError: `data.labels` naming the first image whose label is none of the classes, or that has not exactly one label.
    """
    if data.truth is None:
        return None
    known = {name: index for index, name in enumerate(classes)}
    targets = np.empty(len(data.images), np.int64)
    for index, answer in enumerate(data.truth):
        image = data.images[index]
        if len(answer) != 1:
            raise InputError("data.labels", f"{image.name} has {len(answer)} labels; to train a classifier each image has one",
                             where=str(image), remedy="name another task in the recipe: [training] task")
        label = answer[0].label
        if label not in known and not (not known and label.isdigit()):
            raise InputError("data.labels", f"{image.name} is labelled {label!r}, which is none of the {len(known)} classes",
                             where=str(image), remedy="correct the label, or name all classes with --labels")
        targets[index] = known[label] if known else int(label)
    return targets
