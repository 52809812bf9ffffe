"""What a sample allows to be said: bounds for shares, quantiles and ratios of quantiles, in plain Python.

A gate must neither convict a good model by chance nor let a bad one through for want of data, so everything here gives *bounds*:
what lies outside of them is excluded at the stated confidence, and what they leave open is undecided.

Sources: the regularized incomplete beta function by its continued fraction, DLMF 8.17.22; shares by Clopper and Pearson, Biometrika 26
(1934); quantiles by order statistics, Conover, Practical Nonparametric Statistics (1999), section 3.2; the dispersion of clustered counts
by Pearson's statistic, McCullagh and Nelder, Generalized Linear Models (1989), section 4.5; ratios of two quantiles by the errors that
order statistics give to their logarithms, Price and Bonett, J. Educ. Behav. Stat. 45 (2020); the analysis of one figure a cluster by
Student's t, Hayes and Moulton, Cluster Randomised Trials (2017), chapter 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

from .sketch import RELATIVE_ERROR, Sketch

_TINY = 1e-300
_STEPS = 500


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), for a, b > 0 and 0 <= x <= 1."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast below the mean
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    return min(1.0, front * _fraction(a, b, x))


def _fraction(a: float, b: float, x: float) -> float:
    """Lentz's way to evaluate DLMF 8.17.22."""
    c, d = 1.0, 1.0 / _off_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _STEPS):
        for term in (m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)), -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))):
            d = 1.0 / _off_zero(1.0 + term * d)
            c = _off_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-12:
            break
    return value


def _off_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def binomial_at_most(k: int, n: int, p: float) -> float:
    """The chance of at most `k` successes in `n` trials of chance `p`."""
    if k < 0:
        return 0.0
    return 1.0 if k >= n else incomplete_beta(n - k, k + 1, 1.0 - p)


@lru_cache(maxsize=4096)
def share_bounds(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's bounds of a share; each holds by itself with `confidence` (0..1). (0, 1) without trials."""
    if not trials:
        return 0.0, 1.0
    alpha = 1.0 - confidence
    low = 0.0 if not successes else _root(lambda p: 1.0 - binomial_at_most(successes - 1, trials, p) - alpha, 0.0, 1.0)
    high = 1.0 if successes == trials else _root(lambda p: alpha - binomial_at_most(successes, trials, p), 0.0, 1.0)
    return low, high


@lru_cache(maxsize=1024)
def student_quantile(confidence: float, freedom: int) -> float:
    """The t that a Student variable of `freedom` degrees stays below with `confidence` (0.5 to 1, both excluded)."""
    def excess(t: float) -> float:
        return 1.0 - 0.5 * incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t)) - confidence

    high = 2.0
    while excess(high) < 0.0:
        high *= 2.0
    return _root(excess, 0.0, high)


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function crosses zero."""
    for _ in range(80):
        middle = (low + high) / 2.0
        if rising(middle) < 0.0:
            low = middle
        else:
            high = middle
    return (low + high) / 2.0


def quantile_bounds(sketch: Sketch, q: float, alpha: float, spread: float = 1.0) -> tuple[float, float]:
    """Bounds of the true quantile `q` (0..1); each is wrong with a chance of at most `alpha`.

    Args:
        spread: how many times more the counts scatter than independent frames would (see `dispersion`): so much less do they tell.

    Returns:
        (low, high) in the sketch's unit, widened by its relative error; 0 and infinity where the sample is too small to tell.
    """
    n = int(sketch.count / max(spread, 1.0))
    if n < 2:
        return 0.0, math.inf
    below = _largest(n, lambda rank: binomial_at_most(rank - 1, n, q) <= alpha)
    above = n + 1 - _largest(n, lambda rank: 1.0 - binomial_at_most(n - rank, n, q) <= alpha)
    low = sketch.quantile((below - 1) / (n - 1)) / (1.0 + RELATIVE_ERROR) if below else 0.0
    return low, sketch.quantile((above - 1) / (n - 1)) * (1.0 + RELATIVE_ERROR) if above <= n else math.inf


def log_quantile_error(sketch: Sketch, q: float, spread: float = 1.0) -> float:
    """The standard error of the logarithm of a sample's quantile, from the width of its bounds; infinite for a sample that is too small."""
    low, high = quantile_bounds(sketch, q, 0.05, spread)
    if not low or not math.isfinite(high):
        return math.inf
    return max(0.0, math.log(high / low) - 2.0 * math.log1p(RELATIVE_ERROR)) / (2.0 * normal_quantile(0.95))


def normal_quantile(confidence: float) -> float:
    """The value that a standard normal variable stays below with `confidence`."""
    return NormalDist().inv_cdf(confidence)


def _largest(n: int, holds: Callable[[int], bool]) -> int:
    """The largest rank of 1..n for which `holds`, which is true up to some rank; 0 when for none."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def dispersion(windows: Sequence[Sketch], q: float) -> float:
    """How much more the frames above the common quantile `q` scatter between windows than by chance: at least 1.

    Frames that follow each other are slow together (heat, a busy neighbour), so that a thousand of them tell less than a thousand
    independent ones. Pearson's statistic over its degrees of freedom; 1 for fewer than two windows.
    """
    whole = Sketch()
    for window in windows:
        whole = whole.merged(window)
    counted = [(window.count, window.count_above(whole.quantile(q))) for window in windows if window.count]
    share = sum(over for _, over in counted) / whole.count if whole.count else 0.0
    if len(counted) < 2 or not 0.0 < share < 1.0:
        return 1.0
    pearson = sum((over - n * share) ** 2 / (n * share * (1.0 - share)) for n, over in counted)
    return max(1.0, pearson / (len(counted) - 1))


def mean_bounds(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """Bounds of the mean of independent values by Student's t, each wrong with a chance of `alpha`; infinite for fewer than two."""
    n = len(values)
    if n < 2:
        return -math.inf, math.inf
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    reach = student_quantile(1.0 - alpha, n - 1) * error
    return mean - reach, mean + reach
