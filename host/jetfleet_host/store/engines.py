"""Rows of engines: the state of each key of a class, and the boards that could build or try it. Inside a transaction."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from jetfleet_contract.engine_work import Seen, Work
from jetfleet_contract.engines import engine_name
from jetfleet_contract.messages import decode, encode

from .models import CommandRow, Device, EngineRow, UploadRow
from .uploads import OPEN as RECEIVING
from .uploads import STORED

MAX_WORK_BYTES = 256 * 1024
OPEN = ("wanted", "building", "uncertified", "certifying")
MAX_KEYS_A_CLASS = 2000


def find(session: Session, device_class: str, key: str) -> Work | None:
    row = session.get(EngineRow, (device_class, key))
    return work_of(row) if row is not None else None


def work_of(row: EngineRow) -> Work:
    return decode(row.work.encode(), Work, limit=MAX_WORK_BYTES)


def save(session: Session, work: Work, now: float) -> None:
    """Keep the state; the request of an earlier state stays until `asked` names another."""
    row = session.get(EngineRow, (work.device_class, work.key))
    if row is None:
        row = EngineRow(device_class=work.device_class, key=work.key, request=0)
        session.add(row)
    row.state, row.subject, row.work, row.changed = work.state, work.passport.subject, encode(work).decode(), now
    session.flush()


def asked(session: Session, work: Work, request: int) -> None:
    """The command row by which the work was given away."""
    session.get_one(EngineRow, (work.device_class, work.key)).request = request


def request_of(session: Session, work: Work) -> CommandRow | None:
    row = session.get(EngineRow, (work.device_class, work.key))
    return session.get(CommandRow, row.request) if row is not None and row.request else None


def every(session: Session, device_class: str = "") -> list[Work]:
    """All keys, of one class when it is named; the latest changed first."""
    query = select(EngineRow).order_by(EngineRow.changed.desc(), EngineRow.key)
    return [work_of(row) for row in session.scalars(query.where(EngineRow.device_class == device_class) if device_class else query)]


def open_works(session: Session) -> list[Work]:
    """Those that time and boards can change, the oldest first."""
    query = select(EngineRow).where(EngineRow.state.in_(OPEN)).order_by(EngineRow.changed, EngineRow.key)
    return [work_of(row) for row in session.scalars(query)]


def count(session: Session, device_class: str) -> int:
    return len(session.scalars(select(EngineRow.key).where(EngineRow.device_class == device_class)).all())


def is_building(session: Session, device_class: str, other_than: str) -> bool:
    """Whether another key of the class is being built."""
    query = select(EngineRow.key).where(EngineRow.state == "building", EngineRow.device_class == device_class, EngineRow.key != other_than)
    return session.scalar(query.limit(1)) is not None


def boards(session: Session, device_class: str, builders: Collection[str], *, busy: bool) -> list[Seen]:
    """The boards of a class. `builders`: public keys (hex) that vouch for it. `busy`: another engine of the class is being built."""
    query = select(Device.device, Device.online, Device.key).where(Device.device_class == device_class).order_by(Device.device)
    rows = session.execute(query)
    return [Seen(device, bool(online), key in builders, busy) for device, online, key in rows]


def class_of(session: Session, device: str) -> str:
    """The class that the board's birth named, empty when it has not introduced itself."""
    return session.scalar(select(Device.device_class).where(Device.device == device)) or ""


def uploads_after(session: Session, upload: int) -> list[UploadRow]:
    """Engines and metadata that boards gave, whole, in their order, above that number."""
    query = select(UploadRow).where(UploadRow.kind == "engine", UploadRow.state == STORED, UploadRow.id > upload)
    return list(session.scalars(query.order_by(UploadRow.id)))


def under_way(session: Session) -> set[tuple[str, int]]:
    """Boards and the numbers of commands that they are still giving an engine or its metadata for."""
    query = select(UploadRow.device, UploadRow.command).where(UploadRow.kind == "engine", UploadRow.state == RECEIVING)
    return {(device, command) for device, command in session.execute(query)}


def uploaded(session: Session, device: str, blob: str) -> UploadRow | None:
    return session.scalar(select(UploadRow).where(UploadRow.device == device, UploadRow.blob == blob, UploadRow.state == STORED)
                          .order_by(UploadRow.id.desc()).limit(1))


def untried(session: Session, device_class: str, before: Collection[str]) -> frozenset[str]:
    """Names of the class's engines that only their builders may run: no second board has tried them, or they were taken back.

    Args:
        before: what the snapshot says so far. A name there that this database knows nothing of stays: a lost database certifies nothing.
    """
    works = every(session, device_class)
    held = {engine_name(work.key) for work in works if work.blob and work.state != "certified"}
    return frozenset(before) - {engine_name(work.key) for work in works if work.state == "certified"} | held


def changed(session: Session, since: float, limit: int) -> list[tuple[float, Work]]:
    """What changed since then, and when, the latest first."""
    query = select(EngineRow).where(EngineRow.changed > since).order_by(EngineRow.changed.desc(), EngineRow.key).limit(limit)
    return [(row.changed, work_of(row)) for row in session.scalars(query)]


def in_hand(session: Session, device_class: str, device: str) -> frozenset[str]:
    """Names of the engines that this board was elected to build and has not given yet."""
    return frozenset(engine_name(work.key) for work in open_works(session)
                     if (work.device_class, work.by, work.state) == (device_class, device, "building"))
