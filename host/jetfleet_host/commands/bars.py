"""Progress of long work: one bar a stage on stderr, nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int], None]]:
    """What to call with (stage, done, of); a stage that is over makes room for the next."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    with Progress(TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
                  disable=not console.is_terminal) as bars:
        shown: dict[str, Any] = {}

        def step(stage: str, done: int, of: int) -> None:
            if stage not in shown:
                shown[stage] = bars.add_task(stage, total=of)
            bars.update(shown[stage], completed=done, total=of, visible=done < of)

        yield step
