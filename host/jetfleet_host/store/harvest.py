"""Rows of the hard-example set: what boards were not sure of, what the host's model said, and where it is from. Inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from .models import HardExample


def add(session: Session, row: HardExample) -> bool:
    """Keep one; False when this crop of this board is there already."""
    known = select(HardExample.id).where(HardExample.device == row.device, HardExample.crop == row.crop)
    if session.scalar(known) is not None:
        return False
    session.add(row)
    session.flush()
    return True


def has(session: Session, device: str, crop: int) -> bool:
    return session.scalar(select(HardExample.id).where(HardExample.device == device, HardExample.crop == crop)) is not None


def find(session: Session, *, app: str = "", device: str = "", since: float = 0.0, before: float = 0.0,
         limit: int = 0) -> list[HardExample]:
    """The newest first; empty words and zeros do not choose."""
    query = select(HardExample).order_by(HardExample.id.desc())
    for column, value in ((HardExample.app, app), (HardExample.device, device)):
        query = query.where(column == value) if value else query
    query = query.where(HardExample.at >= since) if since else query
    query = query.where(HardExample.at < before) if before else query
    return list(session.scalars(query.limit(limit) if limit else query))


def total_bytes(session: Session) -> int:
    return int(session.scalar(select(func.sum(HardExample.size))) or 0)


def oldest(session: Session, limit: int) -> list[HardExample]:
    return list(session.scalars(select(HardExample).order_by(HardExample.id).limit(limit)))


def remove(session: Session, rows: Sequence[HardExample]) -> list[str]:
    """Remove these; the digests that no row names any more."""
    digests = {row.digest for row in rows}
    for at in range(0, len(rows), 500):
        session.execute(delete(HardExample).where(HardExample.id.in_([row.id for row in rows[at:at + 500]])))
    left: set[str] = set()
    ordered = sorted(digests)
    for at in range(0, len(ordered), 500):
        left |= set(session.scalars(select(HardExample.digest).where(HardExample.digest.in_(ordered[at:at + 500]))))
    return sorted(digests - left)


def by_app(session: Session) -> list[tuple[str, str, int, int, int, float, float]]:
    """(app, version, examples, answered, bytes, first, last) for each app and version."""
    answered = func.sum(func.coalesce(HardExample.answered, 0))
    query = select(HardExample.app, HardExample.version, func.count(), answered, func.sum(HardExample.size), func.min(HardExample.at),
                   func.max(HardExample.at)).group_by(HardExample.app, HardExample.version).order_by(HardExample.app, HardExample.version)
    return [(str(app), str(version), int(count), int(good or 0), int(size or 0), float(first), float(last))
            for app, version, count, good, size, first, last in session.execute(query)]
