"""The reference networks have the sizes of their papers, and every one goes through pruning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from jetfleet_host.compress import models
from jetfleet_host.compress.floating.channel_groups import ChannelGraph, macs


def weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("factory", "classes", "side", "millions", "giga"), [
    (models.resnet18, 1000, 224, 11.69, 1.82), (models.resnet50, 1000, 224, 25.56, 4.12), (models.mobilenet_v2, 1000, 224, 3.50, 0.31),
    (models.resnet56, 10, 32, 0.86, 0.127), (models.resnet20, 10, 32, 0.27, 0.041),
])
def test_weights_and_arithmetic_are_those_of_the_papers(factory: Callable[[int], nn.Module], classes: int, side: int, millions: float,
                                                       giga: float) -> None:
    model = factory(classes)
    assert weights(model) / 1e6 == pytest.approx(millions, rel=0.02)
    assert macs(model, (1, 3, side, side)) / 1e9 == pytest.approx(giga, rel=0.05)


@pytest.mark.parametrize("factory", [models.resnet18, models.resnet50, models.mobilenet_v2, models.resnet20, models.small_detector])
def test_half_of_each_group_can_go(factory: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    model, shape = factory(12), (1, 3, 32, 32)
    expected = model.eval()(torch.zeros(shape)).shape
    before = macs(model, shape)
    graph = ChannelGraph(model, shape)
    for group in graph.groups():
        graph.remove(group, np.arange(group.units // 2))
    graph.check([tuple(expected)])
    assert macs(model, shape) < 0.4 * before


def test_the_detector_s_rows_are_boxes_in_pixels_and_scores() -> None:
    torch.manual_seed(0)
    model = models.small_detector(3).eval()
    with torch.no_grad():
        found = model(torch.randn(2, 3, 64, 96))
    assert found.shape == (2, 7, 8 * 12 + 4 * 6)
    assert (found[:, 0] > -8).all()
    assert (found[:, 0] < 104).all()
    assert (found[:, 1] < 72).all()
    assert (found[:, 2:4] >= 0).all()
    assert float(found[:, 4:].max()) < 0.5, "at first most places hold nothing"
