"""Masks as outlines: instances (YOLO-seg) and regions of a class map (semantic segmentation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.decoded import HeadDecode, OutputPort
from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import choice, number
from jetfleet_agent.pipeline.tasks.detect_yolo import YoloTask
from jetfleet_agent.pipeline.tasks.placing import outline_in_frame, outline_of, points_in_frame, shares
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.predictions import Detection

Array = npt.NDArray[Any]
_SAMPLES = 256
_SUM_ERROR = 1e-3 + 1e-5  # within which the scores of a pixel are chances already
_LOOKED_AT = 8192
_SPECKLED = 0.4  # from so many borders a pixel on, most outlines are of specks that nobody will be told of


class Segment(YoloTask):
    """What the model's outputs are tells which of two it does:

    - instances: a YOLO output whose E are M mask coefficients, and prototypes (1, M, h, w). One detection a thing: box, and the outline of
      its mask's largest region within the box (a pixel is the thing's where coefficients times prototypes are over 0);
    - regions: one map, (1, C, H, W) scores, or (1, H, W) or (1, 1, H, W) class numbers (integers) or one class's chance (floats, logits
      when outside 0..1). One detection a connected region: its outline, box, and the mean chance of its class as score (1 for
      class numbers, which tell none).

    Options: those of `YoloTask` for instances; for regions `threshold` 0.25 is the least mean chance (and the level of a one-class map),
    `background` -1 (the class that is not told; -1 none), `min_area` 0.001 (least share of the input's area), `max_detections`.
    `form`: ``auto``, ``instances`` or ``regions``, for a model that could be either.
    """

    options = YoloTask.options | {"background", "min_area", "form"}

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self._form = choice(spec, "form", ("auto", "instances", "regions"))
        self._background = number(spec, "background", -1, -1, 65535)
        self._least_area = number(spec, "min_area", 0.001, 0.0, 1.0)

    def on_gpu(self, outputs: Sequence[OutputPort]) -> HeadDecode | None:
        """Boxes and coefficients of instances; their prototypes stay an output of their own."""
        maps = [output for output in outputs if len(output.shape) == 4]
        if self._form == "regions" or len(maps) != 1 or len(outputs) != 2:
            return None
        return self.head([output for output in outputs if len(output.shape) != 4], maps[0].shape[1])

    def decode(self, outputs: tuple[Array, ...], geometry: Geometry) -> tuple[Detection, ...]:
        form = self._form
        if form == "auto":
            form = "instances" if len(outputs) > 1 else "regions"
        if form == "instances":
            return self._instances(outputs, geometry)
        if len(outputs) != 1:
            raise IncompatibleError("task.output", f"regions need one output, the model gives {[o.shape for o in outputs]}")
        return self._regions(outputs[0], geometry)

    # --- instances ---------------------------------------------------------------------------------------------

    def _instances(self, outputs: tuple[Array, ...], geometry: Geometry) -> tuple[Detection, ...]:
        maps = [output for output in outputs if output.ndim == 4 and output.shape[0] == 1]
        others = tuple(output for output in outputs if output.ndim != 4)
        if len(maps) != 1 or not others:
            raise IncompatibleError("task.output", "instances need boxes with coefficients, and prototypes (1, M, h, w); the model gives "
                                                   f"{[o.shape for o in outputs]}")
        prototypes = maps[0][0]
        found, boxes = self.found(others, geometry, prototypes.shape[0])
        return tuple(Detection(self.label(index), score, (x0, y0, x1, y1),
                               outline=self._outline(prototypes, coefficients, corners, geometry))
                     for index, score, (x0, y0, x1, y1), coefficients, corners
                     in zip(found.classes.tolist(), shares(found.scores), boxes.tolist(), found.rest, found.boxes, strict=True))

    def _outline(self, prototypes: Array, coefficients: npt.NDArray[np.float32], corners: npt.NDArray[np.float32],
                 geometry: Geometry) -> tuple[float, ...]:
        """The mask is computed under the box only, and brought to the input's size before it is cut at 0."""
        import cv2

        _, rows, columns = prototypes.shape
        step_x, step_y = self.spec.input.width / columns, self.spec.input.height / rows
        x0, y0, x1, y1 = corners.tolist()
        # One prototype cell around the box, for the interpolation.
        left, right = max(0, math.floor(x0 / step_x) - 1), min(columns, math.ceil(x1 / step_x) + 1)
        top, bottom = max(0, math.floor(y0 / step_y) - 1), min(rows, math.ceil(y1 / step_y) + 1)
        if right <= left or bottom <= top:
            return ()
        window = prototypes[:, top:bottom, left:right].astype(np.float32, copy=False).reshape(len(coefficients), -1)
        logits = (coefficients @ window).reshape(bottom - top, right - left)
        size = (round((right - left) * step_x), round((bottom - top) * step_y))
        mask = (cv2.resize(logits, size, interpolation=cv2.INTER_LINEAR) > 0.0).astype(np.uint8)
        off_x, off_y = left * step_x, top * step_y
        inside = np.zeros_like(mask)
        cut = np.s_[max(0, round(y0 - off_y)):max(0, round(y1 - off_y)), max(0, round(x0 - off_x)):max(0, round(x1 - off_x))]
        inside[cut] = mask[cut]
        return outline_of(inside, off_x, off_y, geometry)

    # --- regions -----------------------------------------------------------------------------------------------

    def _regions(self, output: Array, geometry: Geometry) -> tuple[Detection, ...]:
        planes = output[0] if output.ndim == 4 else output
        if planes.ndim != 3 or output.shape[0] != 1:
            raise IncompatibleError("task.output", f"regions need a map (1, C, H, W) or (1, H, W), the model gives {output.shape}")
        if len(planes) > 1:
            planes = np.ascontiguousarray(planes)
            return self._told(_best_class(planes), planes, geometry)
        if planes.dtype.kind in "iu":
            numbers = planes[0]
            self._check_numbers(int(numbers.min()), int(numbers.max()))
            return self._told(numbers.astype(np.uint16), None, geometry)
        chances = _chances_of_one(planes[0])
        return self._told(np.where(chances > self._threshold, 0, 0xFFFF).astype(np.uint16), chances[None], geometry)

    def _check_numbers(self, least: int, most: int) -> None:
        if least < 0 or most >= (len(self.spec.labels) or 0xFFFF):
            raise IncompatibleError("task.labels", f"the model tells of classes {least} to {most}, the bundle names "
                                                   f"{len(self.spec.labels)}", remedy="give the bundle the model's labels")

    def _told(self, numbers: npt.NDArray[np.uint16], planes: Array | None, geometry: Geometry) -> tuple[Detection, ...]:
        import cv2

        if planes is not None and self.spec.labels and len(self.spec.labels) != len(planes):
            raise IncompatibleError("task.labels", f"the model has {len(planes)} classes, the bundle names {len(self.spec.labels)}",
                                    remedy="give the bundle the model's labels")
        rows, columns = numbers.shape
        least = max(1.0, self._least_area * rows * columns)
        regions: list[tuple[float, int, Any]] = []
        present = np.flatnonzero(np.bincount(numbers.reshape(-1), minlength=1) >= least)
        speckled = np.count_nonzero(numbers[:, 1:] != numbers[:, :-1]) > _SPECKLED * numbers.size
        for index in present.tolist():
            if index in (self._background, 0xFFFF):
                continue
            mask = np.equal(numbers, index).view(np.uint8)
            if speckled:
                mask = _without_specks(mask, least)
            contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
            areas = [cv2.contourArea(contour) for contour in contours]
            regions += [(area, index, contour) for area, contour in zip(areas, contours, strict=True) if area >= least]
        regions.sort(key=lambda region: -region[0])
        found = (self._region(index, contour, numbers, planes, geometry) for _, index, contour in regions[:self._most])
        return tuple(detection for detection in found if detection is not None)

    def _region(self, index: int, contour: Any, numbers: npt.NDArray[np.uint16], planes: Array | None,
                geometry: Geometry) -> Detection | None:
        import cv2

        score = 1.0 if planes is None else _mean_chance(planes, numbers, index, cv2.boundingRect(contour))
        if not score >= self._threshold:
            return None
        rows, columns = numbers.shape
        width, height = self.spec.input.width, self.spec.input.height
        # The map may be coarser than the input.
        scaled = (contour + 0.5) * (width / columns, height / rows) - 0.5
        outline = outline_in_frame(scaled.astype(np.float32), 0.0, 0.0, geometry)
        left, top, wide, high = cv2.boundingRect(contour)
        corners = np.array([[left * width / columns, top * height / rows],
                            [(left + wide) * width / columns, (top + high) * height / rows]])
        (x0, y0), (x1, y1) = points_in_frame(corners, geometry).tolist()
        if not (x0 < x1 and y0 < y1):
            return None
        return Detection(self.label(index), score, (x0, y0, x1, y1), outline=outline)


def _best_class(planes: Array) -> npt.NDArray[np.uint16]:
    """(C, H, W) scores as the number of the best class, (H, W). Plane by plane: 7 ms for 19 classes at 512 x 512 on one x86 core, where
    numpy's own argmax over the first axis takes 31."""
    import cv2

    best = planes[0].astype(np.float32)
    numbers = np.zeros(best.shape, np.uint16)
    for index in range(1, len(planes)):
        plane = planes[index].astype(np.float32, copy=False)
        np.copyto(numbers, index, where=np.greater(plane, best))
        cv2.max(best, plane, dst=best)
    return numbers


def _without_specks(mask: npt.NDArray[np.uint8], least: float) -> npt.NDArray[np.uint8]:
    """The mask less what cannot have an outline of that area: an outline runs through the middles of pixels, so its area is at most
    (width - 1) * (height - 1). A speck goes round nothing that stays, so the outlines of the rest are what they were; finding those of some
    thousand specks takes several times as long as labelling them."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=cv2.CV_32S)
    stays = (stats[:, cv2.CC_STAT_WIDTH] - 1.0) * (stats[:, cv2.CC_STAT_HEIGHT] - 1.0) >= least
    stays[0] = False  # what is not of the class
    return np.asarray(stays.view(np.uint8)[labels], np.uint8)


def _chances_of_one(plane: Array) -> npt.NDArray[np.float32]:
    values = plane.astype(np.float32, copy=False)
    if values.min() >= 0.0 and values.max() <= 1.0:
        return values
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -80.0, 80.0))), np.float32)


def _mean_chance(planes: Array, numbers: npt.NDArray[np.uint16], index: int, rect: tuple[int, int, int, int]) -> float:
    """Mean chance of the class over at most some hundred of its pixels in the rectangle, spread evenly."""
    left, top, wide, high = rect
    step = max(1, math.isqrt(wide * high // _LOOKED_AT))
    rows, columns = np.nonzero(numbers[top:top + high:step, left:left + wide:step] == index)
    if not len(rows):  # a thin region between the samples
        step = 1
        rows, columns = np.nonzero(numbers[top:top + high, left:left + wide] == index)
    if len(rows) > _SAMPLES:
        some = np.linspace(0, len(rows) - 1, _SAMPLES).astype(np.intp)
        rows, columns = rows[some], columns[some]
    places = (top + step * rows) * numbers.shape[1] + left + step * columns
    told = planes.reshape(len(planes), -1).take(places, axis=1).astype(np.float64)
    if len(planes) > 1 and not (told.min() >= 0.0 and np.abs(told.sum(axis=0) - 1.0).max() <= _SUM_ERROR):
        # The class is the best one of all these pixels: softmax less its largest, which is 0, is one over the sum.
        return round(float((1.0 / np.exp(told - told[index]).sum(axis=0)).mean()), 4)
    return round(float(told[index].mean()), 4)
