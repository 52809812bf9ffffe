"""Cohorts of an experiment, and the test that tells them apart.

Boards are drawn into two arms by hash, apart for each stratum (device class), so that both arms hold the same kinds of boards. The test
uses nothing but that draw: were the two versions alike, any other draw would have given the same values, so the observed difference
is compared with those of other draws (randomisation test; Fisher, 1935; Edgington and Onghena, Randomization Tests, 2007). A board
is one value, however many frames it saw: frames of one board are not independent.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import NormalDist, fmean, variance
from typing import Literal

Arm = Literal["a", "b"]
ARMS: tuple[Arm, Arm] = ("a", "b")
_Sides = list[tuple[list[float], list[float]]]
MAX_DRAWS = 4999
MANY_BOARDS = 200


def draw(strata: Mapping[str, str], share_b: float, salt: str) -> dict[str, Arm]:
    """Arms by board: in each stratum a share `share_b` (0..1, rounded, at least one board in each arm where there are two) is `b`.

    Args:
        strata: the stratum of each board. salt: another salt is another draw.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for device, stratum in strata.items():
        members[stratum].append(device)
    arms: dict[str, Arm] = {}
    for stratum in sorted(members):
        lot = sorted(members[stratum], key=lambda device: hashlib.sha256(f"{salt}/{device}".encode()).digest())
        count = _share(len(lot), share_b, first=hashlib.sha256(f"{salt}/{stratum}".encode()).digest()[0] % 2)
        arms |= {device: "b" if at < count else "a" for at, device in enumerate(lot)}
    return arms


def _share(size: int, share_b: float, *, first: int) -> int:
    if size == 1:
        return first if 0.0 < share_b < 1.0 else round(share_b)
    return min(max(round(size * share_b), 1), size - 1) if 0.0 < share_b < 1.0 else round(size * share_b)


def difference(values: Mapping[str, float], arms: Mapping[str, Arm], strata: Mapping[str, str]) -> float:
    """Mean of `b` less mean of `a`, each stratum by itself, weighted by its boards. 0.0 when no stratum has both arms."""
    parts = [_gap(part_a, part_b) for part_a, part_b in _sides(values, arms, strata)]
    weight = sum(size for _, size in parts)
    return sum(gap * size for gap, size in parts) / weight if weight else 0.0


def _sides(values: Mapping[str, float], arms: Mapping[str, Arm], strata: Mapping[str, str]) -> _Sides:
    """Values of `a` and of `b` in each stratum that has both: the others cannot tell anything."""
    sides: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for device in sorted(values):
        sides[strata[device]][arms[device] == "b"].append(values[device])
    return [side for _, side in sorted(sides.items()) if side[0] and side[1]]


def _gap(part_a: Sequence[float], part_b: Sequence[float]) -> tuple[float, int]:
    return fmean(part_b) - fmean(part_a), len(part_a) + len(part_b)


def randomisation_p(values: Mapping[str, float], arms: Mapping[str, Arm], strata: Mapping[str, str], seed: str) -> float:
    """Two-sided p of the difference between the arms: the share of draws that differ at least as much, the observed one included.

    All draws are gone through when there are at most 4999, else 4999 random ones; then p counts the observed draw too, so it is never 0
    (Phipson and Smyth, 2010). Over 200 boards the difference over all draws is normal to good approximation, with a variance that is known
    exactly (combinatorial central limit theorem; Hoeffding, 1951), and nothing is drawn. 1.0 when no stratum has boards in both arms.

    Args:
        seed: makes the random draws, and so the verdict, reproducible.
    """
    sides = _sides(values, arms, strata)
    if not sides:
        return 1.0
    observed = abs(_statistic(sides))
    if sum(len(a) + len(b) for a, b in sides) > MANY_BOARDS:
        return _normal_p(sides, observed)
    ways = math.prod(math.comb(len(a) + len(b), len(b)) for a, b in sides)
    draws = _every(sides) if ways <= MAX_DRAWS else _some(sides, seed)
    slack = 1e-12 * max(1.0, observed)
    as_far = sum(abs(_statistic(drawn)) >= observed - slack for drawn in draws)
    return as_far / ways if ways <= MAX_DRAWS else (1 + as_far) / (1 + MAX_DRAWS)


def _normal_p(sides: _Sides, observed: float) -> float:
    """The variance of a stratum's difference over all draws is s2 (1/n_a + 1/n_b), s2 the sample variance of both arms together."""
    total = sum(len(a) + len(b) for a, b in sides)
    spread = sum((len(a) + len(b)) ** 2 * variance(a + b) * (1 / len(a) + 1 / len(b)) for a, b in sides if len(a) + len(b) > 1)
    if spread <= 0.0:
        return 1.0 if observed <= 0.0 else 0.0
    return 2.0 * (1.0 - NormalDist().cdf(observed * total / math.sqrt(spread)))


def _statistic(sides: _Sides) -> float:
    gaps = [_gap(a, b) for a, b in sides]
    return sum(gap * size for gap, size in gaps) / sum(size for _, size in gaps)


def _every(sides: _Sides) -> Iterable[_Sides]:
    return (list(drawn) for drawn in itertools.product(*([*_splits(a + b, len(b))] for a, b in sides)))


def _splits(pool: list[float], size_b: int) -> Iterable[tuple[list[float], list[float]]]:
    for chosen in itertools.combinations(range(len(pool)), size_b):
        taken = set(chosen)
        yield [value for at, value in enumerate(pool) if at not in taken], [pool[at] for at in chosen]


def _some(sides: _Sides, seed: str) -> Iterable[_Sides]:
    numbers = _numbers(seed)
    for _ in range(MAX_DRAWS):
        drawn = []
        for a, b in sides:
            pool = a + b
            for at in range(len(pool) - 1, 0, -1):  # Fisher and Yates
                other = next(numbers) % (at + 1)
                pool[at], pool[other] = pool[other], pool[at]
            drawn.append((pool[: len(a)], pool[len(a) :]))
        yield drawn


def _numbers(seed: str) -> Iterator[int]:
    """SplitMix64 (Steele, Lea and Flood, 2014): the contract's randomness comes from arguments; the same seed gives the same p."""
    state, mask = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"), (1 << 64) - 1
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & mask
        yield mixed ^ mixed >> 31


def spent_alpha(share: float, alpha: float) -> float:
    """How much of the false-alarm rate `alpha` may be used up once `share` (0..1) of the time is over.

    O'Brien-Fleming-type spending function of Lan and DeMets (Biometrika 70, 1983): 2 - 2 Phi(z / sqrt(share)), z the alpha / 2 point.
    """
    if share <= 0.0:
        return 0.0
    normal = NormalDist()
    return min(alpha, 2.0 - 2.0 * normal.cdf(normal.inv_cdf(1.0 - alpha / 2.0) / math.sqrt(min(share, 1.0))))
