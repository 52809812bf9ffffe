"""ResNet (He et al., CVPR 2016): the ImageNet shapes 18 and 50, and the CIFAR shapes 20 and 56 of the same paper's section 4.2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(inner + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as version 1.5 has it) and 1x1, and a skip."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU()
        self.shortcut = _shortcut(inputs, width * 4, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self.bn1(self.conv1(x)))
        inner = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(inner)))))
        return self.relu(inner + self.shortcut(x))


class ResNet(nn.Module):
    """Stem, stages of blocks that halve the side from the second on, global mean, linear head: (N, 3, H, W) -> (N, num_classes).

    Args:
        depths: blocks in each stage; `widths` beside them.
        small: a 3x3 stem without pooling, for images of 32 to 64 pixels.
    """

    def __init__(self, block: type[BasicBlock | Bottleneck], depths: Sequence[int], widths: Sequence[int], num_classes: int, *,
                 small: bool) -> None:
        super().__init__()
        first = widths[0]
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, 1, 1, bias=False) if small else nn.Conv2d(3, first, 7, 2, 3, bias=False),
                                  nn.BatchNorm2d(first), nn.ReLU(), *([] if small else [nn.MaxPool2d(3, 2, 1)]))
        stages, inputs = [], first
        for number, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for position in range(depth):
                blocks.append(block(inputs, width, 2 if number and not position else 1))
                inputs = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, num_classes)
        started(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))


def resnet18(num_classes: int = 1000) -> ResNet:
    """11.7 M weights at 1000 classes, 1.8 GMACs at 224 pixels."""
    return ResNet(BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), num_classes, small=False)


def resnet50(num_classes: int = 1000) -> ResNet:
    """25.6 M weights at 1000 classes, 4.1 GMACs at 224 pixels."""
    return ResNet(Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), num_classes, small=False)


def resnet20(num_classes: int = 10) -> ResNet:
    """0.27 M weights, 41 MMACs at 32 pixels: a student of `resnet56`."""
    return ResNet(BasicBlock, (3, 3, 3), (16, 32, 64), num_classes, small=True)


def resnet56(num_classes: int = 10) -> ResNet:
    """0.86 M weights, 127 MMACs at 32 pixels."""
    return ResNet(BasicBlock, (9, 9, 9), (16, 32, 64), num_classes, small=True)


def started(model: nn.Module) -> None:
    """First weights by He et al. (ICCV 2015), norms at one and zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
