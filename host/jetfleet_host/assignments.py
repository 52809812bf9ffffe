"""Which blobs a board may ask for: those of the bundles that some deployment of its own has named.

Not only the deployment of today: a board that refused its newest bundle still has to be able to fetch a lost file of
the one it runs. Everything else is refused, so that one stolen identity cannot make the host publish a whole catalogue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import select

from jetfleet_contract.chunks import CHUNK_BYTES, BlobInfo, chunk_count, lower_pages, page_digests

from .store.database import Database
from .store.engines import class_of
from .store.journal import deployment_of
from .store.models import Issued


def with_pages(every: Mapping[str, BlobInfo], read: Callable[[str], bytes]) -> dict[str, int]:
    """These blobs (a bundle's manifest, layers and deltas) and the pages of their chunk tables, each with the size of its chunks. `read`
    gives a small blob's bytes."""
    pages = {page: CHUNK_BYTES for info in every.values() for page in _pages(info, read)}
    return {**pages, **{blob: info.chunk_size for blob, info in every.items()}}


def _pages(info: BlobInfo, read: Callable[[str], bytes]) -> tuple[str, ...]:
    if not info.table:
        return ()
    if chunk_count(info.size, info.chunk_size) <= page_digests(info.chunk_size):
        return (info.table,)
    return (info.table, *(page.blob for page in lower_pages(info, read(info.table))))


class Assignments:
    """Answers from memory; the database is asked once a board and again after `changed`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._blobs: dict[str, dict[str, int]] = {}
        self._common: dict[str, int] = {}
        self._engines: dict[str, dict[str, int]] = {}
        self._chunk_sizes: dict[str, int] = {}
        self._bundles: dict[str, frozenset[str]] = {}

    def offer(self, blobs: dict[str, dict[str, int]], common: dict[str, int] | None = None,
              engines: dict[str, dict[str, int]] | None = None) -> None:
        """What is published now: the blobs of each bundle and the size of their chunks, by the bundle's manifest; those that any board
        may want, because the metadata itself continues in them; and those that boards of a class may want, by class."""
        self._blobs, self._common, self._engines = blobs, common or {}, engines or {}
        every = (*blobs.values(), self._common, *self._engines.values())
        self._chunk_sizes = {blob: size for bundle in every for blob, size in bundle.items()}

    def chunk_size(self, blob: str) -> int:
        """How the blob is cut, as its signed target says."""
        return self._chunk_sizes.get(blob, CHUNK_BYTES)

    def blobs_of(self, bundle: str) -> frozenset[str]:
        """All blobs of a published bundle, with the pages of their chunk tables; empty when it is not published."""
        return frozenset(self._blobs.get(bundle, ()))

    def changed(self, device: str) -> None:
        """This board got another deployment."""
        self._bundles.pop(device, None)

    def allowed(self, device: str, blob: str) -> bool:
        """Whether the board may want the blob. Raises StorageError when the database cannot be read."""
        if blob in self._common:
            return True
        if any(blob in engines for engines in self._engines.values()):
            with self._database.reading() as session:
                return blob in self._engines.get(class_of(session, device), ())
        if device not in self._bundles:
            self._bundles[device] = self._named_to(device)
        return any(blob in self._blobs.get(bundle, ()) for bundle in self._bundles[device])

    def _named_to(self, device: str) -> frozenset[str]:
        with self._database.reading() as session:
            issued = session.scalars(select(Issued.bundle).where(Issued.device == device).distinct())
            deployment = deployment_of(session, device)
            return frozenset(issued) | frozenset(app.bundle for app in (deployment.apps if deployment else ()))
