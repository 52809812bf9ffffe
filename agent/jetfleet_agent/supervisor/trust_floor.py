"""What a board never falls below, kept apart from the metadata itself, so that damage to one leaves the other."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from jetfleet_agent.durable import write_file
from jetfleet_contract.messages import Message, encode
from jetfleet_contract.trust import message_digest

log = logging.getLogger(__name__)

BUILD_TIME = 1_785_542_400
"""2026-08-01 00:00 UTC: no board that runs this release lives before it."""
_FILE = "floor.json"


class Floor(Message, frozen=True):
    """Lowest versions by role, earliest possible time (seconds since 1970) and the last command's number.

    `pinned` is the SHA-256 of the pinned root: given another one by hand, the board follows another chain with other
    versions. `keyids` are those of timestamp and snapshot: once these have changed, old versions no longer bind.
    """

    pinned: str
    versions: dict[str, int] = {}
    keyids: dict[str, list[str]] = {}
    clock: int = BUILD_TIME
    command_seq: int = 0


class _SealedFloor(Message, frozen=True):
    """The floor with its digest: bit rot shows."""

    floor: Floor
    sha256: str


def write_floor(folder: Path, floor: Floor) -> None:
    """Write durably. StorageError `store.write`."""
    write_file(folder / _FILE, encode(_SealedFloor(floor, message_digest(floor))))


def load_floor(folder: Path, pinned: str) -> Floor:
    """The stored floor; the lowest one when there is none, or it is damaged; only its clock when another root is pinned."""
    path = folder / _FILE
    if not path.exists():
        return Floor(pinned)
    try:
        sealed = msgspec.json.decode(path.read_bytes(), type=_SealedFloor)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError):
        sealed = None
    if sealed is None or sealed.sha256 != message_digest(sealed.floor):
        log.warning("stored version floor is unusable; the stored metadata alone guards against rollback")
        return Floor(pinned)
    if sealed.floor.pinned != pinned:
        return Floor(pinned, clock=max(BUILD_TIME, sealed.floor.clock))
    return sealed.floor
