"""What the collector writes: boards, reports, windows, alarms, refused messages. Each function works inside one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session

from jetfleet_contract import kpis
from jetfleet_contract.kpis import Figure
from jetfleet_contract.messages import AppState, Birth, Report, Series, Telemetry
from jetfleet_contract.sketch import Sketch

from .models import Alarm, AppRow, Counter, Device, Rejected, ReportRow, ResultRow, SeriesRow, WindowRow

KEEP_REJECTED = 500
KEEP_RESULTS = 20_000
KEEP_ALARMS = 5_000
KEEP_TELEMETRY_S = 7 * 86400.0
REJECTED_HEAD = 2048
SAME_ALARM_S = 3600.0

_PACK = msgspec.msgpack.Encoder()
_STAGES = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_VALUE = "value:"
_SKETCH = msgspec.msgpack.Decoder(Sketch)


def pack_stages(stages: dict[str, Sketch]) -> bytes:
    """All sketches of a series as msgpack: counts and totals stay exactly what the board measured."""
    return _PACK.encode(stages)


def pack_series(series: Series) -> bytes:
    """A series' sketches of times and of other values in one map; the names of values are marked."""
    return pack_stages({**series.stages, **{f"{_VALUE}{name}": sketch for name, sketch in series.values.items()}})


def unpack_value(stages: bytes, name: str) -> Sketch:
    """The sketch of a value that is no time; empty when the series has none."""
    return unpack_stage(stages, f"{_VALUE}{name}")


def unpack_figure(stages: bytes, kpi: str) -> Figure:
    """A business figure, of whatever sign."""
    return Figure(unpack_value(stages, f"{kpis.PREFIX}{kpi}"), unpack_value(stages, f"{kpis.PREFIX}{kpi}{kpis.NEGATIVE}"))


def names_of(stages: bytes) -> tuple[set[str], set[str]]:
    """Names of the times, and of the other values, that a series has."""
    found = set(_STAGES.decode(stages))
    values = {name for name in found if name.startswith(_VALUE)}
    return found - values, {name.removeprefix(_VALUE) for name in values}


def unpack_stage(stages: bytes, stage: str) -> Sketch:
    """One stage's sketch; empty when the series has none. The other stages are not decoded."""
    raw = _STAGES.decode(stages).get(stage)
    return _SKETCH.decode(raw) if raw is not None else Sketch()


def insert_once(session: Session, table: type[DeclarativeBase], values: dict[str, Any]) -> int | None:
    """Insert a row unless one with its unique key is there. The new row's id, or None.

    Asks for the id back instead of the number of rows: not every driver tells that.
    """
    once = _insert_once(session.get_bind().dialect.name, table, tuple(values))
    row_id: int | None = session.connection().scalar(once, values)  # not through the ORM, which would flush what waits before each
    return row_id


