"""What people and scripts ask about a fleet, read from the database. Latencies are in ms and come from exactly merged sketches.

Rows are structs; `msgspec.to_builtins` of them is what `--json` prints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from jetfleet_contract.engine_work import Work
from jetfleet_contract.errors import InputError
from jetfleet_contract.kpis import Figure, names_in
from jetfleet_contract.rollout_records import Rollout, Verdict
from jetfleet_contract.sketch import Sketch

from .store import accounting, engines, journal, tags
from .store.accounting import BoardBytes
from .store.fleet import names_of, unpack_figure, unpack_stage
from .store.models import Alarm, AppRow, Counter, Desired, Device, Rejected, ReportRow, RolloutRow, SeriesRow, WindowRow

By = Literal["device", "class", "version"]


class AppView(msgspec.Struct, frozen=True):
    app: str
    version: str
    candidate: str
    phase: str
    reason: str
    bundle: str


class DeviceView(msgspec.Struct, frozen=True):
    """A board. `gaps`: windows that never came; `wanted` is the number of its newest deployment, `seq` the one it had at birth."""

    device: str
    device_class: str
    board: str
    online: bool
    last_seen: float
    first_seen: float
    session: int
    seq: int
    wanted: int
    agent_version: str
    key: str
    windows: int
    gaps: int
    duplicates: int
    late: int
    apps: tuple[AppView, ...]
    tags: dict[str, str]


class TopRow(msgspec.Struct, frozen=True):
    """One app of one board over the last seconds. `drops` counts frames by cause; `age_p95_ms` is camera to result."""

    device: str
    device_class: str
    online: bool
    app: str
    version: str
    candidate: str
    phase: str
    fps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    age_p95_ms: float
    seen: int
    done: int
    drops: dict[str, int]
    cpu_pct: float | None
    rss_mb: float | None
    temperature_c: float | None
    last_seen: float


class LatencyRow(msgspec.Struct, frozen=True):
    """The distribution of one stage for one group and app. `relative_error` is the sketch's bound for the quantiles."""

    group: str
    app: str
    frames: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    max_ms: float
    devices: int


class FigureRow(msgspec.Struct, frozen=True):
    """The distribution of one business figure over the frames of one group and app. Mean, sum, least and most are exact."""

    group: str
    app: str
    kpi: str
    frames: int
    mean: float
    least: float
    p50: float
    p95: float
    most: float
    total: float
    devices: int


class EventRow(msgspec.Struct, frozen=True):
    """Something that happened, newest last."""

    at: float
    kind: Literal["report", "alarm", "rollout", "engine", "rejected"]
    device: str
    what: str
    code: str


def devices(session: Session) -> list[DeviceView]:
    """All boards, by name."""
    apps: dict[str, list[AppView]] = defaultdict(list)
    for row in session.scalars(select(AppRow).order_by(AppRow.app)):
        apps[row.device].append(AppView(row.app, row.version, row.candidate, row.phase, row.reason, row.bundle))
    wanted: dict[str, int] = {name: seq for name, seq in session.execute(select(Desired.device, Desired.seq))}  # noqa: C416
    words = tags.every(session)
    return [_device_view(row, wanted.get(row.device, 0), tuple(apps[row.device]), words.get(row.device, {}))
            for row in session.scalars(select(Device).order_by(Device.device))]


def _device_view(row: Device, wanted: int, apps: tuple[AppView, ...], words: dict[str, str]) -> DeviceView:
    return DeviceView(row.device, row.device_class, row.board, row.online, row.last_seen, row.first_seen, row.session, row.seq, wanted,
                      row.agent_version, row.key, row.windows, row.gaps, row.duplicates, row.late, apps, words)


def device_detail(session: Session, name: str) -> dict[str, Any]:
    """All that is known of one board: inventory, what it should run, its last reports and alarms.

    Raises:
        InputError: `device.unknown`.
    """
    view = next((d for d in devices(session) if d.device == name), None)
    row = session.get(Device, name)
    if view is None or row is None:
        raise InputError("device.unknown", f"no board {name[:80]!r} has introduced itself", remedy="jetfleet devices lists them")
    deployment = journal.deployment_of(session, name)
    birth = msgspec.json.decode(row.birth) if row.birth else {}
    return {
        **msgspec.to_builtins(view),
        "capability": birth.get("signed", {}).get("capability", {}),
        "gauges": msgspec.json.decode(row.gauges),
        "desired": msgspec.to_builtins(deployment) if deployment else None,
        "reports": [_report(r) for r in session.scalars(
            select(ReportRow).where(ReportRow.device == name).order_by(ReportRow.id.desc()).limit(20))],
        "alarms": [{"code": a.code, "what": a.what, "count": a.count, "first": a.first, "last": a.last} for a in session.scalars(
            select(Alarm).where(Alarm.device == name).order_by(Alarm.id.desc()).limit(20))],
    }


