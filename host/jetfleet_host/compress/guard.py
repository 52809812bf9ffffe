"""Did a stage lose more than it may? Each sample is answered by the base and by the candidate, so the test is a paired one.

A drop is never compared bare: on 500 images, half a point is two and a half answers. The guard puts bounds around the true drop and says
*pass* when all of them lie within the limit, *fail* when none does, else *undecided*, and then how many samples would tell.

Sources: right-or-wrong samples by Tango's score statistic for paired shares, Stat. Med. 17 (1998), which McNemar's test is at a drop of 0;
graded samples by Student's t on the differences. What no sample showed may still happen to a share of z^2 / (n + z^2) of all, which is what
Tango's bounds come to when no answer differs; graded samples are held to the same, for a t of equal differences would claim certainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.errors import InputError
from jetfleet_contract.predictions import MatchCount
from jetfleet_contract.significance import normal_quantile, student_quantile

Scores = NDArray[np.float64]
Outcome = Literal["pass", "fail", "undecided"]

CONFIDENCE = 0.95
# More samples than this nobody collects; a drop that sits on its limit would need infinitely many.
MAX_NEEDED = 10_000_000
# Wide enough that a normal quantile serves where Student's needs minutes of bisection.
_MANY = 2000


class Verdict(msgspec.Struct, frozen=True):
    """What the guard says. Drops are in points of the metric (100 x), positive when the candidate is worse; `low` and `high` bound the true
    one, each with `confidence`. `needed`: samples in all that would decide if they went on like these; 0 when decided, `MAX_NEEDED` for
    "no number is likely to". `changed`: samples whose score differs."""

    outcome: Outcome
    drop: float
    low: float
    high: float
    limit: float
    samples: int
    changed: int
    needed: int = 0
    confidence: Annotated[float, msgspec.Meta(gt=0.5, lt=1.0)] = CONFIDENCE

    @property
    def evidence(self) -> str:
        """What the samples prove, in a few words."""
        if self.outcome != "undecided":
            return f"proven on {self.samples} samples"
        if self.needed >= MAX_NEEDED:
            return f"not proven on {self.samples} samples, nor likely on any number of them"
        return f"not proven on {self.samples} samples: about {self.needed - self.samples} more would tell"

    @property
    def reason(self) -> str:
        """One sentence for people."""
        bounds = f"{self.low:.2f} to {self.high:.2f} at {100 * self.confidence:g} %"
        seen = f"drop of {self.drop:.2f} points on {self.samples} samples ({bounds})"
        if self.outcome == "pass":
            return f"{seen} is within {self.limit:.2f}"
        if self.outcome == "fail":
            return f"{seen} is over the limit of {self.limit:.2f}"
        if self.needed >= MAX_NEEDED:
            return f"{seen} sits on the limit of {self.limit:.2f}: no number of samples is likely to tell"
        return f"{seen} may be on either side of {self.limit:.2f}: about {self.needed - self.samples} more samples would tell"


def judge_paired(base: Scores, candidate: Scores, max_drop: float, confidence: float = CONFIDENCE) -> Verdict:
    """Judge a candidate by the scores of the same samples, in the same order.

    Args:
        base, candidate: float64 (N,), 0..1 each; their means are the metric. Pseudo-values of a pooled metric may lie outside of that.
        max_drop: points of the metric that may be lost.

    Raises:
        InputError: `guard.samples` when there are none or the two differ in number; `guard.scores` when a score is not finite.
    """
    if base.shape != candidate.shape or base.ndim != 1 or not base.size:
        raise InputError("guard.samples", f"the guard needs the same samples twice, it got {base.shape} and {candidate.shape} scores",
                         remedy="give validation data; each sample is answered by both models")
    if not (np.isfinite(base).all() and np.isfinite(candidate).all()):
        raise InputError("guard.scores", "a score is NaN or infinite", remedy="a metric gives 0..1 for each sample")
    limit = max_drop / 100.0
    bounds = _bounds_of(base, candidate, confidence)
    drop = float(base.mean() - candidate.mean())
    low, high = bounds(base.size)
    outcome: Outcome = "pass" if high <= limit else "fail" if low > limit else "undecided"
    needed = _needed(bounds, limit, base.size) if outcome == "undecided" else 0
    return Verdict(outcome, _points(drop), _points(low), _points(high), max_drop, int(base.size), int(np.count_nonzero(base != candidate)),
                   needed, confidence)


def least_samples(max_drop: float, confidence: float = CONFIDENCE) -> int:
    """Samples below which nothing passes but what gains: even without one changed answer, fewer cannot exclude a drop over `max_drop`."""
    limit = max_drop / 100.0
    if limit <= 0.0:
        return MAX_NEEDED
    square = normal_quantile(confidence) ** 2
    return math.ceil(square * (1.0 - limit) / limit)


def frame_scores(counts: Sequence[MatchCount]) -> Scores:
    """A pooled F1 as one value a frame whose mean it is, so that it can be tested in pairs: float64 (N,).

    F1 = 2 TP / (2 TP + FP + FN) is a ratio of two sums; this is its linearisation (Cochran, Sampling Techniques (1977), section 6.3). With
    one label a frame the values are 1 for a right answer and 0 for a wrong one.
    """
    top = np.array([2.0 * count.matched for count in counts])
    bottom = np.array([2.0 * count.matched + count.missed + count.extra for count in counts])
    if not bottom.sum():
        return np.ones(len(counts))
    if (bottom == bottom[0]).all():  # exactly, so that right and wrong are 1 and 0
        return np.asarray(top / bottom)
    ratio = top.sum() / bottom.sum()
    return np.asarray(ratio + (top - ratio * bottom) / bottom.mean())


def _points(share: float) -> float:
    return round(100.0 * share, 4) + 0.0  # no negative zero


def _bounds_of(base: Scores, candidate: Scores, confidence: float) -> Callable[[int], tuple[float, float]]:
    """Bounds of the drop (0..1 scale) as a function of how many samples like these there were."""
    if np.isin(base, (0.0, 1.0)).all() and np.isin(candidate, (0.0, 1.0)).all():
        lost = float(np.count_nonzero(base > candidate)) / base.size
        won = float(np.count_nonzero(base < candidate)) / base.size
        z = normal_quantile(confidence)
        return lambda n: (-_tango_high(won * n, lost * n, n, z), _tango_high(lost * n, won * n, n, z))
    differences = base - candidate
    mean = float(differences.mean())
    spread = float(differences.std(ddof=1)) if base.size > 1 else math.inf

    def bounds(n: int) -> tuple[float, float]:
        z = normal_quantile(confidence)
        t = student_quantile(confidence, n - 1) if 1 < n < _MANY else z
        reach = max(t * spread / math.sqrt(n), z * z / (n + z * z))
        return max(-1.0, mean - reach), min(1.0, mean + reach)

    return bounds


def _tango_high(lost: float, won: float, n: int, z: float) -> float:
    """The largest drop that the statistic does not exclude: `lost` and `won` answers of `n` changed (shares of a thought sample need not be
    whole)."""
    low, high = (lost - won) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _tango(lost, won, n, middle) > -z else (low, middle)
    return high


def _tango(lost: float, won: float, n: int, drop: float) -> float:
    """Tango's score statistic of the hypothesis that the true drop is `drop` (-1..1, both excluded); falls as it rises."""
    a, b, c = 2.0 * n, (2.0 * n - lost + won) * drop - lost - won, -won * drop * (1.0 - drop)
    share = (math.sqrt(max(0.0, b * b - 4.0 * a * c)) - b) / (2.0 * a)  # of samples won, when the hypothesis holds
    variance = n * (2.0 * share + drop * (1.0 - drop))
    above = lost - won - n * drop
    if variance <= 0.0:
        return 0.0 if above == 0.0 else math.copysign(math.inf, above)
    return above / math.sqrt(variance)


def _needed(bounds: Callable[[int], tuple[float, float]], limit: float, present: int) -> int:
    """The smallest number of samples like these that would decide, at most `MAX_NEEDED`."""
    def decides(n: int) -> bool:
        low, high = bounds(n)
        return high <= limit or low > limit

    if not decides(MAX_NEEDED):
        return MAX_NEEDED
    low, high = present, MAX_NEEDED
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
