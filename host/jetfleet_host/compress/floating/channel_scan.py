"""What each group of channels is worth: silence its least important ones, look at the loss, put them back.

A few hundred training images and no copy of the model; the loss of the validation split stays unseen, since the guard judges on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jetfleet_host.compress.float_stage import Workshop

from .allocation import Sensitivity
from .channel_groups import ChannelGroup
from .samples import Batch, batches
from .task_loss import task_loss, with_number

_SHARES = (0.25, 0.5, 0.75)
_IMAGES = 256


def scan(model: nn.Module, groups: Sequence[ChannelGroup], scores: Mapping[str, NDArray[np.float64]],
         workshop: Workshop) -> dict[str, Sensitivity]:
    """Rise of the loss for each group when a quarter, half and three quarters of its units are silent."""
    model.eval()
    data = list(batches(workshop.train, workshop.training.batch, _IMAGES, workshop.collate))
    base = float(with_number(torch.tensor(_loss(model, data, workshop))))
    found = {}
    for number, group in enumerate(groups):
        order = np.argsort(scores[group.name], kind="stable")
        rises = [0.0]
        for share in _SHARES:
            with _silenced(group, order[:int(share * group.units)]):
                rises.append(_loss(model, data, workshop) - base)
        found[group.name] = Sensitivity((0.0, *_SHARES), tuple(rises))
        workshop.progress("prune: sensitivity of layers", number + 1, len(groups))
    return found


def _loss(model: nn.Module, data: Sequence[Batch], workshop: Workshop) -> float:
    with torch.no_grad():
        losses = [float(task_loss(workshop.loss, model(images), targets)) * len(images) for images, targets in data]
    return sum(losses) / sum(len(images) for images, _ in data)


@contextmanager
def _silenced(group: ChannelGroup, units: NDArray[np.int64]) -> Iterator[None]:
    """The layers that make these units give zero for them: weight and bias are zero, as if the channels were gone."""
    chosen = group.indices(units)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for module, own in group.outputs():
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)  # noqa: SLF001 - no public name
            for name in ("weight", "bias"):
                tensor = getattr(module, name, None)
                if tensor is None:
                    continue
                kept.append((tensor, tensor.detach().clone()))
                axis = 1 if transposed and name == "weight" else 0
                tensor.index_fill_(axis, torch.as_tensor(own[chosen]), 0.0)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
