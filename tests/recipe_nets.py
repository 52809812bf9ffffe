"""A net and data as a user's factories give them: `recipe_nets:net`, `recipe_nets:digits`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)


def net() -> nn.Module:
    """Takes (1, 3, 16, 16); ten classes; untrained, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
                         nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, 10))


def digits() -> dict[str, Any]:
    """Scikit-learn's digits, twice as large, grey; 120 of them validate."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.minimum(data.images * 16.0, 255.0).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    return {"train": (images[:900], data.target[:900]), "validation": (images[900:1020], data.target[900:1020])}


def calibrated_in_fog() -> dict[str, Any]:
    """The same digits, with a calibration set of plain grey, which is next to nothing once the mean is gone."""
    return {**digits(), "calibration": (np.random.default_rng(3).integers(114, 118, (8, 16, 16), np.uint8), np.zeros(8, np.int64))}


def unlabelled() -> dict[str, Any]:
    return {name: images for name, (images, _) in digits().items()}


def broken() -> nn.Module:
    raise ValueError("the weights are on another disk")


def not_finite() -> nn.Module:
    model = net()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = float("nan")
    return model