def _report(row: ReportRow) -> dict[str, Any]:
    return {"id": row.report, "at": row.at, "received": row.received, "seq": row.seq, "app": row.app, "phase": row.phase,
            "outcome": row.outcome, "code": row.code, "detail": row.detail, "version": row.version, "from_version": row.from_version,
            "candidate": row.candidate, "metrics": msgspec.json.decode(row.metrics), "rollout": row.rollout}


class _Sum:
    """Counters and sketches of one group, growing."""

    def __init__(self) -> None:
        self.seen = self.done = 0
        self.drops: dict[str, int] = defaultdict(int)
        self.stages: dict[str, Sketch] = defaultdict(Sketch)
        self.devices: set[str] = set()

    def add(self, row: SeriesRow, stages: Iterable[str]) -> None:
        self.seen += row.seen
        self.done += row.done
        self.devices.add(row.device)
        for cause, count in msgspec.json.decode(row.dropped, type=dict[str, int]).items():
            self.drops[cause] += count
        for stage in stages:
            self.stages[stage] = self.stages[stage].merged(unpack_stage(row.stages, stage))


def top(session: Session, now: float, span_s: float = 30.0) -> list[TopRow]:
    """Every app of every board over the windows of the last `span_s` seconds; boards without any keep their row."""
    sums: dict[tuple[str, str], _Sum] = defaultdict(_Sum)
    for series in session.scalars(select(SeriesRow).where(SeriesRow.received >= now - span_s)):
        sums[series.device, series.app].add(series, ("total", "age"))
    spans = _measured_s(session, now - span_s)
    boards = {row.device: row for row in session.scalars(select(Device))}
    states = {(row.device, row.app): row for row in session.scalars(select(AppRow))}
    keys = sorted({*sums, *states, *((name, "") for name in boards if not any(d == name for d, _ in states))})
    return [_top_row(boards[d], app, states.get((d, app)), sums[d, app], spans.get(d, 0.0)) for d, app in keys if d in boards]


def _measured_s(session: Session, since: float) -> dict[str, float]:
    """Seconds of telemetry a board; the parts of one window count once."""
    rows = session.execute(select(WindowRow.device, WindowRow.started, WindowRow.duration_s).where(WindowRow.received >= since).distinct())
    spans: dict[str, float] = defaultdict(float)
    for device, _started, duration in rows:
        spans[device] += duration
    return spans


def _top_row(board: Device, app: str, state: AppRow | None, total: _Sum, span_s: float) -> TopRow:
    gauges = msgspec.json.decode(board.gauges, type=dict[str, float])
    sketch, age = total.stages["total"], total.stages["age"]
    return TopRow(
        board.device, board.device_class, board.online, app, state.version if state else "", state.candidate if state else "",
        state.phase if state else "", total.done / span_s if span_s else 0.0, sketch.quantile(0.5), sketch.quantile(0.95),
        sketch.quantile(0.99), age.quantile(0.95), total.seen, total.done, dict(total.drops),
        gauges.get(f"{app}.cpu_pct", gauges.get("cpu_pct")), gauges.get(f"{app}.rss_mb", gauges.get("rss_mb")),
        gauges.get("temperature_c"), board.last_seen)


def latency(session: Session, *, by: By, stage: str, since: float, app: str = "") -> list[LatencyRow]:
    """The merged distribution of a stage by board, class or version, apart for each app: a detector is no classifier."""
    classes: dict[str, str] = {name: kind for name, kind in session.execute(select(Device.device, Device.device_class))}  # noqa: C416
    query = select(SeriesRow).where(SeriesRow.received >= since)
    sums: dict[tuple[str, str], _Sum] = defaultdict(_Sum)
    for row in session.scalars(query.where(SeriesRow.app == app) if app else query):
        group = {"device": row.device, "class": classes.get(row.device, ""), "version": row.version}[by]
        sums[group, row.app].add(row, (stage,))
    return [LatencyRow(group, name, s.count, s.quantile(0.5), s.quantile(0.95), s.quantile(0.99), s.mean, s.most, len(total.devices))
            for (group, name), total in sorted(sums.items()) if (s := total.stages[stage]).count]


def figures(session: Session, *, by: By, since: float, app: str = "", kpi: str = "") -> list[FigureRow]:
    """Business figures by board, class or version, apart for each app; all of them, or one."""
    classes: dict[str, str] = {name: kind for name, kind in session.execute(select(Device.device, Device.device_class))}  # noqa: C416
    query = select(SeriesRow).where(SeriesRow.received >= since)
    found: dict[tuple[str, str, str], Figure] = defaultdict(Figure)
    boards: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for row in session.scalars(query.where(SeriesRow.app == app) if app else query):
        group = {"device": row.device, "class": classes.get(row.device, ""), "version": row.version}[by]
        for name in names_in(names_of(row.stages)[1]):
            if kpi in ("", name):
                key = group, row.app, name
                found[key] = found[key].merged(unpack_figure(row.stages, name))
                boards[key].add(row.device)
    return [FigureRow(*key, f.count, f.mean, f.least, f.quantile(0.5), f.quantile(0.95), f.most, f.total, len(boards[key]))
            for key, f in sorted(found.items()) if f.count]


