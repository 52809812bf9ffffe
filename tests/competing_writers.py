"""One of several processes that reach for the same lease. A module of its own: a spawned process has to be able to import it."""

from __future__ import annotations

from contextlib import closing, suppress
from multiprocessing.synchronize import Barrier

from sqlalchemy import select

from jetfleet_contract.errors import OrderError
from jetfleet_host.store import fleet
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import Lease
from jetfleet_host.writer import Writer


def compete(url: str, name: str, together: Barrier) -> None:
    with closing(Database(url)) as database:
        writer = Writer(database, name, renew_s=1000.0)  # it never beats: after ten of its turns somebody else takes over
        together.wait(60)
        for turn in range(40):
            if writer.tick(float(turn)):
                with suppress(OrderError), writer.session() as session:
                    epoch = session.scalars(select(Lease.epoch)).one()
                    fleet.count(session, f"{epoch} {name}")
