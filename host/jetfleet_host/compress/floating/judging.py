"""How a classifier that is being changed is trained and judged: the loss on labels, and the metric, one value a sample: right answers where
there are labels, else agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.float_stage import Loss, Split
from jetfleet_host.compress.recipe_file import Training

from .samples import batches

_BATCH = 64
Judge = Callable[[nn.Module, Split], NDArray[np.float64]]


def label_loss(training: Training) -> Loss:
    """Cross entropy of logits (N, classes) and indices (N,), with the recipe's smoothing of labels."""
    return partial(functional.cross_entropy, label_smoothing=training.label_smoothing)


def right_answers(model: nn.Module, split: Split) -> NDArray[np.float64]:
    """1.0 where the class of the highest output is the target, else 0.0: float64 (N,).

    Raises:
        InputError: `build.outputs` when the model does not give (N, classes); `data.labels` when a target is no class of it.
    """
    found = [np.asarray(outputs.argmax(1).numpy() == _known(targets, outputs), np.float64) for outputs, targets in _answers(model, split)]
    return np.concatenate(found)


def agreement_with(reference: Callable[[], nn.Module]) -> Judge:
    """Without labels: 1.0 where the model answers with the class that the model it came from answers with."""
    def agreeing(model: nn.Module, split: Split) -> NDArray[np.float64]:
        both = zip(_answers(reference(), split), _answers(model, split), strict=True)
        alike = [theirs.argmax(1) == ours.argmax(1) for (theirs, _), (ours, _) in both]
        return np.asarray(torch.cat(alike).numpy(), np.float64)

    return agreeing


def own_answers(model: nn.Module, split: Split) -> NDArray[np.int64]:
    """The model's own classes, int64 (N,): what stands in for labels where there are none, so that a changed model learns to answer alike.
    InputError `build.outputs`."""
    return np.concatenate([np.asarray(outputs.argmax(1).numpy(), np.int64) for outputs, _ in _answers(model, split)])


def _answers(model: nn.Module, split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    model.eval()
    for images, targets in batches(split, _BATCH):
        with torch.inference_mode():  # closed before the yield: two generators in turns would leave it on
            outputs = model(images)
        if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
            shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise InputError("build.outputs", f"a classifier gives (N, classes), this model gives {shape}",
                             remedy="name loss and score of your own task in the recipe: [training] task = \"package.module:function\"")
        yield outputs, targets


def _known(targets: torch.Tensor, outputs: torch.Tensor) -> NDArray[np.int64]:
    labels = np.asarray(targets.numpy(), np.int64)
    if labels.size and labels.max() >= outputs.shape[1]:
        raise InputError("data.labels", f"the data has a class of index {int(labels.max())}, the model has {outputs.shape[1]} outputs",
                         remedy="make the model with as many classes as the data has, in the order of their sorted names")
    return labels