def stages(session: Session, since: float) -> list[str]:
    """Names of the stages that boards have sent since."""
    names: set[str] = set()
    for packed in session.scalars(select(SeriesRow.stages).where(SeriesRow.received >= since).order_by(SeriesRow.id.desc()).limit(200)):
        names |= names_of(packed)[0]
    return sorted(names)


def events(session: Session, since: float, limit: int = 200, device: str = "") -> list[EventRow]:
    """Reports, alarms, rollouts, engines and refused messages since then, oldest first, at most the newest `limit`."""
    reports = select(ReportRow).where(ReportRow.received > since).order_by(ReportRow.id.desc()).limit(limit)
    alarms = select(Alarm).where(Alarm.last > since).order_by(Alarm.id.desc()).limit(limit)
    if device:
        reports, alarms = reports.where(ReportRow.device == device), alarms.where(Alarm.device == device)
    found = [_report_event(row) for row in session.scalars(reports)]
    found += [EventRow(row.last, "alarm", row.device, row.what, row.code) for row in session.scalars(alarms)]
    if not device:
        refused = select(Rejected).where(Rejected.at > since).order_by(Rejected.id.desc()).limit(limit)
        changed = select(RolloutRow).where(RolloutRow.changed > since).order_by(RolloutRow.changed.desc()).limit(limit)
        found += [EventRow(row.at, "rejected", "", f"{row.topic}: {row.reason}", row.code) for row in session.scalars(refused)]
        found += [_rollout_event(row) for row in session.scalars(changed)]
        found += [_engine_event(at, work) for at, work in engines.changed(session, since, limit)]
    return sorted(found, key=lambda event: event.at)[-limit:]


def _report_event(row: ReportRow) -> EventRow:
    what = f"{row.app} {row.from_version or '-'} -> {row.version}: {row.outcome or row.phase} {row.detail}".rstrip()
    return EventRow(row.received, "report", row.device, what, row.code)


def _rollout_event(row: RolloutRow) -> EventRow:
    state = msgspec.json.decode(row.head, type=Rollout)
    return EventRow(row.changed, "rollout", "", f"{row.id} {row.phase} {state.reason}".rstrip(), state.code)


def _engine_event(at: float, work: Work) -> EventRow:
    """The board is the one that works on it, or did last."""
    footing = work.passport.footing
    what = f"engine {work.key[:12]} of {work.device_class}, {work.passport.variant} for {footing.backend} {footing.version[:40]}"
    return EventRow(at, "engine", work.second or work.by, f"{what}: {work.state} {work.detail}".rstrip(), work.code)


def counters(session: Session) -> dict[str, int]:
    """Totals: refused messages and why."""
    return {row.name: row.value for row in session.scalars(select(Counter).order_by(Counter.name))}


def rollouts(session: Session, limit: int = 20) -> list[Rollout]:
    """The newest rollouts, newest first."""
    rows = session.scalars(select(RolloutRow).order_by(RolloutRow.created.desc()).limit(limit))
    return [journal.load_state(session, row) for row in rows]


def rollout(session: Session, name: str) -> Rollout:
    """One rollout. InputError `rollout.unknown`."""
    row = session.get(RolloutRow, name)
    if row is None:
        raise InputError("rollout.unknown", f"there is no rollout {name[:80]!r}", remedy="jetfleet rollout status lists them")
    return journal.load_state(session, row)


class RolloutBytes(msgspec.Struct, frozen=True):
    """Every byte of a rollout. `planned` for all its boards; `published` is what the host has published of the bundle's blobs, ever."""

    devices: dict[str, BoardBytes]
    total: BoardBytes
    planned: int
    published: int


def rollout_bytes(session: Session, state: Rollout, blobs: Iterable[str]) -> RolloutBytes:
    """What each board reported to have received; `blobs` are those of the rollout's bundle."""
    devices = accounting.of_boards(session, state.plan.id, state.plan.app)
    sums = {name: sum(getattr(row, name) for row in devices.values()) for name in BoardBytes.__struct_fields__}
    return RolloutBytes(devices, BoardBytes(**sums), state.plan.board_bytes * len(state.devices), accounting.published(session, blobs))


def rollout_view(state: Rollout) -> dict[str, Any]:
    """A rollout as `--json` prints it."""
    plan = state.plan
    return {
        "rollout": plan.id, "app": plan.app, "model": f"{plan.name}:{plan.version}", "bundle": plan.bundle, "phase": state.phase,
        "final": state.final, "wave": state.wave + 1, "waves": [list(w) for w in plan.waves], "code": state.code, "reason": state.reason,
        "verdicts": [_verdict(v) for v in state.verdicts], "standing": [_verdict(v) for v in state.standing], "on_breach": plan.on_breach,
        "accepted": state.accepted + 1, "approved_by": plan.approved_by, "spent_bytes": state.spent.total, "board_bytes": plan.board_bytes,
        "devices": {d: {"wave": p.wave + 1, "status": p.status, "code": p.code, "detail": p.detail, "before": plan.before.get(d, "")}
                    for d, p in sorted(state.devices.items())},
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {name: getattr(verdict, name) for name in verdict.__struct_fields__}
