"""Telemetry windows: what the pipelines counted and timed, with the board's gauges, numbered so that gaps show.

Series of the same (app, bundle, candidate, source) within a window are merged, which is exact for counters and sketches. A
window that would be too large for a broker is sent as several, each with its own number.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jetfleet_agent import ipc
from jetfleet_agent.power import read_power
from jetfleet_agent.thermal import Thermal, read_thermal
from jetfleet_contract.messages import MAX_GAUGES, MAX_MESSAGE_BYTES, Alarm, Series, Telemetry, encode
from jetfleet_contract.sketch import Sketch

from .heat import Heat

if TYPE_CHECKING:
    import psutil

log = logging.getLogger(__name__)

MAX_SERIES = 256
MAX_GAUGE_NAME = 63
AMBIENT_C = 25.0
"""Where all of a board's headroom is left: no board cools below its room."""


class TelemetryWindows:
    """Collects one window. Used by the control thread only.

    Args:
        period_s: how long a window is.
        started: wall-clock seconds since 1970 of the first window's start; `mono` is the same moment on the other clock.
    """

    def __init__(self, device: str, session: int, period_s: float, mono: float, started: float) -> None:
        self._device = device
        self._session = session
        self._period_s = period_s
        self._window = 0
        self._begin(mono, started)

    def _begin(self, mono: float, started: float) -> None:
        self._mono = mono
        self._started = started
        self._series: dict[tuple[str, str, str, str], Series] = {}
        self._gauges: dict[str, float] = {}

    def add(self, app: str, window: ipc.Window) -> None:
        """Merge one pipeline's window; its gauges are kept by app."""
        for series in window.series:
            key = (series.app, series.bundle, series.candidate, series.source)
            if key not in self._series and len(self._series) >= MAX_SERIES:
                self._gauges["series_left_out"] = self._gauges.get("series_left_out", 0.0) + 1
                continue
            self._series[key] = merged(self._series[key], series) if key in self._series else series
        for name, value in window.gauges.items():
            self._gauges[f"{app}.{name}"] = value

    def due_s(self, mono: float) -> float:
        """Seconds until the window ends."""
        return max(self._mono + self._period_s - mono, 0.0)

    def take(self, mono: float, wall: float, gauges: dict[str, float], room: int = MAX_MESSAGE_BYTES,
             alarms: tuple[Alarm, ...] = ()) -> tuple[Telemetry, ...]:
        """End the window and begin the next.

        Args:
            gauges: the board's own, at this moment.
            alarms: what stands.
            room: bytes that a message may have.
        """
        duration = mono - self._mono
        parts = list(_parts(list(self._series.values()), room * 3 // 4))
        windows = []
        for index, part in enumerate(parts or [()]):
            self._window += 1
            told, standing = (_bounded({**gauges, **self._gauges}), alarms) if index == 0 else ({}, ())
            windows.append(Telemetry(self._device, self._session, self._window, self._started, duration, part, told, standing))
        self._begin(mono, wall)
        return tuple(windows)


def merged(a: Series, b: Series) -> Series:
    """Two series of the same key as one: counts add, sketches merge."""
    dropped = dict(a.dropped)
    for cause, count in b.dropped.items():
        dropped[cause] = dropped.get(cause, 0) + count
    labels = dict(a.labels)
    for label, count in b.labels.items():
        labels[label] = labels.get(label, 0) + count
    return msgspec.structs.replace(b, seen=a.seen + b.seen, done=a.done + b.done, dropped=dropped, labels=labels,
                                   stages=_merged_sketches(a.stages, b.stages), values=_merged_sketches(a.values, b.values))


def _merged_sketches(a: dict[str, Sketch], b: dict[str, Sketch]) -> dict[str, Sketch]:
    return {name: a.get(name, Sketch()).merged(b.get(name, Sketch())) for name in {**a, **b}}


def _parts(series: list[Series], most: int) -> Iterator[tuple[Series, ...]]:
    part: list[Series] = []
    size = 0
    for one in series:
        length = len(encode(one))
        if part and size + length > most:
            yield tuple(part)
            part, size = [], 0
        part.append(one)
        size += length
    if part:
        yield tuple(part)


def _bounded(gauges: dict[str, float]) -> dict[str, float]:
    """What a collector takes: the first of the board's own, then the pipelines'; no over-long names."""
    fitting = [(name, value) for name, value in gauges.items() if len(name) <= MAX_GAUGE_NAME]
    return dict(fitting[:MAX_GAUGES])


class BoardGauges:
    """Memory, processor time and temperature of the board, the supervisor and each pipeline.

    Args:
        sysfs: the root of the kernel's ``/sys``.
        pids: pipeline process ids by app.
    """

    def __init__(self, pids: Callable[[], dict[str, int]], sysfs: Path = Path("/sys")) -> None:
        self._pids = pids
        self._sysfs = sysfs
        self._root = sysfs.parent
        self._processes: dict[int, psutil.Process] = {}

    def read(self) -> dict[str, float]:
        """`rss_mb`, `cpu_pct` (of one core, since the last reading), `memory_free_mb`, `temperature_c`, `headroom_c` (to the lowest
        throttling point) and `headroom_pct` (of what lies between that and a room's `AMBIENT_C`), `throttled` (0 or 1), `power_w` (of the
        whole module), and the like by app."""
        import psutil

        gauges = {"memory_free_mb": psutil.virtual_memory().available / 1e6, "board_cpu_pct": psutil.cpu_percent()}
        pids = {"": psutil.Process().pid, **self._pids()}
        self._processes = {pid: process for pid, process in self._processes.items() if pid in pids.values()}
        for app, pid in pids.items():
            with contextlib.suppress(psutil.Error):
                process = self._processes.setdefault(pid, psutil.Process(pid))
                prefix = f"{app}." if app else ""
                gauges[f"{prefix}rss_mb"] = process.memory_info().rss / 1e6
                gauges[f"{prefix}cpu_pct"] = process.cpu_percent()
        watts = read_power(self._root).total_w
        return {**gauges, **_heat(read_thermal(self._sysfs)), **({} if watts is None else {"power_w": watts})}

    def heat(self) -> Heat:
        """The hottest sensor, and whether the board is slowed down: a few small files, cheap enough for once a second."""
        thermal = read_thermal(self._sysfs)
        return Heat(thermal.hottest_c, bool(thermal.throttling) if thermal.slowing else None)


def _heat(thermal: Thermal) -> dict[str, float]:
    gauges = {}
    if thermal.hottest_c is not None:
        gauges["temperature_c"] = thermal.hottest_c
    if thermal.slowing:
        gauges["throttled"] = float(bool(thermal.throttling))
    if thermal.tightest is not None and thermal.tightest.headroom_c is not None:
        zone = thermal.tightest
        headroom_c = gauges["headroom_c"] = thermal.tightest.headroom_c
        if zone.limit_c is not None and zone.limit_c > AMBIENT_C:
            gauges["headroom_pct"] = 100.0 * min(max(headroom_c / (zone.limit_c - AMBIENT_C), 0.0), 1.0)
    return gauges
