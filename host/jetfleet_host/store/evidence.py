"""What boards have shown under the old and the new bundle of a rollout, read from telemetry and reports. Inside a transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from jetfleet_contract.gates import BoardEvidence
from jetfleet_contract.kpis import Figure, Tally, tally
from jetfleet_contract.messages import AppSpec
from jetfleet_contract.significance import dispersion
from jetfleet_contract.sketch import Sketch

from .fleet import unpack_figure, unpack_stage
from .journal import before_of
from .models import Device, Issued, ReportRow, SeriesRow, WindowRow

OLD_SPAN_S = 3600.0
BUSY_PCT = 50.0
QUANTILE = 0.95

_GAUGES = msgspec.json.Decoder(dict[str, float])
Gauges = dict[str, float]
_Figures = list[tuple[int, Figure]]


def of_boards(session: Session, rollout: str, app: str, devices: Sequence[str], *, sketches: bool,
              kpis: Sequence[str] = ()) -> tuple[BoardEvidence, ...]:
    """The evidence of these boards; `sketches` reads their latencies and the business figures of these names too, which is much more.

    Latency is the stage `total`: under the new bundle since it was issued, under the old one up to an hour before. Windows in which the
    board was throttled, or over half of its processor was taken by others, are counted and left out; figures take them all.
    """
    issued = {row.device: row for row in session.scalars(select(Issued).where(Issued.rollout == rollout, Issued.kind == "forward"))}
    found = []
    for start in range(0, len(devices), 200):  # SQLite bounds the number of parameters
        rows = [issued[device] for device in devices[start : start + 200] if device in issued]
        if rows:
            found += _some(session, app, rows, sketches, kpis)
    return tuple(found)


def _some(session: Session, app: str, rows: Sequence[Issued], sketches: bool, kpis: Sequence[str]) -> list[BoardEvidence]:
    names = [row.device for row in rows]
    since = min(row.at for row in rows) - OLD_SPAN_S
    gauges = _gauges(session, names, since)
    told = _told(session, app, rows)
    series = _series(session, app, rows, since) if sketches else {}
    cores = _cores(session, names) if sketches else {}
    return [_board(app, row, gauges.get(row.device, []), told.get(row.device, {}), series.get(row.device, []), cores.get(row.device, 1),
                   kpis) for row in rows]


class _Window(msgspec.Struct, frozen=True):
    """One telemetry window's gauges."""

    number: int
    session: int
    received: float
    gauges: Gauges


def _gauges(session: Session, names: Iterable[str], since: float) -> dict[str, list[_Window]]:
    query = select(WindowRow.device, WindowRow.id, WindowRow.session, WindowRow.received, WindowRow.gauges).where(
        WindowRow.device.in_(list(names)), WindowRow.received >= since).order_by(WindowRow.session, WindowRow.number)
    windows: dict[str, list[_Window]] = defaultdict(list)
    for device, number, life, received, text in session.execute(query):
        windows[device].append(_Window(number, life, received, _GAUGES.decode(text)))
    return windows


class _Part(msgspec.Struct, frozen=True):
    """One source's frames in one window."""

    window: int
    bundle: str
    received: float
    stages: bytes


def _series(session: Session, app: str, rows: Sequence[Issued], since: float) -> dict[str, list[_Part]]:
    bundles = {row.bundle for row in rows} | {before.bundle for row in rows if (before := before_of(row))}
    query = select(SeriesRow.device, SeriesRow.window_id, SeriesRow.bundle, SeriesRow.received, SeriesRow.stages).where(
        SeriesRow.app == app, SeriesRow.bundle.in_(bundles), SeriesRow.received >= since, SeriesRow.device.in_([r.device for r in rows]))
    found: dict[str, list[_Part]] = defaultdict(list)
    for device, window, bundle, received, stages in session.execute(query):
        found[device].append(_Part(window, bundle, received, stages))
    return found


