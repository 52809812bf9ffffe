"""The reference networks with as many outputs as there are characters, as factories for `jetfleet build`. Weights follow from a seed."""

from __future__ import annotations

from characters import CLASSES
from torch import manual_seed, nn

from jetfleet_host.compress import models


def resnet18() -> nn.Module:
    manual_seed(0)
    return models.resnet18(len(CLASSES))


def resnet50() -> nn.Module:
    manual_seed(0)
    return models.resnet50(len(CLASSES))


def resnet56() -> nn.Module:
    manual_seed(0)
    return models.resnet56(len(CLASSES))


def mobilenet_v2() -> nn.Module:
    manual_seed(0)
    return models.mobilenet_v2(len(CLASSES))
