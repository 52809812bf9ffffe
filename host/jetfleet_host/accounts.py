"""What the host has published, kept beyond its own life."""

from __future__ import annotations

from .delivery import DeliveryStats
from .store import accounting
from .store.database import Transactions


class PublishedBytes:
    """Adds what a distributor has counted since the last time to the database. Used by one thread."""

    def __init__(self, database: Transactions) -> None:
        self._database = database
        self._kept: dict[str, int] = {}

    def keep(self, stats: DeliveryStats) -> None:
        """Store what is new. Raises as the database does; then it is stored the next time."""
        now = {blob: counted.published_bytes for blob, counted in stats.blobs.items()}
        more = {blob: count - self._kept.get(blob, 0) for blob, count in now.items() if count > self._kept.get(blob, 0)}
        if not more:
            return
        with self._database.session() as session:
            accounting.add_published(session, more)
        self._kept = now
