"""Weights that are zero and stay zero: the smallest of all, or two in each four along the input channels, which Ampere's kernels skip.

2:4 after Mishra et al. (arXiv 2104.08378): prune the trained network by magnitude, then train again under the fixed mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.recipe_file import Sparsify

from .fake_quantization import working_copy
from .trainer import LabelLoss, Plan, fit

_RUN, _KEPT = 4, 2


@dataclass(frozen=True)
class Masks:
    """0 or 1 for each weight of the named layers; calling it puts the zeros back."""

    masks: dict[str, torch.Tensor]

    def __call__(self, model: nn.Module) -> None:
        with torch.no_grad():
            for name, mask in self.masks.items():
                weight = model.get_submodule(name).weight
                weight.mul_(mask.to(weight.device))


def sparsify(model: nn.Module, config: Sparsify, workshop: Workshop) -> nn.Module:
    """A copy of `model` with zeros in its convolutions and linear layers. With `steps` the share grows to its end: linearly for 2:4
    (so many of the layers' runs), by the cubic schedule of Zhu and Gupta (arXiv 1710.01878) for single weights.

    Raises:
        InputError: `build.sparsify` when no layer can take the pattern.
        RuntimeFailure: `build.diverged`.
    """
    model = working_copy(model)
    for step in range(1, config.steps + 1):
        masks = two_of_four(model, step / config.steps) if config.pattern == "2:4" else smallest(model, _share(config, step))
        if not masks.masks:
            raise InputError("build.sparsify", f"no layer of the model can take the pattern {config.pattern}: it needs a convolution or "
                             "linear layer with a multiple of 4 input channels", remedy='take pattern = "unstructured"')
        masks(model)
        plan = Plan(f"sparsify-{step}", config.epochs, workshop.training.learning_rate, LabelLoss(workshop.loss), after_step=masks)
        model = fit(model, plan, workshop)
    return model.eval()


def two_of_four(model: nn.Module, share: float = 1.0) -> Masks:
    """Of each four weights along the input channels of one output, the two smaller ones are zero, in the `share` of all runs that
    loses least by it. Layers whose input channels (of one group) are no multiple of 4 stay dense: the kernels want whole runs."""
    losses, kept = {}, {}
    for name, layer in _layers(model).items():
        if layer.weight.shape[1] % _RUN:
            continue
        runs = _runs(layer.weight)
        order = runs.abs().argsort(dim=-1, descending=True, stable=True)
        kept[name] = torch.zeros_like(runs).scatter_(-1, order[..., :_KEPT], 1.0)
        losses[name] = ((1 - kept[name]) * runs).square().sum(-1)
    if share < 1.0 and losses:
        limit = _kth(torch.cat([loss.reshape(-1) for loss in losses.values()]), share)
        kept = {name: torch.where((losses[name] <= limit)[..., None], mask, torch.ones_like(mask)) for name, mask in kept.items()}
    return Masks({name: _unrun(mask, _layers(model)[name].weight) for name, mask in kept.items()})


def smallest(model: nn.Module, ratio: float) -> Masks:
    """The `ratio` of all weights with the least magnitude is zero: one threshold for all layers."""
    layers = _layers(model)
    if not layers:
        return Masks({})
    limit = _kth(torch.cat([layer.weight.detach().abs().reshape(-1) for layer in layers.values()]), ratio)
    return Masks({name: (layer.weight.detach().abs() > limit).float() for name, layer in layers.items()})


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}


def _kth(values: torch.Tensor, share: float) -> torch.Tensor:
    """The value under or at which `share` of them lies; below all of them for a share of nothing."""
    count = int(share * len(values))
    return values.kthvalue(count).values if count else values.new_tensor(-1.0)


def _runs(weight: torch.Tensor) -> torch.Tensor:
    """(out, in, ...) as (out, places, in / 4, 4)."""
    flat = weight.detach().reshape(weight.shape[0], weight.shape[1], -1).permute(0, 2, 1)
    return flat.reshape(*flat.shape[:2], -1, _RUN)


def _unrun(runs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return runs.reshape(weight.shape[0], -1, weight.shape[1]).permute(0, 2, 1).reshape(weight.shape)


def _share(config: Sparsify, step: int) -> float:
    return config.ratio * (1.0 - (1.0 - step / config.steps) ** 3)
