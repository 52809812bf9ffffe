"""Requests for signed commands, their numbers and answers. Inside a transaction.

    asked -> sent -> answered       asked | sent -> failed (a late answer still counts: failed -> answered)
"""

from __future__ import annotations

import json

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jetfleet_contract.messages import Response

from .models import CommandRow, Device

ASKED = "asked"
SENT = "sent"
ANSWERED = "answered"
FAILED = "failed"
ENDED = (ANSWERED, FAILED)


def ask(session: Session, device: str, op: str, args: dict[str, str], wait_s: float, wall: float) -> int:
    """Leave a request for `serve`; its number. It fails when there is no answer within `wait_s` seconds."""
    row = CommandRow(device=device, seq=None, op=op, args=json.dumps(args, sort_keys=True), state=ASKED, at=wall, deadline=wall + wait_s,
                     ended=0.0, code="", detail="", body="")
    session.add(row)
    session.flush()
    return row.id


def asked(session: Session) -> list[CommandRow]:
    return list(session.scalars(select(CommandRow).where(CommandRow.state == ASKED).order_by(CommandRow.id)))


def overdue(session: Session, wall: float) -> list[CommandRow]:
    return list(session.scalars(select(CommandRow).where(CommandRow.state == SENT, CommandRow.deadline < wall)))


def board(session: Session, device: str) -> Device | None:
    return session.get(Device, device)


def next_seq(session: Session, device: str, wall: float) -> int:
    """The board's next command number: higher than every one before, and not below the time in seconds, so that a database that was lost
    does not begin again with numbers that boards refuse."""
    last = session.scalar(select(func.max(CommandRow.seq)).where(CommandRow.device == device))
    return max(int(last or 0) + 1, int(wall))


def find(session: Session, device: str, seq: int) -> CommandRow | None:
    return session.scalar(select(CommandRow).where(CommandRow.device == device, CommandRow.seq == seq))


def fail(row: CommandRow, code: str, detail: str, wall: float) -> None:
    row.state, row.code, row.detail, row.ended = FAILED, code, detail, wall


def answer(row: CommandRow, response: Response, wall: float) -> None:
    row.state, row.code, row.detail, row.body, row.ended = ANSWERED, response.code, response.detail, response.body, wall


def get(session: Session, number: int) -> CommandRow:
    return session.get_one(CommandRow, number)


def withdraw(session: Session, number: int, wall: float) -> bool:
    """Take back a request that was not sent yet; False when it was."""
    row = session.get_one(CommandRow, number)
    if row.state != ASKED:
        return False
    fail(row, "request.withdrawn", "", wall)
    return True
