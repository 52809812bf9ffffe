"""How the demo talks while it works: bars in a terminal, plain lines for logs and machines."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Advance = Callable[[float, str], None]


class Narration(ABC):
    """One step after another; a step's share (0..1) may grow and carries a short text."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the narration began."""
        return time.monotonic() - self._began

    @contextmanager
    def step(self, title: str) -> Iterator[Advance]:
        """A step; call what it gives with (share, text). Ends well unless an error leaves it."""
        began = time.monotonic()
        self._begin(title)
        try:
            yield self._advance
        except BaseException:
            self._end(title, time.monotonic() - began, well=False)
            raise
        self._end(title, time.monotonic() - began, well=True)

    @abstractmethod
    def say(self, text: str) -> None:
        """A line that stays."""

    @abstractmethod
    def _begin(self, title: str) -> None: ...

    @abstractmethod
    def _advance(self, share: float, text: str) -> None: ...

    @abstractmethod
    def _end(self, title: str, seconds: float, *, well: bool) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Give the terminal back."""


class PlainNarration(Narration):
    """A line a step, with the seconds since the start; what a step says on its way is printed when it changes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stdout
        self._said = ""

    def say(self, text: str) -> None:
        for line in text.splitlines() or [""]:
            print(f"[{self.elapsed_s:6.1f}] {line}", file=self._stream, flush=True)

    def _begin(self, title: str) -> None:
        self._said = ""
        self.say(f"{title} ...")

    def _advance(self, share: float, text: str) -> None:  # noqa: ARG002  a log needs no percentages
        if text and text != self._said:
            self._said = text
            self.say(f"    {text}")

    def _end(self, title: str, seconds: float, *, well: bool) -> None:
        self.say(f"{title}: {'done' if well else 'stopped'} ({seconds:.1f} s)")

    def close(self) -> None:
        self._stream.flush()


class LiveNarration(Narration):
    """A bar for the step under way, ticks for those behind."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(highlight=False)
        self._progress: Progress = Progress(
            SpinnerColumn(finished_text=" "), TextColumn("{task.description}"), BarColumn(bar_width=28), TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[text]}"), console=self._console, transient=True)
        self._task: TaskID | None = None
        self._progress.start()

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def _begin(self, title: str) -> None:
        self._task = self._progress.add_task(title, total=None, text="")

    def _advance(self, share: float, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, total=1.0, completed=min(max(share, 0.0), 1.0), text=text)

    def _end(self, title: str, seconds: float, *, well: bool) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        mark = "[green]\u2714[/]" if well else "[red]\u2718[/]"
        self._progress.console.print(f"{mark} {title} [dim]({seconds:.1f} s)[/]")

    def close(self) -> None:
        self._progress.stop()
