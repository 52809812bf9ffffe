"""Modules as users' factories give them, with what goes wrong: `model_worlds:NAME`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

SHAPE = (1, 3, 16, 16)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 3))


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1.0
        return x


class Eigen(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return torch.linalg.eigvals(x).real


def branching() -> nn.Module:
    return Branching()


def eigen() -> nn.Module:
    return Eigen()


def no_module() -> dict[str, int]:
    return {}


def scripted() -> Any:
    return torch.jit.trace(small().eval(), torch.zeros(SHAPE))


class Broken:
    def __iter__(self) -> Any:
        raise OSError("the disk is gone")


def loader() -> dict[str, Any]:
    """Batches of float images, channels first, as torch's loaders give them."""
    images = torch.linspace(0, 1, 8 * 3 * 6 * 6).reshape(8, 3, 6, 6)
    labels = torch.tensor([0, 1] * 4)
    return {"train": [(images[i:i + 2], labels[i:i + 2]) for i in range(0, 8, 2)], "validation": (images.numpy()[:2], np.array([0, 1])),
            "classes": ["cat", "dog"]}


def dead_loader() -> dict[str, Any]:
    return {"train": Broken()}


def strange_label() -> dict[str, Any]:
    return {"train": (np.zeros((4, 6, 6, 3), np.uint8), np.array([0, 1, 2, 0])), "classes": ["cat", "dog"]}


def holes() -> dict[str, Any]:
    images = np.zeros((4, 6, 6, 3), np.float32)
    images[2, 0, 0, 0] = np.nan
    return {"train": (images, np.zeros(4, np.int64))}
