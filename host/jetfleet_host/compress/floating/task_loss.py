"""The task's loss on a model's answers, with an error that a user can act on when the two do not fit together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jetfleet_contract.errors import InputError, RuntimeFailure

Loss = Callable[[Any, Any], torch.Tensor]


def task_loss(loss: Loss, answers: Any, targets: Any) -> torch.Tensor:
    """Mean loss of a batch, a float tensor without axes; it may be NaN, which the trainer tells with epoch and step.

    Raises:
        InputError: `build.loss` with the shapes and the greatest target: mostly a label beyond the model's classes; or when the loss is
            no float scalar.
    """
    try:
        value = loss(answers, targets)
    except torch.OutOfMemoryError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError("build.loss", f"the loss cannot take the model's answers {shapes(answers)} and targets {shapes(targets)}"
                         f"{_reach(targets)}: {' '.join(str(error).split())[:160]}",
                         remedy="the model must have one output for each class of the labels") from error
    if not isinstance(value, torch.Tensor) or value.ndim or not value.is_floating_point():
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError("build.loss", f"the loss gives {found}, not one float",
                         remedy="return the mean over the batch, a tensor without axes")
    return value


def with_number(loss: torch.Tensor) -> torch.Tensor:
    """The loss of a model that is measured, not trained. RuntimeFailure `build.diverged` when it is NaN or infinite."""
    if not torch.isfinite(loss):
        raise RuntimeFailure("build.diverged", "the loss of the model is no number on the training images that it is measured with",
                             remedy="look at the loss for a division by nothing or a logarithm of 0")
    return loss


def with_gradient(loss: torch.Tensor) -> torch.Tensor:
    """The loss, when there is something to learn from it. InputError `build.loss`."""
    if not loss.requires_grad:
        raise InputError("build.loss", "the loss has no gradient, so nothing can be learned from it",
                         remedy="compute it of the model's outputs with torch alone: no .detach(), .item() or numpy on the way")
    return loss


def shapes(value: Any) -> Any:
    """The shapes in answers or targets: a tensor's, those of a list's first few members, else the type's name."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {name: shapes(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [shapes(member) for member in value[:_NAMED]] + (["..."] if len(value) > _NAMED else [])
    return type(value).__name__


_NAMED = 8


def _reach(targets: Any) -> str:
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or not targets.numel():
        return ""
    return f" up to {int(targets.max())}"
