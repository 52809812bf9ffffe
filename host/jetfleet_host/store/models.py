"""The tables. Times are wall-clock seconds since 1970 (UTC); names and ids were checked before they came here.

Change a table only together with a new file in `migrations/versions`: a test compares both.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_NAMING = {  # named constraints can be dropped by later migrations on every database
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
_SERIAL = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up only columns that are exactly INTEGER


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=_NAMING)


class Device(Base):
    """A board: its pinned key (hex, trusted at first use), its last birth, and how its windows arrived."""

    __tablename__ = "devices"

    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    key: Mapped[str] = mapped_column(String(64))
    board: Mapped[str] = mapped_column(String(63), default="")
    device_class: Mapped[str] = mapped_column(String(63), default="")
    agent_version: Mapped[str] = mapped_column(String(63), default="")
    session: Mapped[int] = mapped_column(BigInteger, default=0)
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    online: Mapped[bool] = mapped_column(Boolean, default=False)
    birth: Mapped[str] = mapped_column(Text, default="")
    first_seen: Mapped[float] = mapped_column(Float)
    last_seen: Mapped[float] = mapped_column(Float)
    window_session: Mapped[int] = mapped_column(BigInteger, default=-1)
    last_window: Mapped[int] = mapped_column(BigInteger, default=-1)
    windows: Mapped[int] = mapped_column(BigInteger, default=0)
    gaps: Mapped[int] = mapped_column(BigInteger, default=0)
    duplicates: Mapped[int] = mapped_column(BigInteger, default=0)
    late: Mapped[int] = mapped_column(BigInteger, default=0)
    gauges: Mapped[str] = mapped_column(Text, default="{}")


class DeviceTag(Base):
    """A word of the operator about a board: line = 3, site = berlin. Deployments carry them; selectors of rollouts look at them."""

    __tablename__ = "device_tags"

    device: Mapped[str] = mapped_column(ForeignKey("devices.device", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[str] = mapped_column(String(63))


class AppRow(Base):
    """What one app of a board runs, by the board's last birth or report."""

    __tablename__ = "app_states"

    device: Mapped[str] = mapped_column(ForeignKey("devices.device", ondelete="CASCADE"), primary_key=True)
    app: Mapped[str] = mapped_column(String(63), primary_key=True)
    bundle: Mapped[str] = mapped_column(String(64), default="")
    name: Mapped[str] = mapped_column(String(63), default="")
    version: Mapped[str] = mapped_column(String(63), default="")
    candidate: Mapped[str] = mapped_column(String(200), default="")
    phase: Mapped[str] = mapped_column(String(63), default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[float] = mapped_column(Float)


class Desired(Base):
    """The one deployment that is retained for a board: the signed bytes exactly as they travel, and their digest."""

    __tablename__ = "desired"

    device: Mapped[str] = mapped_column(ForeignKey("devices.device", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    rollout: Mapped[str] = mapped_column(String(63), default="")
    at: Mapped[float] = mapped_column(Float)


class ReportRow(Base):
    """A verified report. (device, report) is the device's own numbering: a repeat is stored once."""

    __tablename__ = "reports"
    __table_args__ = (UniqueConstraint("device", "report"), Index("ix_reports_rollout_device", "rollout", "device"))

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.device", ondelete="CASCADE"))
    report: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[float] = mapped_column(Float, index=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    app: Mapped[str] = mapped_column(String(63))
    at: Mapped[float] = mapped_column(Float)
    phase: Mapped[str] = mapped_column(String(63))
    bundle: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(63))
    from_version: Mapped[str] = mapped_column(String(63))
    outcome: Mapped[str] = mapped_column(String(20))
    code: Mapped[str] = mapped_column(String(63))
    detail: Mapped[str] = mapped_column(Text)
    candidate: Mapped[str] = mapped_column(String(200))
    metrics: Mapped[str] = mapped_column(Text)
    rollout: Mapped[str] = mapped_column(String(63))


class WindowRow(Base):
    """One telemetry window, stored once by (device, session, number)."""

    __tablename__ = "telemetry_windows"
    __table_args__ = (UniqueConstraint("device", "session", "number"),)

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.device", ondelete="CASCADE"))
    session: Mapped[int] = mapped_column(BigInteger)
    number: Mapped[int] = mapped_column(BigInteger)
    started: Mapped[float] = mapped_column(Float)
    duration_s: Mapped[float] = mapped_column(Float)
    received: Mapped[float] = mapped_column(Float, index=True)
    gauges: Mapped[str] = mapped_column(Text)


class SeriesRow(Base):
    """One (app, bundle, candidate, source) of a window. `stages`: msgpack map of stage, or ``value:NAME``, to sketch, counts unmerged."""

    __tablename__ = "telemetry_series"
    __table_args__ = (Index("ix_telemetry_series_app_bundle_received", "app", "bundle", "received"),)

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    window_id: Mapped[int] = mapped_column(ForeignKey("telemetry_windows.id", ondelete="CASCADE"), index=True)
    device: Mapped[str] = mapped_column(String(63))
    received: Mapped[float] = mapped_column(Float, index=True)
    duration_s: Mapped[float] = mapped_column(Float)
    app: Mapped[str] = mapped_column(String(63))
    bundle: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(63))
    candidate: Mapped[str] = mapped_column(String(200))
    source: Mapped[str] = mapped_column(String(63))
    seen: Mapped[int] = mapped_column(BigInteger)
    done: Mapped[int] = mapped_column(BigInteger)
    dropped: Mapped[str] = mapped_column(Text)
    stages: Mapped[bytes] = mapped_column(LargeBinary)


class RolloutRow(Base):
    """The journal of one rollout: `head` is the machine's state without its boards, which are rows of their own."""

    __tablename__ = "rollouts"

    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    app: Mapped[str] = mapped_column(String(63), index=True)
    phase: Mapped[str] = mapped_column(String(20), index=True)
    head: Mapped[bytes] = mapped_column(LargeBinary)
    spec: Mapped[bytes] = mapped_column(LargeBinary)
    keep: Mapped[bool] = mapped_column(Boolean)
    overrides: Mapped[bytes] = mapped_column(LargeBinary, default=b"")
    created: Mapped[float] = mapped_column(Float)
    changed: Mapped[float] = mapped_column(Float)


class RolloutDevice(Base):
    """One board's progress in a rollout; its status again as a column, so that boards that owe an answer can be found."""

    __tablename__ = "rollout_devices"

    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    progress: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[str] = mapped_column(String(20), default="", index=True)


class Issued(Base):
    """A deployment that a rollout gave to a board. The key makes a second one of the same kind impossible."""

    __tablename__ = "issued"

    rollout: Mapped[str] = mapped_column(ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True)
    device: Mapped[str] = mapped_column(String(63), primary_key=True)
    kind: Mapped[str] = mapped_column(String(7), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    bundle: Mapped[str] = mapped_column(String(64))
    before: Mapped[bytes] = mapped_column(LargeBinary)
    at: Mapped[float] = mapped_column(Float)


class RolloutRequest(Base):
    """What a command asks of `serve`: start, pause, resume or abort. `rollout` names it; answered in place."""

    __tablename__ = "rollout_requests"

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    rollout: Mapped[str] = mapped_column(String(63))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    answered: Mapped[bool] = mapped_column(Boolean, default=False, index=True)
    code: Mapped[str] = mapped_column(String(63), default="")
    answer: Mapped[str] = mapped_column(Text, default="")


class CommandRow(Base):
    """A signed command to one board: asked for by a command line, numbered and sent by `serve`, answered in place."""

    __tablename__ = "commands"
    __table_args__ = (UniqueConstraint("device", "seq"),)

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    device: Mapped[str] = mapped_column(String(63))
    seq: Mapped[int | None] = mapped_column(BigInteger, nullable=True)
    op: Mapped[str] = mapped_column(String(20))
    args: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(10), index=True)
    at: Mapped[float] = mapped_column(Float)
    deadline: Mapped[float] = mapped_column(Float)
    ended: Mapped[float] = mapped_column(Float)
    code: Mapped[str] = mapped_column(String(63))
    detail: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)


class UploadRow(Base):
    """What a board offered: being received, stored in ``uploads/<device>/<blob>``, or refused. `command`: what asked for it, or 0."""

    __tablename__ = "uploads"
    __table_args__ = (UniqueConstraint("device", "offer"), Index("ix_uploads_device_command", "device", "command"))

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.device", ondelete="CASCADE"))
    offer: Mapped[int] = mapped_column(BigInteger)
    blob: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(63))
    size: Mapped[int] = mapped_column(BigInteger)
    chunk_size: Mapped[int] = mapped_column(BigInteger)
    table_page: Mapped[str] = mapped_column(String(64))
    command: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(10), index=True)
    code: Mapped[str] = mapped_column(String(63))
    received: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[float] = mapped_column(Float)
    ended: Mapped[float] = mapped_column(Float)
    expires: Mapped[float] = mapped_column(Float)