@cache
def _insert_once(dialect: str, table: type[DeclarativeBase], columns: tuple[str, ...]) -> Any:
    """The statement, built once: building it took longer than running it."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    named: dict[str, Any] = {column: bindparam(column) for column in columns}
    return insert(table).values(named).on_conflict_do_nothing().returning(table.__table__.c.id)


def hold_devices(session: Session, names: Iterable[str], *, with_apps: Iterable[str] = ()) -> None:
    """Load the rows of these boards at once, and keep them for the transaction: the ORM forgets rows that nobody holds.

    `with_apps`: those of them whose apps are held too.
    """
    held: dict[str, Device] = session.info.setdefault("devices", {})
    for part in _parts(names):
        held |= {row.device: row for row in session.scalars(select(Device).where(Device.device.in_(part)))}
    apps: dict[tuple[str, str], AppRow] = session.info.setdefault("apps", {})
    for part in _parts(with_apps):
        apps |= {(row.device, row.app): row for row in session.scalars(select(AppRow).where(AppRow.device.in_(part)))}
    session.info.setdefault("apps_of", set()).update(with_apps)


def _parts(names: Iterable[str]) -> Iterable[list[str]]:
    """SQLite bounds the number of parameters."""
    wanted = list(names)
    return (wanted[start : start + 500] for start in range(0, len(wanted), 500))


def _app_row(session: Session, device: str, app: str) -> AppRow | None:
    """From what `hold_devices` found, or from the database."""
    if device in session.info.get("apps_of", ()):
        held: dict[tuple[str, str], AppRow] = session.info["apps"]
        return held.get((device, app))
    return session.get(AppRow, (device, app))


def _drop_other_apps(session: Session, device: str, names: list[str]) -> None:
    held: dict[tuple[str, str], AppRow] = session.info.get("apps", {})
    gone = [key for key in held if key[0] == device and key[1] not in names]
    if gone or device not in session.info.get("apps_of", ()):
        session.execute(delete(AppRow).where(AppRow.device == device, AppRow.app.not_in(names)))
    for key in gone:
        del held[key]


def _new_app(session: Session, row: AppRow) -> AppRow:
    session.add(row)
    session.info.setdefault("apps", {})[row.device, row.app] = row
    return row


def known_device(session: Session, name: str) -> Device | None:
    """A board that `hold_devices` found, or that was born since."""
    held: dict[str, Device] = session.info["devices"]
    return held.get(name)


def save_birth(session: Session, known: Device | None, birth: Birth, body: bytes, now: float) -> Device:
    """Pin the key at the first birth; later ones replace the inventory."""
    device = known or Device(device=birth.device, key=birth.key, first_seen=now, last_seen=now, birth="")
    text = body.decode("utf-8", "replace")
    if device.birth == text:
        return device  # the broker's retained copy: no news
    device.birth, device.last_seen, device.online = text, now, True
    device.board, device.device_class = birth.capability.board, birth.capability.device_class
    device.agent_version, device.session, device.seq = birth.agent_version, birth.session, birth.seq
    if known is None:
        session.add(device)
        session.flush()
        session.info.setdefault("devices", {})[device.device] = device
    names = [app.app for app in birth.apps]
    _drop_other_apps(session, birth.device, names)
    for app in birth.apps:
        save_app(session, birth.device, app, now)
    return device


def save_app(session: Session, device: str, app: AppState, now: float) -> None:
    """What this app of the board runs now."""
    row = _app_row(session, device, app.app) or _new_app(session, AppRow(device=device, app=app.app, at=now))
    row.bundle, row.name, row.version, row.candidate = app.bundle, app.name, app.version, app.candidate
    row.phase, row.reason, row.at = app.phase, app.reason[:500], now


def save_report(session: Session, report: Report, now: float) -> bool:
    """Store a report once; False for a repeat. The app's row follows it."""
    new = insert_once(session, ReportRow, {
        "device": report.device, "report": report.id, "received": now, "seq": report.seq, "app": report.app, "at": report.at,
        "phase": report.phase, "bundle": report.bundle, "version": report.version, "from_version": report.from_version,
        "outcome": report.outcome, "code": report.code, "detail": report.detail, "candidate": report.candidate,
        "metrics": msgspec.json.encode(report.metrics).decode(), "rollout": report.rollout,
    })
    if new is None:
        return False
    _follow(session, report, now)
    return True


def _follow(session: Session, report: Report, now: float) -> None:
    """Between births, reports tell what an app is doing; only a commit changes what it runs."""
    row = _app_row(session, report.device, report.app) or _new_app(session, AppRow(device=report.device, app=report.app, at=now))
    row.phase, row.reason, row.at = report.outcome or report.phase, (report.code or report.detail)[:500], now
    if report.outcome == "committed":
        row.bundle, row.version, row.candidate = report.bundle, report.version, report.candidate or row.candidate


