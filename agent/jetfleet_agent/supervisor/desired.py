"""What the host wants of this board: signed metadata, and the deployment that it vouches for. Each is kept until it can be taken over.

Retained messages come once: what only a full disk, a clock that is not set, or metadata that has yet to come speaks against is tried again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Protocol

import msgspec

from jetfleet_contract.errors import JetfleetError, StorageError, UntrustedError
from jetfleet_contract.messages import Deployment, Instant
from jetfleet_contract.trust import message_digest

from .journal import BoardRecord

log = logging.getLogger(__name__)

RETRY_S = 10.0
_CLOCK_TROUBLE = ("trust.clock", "trust.expired", "trust.future")


class Believing(Protocol):
    """What is used of a TrustStore."""

    def update(self, package: bytes, now: Instant) -> bool: ...
    def deployment(self, data: bytes, device: str, last_seq: int, last_digest: str, now: Instant) -> Deployment: ...


class Desired:
    """See the module. Used by the control thread only.

    Args:
        record: what the journal says of the board, this session's number in it. save: makes a changed record durable; raises StorageError.
        renewed: called when newer metadata is trusted. deploy: puts a deployment into effect. count: told the code of each refusal.
    """

    def __init__(self, device: str, record: BoardRecord, trust: Believing, save: Callable[[BoardRecord], None], renewed: Callable[[], None],
                 deploy: Callable[[Deployment], None], count: Callable[[str], None], clock: Callable[[], Instant]) -> None:
        self._device = device
        self._record = record
        self._trust = trust
        self._save = save
        self._renewed = renewed
        self._deploy = deploy
        self._count = count
        self._clock = clock
        self._meta: bytes | None = None
        self._meta_at = 0.0
        self._wanted: bytes | None = None
        self._wanted_at = 0.0
        self._trouble = ""
        self.changed = False
        """Another deployment was taken since this was set to False."""

    @property
    def seq(self) -> int:
        """The number of the deployment that counts."""
        return self._record.seq

    def resume(self) -> None:
        """Put the stored deployment into effect. Raises as `Updater.deploy`."""
        if self._record.deployment is not None:
            self._deploy(self._record.deployment)

    def metadata(self, package: bytes) -> None:
        """A package came. Raises as `TrustStore.update`."""
        self._meta = package
        self.take_metadata()

    def deployment(self, envelope: bytes) -> None:
        """A deployment came. Raises MalformedError; StorageError, and it is tried again."""
        self._wanted = envelope
        self.take_deployment()

    def metadata_due(self, mono: float) -> bool:
        return self._meta is not None and mono >= self._meta_at

    def deployment_due(self, mono: float) -> bool:
        return self._wanted is not None and mono >= self._wanted_at

    def due_s(self, mono: float) -> float:
        """Seconds until something is to be tried again."""
        kept = ((self._meta_at, self._meta), (self._wanted_at, self._wanted))
        return max(min((at for at, message in kept if message is not None), default=math.inf) - mono, 0.0)

    def take_metadata(self) -> None:
        """Verify and take over new metadata; kept and tried again when only the disk, or a clock that is not set, speaks against it."""
        package, self._meta = self._meta, None
        if package is None:
            return
        try:
            fresh = self._trust.update(package, self._clock())
        except (StorageError, UntrustedError) as error:
            if isinstance(error, StorageError) or error.code in _CLOCK_TROUBLE:
                self._meta, self._meta_at = package, self._clock().mono + RETRY_S
            raise
        if fresh:
            self._renewed()
            self._wanted_at = 0.0

    def take_deployment(self) -> None:
        """Verify and apply what the host wants; kept and tried again when it came before the metadata that vouches for it."""
        data = self._wanted
        if data is None:
            return
        self._wanted_at = self._clock().mono + RETRY_S
        record = self._record
        try:
            deployment = self._trust.deployment(data, self._device, record.seq, record.digest, self._clock())
        except UntrustedError as error:
            self._refused(error)
            return
        except JetfleetError:
            self._wanted = None
            raise
        if deployment.seq != record.seq:
            taken = msgspec.structs.replace(record, seq=deployment.seq, digest=message_digest(deployment), deployment=deployment)
            self._save(taken)  # raises when the disk is full: then it is tried again
            self._record = taken
            self.changed = True
        self._wanted, self._trouble = None, ""
        self._deploy(deployment)

    def _refused(self, error: UntrustedError) -> None:
        if error.code not in ("trust.no-metadata", "trust.unknown-key", *_CLOCK_TROUBLE):
            self._wanted = None
        self._count(error.code)
        if error.code != self._trouble:  # it may be tried for days: say it once
            log.warning("the deployment is not accepted: %s [%s]", error.what, error.code)
        self._trouble = error.code
