"""Values that live on an int8 grid while they train: symmetric, zero point 0, as the twins hold them.

Rounding passes its gradient through (Bengio et al., arXiv 1308.3432). An activation's scale is learned with it (LSQ: Esser et al.,
ICLR 2020) or follows the greatest magnitude. A weight's scale, one a channel, is its greatest magnitude / 127 at each step.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call

STEPS = 127
_SMALLEST = 1e-8
_DECAY = 0.99


class LearnedQuantization(nn.Module):
    """Fake quantization of one tensor while it trains. `observing`: watch magnitudes and pass values through unchanged."""

    def __init__(self, observer: Literal["lsq", "ema"]) -> None:
        super().__init__()
        self.observing, self._follows = True, observer == "ema"
        self.scale = nn.Parameter(torch.zeros(()), requires_grad=not self._follows)
        self.register_buffer("_seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if self.observing or (self._follows and self.training):
                self._watch(x.detach().abs().amax().float())
        if self.observing:
            return x
        gain = 1.0 / math.sqrt(x.numel() * STEPS)  # keeps the scale's step as large, for its size, as a weight's
        scale = self.scale.abs().clamp_min(_SMALLEST)
        scale = scale * gain + (scale - scale * gain).detach()
        return _on_grid(x.float(), scale).to(x.dtype)

    def _watch(self, magnitude: torch.Tensor) -> None:
        first = not bool(self._seen)
        self._seen.copy_(magnitude if first else self._seen * _DECAY + magnitude * (1 - _DECAY))
        self.scale.copy_((self._seen / STEPS).clamp_min(_SMALLEST))


class HeldQuantization(nn.Module):
    """The same with its scale as it was learned: exported as QuantizeLinear and DequantizeLinear with int8 and zero point 0."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero", torch.zeros((), dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, -128, 127)


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weights are on their grid in each forward pass, and float to the optimizer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional_call(self.layer, {"weight": self.on_grid()}, (x,))

    def on_grid(self) -> torch.Tensor:
        weight = self.layer.weight
        axis = 1 if isinstance(self.layer, nn.ConvTranspose2d) else 0
        others = [dim for dim in range(weight.ndim) if dim != axis]
        scales = (weight.detach().abs().amax(others, keepdim=True) / STEPS).clamp_min(_SMALLEST)
        return _on_grid(weight, scales)

    def settled(self) -> nn.Module:
        """The bare layer with the weights that were used."""
        with torch.no_grad():
            self.layer.weight.copy_(self.on_grid())
        return self.layer


def working_copy(model: nn.Module) -> nn.Module:
    """A copy of the model for a stage to change; quantization that an earlier stage held is taken out, since its scales go stale."""
    model = copy.deepcopy(model).cpu()
    if not isinstance(model, torch.fx.GraphModule):
        return model
    for node in list(model.graph.nodes):
        if node.op == "call_module" and isinstance(model.get_submodule(node.target), HeldQuantization):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.recompile()
    return model


def _on_grid(x: torch.Tensor, scale: Any) -> torch.Tensor:
    clipped = (x / scale).clamp(-STEPS, STEPS)
    return (clipped + (clipped.round() - clipped).detach()) * scale
