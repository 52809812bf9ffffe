"""How a tensor's magnitudes are spread, gathered image by image in a few kilobytes, and where to clip them for int8.

Three rules for the clipping magnitude, all for a symmetric grid of 127 steps on either side of zero:

    entropy   least Kullback-Leibler divergence between the values and their image on 128 levels (S. Migacz, "8-bit inference with
              TensorRT", GTC 2017); exact zeros do not count, as there
    mse       least mean squared error, rounding and clipping together (R. Banner et al., "Post training 4-bit quantization of
              convolutional networks for rapid-deployment", NeurIPS 2019): rounding costs step^2 / 12 a value, clipping the distance squared
    minmax    the largest magnitude: nothing is clipped
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 2048
LEVELS = 128
_STEPS = 127
# One candidate every this many bins: thresholds differ by under 1 % of the range, and a tensor is searched in milliseconds.
_STRIDE = 16

Counts = NDArray[np.float64]


class Histogram:
    """Counts of magnitudes in `BINS` equal bins over 0..`top`; exact zeros are counted by themselves.

    A larger magnitude than `top` doubles it until it fits, and neighbouring bins merge: memory does not grow, and after any
    number of images at least half of the bins lie under the largest magnitude.
    """

    def __init__(self) -> None:
        self.counts: Counts = np.zeros(BINS, np.float64)
        self.top = 0.0
        self.largest = 0.0
        self.zeros = 0

    @property
    def width(self) -> float:
        """Width of one bin."""
        return self.top / BINS

    def add(self, values: NDArray[np.float32], largest: float) -> None:
        """Count finite values of any shape. `largest`: the largest magnitude of the tensor that they were sampled from."""
        magnitudes = np.abs(values.reshape(-1))
        self.largest = max(self.largest, largest)
        if largest > 0.0:
            self._reach(largest)
        nonzero = magnitudes[magnitudes > 0.0]
        self.zeros += magnitudes.size - nonzero.size
        if nonzero.size:
            # In float64: a float32 quotient may round up across a bin's edge.
            index = np.minimum((nonzero.astype(np.float64) * (BINS / self.top)).astype(np.int64), BINS - 1)
            self.counts += np.bincount(index, minlength=BINS)

    def _reach(self, magnitude: float) -> None:
        if self.top == 0.0:
            self.top = magnitude
        while self.top < magnitude:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)])
            self.top *= 2.0


def entropy_magnitude(histogram: Histogram) -> float:
    """The clipping magnitude of least divergence; the largest magnitude when the values are too few to tell."""
    counts, used = histogram.counts, _used(histogram)
    best, threshold = np.inf, histogram.largest
    for bins in _candidates(used):
        divergence = _divergence(counts[:used], bins)
        if divergence < best:
            best, threshold = divergence, bins * histogram.width
    return min(threshold, histogram.largest)


def mse_magnitude(histogram: Histogram) -> float:
    """The clipping magnitude of least mean squared error."""
    used = _used(histogram)
    counts, width = histogram.counts[:used], histogram.width
    centres = (np.arange(used) + 0.5) * width
    best, threshold = np.inf, histogram.largest
    for bins in _candidates(used):
        limit = min(bins * width, histogram.largest)
        outside = counts[bins:]
        clipping = float(np.dot(outside, (centres[bins:] - limit) ** 2))
        error = float(counts[:bins].sum()) * (limit / _STEPS) ** 2 / 12.0 + clipping
        if error < best:
            best, threshold = error, limit
    return min(threshold, histogram.largest)


def _used(histogram: Histogram) -> int:
    """Bins up to the largest magnitude."""
    return max(LEVELS, min(BINS, int(np.ceil(histogram.largest / histogram.width)))) if histogram.top else LEVELS


def _candidates(used: int) -> list[int]:
    """Numbers of bins to keep, the whole range among them and tried last."""
    return [*range(LEVELS, used, _STRIDE), used]


def _divergence(counts: Counts, bins: int) -> float:
    """KL(values clipped at `bins` bins || the same spread over `LEVELS` levels); infinite when a level has nothing for a clipped tail."""
    kept = counts[:bins]
    reference = kept.copy()
    reference[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    filled = kept > 0
    mass = np.bincount(level, kept, LEVELS)
    share = np.bincount(level, filled, LEVELS)
    spread = np.where(filled, mass[level] / np.maximum(share[level], 1), 0.0)
    total, other = reference.sum(), spread.sum()
    here = reference > 0
    if total == 0 or other == 0 or np.any(spread[here] == 0):
        return float(np.inf)
    p, q = reference[here] / total, spread[here] / other
    return float(np.sum(p * np.log(p / q)))
