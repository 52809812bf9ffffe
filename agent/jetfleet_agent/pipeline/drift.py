"""Watches whether a camera still shows what the model was made for: a step behind decoding.

A few frames a second of each source are looked at; a window is judged by `contract.drift`, and an alarm is raised and ended by
its state machine. What was seen also goes into telemetry, so that the host can draw it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from jetfleet_agent.ipc import Raised
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.image_stats import luma_and_blur
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_contract.app_config import Drift
from jetfleet_contract.drift import DriftReference, DriftState, Seen, nearest, reference_from, step, worst
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.sketch import SketchRecorder

CODE = "drift"
NO_REFERENCE = "drift.no-reference"
LOOKS_A_SECOND = 5.0
MAX_SOURCES = 64


class Recording(Protocol):
    """Where what was seen goes: the meter."""

    def values(self, key: tuple[str, str, str], source: str, values: Mapping[str, float]) -> None: ...

    def labels(self, key: tuple[str, str, str], source: str, labels: Mapping[str, int]) -> None: ...


class _Watched:
    """One source: the window that is being filled, and how its alarm stands."""

    def __init__(self, now: float) -> None:
        self.next_look = now
        self.state = DriftState()
        self.learnt: list[Seen] = []
        self.own: DriftReference | None = None
        self.indices: dict[str, float] = {}
        self.begin(now)

    def begin(self, now: float) -> None:
        self.began = now
        self.frames = 0
        self.values: dict[str, SketchRecorder] = {}
        self.labels: Counter[str] = Counter()

    def add(self, values: Mapping[str, float], scores: list[float], labels: Counter[str]) -> None:
        self.frames += 1
        for name, value in values.items():
            self.values.setdefault(name, SketchRecorder()).add(value)
        for score in scores:
            self.values.setdefault("score", SketchRecorder()).add(score)
        self.labels.update(labels)

    def end(self, now: float) -> Seen:
        seen = Seen(self.frames, {name: recorder.peek() for name, recorder in self.values.items()}, dict(self.labels))
        self.begin(now)
        return seen


class DriftWatch:
    """See the module. A `Step` of the chain.

    Args:
        tell: hands an alarm to the supervisor; never waits.
        record: where what was seen goes as well.
    """

    def __init__(self, tell: Callable[[Raised], None], record: Recording) -> None:
        self._tell = tell
        self._record = record
        self._spec: Drift | None = None
        self._sources: dict[str, _Watched] = {}
        self._lock = threading.Lock()
        self._unjudged = ""

    def configure(self, config: AppConfig) -> None:
        """Other settings begin anew; alarms that stood end."""
        with self._lock:
            if config.drift == self._spec:
                return
            self._forget()
            self._spec = config.drift

    def take(self, frame: Frame, model: LoadedModel, now: float) -> None:
        """Look at the frame if its source's turn has come."""
        spec = self._spec
        if spec is None:
            return
        with self._lock:
            watched = self._watched(frame.source, now)
            if watched is None or now < watched.next_look:
                return
            watched.next_look = max(watched.next_look + 1.0 / LOOKS_A_SECOND, now)
            self._look(watched, frame, model)
            if now - watched.began >= spec.window_s:
                self._judge(spec, watched, frame.source, model, now)

    def gauges(self) -> dict[str, float]:
        """``drift.SOURCE``: the greatest index of the last judged window."""
        with self._lock:
            return {f"drift.{source}"[:63]: worst(watched.indices)[1] for source, watched in self._sources.items() if watched.indices}

    def close(self) -> None:
        """The alarms end with the process."""

    def _watched(self, source: str, now: float) -> _Watched | None:
        watched = self._sources.get(source)
        if watched is None and len(self._sources) < MAX_SOURCES:
            watched = self._sources[source] = _Watched(now)
        return watched

    def _look(self, watched: _Watched, frame: Frame, model: LoadedModel) -> None:
        luma, blur = luma_and_blur(frame.image)
        values = {"luma": luma, "blur": blur, "answers": float(len(frame.detections))}
        scores = [detection.score for detection in frame.detections]
        labels = Counter(detection.label[:63] for detection in frame.detections)
        watched.add(values, scores, labels)
        self._record.values(model.key, frame.source, values)
        for score in scores:
            self._record.values(model.key, frame.source, {"score": score})
        self._record.labels(model.key, frame.source, labels)

    def _judge(self, spec: Drift, watched: _Watched, source: str, model: LoadedModel, now: float) -> None:
        seen = watched.end(now)
        indices = nearest(self._references(spec, watched, model, seen), seen)
        if indices is None:
            return
        watched.indices = indices
        watched.state, change = step(watched.state, indices, spec)
        if change is None:
            return
        name, index = worst(indices)
        detail = f"{name} has moved away from the {spec.reference}'s reference: index {index:.2f}, limit {spec.threshold:.2f}"
        self._tell(Raised(source, change, CODE, detail if change else ""))

    def _references(self, spec: Drift, watched: _Watched, model: LoadedModel, seen: Seen) -> tuple[DriftReference, ...]:
        if spec.reference == "bundle":
            references: tuple[DriftReference, ...] = model.model.spec.references
            if not references and self._unjudged != model.key[0]:
                self._unjudged = model.key[0]
                self._tell(Raised("", True, NO_REFERENCE, "the bundle was built without one: build it again, or reference = camera"))
            return references
        if watched.own is None:
            watched.learnt.append(seen)
            if len(watched.learnt) >= spec.windows:
                watched.own, watched.learnt = reference_from(watched.learnt), []
            return ()
        return (watched.own,)

    def _forget(self) -> None:
        for source, watched in self._sources.items():
            if watched.state.alarmed:
                self._tell(Raised(source, False, CODE))
        if self._unjudged:
            self._tell(Raised("", False, NO_REFERENCE))
        self._sources, self._unjudged = {}, ""
