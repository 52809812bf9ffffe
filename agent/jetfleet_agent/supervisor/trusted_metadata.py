"""What the trust store takes out of TUF metadata, and how python-tuf is driven and its errors are told.

The clock is ours: expiry is judged by a reference that the caller gives, because a board's own may be wrong.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgspec

from jetfleet_contract.delegations import MAX_CLASSES, DelegationBlob, class_of_role, read_delegation
from jetfleet_contract.errors import JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.kernel_sets import KernelsTarget, read_kernels_target
from jetfleet_contract.trust import (
    FIELD,
    BundleTarget,
    DeltaTarget,
    MetaPackage,
    SigningKeys,
    read_delta_target,
    read_keys,
    read_target,
    read_timestamp,
)

if TYPE_CHECKING:
    from tuf.api.metadata import Root
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

MAX_NUMBER = 1 << 53


class TrustState(msgspec.Struct, frozen=True):
    """What is trusted now, as the bytes that were verified and what was read from them."""

    package: MetaPackage
    versions: dict[str, int]
    keyids: dict[str, list[str]]
    expires: float
    signed: int
    keys: SigningKeys
    bundles: dict[str, BundleTarget]
    deltas: dict[tuple[str, str], DeltaTarget]
    delegations: dict[str, DelegationBlob]
    builders: dict[str, dict[str, str]]
    kernels: dict[int, KernelsTarget]


class _RootBody(msgspec.Struct, frozen=True):
    version: int


class _RootClaim(msgspec.Struct, frozen=True):
    """What an unverified root says of itself."""

    signed: _RootBody


def metadata_set(root: bytes, reference: float) -> TrustedMetadataSet:
    """python-tuf's checks, judging expiry by `reference` (seconds since 1970) in place of the system's clock."""
    from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
    from tuf.ngclient.config import EnvelopeType

    trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)
    trusted.reference_time = datetime.fromtimestamp(reference, timezone.utc)
    return trusted


def root_version(root: msgspec.Raw) -> int:
    """The version that a root claims: only to pick which ones to verify."""
    try:
        return msgspec.json.decode(root, type=_RootClaim).signed.version
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedError("trust.malformed", f"not a root: {error}") from None


def _keyids(root: Root) -> dict[str, list[str]]:
    return {role: sorted(root.roles[role].keyids) for role in ("timestamp", "snapshot")}


def same_keys(old: dict[str, list[str]], root: Root) -> bool:
    """TUF 5.3.11: once timestamp's or snapshot's keys have changed, their old versions no longer bind (fast-forward recovery)."""
    return old == _keyids(root)


def read_state(trusted: TrustedMetadataSet, package: MetaPackage) -> TrustState:
    """Take what is needed out of verified metadata, within bounds."""
    root, timestamp, targets = trusted.root, trusted.timestamp, trusted.targets
    field = read_timestamp(timestamp.unrecognized_fields.get(FIELD))
    bundles, deltas, kernels = [], [], []
    for path, file in targets.targets.items():
        digest = file.hashes.get("sha256", "")
        if path.startswith("delta/"):
            deltas.append(read_delta_target(path, digest, file.custom))
        elif path.startswith("kernels/"):
            kernels.append(read_kernels_target(path, digest, file.custom))
        else:
            bundles.append(read_target(path, digest, file.custom))
    versions = {role: _version(signed.version)
                for role, signed in (("root", root), ("timestamp", timestamp), ("snapshot", trusted.snapshot), ("targets", targets))}
    return TrustState(package, versions, _keyids(root), timestamp.expires.timestamp(), field.signed,
                  read_keys(targets.unrecognized_fields.get(FIELD)), {found.manifest: found for found in bundles},
                  {(found.name, found.version): found for found in deltas}, _delegations(trusted), _builders(trusted),
                  {found.interface: found for found in kernels})


def _builders(trusted: TrustedMetadataSet) -> dict[str, dict[str, str]]:
    """By class, the ids of its builders' keys by the keys themselves (hex)."""
    delegations = trusted.targets.delegations
    found = {}
    for role, one in ((delegations.roles or {}) if delegations is not None else {}).items():
        device_class = class_of_role(role)
        if device_class is not None and delegations is not None:
            keys = {keyid: delegations.keys[keyid] for keyid in one.keyids if keyid in delegations.keys}
            found[device_class] = {str(key.keyval.get("public", "")): keyid for keyid, key in keys.items()}
    return found


def _delegations(trusted: TrustedMetadataSet) -> dict[str, DelegationBlob]:
    """The classes that targets delegates to, as far as the snapshot names their metadata."""
    delegations = trusted.targets.delegations
    found = {}
    for role in (delegations.roles or {}) if delegations is not None else {}:
        device_class, entry = class_of_role(role), trusted.snapshot.meta.get(f"{role}.json")
        if device_class is None or entry is None:
            continue
        found[device_class] = read_delegation(device_class, _version(entry.version), entry.length, (entry.hashes or {}).get("sha256"),
                                              entry.unrecognized_fields.get(FIELD))
    if len(found) > MAX_CLASSES:
        raise MalformedError("trust.target", f"{len(found)} classes are over the limit of {MAX_CLASSES}")
    return found


def _version(value: object) -> int:
    """A version that can be stored and compared: python-tuf lets JSON's `true` and any size of number pass."""
    if type(value) is not int or not 0 < value < MAX_NUMBER:
        raise MalformedError("trust.malformed", f"metadata version {str(value)[:40]} is out of bounds")
    return value


def tuf_errors() -> tuple[type[Exception], ...]:
    """What python-tuf raises on hostile bytes: its own tree, and what slips through from odd types inside."""
    from securesystemslib.exceptions import Error as SecureSystemsError
    from tuf.api.exceptions import RepositoryError

    return (RepositoryError, SecureSystemsError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


def translated(error: Exception) -> JetfleetError:
    from tuf.api import exceptions as tuf_errors
    from tuf.api.serialization import DeserializationError

    table: tuple[tuple[Any, str, str], ...] = (
        (DeserializationError, "trust.malformed", ""),
        (tuf_errors.UnsignedMetadataError, "trust.signature", "is this the project whose root.json the board was given?"),
        (tuf_errors.ExpiredMetadataError, "trust.expired", "start `jetfleet serve`, which refreshes it; is this board's clock right?"),
        (tuf_errors.BadVersionNumberError, "trust.rollback", "an older package was offered: does a second host use this broker?"),
        (tuf_errors.LengthOrHashMismatchError, "trust.mix", "parts of different publications were mixed: publish again"),
        (tuf_errors.RepositoryError, "trust.metadata", ""),
    )
    for kind, code, remedy in table:
        if isinstance(error, kind):
            made = MalformedError if kind is DeserializationError else UntrustedError
            return made(code, f"the metadata was refused: {str(error)[:300]}", remedy=remedy)
    return MalformedError("trust.malformed", f"the metadata is not valid: {type(error).__name__}")
