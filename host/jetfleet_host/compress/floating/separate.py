"""Dense convolutions become a depthwise and a pointwise one, which start from the pair that is nearest to the dense kernel.

For each input channel the slice (out, k * k) of the kernel is approximated by its first singular pair: the best there is in least
squares (Eckart and Young, 1936), so no data is needed for the start. Then the network is tuned.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.recipe_file import Separate

from .fake_quantization import working_copy
from .trainer import LabelLoss, Plan, fit


def separate(model: nn.Module, config: Separate, workshop: Workshop) -> nn.Module:
    """A copy of `model` with `config.share` of its dense convolutions separated, those that save most multiplications first.

    Raises:
        InputError: `build.separate` when there is no dense convolution larger than 1x1.
        RuntimeFailure: `build.diverged`.
    """
    model = working_copy(model)
    savings = _savings(model, workshop.shape)
    if not savings:
        raise InputError("build.separate", "the model has no dense convolution with a kernel above 1x1 that would be cheaper in two",
                         remedy="leave the stage separate out of the recipe")
    chosen = sorted(savings, key=lambda name: (-savings[name], name))[:max(1, round(config.share * len(savings)))]
    for name in chosen:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, separated(model.get_submodule(name)))
    return fit(model, Plan("separate", config.epochs, workshop.training.learning_rate, LabelLoss(workshop.loss)), workshop)


def separated(dense: nn.Conv2d) -> nn.Sequential:
    """Depthwise and pointwise convolution whose product is the nearest to `dense` of all such pairs."""
    depthwise = nn.Conv2d(dense.in_channels, dense.in_channels, dense.kernel_size, dense.stride, dense.padding, dense.dilation,
                          groups=dense.in_channels, bias=False, padding_mode=dense.padding_mode)
    pointwise = nn.Conv2d(dense.in_channels, dense.out_channels, 1, bias=dense.bias is not None)
    slices = dense.weight.detach().double().permute(1, 0, 2, 3).flatten(2)  # (in, out, k * k)
    left, values, right = torch.linalg.svd(slices, full_matrices=False)
    root = values[:, :1].sqrt()  # both factors carry the same magnitude, so that both train at the same rate
    with torch.no_grad():
        depthwise.weight.copy_((right[:, 0] * root).reshape(depthwise.weight.shape))
        pointwise.weight.copy_((left[:, :, 0] * root).T[:, :, None, None])
        if dense.bias is not None:
            pointwise.bias.copy_(dense.bias)
    return nn.Sequential(depthwise, pointwise)


def _savings(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Multiplications that each dense convolution saves when it is separated, where it does save some."""
    found: dict[str, int] = {}

    def seen(name: str, conv: nn.Conv2d, output: torch.Tensor) -> None:
        places, kernel = output.shape[2] * output.shape[3], math.prod(conv.kernel_size)
        now = conv.in_channels * conv.out_channels * kernel
        then = conv.in_channels * (kernel + conv.out_channels)
        if then < now:
            found[name] = found.get(name, 0) + (now - then) * places

    convs = {name: module for name, module in model.named_modules()
             if isinstance(module, nn.Conv2d) and module.groups == 1 and math.prod(module.kernel_size) > 1}
    handles = [conv.register_forward_hook(lambda module, _, output, name=name: seen(name, module, output)) for name, conv in convs.items()]
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(shape))
    finally:
        for handle in handles:
            handle.remove()
    return found
