"""Object detection with any model of the YOLO family; `yolo_outputs` has the layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.decoded import HEAD_TYPE_OF, HeadDecode, OutputPort, is_decoded
from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import Task, choice, flag, number
from jetfleet_agent.pipeline.tasks.placing import boxes_in_frame, shares
from jetfleet_agent.pipeline.tasks.yolo_outputs import LAYOUTS, Candidates, Outputs, Reading, read, read_decoded, suppress, tell_layout
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.decode_arguments import head_rules
from jetfleet_contract.errors import IncompatibleError, InputError
from jetfleet_contract.kernels import HEADS, HeadLayout
from jetfleet_contract.predictions import MAX_DETECTIONS, Detection

_HEADS: dict[str, HeadLayout] = {head: head for head in HEADS}


class YoloTask(Task):
    """What all tasks on YOLO outputs share: reading, suppression, places and labels.

    Options: `layout` (``auto``; see `yolo_outputs`), `threshold` 0.25, `iou` 0.45 (over it, the lesser of two boxes goes),
    `max_detections` 300, `agnostic` False (suppress across classes).
    """

    options = frozenset({"layout", "threshold", "iou", "max_detections", "agnostic"})

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self._layout = choice(spec, "layout", LAYOUTS)
        self._threshold = number(spec, "threshold", 0.25, 0.0, 1.0)
        self._iou = number(spec, "iou", 0.45, 0.0, 1.0)
        self._most = number(spec, "max_detections", 300, 1, MAX_DETECTIONS)
        self._agnostic = flag(spec, "agnostic", default=False)
        self._readings: dict[tuple[tuple[int, ...], ...], Reading] = {}

    def found(self, outputs: Outputs, geometry: Geometry, extra: int) -> tuple[Candidates, npt.NDArray[np.float64]]:
        """What the model saw, best first, and its boxes (n, 4) in frame pixels; what lies outside the frame is left out.

        Raises:
            IncompatibleError: `task.output`, `task.layout`, `task.labels`.
        """
        found = read_decoded(outputs[0], extra) if is_decoded(outputs[0]) else self._survivors(outputs, extra)
        boxes = boxes_in_frame(found.boxes, geometry)
        inside = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
        if len(inside) < len(boxes):
            found, boxes = _only(found, inside), boxes[inside]
        self._check_classes(found.classes)
        return found, boxes

    def _survivors(self, outputs: Outputs, extra: int) -> Candidates:
        reading = self._reading(tuple(output.shape for output in outputs), extra)
        found = read(outputs, reading, self._threshold)
        if not reading.suppressed:
            return _only(found, suppress(found, min_iou=self._iou, most=self._most, agnostic=self._agnostic))
        if not np.isfinite(found.boxes).all():
            found = _only(found, np.flatnonzero(np.isfinite(found.boxes).all(axis=1)))
        return _only(found, np.argsort(-found.scores, kind="stable")[:self._most])

    def head(self, outputs: Sequence[OutputPort], extra: int) -> HeadDecode | None:
        """How the GPU decodes the head among these outputs, of a batch of any size; None where there is none that it could, or need.

        Raises:
            IncompatibleError: `task.output`, `task.layout`.
        """
        if len(outputs) != 1 or len(outputs[0].shape) != 3 or outputs[0].dtype not in HEAD_TYPE_OF:
            return None
        images, rows, columns = outputs[0].shape
        reading = self._reading(((1, rows, columns),), extra)
        if reading.layout not in _HEADS:
            return None
        try:
            rules = head_rules(_HEADS[reading.layout], HEAD_TYPE_OF[outputs[0].dtype], (images, rows, columns), classes=reading.classes,
                               extra=extra, threshold=self._threshold, iou=self._iou, most=self._most, agnostic=self._agnostic)
        except InputError:  # too large
            return None
        return HeadDecode(outputs[0].name, rules)

    def _reading(self, shapes: tuple[tuple[int, ...], ...], extra: int) -> Reading:
        # The number of candidates that a model with its own suppression gives may change with every frame.
        reading = self._readings.get(shapes)
        if reading is None:
            spec = self.spec.input
            reading = tell_layout(shapes, self._layout, labels=len(self.spec.labels), extra=extra, height=spec.height, width=spec.width)
            if len(self._readings) < 16:
                self._readings[shapes] = reading
        return reading

    def _check_classes(self, classes: npt.NDArray[np.int32]) -> None:
        labels = self.spec.labels
        if len(classes) and (classes.min() < 0 or (labels and classes.max() >= len(labels))):
            raise IncompatibleError("task.labels", f"the model tells of class {classes.max() if classes.min() >= 0 else classes.min()}, "
                                                   f"the bundle names {len(labels)}", remedy="give the bundle the model's labels")

    def label(self, index: int) -> str:
        """The class's label; its number without labels."""
        return self.spec.labels[index] if self.spec.labels else str(index)


class DetectYolo(YoloTask):
    """Boxes with labels. Options: those of `YoloTask`."""

    def on_gpu(self, outputs: Sequence[OutputPort]) -> HeadDecode | None:
        return self.head(outputs, 0)

    def decode(self, outputs: tuple[npt.NDArray[Any], ...], geometry: Geometry) -> tuple[Detection, ...]:
        found, boxes = self.found(outputs, geometry, 0)
        return tuple(Detection(self.label(index), score, (x0, y0, x1, y1)) for index, score, (x0, y0, x1, y1)
                     in zip(found.classes.tolist(), shares(found.scores), boxes.tolist(), strict=True))


def _only(found: Candidates, chosen: npt.NDArray[np.intp]) -> Candidates:
    return Candidates(found.boxes[chosen], found.scores[chosen], found.classes[chosen], found.rest[chosen])
