"""Heads to decode: scenes of things seen by several anchors, and what makes decoding hard - ties, no numbers, too many candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from jetfleet_contract.decode_arguments import HeadRules, head_rules
from jetfleet_contract.kernels import HeadLayout, HeadType

ODD = np.array([0.0, -0.0, 0.25, 0.5, 1.0, 2.0, -3.0, 1e-30, 1e-8, 1e19, -1e38, 3e38, np.inf, -np.inf, np.nan], np.float32)


def random_rules(rng: np.random.Generator, layout: HeadLayout, kind: HeadType, *, images: int, anchors: int) -> HeadRules:
    """Limits of any size; classes few, so that boxes meet their kind."""
    classes, extra = int(rng.integers(1, 6)), int(rng.integers(0, 4))
    row = (5 if layout == "v5" else 4) + classes + extra
    shape = (images, row, anchors) if layout == "v8" else (images, anchors, row)
    return head_rules(layout, kind, shape, classes=classes, extra=extra, threshold=float(rng.choice([0.0, 0.1, 0.25, 0.5, 0.7])),
                      iou=float(rng.choice([0.0, 0.45, 0.5, 2 / 3, 0.7, 0.9, 1.0])), most=int(rng.integers(1, 400)),
                      agnostic=bool(rng.integers(2)))


def head_of(rng: np.random.Generator, rules: HeadRules, kind: str) -> npt.NDArray[Any]:
    """A contiguous head of ``rules.shape``.

    Args:
        kind: ``scene`` (clusters of boxes among noise), ``ties`` (boxes on a coarse grid and few scores, so that IoUs meet their limit and
            scores are equal), ``specks`` (the same, of areas that vanish), ``sure`` (every anchor passes), ``empty``,
            ``odd`` (any number and none).
    """
    shape = (rules.images, rules.anchors, rules.row)
    numbers = np.empty(shape, np.float32)
    first = rules.row - rules.classes - rules.extra
    if kind == "odd":
        numbers[:] = rng.choice(ODD, shape)
        sane = rng.random(shape[:2]) < 0.6
        numbers[sane] = rng.uniform(0, 1, (int(sane.sum()), rules.row))
    elif kind in ("ties", "specks"):
        unit = np.float32(1.0 if kind == "ties" else 1e-9)
        numbers[:] = rng.choice(np.linspace(0, 1, 5, dtype=np.float32), shape)
        numbers[..., 0], numbers[..., 2] = rng.integers(0, 30, shape[:2]) * (unit / 2), rng.integers(0, 21, shape[:2]) * unit
        numbers[..., 1], numbers[..., 3] = rng.integers(0, 3, shape[:2]) * unit, rng.integers(0, 3, shape[:2]) * unit
    else:
        centres = rng.uniform(0, 600, (12, 2))
        numbers[..., :2] = centres[rng.integers(12, size=shape[:2])] + rng.normal(0, 8, (*shape[:2], 2))
        numbers[..., 2:4] = rng.uniform(40, 80, (*shape[:2], 2))
        low, high = {"scene": (-1.0, 1.0), "sure": (0.71, 1.0), "empty": (-1.0, 0.0)}[kind]
        numbers[..., 4:first + rules.classes] = rng.uniform(low, high, (*shape[:2], rules.row - 4 - rules.extra))
        numbers[..., first + rules.classes:] = rng.normal(0, 3, (*shape[:2], rules.extra))
        if kind == "sure" and rules.layout == "v5":
            numbers[..., 4] = 1.0
    with np.errstate(over="ignore"):
        typed = numbers.astype(np.float32 if rules.type == "f32" else np.float16)
    return np.ascontiguousarray(typed.transpose(0, 2, 1) if rules.layout == "v8" else typed)


KINDS = ("scene", "ties", "specks", "sure", "empty", "odd")
