"""Every byte of a rollout: what each board reported to have received, and what the host published. Inside a transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from jetfleet_contract.rollout_plan import DAY_S
from jetfleet_contract.rollout_records import Spending

from .models import Issued, PublishedBlob, ReportRow

_METRICS = msgspec.json.Decoder(dict[str, float])
_FIGURES = ("received", "useful", "delta", "saved")


class BoardBytes(msgspec.Struct, frozen=True):
    """One board's bytes in one rollout, as it reported them.

    `received`: all that came for it, repeats and what was meant for others too; `useful`: bytes of blobs that it kept; `delta`: of these,
    bytes of deltas; `saved`: bytes that deltas and reuse made needless. `back`: of `received`, for the way back.
    """

    received: int = 0
    useful: int = 0
    delta: int = 0
    saved: int = 0
    back: int = 0


def of_boards(session: Session, rollout: str, app: str) -> dict[str, BoardBytes]:
    """By board. An update's figures grow from report to report, and the last counts; a second attempt under a later number adds."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys((*_FIGURES, "back"), 0))
    for (device, kind, _), steps in _growth(session, rollout, app).items():
        for figure, value in steps[-1][1].items():
            found[device][figure] += value
        if kind == "back":
            found[device]["back"] += steps[-1][1]["received"]
    return {device: BoardBytes(**figures) for device, figures in found.items()}


def spending(session: Session, rollout: str, app: str, wall: float) -> Spending:
    """What all boards together have received: in all, and since the UTC day of `wall` (seconds since 1970) began."""
    day = int(wall // DAY_S)
    total = today = 0
    for steps in _growth(session, rollout, app).values():
        before = [figures["received"] for received, figures in steps if received < day * DAY_S]
        total += steps[-1][1]["received"]
        today += steps[-1][1]["received"] - (before[-1] if before else 0)
    return Spending(total, today, day)


def _growth(session: Session, rollout: str, app: str) -> dict[tuple[str, str, int], list[tuple[float, dict[str, int]]]]:
    """By (board, forward or back, deployment): when each report came, and its figures, never falling."""
    rows = session.execute(
        select(ReportRow.device, Issued.kind, ReportRow.seq, ReportRow.received, ReportRow.metrics)
        .join(Issued, (Issued.device == ReportRow.device) & (Issued.rollout == rollout))
        .where(ReportRow.app == app, ReportRow.bundle == Issued.bundle, ReportRow.seq >= Issued.seq).order_by(ReportRow.id))
    found: dict[tuple[str, str, int], list[tuple[float, dict[str, int]]]] = defaultdict(list)
    for device, kind, seq, received, metrics in rows:
        steps = found[device, kind, seq]
        last = steps[-1][1] if steps else dict.fromkeys(_FIGURES, 0)
        steps.append((received, {figure: max(last[figure], value) for figure, value in _figures(_METRICS.decode(metrics)).items()}))
    return found


def _figures(metrics: dict[str, float]) -> dict[str, int]:
    useful = metrics.get("bytes", 0.0)
    figures = (metrics.get("bytes_received", useful), useful, metrics.get("bytes_delta", 0.0), metrics.get("bytes_saved", 0.0))
    return {name: max(0, int(value)) for name, value in zip(_FIGURES, figures, strict=True)}


def add_published(session: Session, more: dict[str, int]) -> None:
    """Add bytes that the host has published, by blob."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    for blob, count in more.items():
        row = insert(PublishedBlob).values(blob=blob, published=count)
        session.execute(row.on_conflict_do_update(index_elements=["blob"], set_={"published": PublishedBlob.published + count}))


def published(session: Session, blobs: Iterable[str]) -> int:
    """Bytes that the host has published of these blobs."""
    names = list(blobs)
    return sum(sum(session.scalars(select(PublishedBlob.published).where(PublishedBlob.blob.in_(names[start : start + 500]))))
               for start in range(0, len(names), 500))
