"""Tensors as they are: embeddings, regressions, anything whose meaning is the receiver's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_agent.pipeline.preprocess import Geometry
from jetfleet_agent.pipeline.tasks import Task, choice, number
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.predictions import MAX_VALUES, Detection

SUMMARY = ("minimum", "maximum", "mean", "deviation")


class Raw(Task):
    """One detection without a box for each output, named by the bundle's labels in order (``output0`` ... without).

    `values` holds the tensor, flattened in C order, or its summary: minimum, maximum, mean and standard deviation of its finite numbers,
    then `samples` numbers evenly spaced through it (those that are not finite as 0). `score` is the share of finite numbers.

    Options: `form` (``auto``: values when all outputs together have at most `max_values` numbers, else summary; ``values``; ``summary``),
    `max_values` 512, `samples` 64.
    """

    whole_frame = True
    options = frozenset({"form", "max_values", "samples"})

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        self._form = choice(spec, "form", ("auto", "values", "summary"))
        self._most = number(spec, "max_values", 512, 1, MAX_VALUES)
        self._samples = number(spec, "samples", 64, 0, 1024)

    def decode(self, outputs: tuple[npt.NDArray[Any], ...], geometry: Geometry) -> tuple[Detection, ...]:  # noqa: ARG002
        size = sum(output.size for output in outputs)
        if self._form == "values" and size > self._most:
            raise IncompatibleError("task.output", f"the outputs have {size} numbers, over the limit of {self._most}",
                                    remedy=f"raise max_values (at most {MAX_VALUES}), or use form=summary")
        whole = self._form != "summary" and size <= self._most
        return tuple(self._told(index, output.reshape(-1), whole) for index, output in enumerate(outputs) if output.size)

    def _told(self, index: int, numbers: npt.NDArray[Any], whole: bool) -> Detection:
        finite = np.isfinite(numbers)
        values = np.where(finite, numbers, 0) if whole else self._summary(numbers, numbers[finite])
        labels = self.spec.labels
        name = labels[index] if index < len(labels) else f"output{index}"
        # float32 has seven decimal digits; the rest of a float64's text would be noise.
        return Detection(name, float(finite.mean()), values=tuple(float(f"{value:.7g}") for value in values.tolist()))

    def _summary(self, numbers: npt.NDArray[Any], finite: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        wide = finite.astype(np.float64)
        told = (wide.min(), wide.max(), wide.mean(), wide.std()) if wide.size else (0.0,) * len(SUMMARY)
        places = np.linspace(0, len(numbers) - 1, min(self._samples, len(numbers))).round().astype(np.intp)
        return np.concatenate([told, np.nan_to_num(numbers[places].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)])
