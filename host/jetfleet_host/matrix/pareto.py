"""The Pareto front of points that cost something and give something. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the points that no other one dominates, by growing cost.

    Args:
        points: (cost, gain) each, all finite: less of the first is better, more of the second.

    Returns:
        Of points that are equal in both, only the first. A point is dominated when another costs no more, gives no less, and is better
        in one of the two.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index))
    kept: list[int] = []
    best = float("-inf")
    for index in order:
        if points[index][1] > best:
            best = points[index][1]
            kept.append(index)
    return tuple(kept)
