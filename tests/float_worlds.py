"""A workshop on scikit-learn's digits (1,797 images of 8x8 pixels), and nets small enough to train in a second."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from jetfleet_host.compress.float_stage import Split, Workshop
from jetfleet_host.compress.recipe_file import Training

# The nets are too small to share out: two threads that wait for each other on a busy machine take ten times as long as one.
torch.set_num_threads(1)


class ArraySplit:
    """Images (N, C, H, W) float32 and targets int64 that are in memory."""

    def __init__(self, images: NDArray[np.float32], targets: NDArray[np.int64]) -> None:
        self.images, self.targets = images, targets
        self.digest = hashlib.sha256(images.tobytes() + targets.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self.images[index], self.targets[index]


@cache
def digits() -> tuple[ArraySplit, ArraySplit]:
    """Training and validation split; every fourth image validates."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)[:, None]
    targets = data.target.astype(np.int64)
    held = np.arange(len(images)) % 4 == 0
    return ArraySplit(images[~held], targets[~held]), ArraySplit(images[held], targets[held])


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Any) -> Any:
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(inner + x)


class DigitNet(nn.Module):
    """Stem, two residual blocks with a pool between, head."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Residual(width), nn.MaxPool2d(2), Residual(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Any) -> Any:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def slim_digit_net() -> DigitNet:
    """A student with half of the channels."""
    return DigitNet(8)


class PlainNet(nn.Module):
    """No batch norm: what a batch does to the weights does not depend on how it is split over processes."""

    def __init__(self, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, x: Any) -> Any:
        return self.head(functional.relu(self.conv(x)).flatten(1))


class FixedSizes(nn.Module):
    """A size written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Any) -> Any:
        y = self.conv2(self.conv1(x))
        y = y.view(y.shape[0], 16, 64)
        return self.head(y.mean(2))


class ThreeColours(nn.Module):
    """It does not take digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Any) -> Any:
        return self.conv(x)


class BareParameters(nn.Module):
    """A convolution that is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1, 3, 3))

    def forward(self, x: Any) -> Any:
        return functional.conv2d(x, self.weight).mean((2, 3))


class GroupedNet(nn.Module):
    """Grouped and depthwise convolutions and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(32, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Any) -> Any:
        first = self.stem(x)
        both = torch.cat([self.depthwise(functional.relu(first)), self.grouped(first)], 1)
        return self.head(self.point(both).mean((2, 3)))


class Branching(nn.Module):
    """What it does depends on the values that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: Any) -> Any:
        return self.conv(x) if x.sum() > 0 else x


def seeded(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model whose first weights are those of `seed`."""
    torch.manual_seed(seed)
    return factory()


def accuracy(model: nn.Module, split: Split) -> NDArray[np.float64]:
    """1.0 for each sample whose class is right, else 0.0."""
    model.eval()
    images = torch.stack([torch.as_tensor(split[index][0]) for index in range(len(split))])
    targets = np.array([int(split[index][1]) for index in range(len(split))])
    with torch.no_grad():
        return np.asarray(model(images).argmax(1).numpy() == targets, np.float64)


def workshop(folder: Path, *, teacher: Callable[[], nn.Module] = DigitNet, seed: int = 0,
             progress: Callable[[str, int, int], None] = lambda *_: None, **training: Any) -> Workshop:
    train, validation = digits()
    return Workshop((1, 1, 8, 8), train, validation, functional.cross_entropy, accuracy, teacher,
                    Training(**{"batch": 64, "learning_rate": 3e-3, **training}), seed, folder, progress)
