"""Of all `serve` processes on one database, one writes. The others stand by, and one of them takes over when it dies.

The lease is a row that its owner changes every few seconds. Who stands by measures with its own monotonic clock how long the row has
not changed: no machine's wall clock is trusted (the lock of "Distributed locks with DynamoDB" works so). That alone is no safety: an
owner may be stopped for a minute between its look at the lease and its write. So every write is fenced: its transaction first asks the
row whether this epoch still counts, which also locks the row until the commit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.orm import Session

from jetfleet_contract.errors import OrderError

from .store import lease
from .store.database import Database
from .store.lease import Holder

RENEW_S = 2.0
EXPIRE_S = 10.0


class Writer:
    """This process's part in the lease; gives transactions that are fenced by it. Used by one thread.

    Args:
        owner: names this machine and project folder. A lease under the same name is a dead predecessor's, because who serves a folder
            locks it; it is taken over at once.
    """

    def __init__(self, database: Database, owner: str, *, renew_s: float = RENEW_S, expire_s: float = EXPIRE_S) -> None:
        self._database = database
        self._owner = owner[:100]
        self._renew_s = renew_s
        self._expire_s = expire_s
        self._held: Holder | None = None
        self._seen: Holder | None = None
        self._since = self._renewed = 0.0

    @property
    def holds(self) -> bool:
        """Whether this process was the owner when it last looked."""
        return self._held is not None

    @property
    def other(self) -> str:
        """Who holds it instead, as last seen."""
        return self._seen.owner if self._seen else ""

    def fresh(self, mono: float) -> bool:
        """Whether the lease was renewed so lately that nobody can have taken it over."""
        return self._held is not None and mono - self._renewed < self._expire_s - self._renew_s

    def tick(self, mono: float) -> bool:
        """Renew when due, or try to take over; whether this process may write. Raises StorageError as the database does."""
        if self._held is None:
            self._try(mono)
        elif mono - self._renewed >= self._renew_s:
            with self._database.session() as session:
                self._held = lease.renew(session, self._held)
            self._renewed = mono
            self._seen, self._since = None, mono
        return self._held is not None

    def _try(self, mono: float) -> None:
        with self._database.reading() as session:
            seen = lease.holder(session)
        if seen != self._seen:
            self._seen, self._since = seen, mono
        if seen is not None and seen.owner not in ("", self._owner) and mono - self._since < self._expire_s:
            return
        with self._database.session() as session:
            self._held = lease.take(session, self._owner, seen)
        self._renewed = mono

    def release(self) -> None:
        """Give the lease back at a clean end."""
        if self._held is not None:
            with self._database.session() as session:
                lease.release(session, self._held)
            self._held = None

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction as `Database.session`, which only the owner may commit.

        Raises:
            OrderError: `serve.superseded`, and nothing was written: another process has taken over.
        """
        with self._database.session() as session:
            if self._held is None or not lease.holds(session, self._held):
                self._held = None
                raise OrderError("serve.superseded", "another jetfleet serve has taken over this database", where=self._owner,
                                 remedy="this one stands by now; nothing is lost")
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A view as `Database.reading`."""
        with self._database.reading() as session:
            yield session
