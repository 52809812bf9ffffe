"""A profile of a few training steps in the format of chrome://tracing and Perfetto."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

_WAIT, _WARM, _ACTIVE = 1, 1, 3


@contextmanager
def traced(path: Path, *, wanted: bool) -> Iterator[Callable[[], None]]:
    """Write `path` (JSON) for steps 3 to 5 of what happens inside; call what it gives after each step. Shorter runs leave a
    file of what there was."""
    if not wanted:
        yield _nothing
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=activities, schedule=schedule(wait=_WAIT, warmup=_WARM, active=_ACTIVE, repeat=1),
                 on_trace_ready=lambda done: done.export_chrome_trace(str(path))) as profiler:
        yield profiler.step


def _nothing() -> None:
    return None
