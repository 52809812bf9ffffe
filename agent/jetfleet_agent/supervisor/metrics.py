"""This board's metrics as Prometheus text (version 0.0.4): what the windows and gauges of telemetry hold, summed since the agent's start.

Histograms are made of our sketches without a loss: their bounds are edges of the sketch's own buckets, the nearest to 0.1, 0.2, 0.5,
1 ... ms up to 60 s, so each cumulative count is exact. Quantiles beside them are of the last window, within the sketch's 1 %.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

from jetfleet_agent import ipc
from jetfleet_contract.messages import Alarm, AppState, Series
from jetfleet_contract.sketch import Sketch, edge, nearest_edge

from .telemetry import merged

MAX_SERIES = 256
QUANTILES = (0.5, 0.95, 0.99)
BOUNDS = tuple(nearest_edge(scale * step) for scale in (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0) for step in (1.0, 2.0, 5.0)) + (
    nearest_edge(60000.0),)
"""Bucket numbers of a sketch of milliseconds; `edge` gives their values."""
_UNFIT = re.compile(r"[^a-zA-Z0-9_]")
_UNITS = {"s": ("seconds", 1.0), "ms": ("seconds", 1e-3), "mb": ("bytes", 1e6), "c": ("celsius", 1.0), "pct": ("ratio", 0.01),
          "w": ("watts", 1.0)}

Labels = Mapping[str, str]
Key = tuple[str, str, str, str]


class Metrics:
    """Written by the control thread, read by the server's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[Key, Series] = {}
        self._last: dict[Key, Series] = {}
        self._gauges: dict[str, float] = {}
        self._apps: tuple[AppState, ...] = ()
        self._alarms: tuple[Alarm, ...] = ()
        self._connected = False

    def add(self, app: str, window: ipc.Window) -> None:
        """A pipeline's window. Past `MAX_SERIES` the series that were silent for longest are left out."""
        with self._lock:
            for series in window.series:
                key = (series.app, series.bundle, series.candidate, series.source)
                before = self._totals.pop(key, None)
                self._totals[key] = merged(before, series) if before else series
                self._last[key] = series
            while len(self._totals) > MAX_SERIES:
                gone = next(iter(self._totals))
                del self._totals[gone]
                self._last.pop(gone, None)
            self._gauges.update({f"{app}.{name}": value for name, value in window.gauges.items()})

    def board(self, gauges: Mapping[str, float], apps: tuple[AppState, ...], alarms: tuple[Alarm, ...], *, connected: bool) -> None:
        """The board's own state now; `gauges` as telemetry names them: ``NAME`` or ``APP.NAME``."""
        with self._lock:
            names = {state.app for state in apps}
            kept = {name: value for name, value in self._gauges.items() if name.split(".")[0] in names}
            self._gauges = {**kept, **gauges}
            self._apps, self._alarms, self._connected = apps, alarms, connected

    def text(self) -> bytes:
        """The whole page."""
        with self._lock:
            lines = [*self._frames(), *self._stages(), *self._quantiles(), *self._state(), *self._board()]
        return ("\n".join(lines) + "\n").encode()

    # --- parts --------------------------------------------------------------------------------------------

    def _frames(self) -> Iterator[str]:
        totals = list(self._totals.values())
        yield from _family("jetfleet_frames_seen_total", "counter", "Frames that a source gave", ((_of(s), s.seen) for s in totals))
        yield from _family("jetfleet_frames_done_total", "counter", "Frames that were answered", ((_of(s), s.done) for s in totals))
        yield from _family("jetfleet_frames_dropped_total", "counter", "Frames that were not answered, by cause",
                           (({**_of(s), "cause": cause}, count) for s in totals for cause, count in sorted(s.dropped.items())))

    def _stages(self) -> Iterator[str]:
        name = "jetfleet_stage_seconds"
        yield from _heading(name, "histogram", "Time of a frame in a stage; age and total are end to end")
        for series in self._totals.values():
            for stage, sketch in sorted(series.stages.items()):
                labels = {**_of(series), "stage": stage}
                for bound, count in zip(BOUNDS, sketch.cumulative(BOUNDS), strict=True):
                    yield _sample(f"{name}_bucket", {**labels, "le": f"{edge(bound) / 1e3:.6g}"}, count)
                yield _sample(f"{name}_bucket", {**labels, "le": "+Inf"}, sketch.count)
                yield _sample(f"{name}_sum", labels, sketch.total / 1e3)
                yield _sample(f"{name}_count", labels, sketch.count)

    def _quantiles(self) -> Iterator[str]:
        def rows() -> Iterator[tuple[Labels, float]]:
            for series in self._last.values():
                for stage, sketch in sorted(series.stages.items()):
                    yield from _quantile_rows({**_of(series), "stage": stage}, sketch)

        yield from _family("jetfleet_stage_window_seconds", "gauge", "Quantiles of a stage's times in the last window", rows())

    def _state(self) -> Iterator[str]:
        yield from _family("jetfleet_broker_connected", "gauge", "1 while the broker is connected", [({}, float(self._connected))])
        yield from _family("jetfleet_app_info", "gauge", "What each app runs, and its update's phase",
                           (({"app": s.app, "model": s.name, "version": s.version, "candidate": s.candidate, "phase": s.phase}, 1.0)
                            for s in self._apps))
        yield from _family("jetfleet_alarm", "gauge", "1 for each alarm that stands",
                           (({"app": a.app, "source": a.source, "code": a.code}, 1.0) for a in self._alarms))

    def _board(self) -> Iterator[str]:
        """Each gauge of telemetry under its own name, in base units; what an app reports has the app as a label."""
        apps = {state.app for state in self._apps}
        found: dict[str, list[tuple[Labels, float]]] = {}
        for name, value in self._gauges.items():
            head, dot, rest = name.partition(".")
            own = bool(dot) and head in apps
            unit, factor = _UNITS.get(name.rpartition("_")[2], ("", 1.0))
            stem = (rest if own else name).rpartition("_")[0] + f"_{unit}" if unit else rest if own else name
            family = f"jetfleet_{'app' if own else 'board'}_{_UNFIT.sub('_', stem)}"
            found.setdefault(family, []).append(({"app": head} if own else {}, value * factor))
        for family, rows in sorted(found.items()):
            yield from _family(family, "gauge", "As in telemetry", rows)


def _quantile_rows(labels: Labels, sketch: Sketch) -> Iterator[tuple[Labels, float]]:
    for q in QUANTILES:
        yield {**labels, "q": str(q)}, sketch.quantile(q) / 1e3


def _of(series: Series) -> dict[str, str]:
    return {"app": series.app, "source": series.source, "version": series.version, "bundle": series.bundle[:12],
            "candidate": series.candidate}


def _family(name: str, kind: str, meaning: str, rows: Iterable[tuple[Labels, float]]) -> Iterator[str]:
    yield from _heading(name, kind, meaning)
    seen = set()
    for labels, value in rows:
        line = _sample(name, labels, value)
        key = line.rpartition(" ")[0]
        if key not in seen:  # two names may fall together once they are made fit
            seen.add(key)
            yield line


def _heading(name: str, kind: str, meaning: str) -> Sequence[str]:
    return f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"


def _sample(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{inner}}} {_number(value)}" if inner else f"{name} {_number(value)}"


def _number(value: float) -> str:
    if math.isnan(value) or math.isinf(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
