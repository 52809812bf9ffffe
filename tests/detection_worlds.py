"""A detector, its data and its task as a user's factories give them: bright rectangles on noise, `detection_worlds:task`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from jetfleet_host.compress.models.detector import SmallDetector

torch.set_num_threads(1)
SIDE, STRIDE = 64, 8
CELLS = SIDE // STRIDE


def net() -> nn.Module:
    """The small detector at half its width: (1, 3, 64, 64) -> (1, 5, 80); untrained, always the same."""
    torch.manual_seed(0)
    return SmallDetector(1, 8)


def rectangles(count: int, seed: int) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    """Images (N, 64, 64, 3) and for each the boxes (M, 5) in it, M of 0 to 2: class 0, x0, y0, x1, y1."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (count, SIDE, SIDE, 3), np.uint8)
    boxes = []
    for image in images:
        found = []
        for left in (0, SIDE // 2)[:rng.choice([0, 1, 2, 2])]:
            w, h = rng.integers(12, 27), rng.integers(12, 27)
            x, y = left + rng.integers(1, 31 - w), rng.integers(1, SIDE - h)
            image[y:y + h, x:x + w] = rng.integers(190, 256, (h, w, 3))
            found.append((0, x, y, x + w, y + h))
        boxes.append(np.asarray(found, np.float32).reshape(-1, 5))
    return images, boxes


def data() -> dict[str, Any]:
    """Boxes as ``labels.json`` has them."""
    def named(count: int, seed: int) -> tuple[Any, Any]:
        images, boxes = rectangles(count, seed)
        return images, [[{"label": int(row[0]), "box": row[1:]} for row in each] for each in boxes]

    return {"train": named(240, 1), "validation": named(160, 2), "classes": ["thing"]}


def arrays() -> dict[str, Any]:
    """The same boxes as arrays of differing length."""
    return {"train": rectangles(12, 1), "validation": rectangles(8, 2)}


class Boxes:
    """A `Split` in memory whose targets differ in length."""

    def __init__(self, count: int, seed: int) -> None:
        self.images, self.boxes = rectangles(count, seed)
        self.digest = f"{count} {seed}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return (self.images[index].transpose(2, 0, 1) / 255.0).astype(np.float32), self.boxes[index]


class Detection:
    """Loss and score on what `SmallDetector` gives for 64 x 64 pixels: the cell of stride 8 that holds a box's centre answers for it."""

    def loss(self, outputs: torch.Tensor, targets: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        image, boxes = targets
        outputs = outputs.float()
        wanted = torch.zeros_like(outputs[:, 4])
        size, centre = boxes[:, 3:] - boxes[:, 1:3], (boxes[:, 1:3] + boxes[:, 3:]) / 2
        cell = (centre // STRIDE).long()
        place = cell[:, 1] * CELLS + cell[:, 0]
        wanted[image, place] = 1.0
        score = outputs[:, 4].clamp(1e-6, 1 - 1e-6)
        missed = functional.binary_cross_entropy(score, wanted, reduction="sum")
        apart = (outputs[image, :4, place] - torch.cat([centre, size], 1)).abs().sum() / STRIDE
        return (missed + apart) / max(1, len(boxes))

    def collate(self, targets: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.cat([torch.full((len(boxes),), index) for index, boxes in enumerate(targets)])
        return image, torch.cat(targets)

    def score(self, model: nn.Module, split: Any) -> list[float]:
        """F1 of each image, boxes alike from an IoU of 0.5 on; 1 where there is nothing and nothing is found."""
        return [_f1(model(torch.as_tensor(image)[None])[0], target[:, 1:]) for image, target in split]


def _f1(answer: torch.Tensor, boxes: NDArray[np.float32]) -> float:
    cells = answer[:, :CELLS * CELLS].T
    found = cells[cells[:, 4] > 0.4]
    found = found[found[:, 4].argsort(descending=True)]
    corners = torch.cat([found[:, :2] - found[:, 2:4] / 2, found[:, :2] + found[:, 2:4] / 2], 1).numpy()
    kept: list[NDArray[np.float32]] = []
    for box in corners:
        if all(_iou(box, other) < 0.5 for other in kept):
            kept.append(box)
    hits = sum(any(_iou(box, other) >= 0.5 for other in kept) for box in boxes)
    return 2.0 * hits / (len(boxes) + len(kept)) if len(boxes) + len(kept) else 1.0


def _iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    inner = np.clip(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0, None).prod()
    return float(inner / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - inner))


def task() -> Detection:
    return Detection()
