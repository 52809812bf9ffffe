"""How many channels each group loses. Pure arithmetic on importances and on what a scan saw; no torch.

`round_to` is the tile of the target's kernels: what remains is a multiple of it, since a half-filled tile costs as much as a full one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

_FLOOR = 0.1  # of a group's channels always remain: a layer that is all but gone cuts the network in two
_HALVINGS = 50


@dataclass(frozen=True)
class Stock:
    """One group: `original` units before the first step, `sets` channels a unit, how important each unit that is still there is."""

    name: str
    original: int
    sets: int
    importance: NDArray[np.float64]

    @property
    def present(self) -> int:
        return len(self.importance)


@dataclass(frozen=True)
class Sensitivity:
    """What the loss rises by when a share of a group's units is silenced: `shares` ascending from 0, `rises` beside them."""

    shares: tuple[float, ...]
    rises: tuple[float, ...]

    def share_within(self, rise: float) -> float:
        """The greatest share up to which the loss rises no more than this, between two shares by a straight line."""
        worst = np.maximum.accumulate(self.rises)
        for at in range(1, len(worst)):
            if worst[at] > rise:
                step = worst[at] - worst[at - 1]
                return float(self.shares[at - 1] + (self.shares[at] - self.shares[at - 1]) * max(0.0, rise - worst[at - 1]) / step)
        return self.shares[-1]


def by_importance(stocks: Sequence[Stock], ratio: float, round_to: int) -> list[int]:
    """Units to remove from each group, so that `ratio` of all original channels are gone: one threshold for all groups."""
    edges = np.sort(np.concatenate([stock.importance for stock in stocks]))
    best = [0] * len(stocks)
    low, high = 0, len(edges)
    while low < high:  # what is removed only grows with the threshold
        middle = (low + high + 1) // 2
        counts = [_rounded(stock, int(np.count_nonzero(stock.importance <= edges[middle - 1])), round_to) for stock in stocks]
        if _removed(stocks, counts) <= ratio:
            low, best = middle, counts
        else:
            high = middle - 1
    return best


def by_sensitivity(stocks: Sequence[Stock], sensitivities: Sequence[Sensitivity], ratio: float, progress: float,
                   round_to: int) -> list[int]:
    """Units to remove from each group: as many as the loss allows, with one limit on its rise for all groups.

    Args:
        ratio: of the original channels, in the end; `progress` (0..1] of it now.
    """
    low, high = 0.0, max(max(entry.rises) for entry in sensitivities) + 1e-9

    def shares(rise: float) -> list[float]:
        return [entry.share_within(rise) for entry in sensitivities]

    weights = np.array([stock.original * stock.sets for stock in stocks], np.float64)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(np.dot(shares(middle), weights) / weights.sum()) <= ratio:
            low = middle
        else:
            high = middle
    wanted = shares(low)
    scale = ratio / max(float(np.dot(wanted, weights) / weights.sum()), 1e-9)
    return [_rounded(stock, max(0, stock.present - round(stock.original * (1 - min(1 - _FLOOR, share * scale) * progress))), round_to)
            for stock, share in zip(stocks, wanted, strict=True)]


def _rounded(stock: Stock, wanted: int, round_to: int) -> int:
    """Units to remove near `wanted` such that what remains is whole tiles, at least one of them, and the floor of the group."""
    tile = round_to // gcd(round_to, stock.sets)
    if stock.present <= tile or wanted <= 0:
        return 0
    least = max(tile, -(-max(1, int(stock.original * _FLOOR)) // tile) * tile)
    kept = max(least, round((stock.present - wanted) / tile) * tile)
    return max(0, stock.present - kept)


def _removed(stocks: Sequence[Stock], counts: Sequence[int]) -> float:
    whole = sum(stock.original * stock.sets for stock in stocks)
    left = sum((stock.present - count) * stock.sets for stock, count in zip(stocks, counts, strict=True))
    return 1.0 - left / whole
