"""The task's loss on a model's answers, with an error that a user can act on when the two do not fit together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jetfleet_contract.errors import InputError

Loss = Callable[[Any, torch.Tensor], torch.Tensor]


def task_loss(loss: Loss, answers: Any, targets: torch.Tensor) -> torch.Tensor:
    """Mean loss of a batch.

    Raises:
        InputError: `build.loss` with the shapes and the greatest target: mostly a label beyond the model's classes.
    """
    try:
        return loss(answers, targets)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        shape = tuple(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__
        raise InputError("build.loss", f"the loss cannot take the model's answers {shape} and targets {tuple(targets.shape)} up to "
                         f"{int(targets.max())}: {' '.join(str(error).split())[:160]}",
                         remedy="the model must have one output for each class of the labels") from error
