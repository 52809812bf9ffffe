"""Rows of uploads: every offer that was let in, and the newest that were refused, once by (device, offer). Inside a transaction."""

from __future__ import annotations

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.uploads import DAY_S, Kind, Offer

from .models import CommandRow, Device, UploadRow

OPEN = "receiving"
STORED = "stored"
REFUSED = "refused"
KEEP_REFUSED = 200
UPLOADS_OF = {"engine-build": 3}
"""How many uploads answer a command, where it is not one: an engine, its timing cache, and the metadata that names both."""


def key_of(session: Session, device: str) -> str:
    """The board's pinned key in hex, empty when it has not introduced itself."""
    row = session.get(Device, device)
    return row.key if row else ""


def find(session: Session, offer: Offer) -> UploadRow | None:
    """The row of this very offer, if it was judged before."""
    return session.scalar(select(UploadRow).where(UploadRow.device == offer.device, UploadRow.offer == offer.id))


def asked_op(session: Session, offer: Offer) -> str:
    """The op of the command that the offer names; empty when there is none, or when other uploads have answered it."""
    if not offer.command:
        return ""
    row = session.scalar(select(CommandRow).where(CommandRow.device == offer.device, CommandRow.seq == offer.command))
    if row is None:
        return ""
    taken = session.scalar(select(func.count(UploadRow.id)).where(UploadRow.device == offer.device, UploadRow.command == offer.command,
                                                                  UploadRow.state != REFUSED))
    return row.op if int(taken or 0) < UPLOADS_OF.get(row.op, 1) else ""


def used_bytes(session: Session, device: str, wall: float) -> int:
    """What this board was let in for within the last 24 hours."""
    total = session.scalar(select(func.sum(UploadRow.size)).where(UploadRow.device == device, UploadRow.at > wall - DAY_S,
                                                                  UploadRow.state != REFUSED))
    return int(total or 0)


def add(session: Session, offer: Offer, state: str, wall: float, code: str = "") -> int:
    """Note an offer; the row's id."""
    row = UploadRow(device=offer.device, offer=offer.id, blob=offer.blob, kind=offer.kind, name=offer.name, size=offer.info.size,
                    chunk_size=offer.info.chunk_size, table_page=offer.info.table, command=offer.command, state=state, code=code,
                    received=0, at=wall, ended=wall if state != OPEN else 0.0, expires=offer.expires)
    session.add(row)
    session.flush()
    if state == REFUSED:
        refused = (UploadRow.device == offer.device) & (UploadRow.state == REFUSED)
        old = session.scalars(select(UploadRow.id).where(refused).order_by(UploadRow.id.desc()).offset(KEEP_REFUSED).limit(1)).first()
        session.execute(delete(UploadRow).where(refused, UploadRow.id <= (old or 0)))
    return row.id


def under_way(session: Session) -> list[tuple[int, Offer]]:
    """What was let in and is not whole yet, oldest first."""
    rows = session.scalars(select(UploadRow).where(UploadRow.state == OPEN).order_by(UploadRow.id))
    return [(row.id, offer_of(row)) for row in rows]


def offer_of(row: UploadRow) -> Offer:
    """The offer that made this row."""
    info = BlobInfo(row.size, row.chunk_size, row.table_page)
    return Offer(row.device, row.offer, row.blob, msgspec.convert(row.kind, Kind), row.name, info, row.expires, row.command)


def progress(session: Session, upload: int, received: int) -> None:
    session.get_one(UploadRow, upload).received = received


def end(session: Session, upload: int, state: str, wall: float, code: str = "") -> None:
    """Stored, or refused with a code."""
    row = session.get_one(UploadRow, upload)
    row.state, row.code, row.ended = state, code, wall
    if state == STORED:
        row.received = row.size


def answering(session: Session, device: str, seq: int) -> UploadRow | None:
    """The upload that answers a command, the newest when there are several."""
    return session.scalar(select(UploadRow).where(UploadRow.device == device, UploadRow.command == seq).order_by(UploadRow.id.desc()))


def newest(session: Session, device: str, limit: int) -> list[UploadRow]:
    """What a board gave or offered, newest first; all boards for an empty name."""
    query = select(UploadRow).order_by(UploadRow.id.desc()).limit(limit)
    return list(session.scalars(query.where(UploadRow.device == device) if device else query))
