"""Whole-frame classification: the best `top` labels with their probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import Task, number
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.predictions import Detection


class Classify(Task):
    """One (1, C) output: logits, or probabilities when they already are (non-negative and summing to 1).

    Options: `top` (how many labels, 1), `threshold` (least probability, 0).
    """

    whole_frame = True
    options = frozenset({"top", "threshold"})

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self._top = number(spec, "top", 1, 1, 100)
        self._threshold = number(spec, "threshold", 0.0, 0.0, 1.0)

    def decode(self, outputs: tuple[npt.NDArray[Any], ...], geometry: Geometry) -> tuple[Detection, ...]:  # noqa: ARG002
        if not outputs or outputs[0].size != outputs[0].shape[-1]:
            raise IncompatibleError("task.output", f"classify needs one (1, C) output, the model gives {[o.shape for o in outputs]}")
        scores = outputs[0].reshape(-1).astype(np.float64)
        labels = self.spec.labels
        if labels and len(labels) != scores.size:
            raise IncompatibleError("task.labels", f"the model has {scores.size} classes, the bundle names {len(labels)}")
        chances = scores if _is_distribution(scores) else _softmax(scores)
        order = np.argsort(-chances, kind="stable")[:self._top]
        return tuple(Detection(labels[i] if labels else str(i), float(chances[i])) for i in order
                     if chances[i] >= self._threshold)


def _is_distribution(scores: npt.NDArray[np.float64]) -> bool:
    return bool(scores.min() >= 0.0 and abs(scores.sum() - 1.0) < 1e-3)


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = np.exp(scores - scores.max())
    result: npt.NDArray[np.float64] = shifted / shifted.sum()
    return result