def save_window(session: Session, device: Device, window: Telemetry, now: float) -> bool:
    """Store a window once and keep the board's account of gaps, duplicates and late ones. False for a duplicate."""
    values = {"device": window.device, "session": window.session, "number": window.window, "started": window.started,
              "duration_s": window.duration_s, "received": now, "gauges": msgspec.json.encode(window.gauges).decode()}
    device.last_seen = max(device.last_seen, now)
    row_id = insert_once(session, WindowRow, values)
    if row_id is None:
        device.duplicates += 1
        return False
    device.windows += 1
    newest = _count_gap(session, device, window)
    if newest:
        device.gauges = str(values["gauges"])
    for series in window.series:
        session.add(SeriesRow(
            window_id=row_id, device=window.device, received=now, duration_s=window.duration_s, app=series.app,
            bundle=series.bundle, version=series.version, candidate=series.candidate, source=series.source, seen=series.seen,
            done=series.done, dropped=msgspec.json.encode(series.dropped).decode(), stages=pack_series(series)))
    return True


def _count_gap(session: Session, device: Device, window: Telemetry) -> bool:
    """Account for the window's number; True when it is the newest. A session's first seen window is its base line."""
    if window.session > device.window_session:
        device.window_session, device.last_window = window.session, window.window
        return True
    if window.session < device.window_session or window.window <= device.last_window:
        device.late += 1
        device.gaps += _gaps_changed(session, window)
        return False
    device.gaps += window.window - device.last_window - 1
    device.last_window = window.window
    return True


def _gaps_changed(session: Session, window: Telemetry) -> int:
    """By how much a window that came late, and is stored by now, changes the gaps of its session: it may fill one that was counted, or lie
    before the first or behind the last that had come, where nothing was counted."""
    others = select(func.min(WindowRow.number), func.max(WindowRow.number), func.count()).where(
        WindowRow.device == window.device, WindowRow.session == window.session, WindowRow.number != window.window)
    low, high, count = session.execute(others).one()
    if not count:
        return 0
    return int(max(high, window.window) - min(low, window.window) - (high - low) - 1)


def save_result(session: Session, device: str, app: str, body: bytes, now: float) -> None:
    session.add(ResultRow(device=device, app=app, received=now, body=body))


def count(session: Session, name: str, more: int = 1) -> None:
    """Add to a counter that outlives the bounded tables."""
    row = session.get(Counter, name)
    if row is None:
        session.add(Counter(name=name, value=more))
    else:
        row.value += more
    session.flush()


def raise_alarm(session: Session, device: str, code: str, what: str, now: float) -> None:
    """A new alarm, or one more of the same within an hour."""
    row = session.scalar(select(Alarm).where(Alarm.device == device, Alarm.code == code, Alarm.last > now - SAME_ALARM_S))
    if row is None:
        session.add(Alarm(device=device, code=code, what=what, first=now, last=now, count=1))
    else:
        row.last, row.what, row.count = now, what, row.count + 1
    session.flush()


def save_rejected(session: Session, topic: str, payload: bytes, code: str, reason: str, now: float) -> None:
    """Count a refused message and keep its beginning, among the newest, for a person to look at."""
    count(session, "rejected")
    count(session, f"rejected.{code}"[:100])
    row = Rejected(at=now, topic=topic[:200].replace("\0", "?"), code=code[:63], reason=reason, size=len(payload),
                   head=payload[:REJECTED_HEAD])
    session.add(row)
    session.flush()
    session.execute(delete(Rejected).where(Rejected.id <= row.id - KEEP_REJECTED))  # now: a flood of forgeries brings nothing else


def trim(session: Session, now: float) -> None:
    """Hold the bounded tables to their bounds, and telemetry to its retention."""
    for table, keep in ((ResultRow, KEEP_RESULTS), (Alarm, KEEP_ALARMS)):
        newest = session.scalar(select(func.max(table.id)))
        if newest is not None and newest > keep:
            session.execute(delete(table).where(table.id <= newest - keep))
    old = now - KEEP_TELEMETRY_S
    session.execute(delete(SeriesRow).where(SeriesRow.received < old))
    session.execute(delete(WindowRow).where(WindowRow.received < old))
