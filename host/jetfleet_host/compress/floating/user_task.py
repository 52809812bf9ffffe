"""A task of the user's own, named by a recipe: loss and score, and where it has them, how targets form a batch and how answers compare.

`loss(outputs, targets)` is the mean over a batch, a float tensor without axes; `score(model, split)` gives one value of 0..1 a sample,
whose mean is the metric that the guard judges; `collate(targets)` gets one tensor a sample, and without it the loss gets that very list;
`distil(outputs, teacher_outputs)` is how far a student is from its teacher, and without it their mean squared difference is.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from jetfleet_contract.errors import InputError, JetfleetError
from jetfleet_host.compress.float_stage import Split
from jetfleet_host.compress.intake.factories import call_factory, said

from .task_loss import shapes


class UserTask:
    """What the factory `name` gives, checked at each use. Another process makes it anew: only the name is sent.

    Raises:
        InputError: those of `factories`; `factory.type` when it has no `loss` or no `score`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: Any = call_factory(name)
        self._module = str(getattr(sys.modules.get(name.partition(":")[0]), "__file__", None) or "")
        for method in ("loss", "score"):
            if not callable(getattr(self._task, method, None)):
                raise InputError("factory.type", f"{name} gives a {type(self._task).__name__} without {method}()", where=name,
                                 remedy="a task has loss(outputs, targets) and score(model, split)")

    def __reduce__(self) -> tuple[object, ...]:
        return UserTask, (self._name,)

    @property
    def digest(self) -> str:
        """Of the name and of the module's text, so that a changed loss trains anew; what the module imports is not looked at."""
        text = Path(self._module).read_bytes() if Path(self._module).is_file() else b""
        return hashlib.sha256(self._name.encode() + b"\0" + text).hexdigest()

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        """InputError `build.loss` with the user's line; `task_loss` looks at what comes back."""
        try:
            return self._task.loss(outputs, targets)
        except (torch.OutOfMemoryError, JetfleetError):
            raise
        except Exception as error:  # the user's own code
            raise self._raised("loss", f"on outputs {shapes(outputs)} and targets {shapes(targets)}", error) from error

    def collate(self, targets: Sequence[torch.Tensor]) -> Any:
        """InputError `data.labels` when the task's own `collate` raises."""
        own = getattr(self._task, "collate", None)
        if own is None:
            return list(targets)
        try:
            return own(list(targets))
        except Exception as error:
            raise self._raised("collate", f"on targets {shapes(list(targets))}", error, "data.labels") from error

    def distance(self, outputs: Any, teacher_outputs: Any) -> torch.Tensor:
        """InputError `build.loss` when the task's own `distil` raises."""
        own = getattr(self._task, "distil", None)
        if own is None:
            pairs = list(zip(_tensors(outputs), _tensors(teacher_outputs), strict=True))
            return torch.stack([functional.mse_loss(mine.float(), theirs.float()) for mine, theirs in pairs]).mean()
        try:
            return own(outputs, teacher_outputs)
        except (torch.OutOfMemoryError, JetfleetError):
            raise
        except Exception as error:
            raise self._raised("distil", f"on outputs {shapes(outputs)}", error) from error

    def score(self, model: nn.Module, split: Split) -> NDArray[np.float64]:
        """The model in evaluation mode, without gradients: float64 (N,).

        Raises:
            InputError: `build.score` when it raises, for another number of values than samples, or one that is not within 0..1.
        """
        model.eval()
        try:
            with torch.inference_mode():
                values = np.asarray(self._task.score(model, split), np.float64)
        except JetfleetError:
            raise
        except Exception as error:
            raise self._raised("score", f"on {len(split)} samples", error, "build.score") from error
        if values.shape != (len(split),):
            raise InputError("build.score", f"{self._name} scores {len(split)} samples with values of shape {values.shape}",
                             where=self._name, remedy="give one number a sample, in the split's order; the guard compares them in pairs")
        wrong = np.flatnonzero(~((values >= 0.0) & (values <= 1.0)))
        if wrong.size:
            raise InputError("build.score", f"{self._name} scores sample {wrong[0]} with {values[wrong[0]]:g} ({wrong.size} such), "
                             "which is not within 0..1", where=self._name, remedy="scale the metric to 0..1, 1 for a perfect answer")
        return values

    def _raised(self, method: str, what: str, error: Exception, code: str = "build.loss") -> InputError:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self._module]
        where = f"{self._module}:{lines[-1]}" if lines else self._name
        return InputError(code, f"{method}() of {self._name} {what} raised {said(error)}", where=where,
                          remedy="targets come as the data gives them; docs/training.md says how")


def _tensors(answers: Any) -> Iterator[torch.Tensor]:
    """All tensors in a model's answers, in their order."""
    if isinstance(answers, torch.Tensor):
        yield answers
        return
    for member in answers.values() if isinstance(answers, dict) else answers:
        yield from _tensors(member)
