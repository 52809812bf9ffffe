"""A small one-stage detector without anchors: CSP blocks (Wang et al., CVPRW 2020), two scales, outputs as YOLOv8's."""

from __future__ import annotations

import torch
from torch import nn

from .resnet import started

_STRIDES = (8, 16)


class CspBlock(nn.Module):
    """Half of the channels go through residual pairs of 3x3 convolutions, half go by."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        half = channels // 2
        self.left, self.right, self.join = _conv(channels, half, 1), _conv(channels, half, 1), _conv(2 * half, channels, 1)
        self.inner = nn.ModuleList(nn.Sequential(_conv(half, half, 3), _conv(half, half, 3)) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.left(x)
        for pair in self.inner:
            y = y + pair(y)
        return self.join(torch.cat([y, self.right(x)], 1))


class SmallDetector(nn.Module):
    """(N, 3, H, W), H and W multiples of 16 -> (N, 4 + num_classes, A).

    A = H * W / 64 + H * W / 256 places. Rows: x and y of the centre, width and height in pixels, then one score 0..1 a class: what the
    task `detect-yolo` decodes. `logits` gives the same before the sigmoid and in strides, for a loss.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(_conv(3, w, 3, 2), _conv(w, 2 * w, 3, 2), CspBlock(2 * w, 1))
        self.middle = nn.Sequential(_conv(2 * w, 4 * w, 3, 2), CspBlock(4 * w, 2))
        self.deep = nn.Sequential(_conv(4 * w, 8 * w, 3, 2), CspBlock(8 * w, 1))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.neck = nn.Sequential(_conv(12 * w, 4 * w, 1), CspBlock(4 * w, 1))
        self.heads = nn.ModuleList(nn.Sequential(_conv(c, c, 3), nn.Conv2d(c, 4 + num_classes, 1)) for c in (4 * w, 8 * w))
        started(self)
        for head in self.heads:
            nn.init.normal_(head[1].weight, std=0.01)
            nn.init.constant_(head[1].bias[4:], -4.6)  # a score of 0.01 at first: most places hold nothing (Lin et al., ICCV 2017)

    def logits(self, x: torch.Tensor) -> list[torch.Tensor]:
        """For strides 8 and 16, (N, 4 + num_classes, H / stride, W / stride)."""
        middle = self.middle(self.stem(x))
        deep = self.deep(middle)
        fine = self.neck(torch.cat([self.up(deep), middle], 1))
        return [self.heads[0](fine), self.heads[1](deep)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for stride, raw in zip(_STRIDES, self.logits(x), strict=True):
            rows, columns = torch.meshgrid(torch.arange(raw.shape[2], device=x.device), torch.arange(raw.shape[3], device=x.device),
                                           indexing="ij")
            corner = torch.stack([columns, rows]).to(raw.dtype)
            centre = (raw[:, :2].sigmoid() * 2 - 0.5 + corner) * stride
            size = (raw[:, 2:4].sigmoid() * 2) ** 2 * 4 * stride
            parts.append(torch.cat([centre, size, raw[:, 4:].sigmoid()], 1).flatten(2))
        return torch.cat(parts, 2)


def small_detector(num_classes: int = 80) -> SmallDetector:
    """1.7 M weights."""
    return SmallDetector(num_classes, 16)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