class Lease(Base):
    """Who may drive the fleet. Each write of the owner is fenced by `epoch`, which grows with every change of owner; `beat` shows that the
    owner lives. No clock is compared with another machine's: who stands by watches whether the beat moves."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    owner: Mapped[str] = mapped_column(String(100))
    epoch: Mapped[int] = mapped_column(BigInteger)
    beat: Mapped[int] = mapped_column(BigInteger)


class PublishedBlob(Base):
    """Bytes of chunks of one blob that the host has published to boards, over all its lives."""

    __tablename__ = "published_blobs"

    blob: Mapped[str] = mapped_column(String(64), primary_key=True)
    published: Mapped[int] = mapped_column(BigInteger)


class Alarm(Base):
    """Something that a person should look at. Repeats of (device, code) within an hour count up instead of adding rows."""

    __tablename__ = "alarms"
    __table_args__ = (Index("ix_alarms_device_code", "device", "code"),)

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    device: Mapped[str] = mapped_column(String(63))
    code: Mapped[str] = mapped_column(String(63))
    what: Mapped[str] = mapped_column(Text)
    first: Mapped[float] = mapped_column(Float)
    last: Mapped[float] = mapped_column(Float)
    count: Mapped[int] = mapped_column(BigInteger, default=1)


class Rejected(Base):
    """A message that was refused, with the beginning of its bytes. Bounded: the oldest go first."""

    __tablename__ = "rejected_messages"

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    at: Mapped[float] = mapped_column(Float)
    topic: Mapped[str] = mapped_column(String(200))
    code: Mapped[str] = mapped_column(String(63))
    reason: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    head: Mapped[bytes] = mapped_column(LargeBinary)


class Counter(Base):
    """Totals that outlive the bounded tables: `rejected`, `rejected.CODE`, ..."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class ResultRow(Base):
    """Recent detections. Bounded: the newest some ten thousand."""

    __tablename__ = "recent_results"
    __table_args__ = (Index("ix_recent_results_device_app", "device", "app"),)

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    device: Mapped[str] = mapped_column(String(63))
    app: Mapped[str] = mapped_column(String(63))
    received: Mapped[float] = mapped_column(Float)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class DeliveryPause(Base):
    """What a person has paused: a bundle by its manifest's blob, another blob, or `*` for everything."""

    __tablename__ = "delivery_pauses"

    what: Mapped[str] = mapped_column(String(64), primary_key=True)
    why: Mapped[str] = mapped_column(String(200))
    at: Mapped[float] = mapped_column(Float)