def _told(session: Session, app: str, rows: Sequence[Issued]) -> dict[str, dict[str, float]]:
    """The figures that came with each board's commit."""
    by_device = {row.device: row for row in rows}
    reports = session.execute(select(ReportRow.device, ReportRow.seq, ReportRow.bundle, ReportRow.metrics).where(
        ReportRow.device.in_(list(by_device)), ReportRow.app == app, ReportRow.outcome == "committed").order_by(ReportRow.id))
    return {device: _GAUGES.decode(metrics) for device, seq, bundle, metrics in reports
            if seq >= by_device[device].seq and bundle == by_device[device].bundle}


def _cores(session: Session, names: Iterable[str]) -> dict[str, int]:
    births = session.execute(select(Device.device, Device.birth).where(Device.device.in_(list(names))))
    return {device: _cores_of(birth) for device, birth in births}


def _cores_of(birth: str) -> int:
    try:
        return max(1, int(msgspec.json.decode(birth)["signed"]["capability"].get("cores", 1)))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, ValueError):
        return 1


def _board(app: str, issue: Issued, windows: Sequence[_Window], told: dict[str, float], series: Sequence[_Part],
           cores: int, kpis: Sequence[str]) -> BoardEvidence:
    before = before_of(issue)
    noisy = {window.number for window in windows if is_noisy(window.gauges, cores)}
    old: dict[int, Sketch] = defaultdict(Sketch)
    new: dict[int, Sketch] = defaultdict(Sketch)
    left_out = set()
    figures: dict[str, tuple[_Figures, _Figures]] = {name: ([], []) for name in kpis}
    for part in series:
        at = _side(part, issue, before)
        if at is None:
            continue
        side = (old, new)[at]
        for name in kpis:
            figures[name][at].append((part.window, unpack_figure(part.stages, name)))
        if part.window in noisy:
            left_out.add(part.window)
            continue
        side[part.window] = side[part.window].merged(unpack_stage(part.stages, "total"))
    after = [window for window in windows if window.received >= issue.at]
    return BoardEvidence(
        issue.device, _merged(old.values()), _merged(new.values()), dispersion(list(old.values()), QUANTILE),
        dispersion(list(new.values()), QUANTILE), len(left_out), _crashes(windows, issue.at, f"{app}.crashes"),
        max((window.gauges["temperature_c"] for window in after if "temperature_c" in window.gauges), default=None),
        _share([window.gauges["throttled"] > 0 for window in after if "throttled" in window.gauges]),
        told.get("agreement"), told.get("probe_agreement"), first=before is None,
        kpis={name: (_tally(sides[0]), _tally(sides[1])) for name, sides in figures.items()})


def _side(part: _Part, issue: Issued, before: AppSpec | None) -> int | None:
    """0: frames under the old bundle, 1: under the new one since it was issued; None: under another."""
    if part.bundle == issue.bundle and part.received >= issue.at:
        return 1
    return None if before is None or part.bundle != before.bundle or before.bundle == issue.bundle else 0


def _tally(parts: _Figures) -> Tally:
    """The sources of one window are one observation: they see the same hour."""
    windows: dict[int, tuple[int, float]] = {}
    for window, figure in parts:
        count, total = windows.get(window, (0, 0.0))
        windows[window] = count + figure.count, total + figure.total
    return tally(windows.values())


def is_noisy(gauges: Gauges, cores: int) -> bool:
    """Whether a window says more about the board's other work or heat than about the model."""
    if gauges.get("throttled", 0.0) > 0.0:
        return True
    own = sum(value for name, value in gauges.items() if name == "cpu_pct" or name.endswith(".cpu_pct"))
    return gauges.get("board_cpu_pct", 0.0) - own / cores > BUSY_PCT


def _merged(windows: Iterable[Sketch]) -> Sketch:
    whole = Sketch()
    for window in windows:
        whole = whole.merged(window)
    return whole


def _crashes(windows: Sequence[_Window], since: float, gauge: str) -> float | None:
    """Crashes after `since`: the counter's rises within each life of the agent. None when no window told."""
    before: dict[int, float] = {}
    crashes, told = 0.0, False
    for window in windows:
        if gauge not in window.gauges:
            continue
        count = window.gauges[gauge]
        if window.received >= since:
            crashes += max(0.0, count - before.get(window.session, count if not before else 0.0))
            told = True
        before[window.session] = count
    return crashes if told else None


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
