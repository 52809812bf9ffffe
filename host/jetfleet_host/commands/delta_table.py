"""What `publish` shows of the deltas that it makes: bars while it works, then a table of what was tried and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jetfleet_host.deltas.publishing import DeltaRow

_METHODS = ("tensor", "patch", "chunks")


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """One bar over all deltas, on stderr; nothing when stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    with Progress(TextColumn("deltas: {task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console,
                  disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=None)
        yield lambda what, done, of: shown.update(task, description=what, completed=done, total=of)


def delta_lines(rows: Sequence[DeltaRow]) -> list[str]:
    """The table: bytes by each method, the time of making and of applying, and what was chosen."""
    if not rows:
        return []
    sizes = " ".join(f"{heading:>12}" for heading in ("full", *_METHODS))
    lines = [f"  {'variant':<12} {'from':<28} {sizes} {'made in':>8} {'applied':>8}  chosen"]
    for row in rows:
        tried: dict[str, str] = {attempt.method: f"{attempt.size:,}" for attempt in row.made.attempts}
        seconds = sum(attempt.seconds for attempt in row.made.attempts)
        source = f"{row.base} {row.base_variant if row.base_variant != row.variant else ''}"
        chosen = f"{row.made.chosen}, {row.made.size / row.made.full:.0%}" if row.made.chosen else row.made.reason
        bytes_ = " ".join(f"{tried.get(method, '-'):>12}" for method in _METHODS)
        lines.append(f"  {row.variant:<12} {source:<28} {row.made.full:>12,} {bytes_} {seconds:>7.1f}s {row.made.apply_s:>7.1f}s  {chosen}")
    return lines