class DeliveryState(Base):
    """What `serve` keeps of delivery, by name: its status for `delivery status`, and the day's bytes."""

    __tablename__ = "delivery_states"

    name: Mapped[str] = mapped_column(String(20), primary_key=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)


class ExperimentRow(Base):
    """The journal of one experiment: `body` is the machine's whole state. `asked` is what a command wants of `serve`, `answer` what became
    of it: an error's code and sentence, empty when it was done."""

    __tablename__ = "experiments"

    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    app: Mapped[str] = mapped_column(String(63), index=True)
    phase: Mapped[str] = mapped_column(String(20), index=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    asked: Mapped[str] = mapped_column(String(20), default="")
    answer: Mapped[str] = mapped_column(Text, default="")
    created: Mapped[float] = mapped_column(Float)
    changed: Mapped[float] = mapped_column(Float)


class Observation(Base):
    """A figure of one board's app that jetfleet cannot measure itself: an F1 of a labelled hour, a KPI of the line."""

    __tablename__ = "observations"
    __table_args__ = (Index("ix_observations_app_name_at", "app", "name", "at"),)

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    device: Mapped[str] = mapped_column(ForeignKey("devices.device", ondelete="CASCADE"))
    app: Mapped[str] = mapped_column(String(63))
    name: Mapped[str] = mapped_column(String(63))
    value: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)


