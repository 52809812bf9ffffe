"""Beside or after: measured in turn, decided once, measured again when the model or the sources change."""

from __future__ import annotations

import pytest

from jetfleet_agent.pipeline.overlap import BLOCK, BLOCKS, Overlap


def play(overlap: Overlap, beside_s: float, after_s: float, frames: int = BLOCK * BLOCKS, start: float = 100.0) -> float:
    now = start
    for _ in range(frames):
        now += beside_s if overlap.on else after_s
        overlap.answered(now)
    return now


def states(overlap: Overlap, beside_s: float, after_s: float, now: float = 100.0) -> list[bool]:
    """Whether it was decided, before each frame and at the end."""
    found = [overlap.is_decided]
    for _ in range(BLOCK * BLOCKS):
        now = play(overlap, beside_s, after_s, 1, now)
        found.append(overlap.is_decided)
    return found


@pytest.mark.parametrize(("beside", "after", "on"), [(0.010, 0.014, True), (0.014, 0.010, False), (0.010, 0.010, False),
                                                      (0.0098, 0.010, False)])
def test_the_faster_way_wins_and_a_tie_saves_power(beside: float, after: float, on: bool) -> None:
    overlap = Overlap(cores=2, threads=2)
    assert states(overlap, beside, after) == [False] * (BLOCK * BLOCKS) + [True]
    assert overlap.on is on


def test_a_pause_while_it_measures_does_not_decide() -> None:
    overlap = Overlap(cores=4, threads=2)
    assert overlap.on, "free cores: begins beside"
    now = play(overlap, 0.010, 0.014, BLOCK // 2)
    overlap.answered(now + 5.0)
    play(overlap, 0.010, 0.014, start=now + 5.0)
    assert overlap.on


def test_measured_again_on_request_and_never_where_it_is_fixed() -> None:
    overlap = Overlap(cores=2, threads=0)
    now = play(overlap, 0.010, 0.014)
    first = overlap.on
    overlap.begin_again()
    assert states(overlap, 0.014, 0.010, now) == [False] * (BLOCK * BLOCKS) + [True]
    assert (first, overlap.on) == (True, False)
    fixed = Overlap(cores=2, threads=2, fixed=True)
    play(fixed, 0.014, 0.010)
    assert fixed.on
    assert fixed.is_decided
