"""Counters and latency sketches per (model, source), handed over as one telemetry window.

`seen` counts captured frames, `done` answered ones, `dropped` the rest by cause, so that ``seen = done + sum(dropped) + under
way`` holds over the pipeline's life.
"""

from __future__ import annotations

import threading
from collections import Counter

from jetfleet_contract.messages import Series
from jetfleet_contract.sketch import SketchRecorder

Key = tuple[str, str, str]


class _Cell:
    __slots__ = ("done", "dropped", "seen", "stages")

    def __init__(self) -> None:
        self.seen = 0
        self.done = 0
        self.dropped: Counter[str] = Counter()
        self.stages: dict[str, SketchRecorder] = {}

    @property
    def is_empty(self) -> bool:
        return not (self.seen or self.done or self.dropped)


class Meter:
    """All series of one app. Safe from any thread; one short lock a frame."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._cells: dict[tuple[Key, str], _Cell] = {}
        self._lock = threading.Lock()

    def seen(self, key: Key, source: str) -> None:
        with self._lock:
            self._cell(key, source).seen += 1

    def dropped(self, key: Key, source: str, cause: str, count: int = 1) -> None:
        with self._lock:
            self._cell(key, source).dropped[cause] += count

    def done(self, key: Key, source: str, stages: dict[str, float]) -> None:
        """One answered frame with its stage times in ms."""
        with self._lock:
            cell = self._cell(key, source)
            cell.done += 1
            for name, value in stages.items():
                recorder = cell.stages.get(name)
                if recorder is None:
                    recorder = cell.stages[name] = SketchRecorder()
                recorder.add(value)

    def take(self) -> tuple[Series, ...]:
        """Everything since the last call."""
        with self._lock:
            cells, self._cells = self._cells, {}
        return tuple(
            Series(self._app, bundle, version, candidate, source, cell.seen, cell.done, dict(cell.dropped),
                   {name: recorder.peek() for name, recorder in cell.stages.items()})
            for ((bundle, version, candidate), source), cell in cells.items() if not cell.is_empty)

    def _cell(self, key: Key, source: str) -> _Cell:
        cell = self._cells.get((key, source))
        if cell is None:
            cell = self._cells[key, source] = _Cell()
        return cell
