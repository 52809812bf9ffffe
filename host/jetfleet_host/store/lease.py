"""The one row that says which `serve` may write: taken and kept by compare-and-set. Each function works inside one transaction."""

from __future__ import annotations

import msgspec
from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from .models import Lease

NAME = "serve"


class Holder(msgspec.Struct, frozen=True):
    """Who holds the lease, by the row. `owner` is empty when it was given back."""

    owner: str
    epoch: int
    beat: int


def holder(session: Session) -> Holder | None:
    """The row as it is; None in a database that nobody has driven yet."""
    row = session.execute(select(Lease.owner, Lease.epoch, Lease.beat).where(Lease.name == NAME)).one_or_none()
    return Holder(*row) if row else None


def take(session: Session, owner: str, seen: Holder | None) -> Holder | None:
    """Become the owner, if the row is still what was `seen`. The new row; None when somebody was faster."""
    if seen is None:
        insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
        first = insert(Lease).values(name=NAME, owner=owner, epoch=1, beat=1).on_conflict_do_nothing().returning(Lease.epoch)
        return Holder(owner, 1, 1) if session.connection().scalar(first) else None
    taken = Holder(owner, seen.epoch + 1, seen.beat + 1)
    return taken if _swap(session, seen, taken) else None


def renew(session: Session, held: Holder) -> Holder | None:
    """Beat once more. The new row; None when somebody else has taken it."""
    renewed = Holder(held.owner, held.epoch, held.beat + 1)
    return renewed if _swap(session, held, renewed) else None


def release(session: Session, held: Holder) -> None:
    """Give it back, so that who stands by need not wait."""
    _swap(session, held, Holder("", held.epoch, held.beat + 1))


def holds(session: Session, held: Holder) -> bool:
    """Whether this epoch is still the one that may write. Locks the row until the transaction ends: no takeover comes between."""
    still = update(Lease).where(Lease.name == NAME, Lease.epoch == held.epoch, Lease.owner == held.owner).values(epoch=held.epoch)
    return session.connection().scalar(still.returning(Lease.epoch)) is not None


def _swap(session: Session, old: Holder, new: Holder) -> bool:
    swap = update(Lease).where(Lease.name == NAME, Lease.owner == old.owner, Lease.epoch == old.epoch, Lease.beat == old.beat)
    done = session.connection().scalar(swap.values(owner=new.owner, epoch=new.epoch, beat=new.beat).returning(Lease.epoch))
    return done is not None
