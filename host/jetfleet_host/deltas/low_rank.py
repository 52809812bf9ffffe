"""What a fine-tune adds to a weight matrix has low rank (Aghajanyan et al., ACL 2021; Hu et al., LoRA, ICLR 2022): found here.

Per channel first a factor near 1, then a few directions common to all channels, both in whole numbers so that the board multiplies exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.delta_format import MAX_PIECE, MAX_RANK

GAIN_STEP = 32768.0
_RANKS = (2, 4, 8, 12, 16, 24, 32, 48, 64)
_BITS_A_FACTOR = 7.0
_MARGIN = 8
_LOOK = 4
_TINY = 1e-20

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Shift:
    """``new ~ old * (1 + steps / 32768) + scales * (rows @ factors)``; shapes (channels), (channels), (channels, rank), (rank, columns)."""

    steps: NDArray[np.int16]
    scales: Floats
    rows: NDArray[np.int8]
    factors: NDArray[np.int8]


def factors_of(steps: NDArray[np.generic]) -> Floats:
    """The gains as the board computes them."""
    gains: Floats = np.float32(1) + steps.astype(np.float32) / np.float32(GAIN_STEP)
    return gains


def shift(new: Floats, old: Floats, channels: int, inner: int, steps: NDArray[np.generic]) -> Shift | None:
    """The low-rank part that saves most bits over what it takes; None when none saves any.

    A normal error of spread s costs about ``log2(s)`` bits and a constant, so that taking the share f of a matrix's energy away saves
    ``-log2(1 - f) / 2`` bits a number.
    """
    rest = (new.reshape(channels, inner) - old.reshape(channels, inner) * factors_of(steps).reshape(-1, 1)).astype(np.float32)
    spread = np.sqrt(np.einsum("ci,ci->c", rest, rest, dtype=np.float64) / inner).astype(np.float32)
    if not np.isfinite(spread).all() or not spread.any():
        return None
    spread[spread == 0] = 1.0
    rest /= spread.reshape(-1, 1)
    most = min(MAX_RANK, min(channels, inner) // 2, MAX_PIECE // inner)
    _, strength, _ = _decomposed(rest, min(most, _LOOK))
    if _worth(strength, channels, inner) == 0:  # no direction stands out: nothing to be found by a longer look
        return None
    left, strength, right = _decomposed(rest, most)
    rank = _worth(strength, channels, inner)
    return _in_whole_numbers(left[:, :rank] * strength[:rank] * spread.reshape(-1, 1), right[:rank], steps.astype("<i2"))


def _decomposed(matrix: Floats, most: int) -> tuple[Floats, Floats, Floats]:
    """The `most` strongest directions by randomised subspace iteration (Halko, Martinsson, Tropp, SIAM Review 2011), from a fixed seed."""
    probe = np.random.default_rng(0).standard_normal((matrix.shape[1], most + _MARGIN), dtype=np.float32)
    basis = matrix @ probe
    for _ in range(2):
        basis, _upper = np.linalg.qr(matrix @ (matrix.T @ np.linalg.qr(basis)[0]))
    small, strength, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ small)[:, :most], strength[:most], right[:most]


def _worth(strength: Floats, channels: int, inner: int) -> int:
    """The rank with the largest saving, 0 when none has any, for a matrix whose every row has a mean square of 1."""
    captured = np.cumsum(strength.astype(np.float64)**2) / (float(channels) * inner)
    best, most = 0, 0.0
    for rank in _RANKS:
        if rank > len(captured):
            break
        share = min(float(captured[rank - 1]), 1 - 1e-6)
        saved = -0.5 * np.log2(1 - share) * channels * inner - _BITS_A_FACTOR * rank * (channels + inner)
        if saved > most:
            best, most = rank, saved
    return best


def _in_whole_numbers(left: Floats, right: Floats, steps: NDArray[np.int16]) -> Shift:
    heights = np.maximum(np.abs(right).max(axis=1), _TINY) / 127
    factors = np.rint(right / heights.reshape(-1, 1)).astype(np.int8)
    weighted = left * heights
    scales = (np.maximum(np.abs(weighted).max(axis=1), _TINY) / 127).astype("<f4")
    return Shift(steps, scales, np.rint(weighted / scales.reshape(-1, 1)).astype(np.int8), factors)
