"""Measures a loaded model's floor at warm-up: what `contract.floor` compares all later frames with.

It costs at most 0.4 s, or five runs of a slower model.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from jetfleet_contract.floor import Floor, floor_of

UNTIMED = 3
LEAST_RUNS = 5
MOST_RUNS = 20
MOST_S = 0.4


def measure_floor(prepare: Callable[[], object], infer: Callable[[], object], decode: Callable[[], object]) -> Floor:
    """Run one frame's work again and again: untimed first, so that no live frame pays for first use, then timed.

    The session is timed behind the pre-processing that a live frame has too, so that both have the same caches.

    Raises:
        JetfleetError: what the three raise.
    """
    for _ in range(UNTIMED):
        prepare()
        infer()
        decode()
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    end = time.perf_counter() + MOST_S
    while len(times[0]) < LEAST_RUNS or (len(times[0]) < MOST_RUNS and time.perf_counter() < end):
        marks = [time.perf_counter()]
        for step in (prepare, infer, decode):
            step()
            marks.append(time.perf_counter())
        for column, (began, ended) in zip(times, itertools.pairwise(marks), strict=True):
            column.append((ended - began) * 1e3)
    pre, session, decoding = times
    return floor_of(session, pre, decoding)
