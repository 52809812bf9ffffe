"""The bar of a run, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import TaskID


class Bar:
    """One line: what is done now, how many devices are through, and what has happened so far."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task: TaskID | None = None

    def step(self, what: str, total: int) -> None:
        if self._task is not None:
            self._bar.stop_task(self._task)
        self._task = self._bar.add_task(what, total=total, note="")

    def at(self, done: int, note: str) -> None:
        if self._task is not None:
            self._bar.update(self._task, completed=done, note=note)


@contextmanager
def bar(*, visible: bool) -> Iterator[Bar]:
    """A bar on stderr while the context lasts; an invisible one costs nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("devices"), TimeElapsedColumn(),
               TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not visible) as shown:
        yield Bar(shown)
