"""Structured pruning: whole channels go, in all layers that share them, a little at a time with tuning between.

L1: sum of magnitudes (Li et al., arXiv 1608.08710). Taylor: |weight x gradient of the loss| (Molchanov et al., CVPR 2019). BN scale:
|gamma| (Liu et al., arXiv 1708.06519).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.recipe_file import Prune

from .allocation import Sensitivity, Stock, by_importance, by_sensitivity
from .channel_groups import ChannelGraph, ChannelGroup, importance_measure, output_shapes
from .channel_scan import scan
from .fake_quantization import working_copy
from .samples import batches
from .task_loss import task_loss, with_gradient, with_number
from .trainer import LabelLoss, Plan, deterministic, fit

_GRADIENT_IMAGES = 512


def prune(model: nn.Module, config: Prune, workshop: Workshop) -> nn.Module:
    """A copy of `model` with `config.ratio` of its channels gone.

    Raises:
        InputError: `build.prune` names the operation that cannot be pruned, or says that there is nothing to remove.
        RuntimeFailure: `build.diverged`, also when the loss is no number before anything is pruned.
    """
    model = working_copy(model)
    shapes = output_shapes(model, workshop.shape)
    before: dict[str, int] | None = None
    scanned: dict[str, Sensitivity] = {}
    for step in range(1, config.steps + 1):
        graph = ChannelGraph(model, workshop.shape, config.ignore)
        groups = graph.groups()
        before = before or {group.name: group.units for group in groups}
        if config.scope == "by-layer" and not scanned:
            scanned = scan(model, groups, _scores(model, groups, config, workshop), workshop)
        _remove(graph, groups, before, scanned, config, step / config.steps, workshop)
        graph.check(shapes)
        workshop.progress("prune", step, config.steps)
        model = fit(model, Plan(f"prune-{step}", config.epochs, workshop.training.learning_rate, LabelLoss(workshop.loss)), workshop)
    return model.eval()


def _remove(graph: ChannelGraph, groups: Sequence[ChannelGroup], before: dict[str, int], scanned: dict[str, Sensitivity], config: Prune,
            progress: float, workshop: Workshop) -> None:
    scores = _scores(graph.model, groups, config, workshop)
    stocks = [Stock(group.name, before[group.name], group.sets, scores[group.name]) for group in groups]
    if config.scope == "global":
        counts = by_importance(stocks, config.ratio * progress, config.round_to)
    else:
        counts = by_sensitivity(stocks, [scanned[stock.name] for stock in stocks], config.ratio, progress, config.round_to)
    for group, stock, count in zip(groups, stocks, counts, strict=True):
        if count:
            graph.remove(group, np.argsort(stock.importance, kind="stable")[:count])


def _scores(model: nn.Module, groups: Sequence[ChannelGroup], config: Prune, workshop: Workshop) -> dict[str, NDArray[np.float64]]:
    """Importance of each unit, by group; groups that the measure says nothing about keep all they have."""
    if config.importance == "taylor":
        _collect_gradients(model, workshop)
    measure = importance_measure(config.importance)
    scores = {group.name: group.score(measure) for group in groups}
    model.zero_grad(set_to_none=True)
    if all(score is None for score in scores.values()):
        raise InputError("build.prune", f"importance {config.importance!r} finds nothing to look at in this model"
                         + (": it has no batch norm" if config.importance == "bn-scale" else ""), remedy='take importance = "l1"')
    return {group.name: np.full(group.units, np.inf) if (score := scores[group.name]) is None else score for group in groups}


def _collect_gradients(model: nn.Module, workshop: Workshop) -> None:
    model.zero_grad(set_to_none=True)
    model.eval()
    with deterministic(workshop.seed):
        for images, targets in batches(workshop.train, workshop.training.batch, _GRADIENT_IMAGES, workshop.collate):
            with_number(with_gradient(task_loss(workshop.loss, model(images), targets))).backward()
    for parameter in model.parameters():
        if parameter.grad is None:  # a parameter that the loss does not reach has no say
            parameter.grad = torch.zeros_like(parameter)
