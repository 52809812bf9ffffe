"""Times frames of a real source through one model: pre-processing, session, decoding, and right behind them the session alone.

Both are of the same frame, one after the other in one thread, so what disturbs the machine disturbs both. Reading a frame is not
timed: it is the source's, and runs beside the session in a pipeline.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator

import msgspec

from jetfleet_agent.pipeline.backends import Backend
from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.sources import FreshBuffers, open_source, redact
from jetfleet_agent.pipeline.tasks import Task
from jetfleet_contract.errors import SourceError
from jetfleet_contract.messages import Source

MAX_WAIT_S = 30.0


class FrameTimes(msgspec.Struct, frozen=True):
    """Milliseconds a frame: the session alone, and the three parts of the whole work."""

    session_ms: tuple[float, ...]
    stages: dict[str, tuple[float, ...]]


def time_frames(uri: str, task: Task, backend: Backend, *, warmup: int, frames: int, share: float = 1.0) -> FrameTimes:
    """Run `frames` frames of a source after `warmup` untimed ones; a file begins again at its end. `share`: as `rest_after` has it.

    Raises:
        InputError: `source.uri`. SourceError: what the source says, `source.empty` when it gives no frame at all, `source.timeout` when a
        live one gives too few.
    """
    lane = backend.lanes[0]
    session: list[float] = []
    stages: dict[str, list[float]] = {"pre": [], "infer": [], "decode": []}
    images = _images(uri)
    for number in range(warmup + frames):
        image = next(images)
        marks = [time.perf_counter()]
        geometry = backend.prepare(image, lane, 0, task.prepare)
        marks.append(time.perf_counter())
        outputs = backend.infer(lane)
        marks.append(time.perf_counter())
        task.decode(outputs, geometry)
        marks.append(time.perf_counter())
        backend.infer(lane)
        ended = time.perf_counter()
        rest_after(ended - marks[0], share)
        if number < warmup:
            continue
        session.append((ended - marks[-1]) * 1e3)
        for name, (began, end) in zip(stages, itertools.pairwise(marks), strict=True):
            stages[name].append((end - began) * 1e3)
    images.close()
    return FrameTimes(tuple(session), {name: tuple(times) for name, times in stages.items()})


def rest_after(seconds: float, share: float) -> None:
    """Sleep so long after work of so many seconds that it took no more than `share` (over 0, at most 1) of the time with the rest."""
    if share < 1.0:
        time.sleep(seconds / share - seconds)


def _images(uri: str) -> Generator[Image, None, None]:
    """Frames without end."""
    source, buffers = open_source(Source("bench", uri)), FreshBuffers()
    shown = redact(uri)[:80]
    source.open()
    try:
        given, waiting_since = 0, time.monotonic()
        while True:
            shot = source.read(buffers)
            if shot is not None:
                given, waiting_since = given + 1, time.monotonic()
                yield shot.image
            elif not given:
                raise SourceError("source.empty", f"{shown} gives no frame", remedy="give a video, a folder with images, or a camera")
            elif source.live and time.monotonic() - waiting_since > MAX_WAIT_S:
                raise SourceError("source.timeout", f"{shown} gave {given} frames, then none for {MAX_WAIT_S:.0f} s")
            else:
                source.close()
                source.open()
    finally:
        source.close()
