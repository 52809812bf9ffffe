"""Train the model on its labels."""

from __future__ import annotations

from torch import nn

from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.recipe_file import Tune

from .fake_quantization import working_copy
from .trainer import LabelLoss, Plan, fit


def tune(model: nn.Module, config: Tune, workshop: Workshop) -> nn.Module:
    """A tuned copy of `model`. Raises what `trainer.fit` raises."""
    rate = config.learning_rate or workshop.training.learning_rate
    return fit(working_copy(model), Plan("tune", config.epochs, rate, LabelLoss(workshop.loss)), workshop)
