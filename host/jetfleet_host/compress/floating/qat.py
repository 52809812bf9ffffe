"""Training with quantization: the network learns on the int8 grid that the twins will have.

Batch norms are folded first, so that the weights that train are the weights that are quantized. What comes out is float again: weights
that lie on their grid, and held quantization at the places that the export writes as Q/DQ pairs (`learned_scales.py` reads them).
"""

from __future__ import annotations

import torch
from torch import nn

from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.recipe_file import Qat

from .fake_quantization import HeldQuantization, LearnedQuantization, QuantizedLayer, working_copy
from .quantized_places import LAYERS, insert, replace_layers, traced
from .samples import batches
from .trainer import LabelLoss, Plan, fit

_WATCHED_IMAGES = 512


def qat(model: nn.Module, config: Qat, workshop: Workshop) -> nn.Module:
    """The model's graph, trained on the int8 grid, in evaluation mode: it answers as the symmetric int8 file will.

    Raises:
        InputError: `build.trace` for a forward that depends on values, `build.qat` without a layer to quantize.
        RuntimeFailure: `build.diverged`.
    """
    graph = traced(working_copy(model))
    places = insert(graph, workshop.shape, lambda: LearnedQuantization(config.observer))
    replace_layers(graph, LAYERS, QuantizedLayer)
    _watch(graph, places, workshop)
    plan = Plan("qat", config.epochs, config.learning_rate, LabelLoss(workshop.loss), about=config.observer)
    fit(graph, plan, workshop)
    for name in places:
        setattr(graph, name, HeldQuantization(float(graph.get_submodule(name).scale.detach().abs())))
    replace_layers(graph, QuantizedLayer, lambda layer: layer.settled())
    return graph.eval()


def _watch(graph: nn.Module, places: list[str], workshop: Workshop) -> None:
    """First scales: what the float network's values reach on training images."""
    graph.eval()
    with torch.no_grad():
        for images, _ in batches(workshop.train, workshop.training.batch, _WATCHED_IMAGES, workshop.collate):
            graph(images)
    for name in places:
        graph.get_submodule(name).observing = False
