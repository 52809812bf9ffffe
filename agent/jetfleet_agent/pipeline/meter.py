"""Counters and latency sketches per (model, source), handed over as one telemetry window.

`seen` counts captured frames, `done` answered ones, `dropped` the rest by cause, so that ``seen = done + sum(dropped) + under
way`` holds over the pipeline's life.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

from jetfleet_contract.drift import REST
from jetfleet_contract.messages import Series
from jetfleet_contract.sketch import SketchRecorder

Key = tuple[str, str, str]
MAX_LABELS = 60  # a window has room for 64 pairs


class _Cell:
    __slots__ = ("done", "dropped", "labels", "seen", "stages", "values")

    def __init__(self) -> None:
        self.seen = 0
        self.done = 0
        self.dropped: Counter[str] = Counter()
        self.stages: dict[str, SketchRecorder] = {}
        self.values: dict[str, SketchRecorder] = {}
        self.labels: Counter[str] = Counter()

    @property
    def is_empty(self) -> bool:
        return not (self.seen or self.done or self.dropped or self.stages or self.values)


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
                _record(cell.stages, name, value)

    def stage(self, key: Key, source: str, name: str, ms: float) -> None:
        """The time of one more stage of a frame, which `done` does not tell."""
        with self._lock:
            _record(self._cell(key, source).stages, name, ms)

    def values(self, key: Key, source: str, values: Mapping[str, float]) -> None:
        """Numbers of one answered frame that are no time: each non-negative and finite."""
        with self._lock:
            recorders = self._cell(key, source).values
            for name, value in values.items():
                _record(recorders, name, value)

    def labels(self, key: Key, source: str, labels: Mapping[str, int]) -> None:
        """Answers of one frame, counted by label; past `MAX_LABELS` different ones, the further go under one name."""
        with self._lock:
            known = self._cell(key, source).labels
            for label, count in labels.items():
                known[label if label in known or len(known) < MAX_LABELS else REST] += count

    def take(self) -> tuple[Series, ...]:
        """Everything since the last call."""
        with self._lock:
            cells, self._cells = self._cells, {}
        return tuple(
            Series(self._app, bundle, version, candidate, source, cell.seen, cell.done, dict(cell.dropped),
                   {name: recorder.peek() for name, recorder in cell.stages.items()},
                   {name: recorder.peek() for name, recorder in cell.values.items()}, dict(cell.labels))
            for ((bundle, version, candidate), source), cell in cells.items() if not cell.is_empty)

    def _cell(self, key: Key, source: str) -> _Cell:
        cell = self._cells.get((key, source))
        if cell is None:
            cell = self._cells[key, source] = _Cell()
        return cell


def _record(recorders: dict[str, SketchRecorder], name: str, value: float) -> None:
    recorder = recorders.get(name)
    if recorder is None:
        recorder = recorders[name] = SketchRecorder()
    recorder.add(value)
