"""Data folders for the builder's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def colour_classes(folder: Path, count: int = 4) -> Path:
    """Three class folders ``0`` (red), ``1`` (green), ``2`` (blue) of noisy 20 x 24 images; `count` each."""
    rng = np.random.default_rng(11)
    for label in range(3):
        (folder / str(label)).mkdir(parents=True)
        for index in range(count):
            image = rng.integers(0, 90, (20, 24, 3), np.uint8)
            image[:, :, 2 - label] += np.uint8(rng.integers(80, 160))  # files are BGR, class c is RGB channel c
            cv2.imwrite(str(folder / str(label) / f"{index}.png"), image)
    return folder


def plain_images(folder: Path, count: int = 3, labels: Any = None) -> Path:
    """`count` noise images ``0.png`` ...; `labels` goes into labels.json as it is."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(12)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 255, (20, 24, 3), np.uint8))
    if labels is not None:
        (folder / "labels.json").write_text(labels if isinstance(labels, str) else json.dumps(labels))
    return folder
