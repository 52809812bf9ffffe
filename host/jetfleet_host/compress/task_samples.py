"""Image files with the targets of a task that the user brings: arrays of their own beside the images, or the boxes of ``labels.json``.

``NAME.npy`` beside ``NAME.png`` is that image's target as it is. Else it is made of the labels: for boxes float32 (M, 5), a row each of
class index and x0, y0, x1, y1 in pixels of the input tensor; for one label of the whole image int64 (), its class index.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import InputError
from jetfleet_contract.predictions import Detection, Prediction

from .dataset import TARGET, DataSet, inner_place, read_image, to_tensor
from .intake.factories import said


class TaskSamples:
    """A `Split` over image files: (C, H, W) float32 as `spec` describes, and the targets that the module's head tells of.

    Args:
        classes: names in the order of the model's outputs; empty when the labels are indices.

    Raises:
        InputError: `data.unlabelled` naming the first image without a target, `data.labels` naming the first whose label is none of the
            classes or that mixes boxes with labels of the whole image.
    """

    def __init__(self, data: DataSet, spec: InputSpec, classes: Sequence[str]) -> None:
        self._data, self._spec, self._classes = data, spec, tuple(classes)
        self._known = {name: index for index, name in enumerate(classes)}
        self._own = any(image.with_suffix(TARGET).is_file() for image in data.images)
        for index, image in enumerate(data.images):
            self._check(index, image)

    @cached_property
    def digest(self) -> str:
        spec = msgspec.json.encode(self._spec, order="sorted")
        return hashlib.sha256(self._data.digest.encode() + spec + msgspec.json.encode(self._classes)).hexdigest()

    def __len__(self) -> int:
        return len(self._data.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
        path = self._data.images[index]
        image = read_image(path)
        target = _read_target(path.with_suffix(TARGET)) if self._own else self._labelled(index, image.shape[:2])
        return to_tensor(image, self._spec)[0], target

    def _check(self, index: int, image: Path) -> None:
        if self._own or self._data.truth is None:
            if not self._own or not image.with_suffix(TARGET).is_file():
                raise InputError("data.unlabelled", f"{image.name} has no target", where=str(image),
                                 remedy=f"give labels.json, or an array {image.stem}{TARGET} beside each image")
            return
        answer = self._data.truth[index]
        if len({item.box is None for item in answer}) > 1 or (len(answer) > 1 and answer[0].box is None):
            raise InputError("data.labels", f"{image.name} has several labels that are not all boxes", where=str(image),
                             remedy="give boxes, or one label of the whole image")
        for item in answer:
            if item.label not in self._known and not (not self._known and item.label.isdigit()):
                raise InputError("data.labels", f"{image.name} is labelled {item.label!r}, which is none of the {len(self._known)} classes",
                                 where=str(image), remedy="correct the label, or name all classes with --labels")

    def _labelled(self, index: int, size: tuple[int, ...]) -> NDArray[Any]:
        answer: Prediction = self._data.truth[index] if self._data.truth is not None else ()
        if len(answer) == 1 and answer[0].box is None:
            return np.asarray(self._index(answer[0]), np.int64)
        scale_x, scale_y, left, top = inner_place(size[0], size[1], self._spec)
        rows = [(self._index(item), *item.box) for item in answer if item.box is not None]
        boxes = np.asarray(rows, np.float64).reshape(-1, 5)
        boxes[:, 1:] = boxes[:, 1:] * (scale_x, scale_y, scale_x, scale_y) + (left, top, left, top)
        return boxes.astype(np.float32)

    def _index(self, item: Detection) -> int:
        return self._known[item.label] if self._known else int(item.label)


def _read_target(path: Path) -> NDArray[Any]:
    """An array of numbers. InputError `data.labels`."""
    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # noqa: BLE001  a stranger's file
        raise InputError("data.labels", f"the target {path.name} cannot be read: {said(error)}", where=str(path),
                         remedy="write it with numpy.save, an array of numbers") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise InputError("data.labels", f"the target {path.name} is no array of numbers", where=str(path))
    return array
