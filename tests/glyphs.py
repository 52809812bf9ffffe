"""Glyphs in noise, light or dark, in two fonts; and a small classifier of them in torch, as a factory: ``glyphs:make``."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

NAMES = ("four", "one", "seven", "zero")  # sorted: their order is the classes' order
_LETTERS = {"four": "4", "one": "1", "seven": "7", "zero": "0"}
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX)
SIDE = 24


def glyph(name: str, rng: np.random.Generator, *, gain: float = 1.0, font: int = 0) -> NDArray[np.uint8]:
    """(24, 24, 3) uint8, BGR: one glyph, light on a dim ground, moved and scaled a little; then all of it times `gain`."""
    image = rng.integers(0, 70, (SIDE, SIDE, 3)).astype(np.float64)
    ink = np.zeros((SIDE, SIDE), np.uint8)
    place = (int(rng.integers(2, 7)), int(rng.integers(17, 22)))
    cv2.putText(ink, _LETTERS[name], place, _FONTS[font], float(rng.uniform(0.5, 0.7)), 255, 2)
    image[ink > 0] = rng.uniform(150, 255)
    return np.asarray(np.clip(image * gain, 0, 255), np.uint8)


def glyph_folder(folder: Path, count: int, seed: int, *, gain: float = 1.0, font: int = 0) -> Path:
    """Class folders with `count` images each."""
    rng = np.random.default_rng(seed)
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            cv2.imwrite(str(folder / name / f"{seed}-{index:04}.png"), glyph(name, rng, gain=gain, font=font))
    return folder


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(24 * 36, 48), nn.ReLU(), nn.Linear(48, len(NAMES)))


def make() -> nn.Module:
    """The network with the weights in the file that GLYPH_WEIGHTS names."""
    module = network()
    module.load_state_dict(torch.load(os.environ["GLYPH_WEIGHTS"], weights_only=True))
    return module


def trained(path: Path, count: int = 100, epochs: int = 8) -> Path:
    """Weights of a network that knows the first font in good light."""
    torch.manual_seed(5)
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(len(NAMES)), count)
    images = np.stack([glyph(NAMES[label], rng) for label in labels])[..., ::-1].transpose(0, 3, 1, 2)
    inputs, targets = torch.from_numpy(images.astype(np.float32) / 255.0), torch.from_numpy(labels)
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(inputs[part]), targets[part]).backward()
            optimizer.step()
    torch.save(module.state_dict(), path)
    return path
