"""Mergeable latency histograms with a stated relative error.

Logarithmic buckets as in DDSketch (Masson, Rim, Lee, VLDB 2019, section 2): value v > 0 falls in bucket
``ceil(log(v) / log(gamma))`` with ``gamma = (1 + a) / (1 - a)``; the bucket's mid value is then within a
relative error ``a`` of every value in it. Merging adds counts, so it is exact, associative and commutative:
the sketch of a fleet is the sum of its boards' sketches. We do not collapse buckets: between 1 us and 1 h
there are at most 1,100 of them at a = 0.01.

`Sketch` is the frozen value that travels; `SketchRecorder` is the mutable one of the hot path.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import msgspec

RELATIVE_ERROR = 0.01
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_INV_LOG_GAMMA = 1.0 / math.log(_GAMMA)
MIN_VALUE = 1e-3
MAX_VALUE = 3.6e6
_LOWEST = math.ceil(math.log(MIN_VALUE) * _INV_LOG_GAMMA)
_HIGHEST = math.ceil(math.log(MAX_VALUE) * _INV_LOG_GAMMA)
MAX_BUCKETS = _HIGHEST - _LOWEST + 1


class Sketch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A distribution of non-negative values, milliseconds unless the series says otherwise.

    `buckets` maps bucket number to count; `total` is the sum of all values; values below 1 us count as 1 us and
    values above 1 h as 1 h, while `least` and `most` are exact.
    """

    count: int = 0
    total: float = 0.0
    least: float = 0.0
    most: float = 0.0
    buckets: dict[int, int] = {}

    def merged(self, other: Sketch) -> Sketch:
        """The sketch of both samples together. Exact: bucket counts add."""
        if not other.count:
            return self
        if not self.count:
            return other
        buckets = dict(self.buckets)
        for bucket, count in other.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count
        return Sketch(self.count + other.count, self.total + other.total,
                      min(self.least, other.least), max(self.most, other.most), buckets)

    def quantile(self, q: float) -> float:
        """The value below which a share `q` (0..1) of the sample lies, within RELATIVE_ERROR. 0.0 when empty."""
        if not self.count:
            return 0.0
        rank = q * (self.count - 1)
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen > rank:
                return min(max(mid_of(bucket), self.least), self.most)
        return self.most

    def count_above(self, value: float) -> int:
        """How many values lie in buckets above the one that holds `value`."""
        bucket = _bucket(value)
        return sum(count for number, count in self.buckets.items() if number > bucket)

    def cumulative(self, bounds: Sequence[int]) -> tuple[int, ...]:
        """How many values lie at or below the upper edge of each of these buckets (rising numbers). Exact."""
        counts, seen, left = [], 0, deque(sorted(self.buckets))
        for bound in bounds:
            while left and left[0] <= bound:
                seen += self.buckets[left.popleft()]
            counts.append(seen)
        return tuple(counts)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def is_consistent(self) -> bool:
        """True when the counts add up and every bucket is in range: what a collector checks before it stores one."""
        return (
            len(self.buckets) <= MAX_BUCKETS
            and all(_LOWEST <= b <= _HIGHEST and c > 0 for b, c in self.buckets.items())
            and sum(self.buckets.values()) == self.count
            and math.isfinite(self.total)
            and 0 <= self.least <= self.most < math.inf
        )


class SketchRecorder:
    """Collects values and hands over the sketch since the last `take`. Not thread-safe: one writer each."""

    __slots__ = ("_buckets", "_count", "_least", "_most", "_total")

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = 0
        self._total = 0.0
        self._least = math.inf
        self._most = 0.0

    def add(self, value: float) -> None:
        bucket = _bucket(value)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self._count += 1
        self._total += value
        if value < self._least:
            self._least = value
        if value > self._most:
            self._most = value

    def take(self) -> Sketch:
        """The sketch of all values since the last call; the recorder starts anew."""
        sketch = self.peek()
        self._reset()
        return sketch

    def peek(self) -> Sketch:
        if not self._count:
            return Sketch()
        return Sketch(self._count, self._total, self._least, self._most, dict(self._buckets))


def sketch_of(values: list[float]) -> Sketch:
    """The sketch of a list of values."""
    recorder = SketchRecorder()
    for value in values:
        recorder.add(value)
    return recorder.peek()


def edge(bucket: int) -> float:
    """The largest value that falls in a bucket."""
    return float(_GAMMA**bucket)


def nearest_edge(value: float) -> int:
    """The bucket whose upper edge is nearest to a value, in relative terms."""
    return round(math.log(value) * _INV_LOG_GAMMA)


def _bucket(value: float) -> int:
    return math.ceil(math.log(min(max(value, MIN_VALUE), MAX_VALUE)) * _INV_LOG_GAMMA)


def mid_of(bucket: int) -> float:
    """The value that stands for all of a bucket."""
    # DDSketch lemma 2: 2 * gamma**i / (gamma + 1) is within the relative error of the whole bucket.
    return float(2.0 * _GAMMA**bucket / (_GAMMA + 1.0))
