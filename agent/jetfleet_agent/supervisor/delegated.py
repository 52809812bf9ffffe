"""Keeps the metadata of this board's class, what its builders vouch for, as new as the signed snapshot says.

It is too large for the retained package, so it is fetched as any blob is: by hash and length from the snapshot.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.delegations import MAX_DELEGATED_BYTES, DelegationBlob
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Instant

log = logging.getLogger(__name__)

AGAIN_S = 60.0


class Vouching(Protocol):
    """What is used of a TrustStore."""

    def delegation(self, device_class: str) -> DelegationBlob | None: ...
    def accept_delegation(self, device_class: str, data: bytes, now: Instant) -> None: ...


class Reading(Protocol):
    """What is used of a BlobStore."""

    def read(self, blob: str, limit: int) -> bytes: ...


class Wanting(Protocol):
    """What is used of a Fetcher."""

    def want(self, blob: str, info: BlobInfo) -> None: ...


class ClassMetadata:
    """See the module. Used by the control thread only."""

    def __init__(self, device_class: str, trust: Vouching, store: Reading, fetcher: Wanting, clock: Callable[[], Instant]) -> None:
        self._class = device_class
        self._trust = trust
        self._store = store
        self._fetcher = fetcher
        self._clock = clock
        self._wanted: DelegationBlob | None = None
        self._again_at = 0.0

    def follow(self) -> None:
        """New metadata, or the broker is back: see whether something is to be fetched."""
        self._again_at = 0.0

    def tick(self) -> float:
        """Ask for what is missing; seconds until the next call is wanted. Wanting twice is fine: others may have cancelled the fetch."""
        now = self._clock().mono
        if now >= self._again_at:
            self._again_at = now + AGAIN_S
            self._wanted = self._trust.delegation(self._class)
            if self._wanted is not None:
                self._fetcher.want(self._wanted.blob, self._wanted.info)
        return self._again_at - now

    def blob_done(self, blob: str) -> None:
        """A blob came: is it the metadata? Raises as `TrustStore.accept_delegation`."""
        wanted = self._wanted
        if wanted is None or wanted.blob != blob:
            return
        self._wanted = None
        self._trust.accept_delegation(self._class, self._store.read(blob, MAX_DELEGATED_BYTES), self._clock())
        log.info("version %d of class %s's engines is trusted", wanted.version, self._class)

    def blob_failed(self, blob: str, error: JetfleetError) -> None:
        """It cannot be had now; `tick` asks again."""
        if self._wanted is not None and self._wanted.blob == blob:
            log.warning("the metadata of class %s cannot be had: %s", self._class, error.what)
