"""What is kept of delivery: what a person has paused, what the host published in a day, and how it stands. Inside a transaction."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jetfleet_contract.budgets import DayCount
from jetfleet_contract.messages import Message
from jetfleet_contract.rollout_records import FINAL, Rollout

from .models import DeliveryPause, DeliveryState, RolloutRow

EVERYTHING = "*"
_STATUS = "status"
_DAY = "day"


class BlobLine(Message, frozen=True):
    """One blob: bytes, except `wanters` and `lanes`. `missing` is summed over those who want it; `paused` says by whom."""

    blob: str
    what: str
    size: int
    wanters: int = 0
    missing: int = 0
    published: int = 0
    unicast: int = 0
    lanes: int = 0
    paused: str = ""


class DeliveryStatus(Message, frozen=True):
    """How `serve` delivers, at wall-clock second `at`. `held` is the code of the budget that holds everything, `held_until` when it ends
    (0: nothing does). `mb_per_day` 0 means no bound. `paused` is what was asked for, by whom."""

    at: float = 0.0
    rate_bytes_s: float = 0.0
    bytes_s: float = 0.0
    today_bytes: int = 0
    mb_per_day: int = 0
    hours: tuple[tuple[int, int], ...] = ()
    held: str = ""
    why: str = ""
    held_until: float = 0.0
    refused: dict[str, int] = {}
    paused: dict[str, str] = {}
    blobs: tuple[BlobLine, ...] = ()


def pauses(session: Session) -> dict[str, str]:
    """What is paused by hand: a manifest's blob, another blob, or `*`; and why."""
    return {row.what: row.why for row in session.scalars(select(DeliveryPause).order_by(DeliveryPause.at))}


def pause(session: Session, what: str, why: str, now: float) -> None:
    session.merge(DeliveryPause(what=what, why=why, at=now))


def resume(session: Session, whats: Collection[str]) -> int:
    """How many of these were paused."""
    gone = list(session.scalars(delete(DeliveryPause).where(DeliveryPause.what.in_(list(whats))).returning(DeliveryPause.what)))
    return len(gone)


def paused_rollouts(session: Session) -> dict[str, str]:
    """The bundles that paused rollouts bring, and no other that is under way, and the rollout of each."""
    rows = session.execute(select(RolloutRow.phase, RolloutRow.head).where(RolloutRow.phase.not_in(FINAL)))
    plans = [(phase, msgspec.json.decode(head, type=Rollout).plan) for phase, head in rows]
    moving = {plan.bundle for phase, plan in plans if phase != "paused"}
    return {plan.bundle: plan.id for phase, plan in plans if phase == "paused" and plan.bundle not in moving}


def status(session: Session) -> DeliveryStatus | None:
    """As `serve` told last; None when it never did."""
    row = session.get(DeliveryState, _STATUS)
    return msgspec.json.decode(row.body, type=DeliveryStatus) if row else None


def keep_status(session: Session, told: DeliveryStatus) -> None:
    session.merge(DeliveryState(name=_STATUS, body=msgspec.json.encode(told)))


def day(session: Session) -> DayCount:
    """What the host has published in the last day that it counted."""
    row = session.get(DeliveryState, _DAY)
    return msgspec.json.decode(row.body, type=DayCount) if row else DayCount()


def keep_day(session: Session, count: DayCount) -> None:
    session.merge(DeliveryState(name=_DAY, body=msgspec.json.encode(count)))