class ModelTag(Base):
    """A name that points to one version of a model and may move: `production`, `candidate` ..."""

    __tablename__ = "model_tags"

    model: Mapped[str] = mapped_column(String(63), primary_key=True)
    tag: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[str] = mapped_column(String(63))
    at: Mapped[float] = mapped_column(Float)


class ModelEvent(Base):
    """What was done with a model: tagged, promoted, retired. Never changed, so that it can be told who ran what when."""

    __tablename__ = "model_events"

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    model: Mapped[str] = mapped_column(String(63), index=True)
    version: Mapped[str] = mapped_column(String(63))
    what: Mapped[str] = mapped_column(String(20))
    detail: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[float] = mapped_column(Float)


class EngineRow(Base):
    """One engine key of a class: `work` is the JSON of an `engine_work.Work`, `request` the command row that its builder or second board
    was sent last (0: none)."""

    __tablename__ = "engines"

    device_class: Mapped[str] = mapped_column(String(63), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    state: Mapped[str] = mapped_column(String(20), index=True)
    subject: Mapped[str] = mapped_column(String(64))
    work: Mapped[str] = mapped_column(Text)
    request: Mapped[int] = mapped_column(BigInteger)
    changed: Mapped[float] = mapped_column(Float)


class HardExample(Base):
    """A crop that a board was not sure of, kept for the next training. `crop` is the board's number, `digest` the picture's file, `edge`
    and `said` are JSON of detections in pixels of the canvas (`canvas_w` x `canvas_h`), of which the picture shows `x0`..`x1`, `y0`..`y1`.
    `answered` is 1 when `model` has answered; then `said` counts, also when it is empty."""

    __tablename__ = "hard_examples"
    __table_args__ = (UniqueConstraint("device", "crop"), Index("ix_hard_examples_app_at", "app", "at"))

    id: Mapped[int] = mapped_column(_SERIAL, primary_key=True)
    device: Mapped[str] = mapped_column(String(63), index=True)
    crop: Mapped[int] = mapped_column(BigInteger)
    app: Mapped[str] = mapped_column(String(63))
    source: Mapped[str] = mapped_column(String(63))
    frame: Mapped[int] = mapped_column(BigInteger)
    bundle: Mapped[str] = mapped_column(String(64))
    version: Mapped[str] = mapped_column(String(200))
    candidate: Mapped[str] = mapped_column(String(200))
    task: Mapped[str] = mapped_column(String(63))
    digest: Mapped[str] = mapped_column(String(64), index=True)
    size: Mapped[int] = mapped_column(Integer)
    canvas_w: Mapped[int] = mapped_column(Integer)
    canvas_h: Mapped[int] = mapped_column(Integer)
    x0: Mapped[int] = mapped_column(Integer)
    y0: Mapped[int] = mapped_column(Integer)
    x1: Mapped[int] = mapped_column(Integer)
    y1: Mapped[int] = mapped_column(Integer)
    edge: Mapped[str] = mapped_column(Text)
    said: Mapped[str] = mapped_column(Text, default="[]")
    model: Mapped[str] = mapped_column(String(128), default="")
    answered: Mapped[int] = mapped_column(Integer, default=0)
    taken: Mapped[float] = mapped_column(Float)
    at: Mapped[float] = mapped_column(Float)
