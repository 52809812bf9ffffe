"""MobileNetV2 (Sandler et al., CVPR 2018)."""

from __future__ import annotations

import torch
from torch import nn

from .resnet import started

# expansion, channels, blocks, stride: table 2 of the paper
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1x1 up, 3x3 depthwise, 1x1 down without an activation, and a skip where the shapes allow one."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        up = _conv(inputs, inner, 1, 1, 1) if expansion > 1 else nn.Identity()
        self.up, self.depthwise = up, _conv(inner, inner, 3, stride, inner)
        self.down = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.down(self.depthwise(self.up(x)))
        return x + inner if self.skips else inner


class MobileNetV2(nn.Module):
    """(N, 3, H, W) -> (N, num_classes). `small`: the stem and the second stage keep the side, for images of 32 to 64 pixels."""

    def __init__(self, num_classes: int, *, small: bool) -> None:
        super().__init__()
        self.stem = _conv(3, 32, 3, 1 if small else 2, 1)
        blocks, inputs = [], 32
        for number, (expansion, outputs, depth, stride) in enumerate(_STAGES):
            for position in range(depth):
                first = 1 if position or (small and number == 1) else stride
                blocks.append(InvertedResidual(inputs, outputs, expansion, first))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = _conv(inputs, 1280, 1, 1, 1)
        self.pool, self.drop, self.head = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Linear(1280, num_classes)
        started(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.pool(self.last(self.blocks(self.stem(x)))).flatten(1)))


def mobilenet_v2(num_classes: int = 1000) -> MobileNetV2:
    """3.5 M weights at 1000 classes, 0.3 GMACs at 224 pixels."""
    return MobileNetV2(num_classes, small=False)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs),
                         nn.ReLU6())
