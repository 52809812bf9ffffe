"""Who may build engines for a device class, and what they have signed.

The targets role delegates ``engine/CLASS/*`` to the keys of builder boards. What a builder signs comes as a file of TUF targets metadata;
it is checked as boards will check it, named in the next snapshot, and published as a blob that every board of the class fetches.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from jetfleet_contract.chunks import BlobInfo, table_of
from jetfleet_contract.delegations import (
    MAX_CLASSES,
    MAX_DELEGATED_BYTES,
    MAX_ENGINES,
    DelegationBlob,
    EngineTarget,
    class_of_role,
    delegation_field,
    engine_paths,
    read_delegation,
    read_engine,
    role_of_class,
)
from jetfleet_contract.errors import InputError, MalformedError, UntrustedError
from jetfleet_contract.trust import FIELD, MAX_KEYS
from jetfleet_host.ceremony import key_of
from jetfleet_host.durable import write_file

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Snapshot, Targets

    from jetfleet_host.project import Project


@dataclass(frozen=True)
class Delegated:
    """One class: the keys of its builders (hex), how many have to sign, and the version of what they signed last (0: nothing yet)."""

    device_class: str
    keys: tuple[str, ...]
    threshold: int
    version: int


def delegate(project: Project, device_class: str, publics: Sequence[str], threshold: int = 1) -> Delegated:
    """Let these keys, and no others, vouch for engines of the class.

    Raises:
        InputError: `keys.bad`, `keys.threshold`, `keys.*`, `publish.meta-full`. MalformedError: `name.bad`.
    """
    role, paths = role_of_class(device_class), engine_paths(device_class)
    keys = [key_of(public) for public in publics]
    if not 1 <= threshold <= len({key.keyid for key in keys}) <= MAX_KEYS:
        raise InputError("keys.threshold", f"{threshold} of {len(keys)} keys cannot be asked for", where="--threshold",
                         remedy=f"1 <= threshold <= keys <= {MAX_KEYS}")

    def change(targets: Targets) -> None:
        from tuf.api.metadata import DelegatedRole, Delegations

        delegations = targets.delegations or Delegations(keys={}, roles={})
        roles = dict(delegations.roles or {})
        roles[role] = DelegatedRole(role, [key.keyid for key in keys], threshold, terminating=True, paths=[paths])
        if len(roles) > MAX_CLASSES:
            raise InputError("keys.classes", f"{len(roles)} classes are over the limit of {MAX_CLASSES}", remedy="revoke one first")
        used = {keyid for one in roles.values() for keyid in one.keyids}
        known = {**delegations.keys, **{key.keyid: key for key in keys}}
        targets.delegations = Delegations(keys={keyid: known[keyid] for keyid in sorted(used)}, roles=roles)

    with project.repository.locked():
        project.repository.edit_targets(change)
    return next(one for one in delegations_of(project) if one.device_class == device_class)


def revoke(project: Project, device_class: str) -> None:
    """Let nobody vouch for the class any more: boards trust none of its engines from the next metadata on. InputError `keys.unknown`."""
    role = role_of_class(device_class)

    def change(targets: Targets) -> None:
        from tuf.api.metadata import Delegations

        delegations = targets.delegations
        if delegations is None or role not in (delegations.roles or {}):
            raise InputError("keys.unknown", f"nobody vouches for class {device_class}", remedy="see jetfleet keys delegations")
        roles = {name: one for name, one in (delegations.roles or {}).items() if name != role}
        used = {keyid for one in roles.values() for keyid in one.keyids}
        kept = {keyid: key for keyid, key in delegations.keys.items() if keyid in used}
        targets.delegations = Delegations(keys=kept, roles=roles) if roles else None

    with project.repository.locked():
        project.repository.edit_targets(change)


def delegations_of(project: Project) -> tuple[Delegated, ...]:
    """Every class that somebody may vouch for, also where that waits for a handover."""
    targets = project.repository.newest_targets().signed
    snapshot = project.repository.load().snapshot.signed
    if targets.delegations is None:
        return ()
    found = []
    for role, one in sorted((targets.delegations.roles or {}).items()):
        device_class = class_of_role(role)
        entry = snapshot.meta.get(f"{role}.json")
        if device_class is not None:
            keys = tuple(targets.delegations.keys[keyid].keyval["public"] for keyid in one.keyids)
            found.append(Delegated(device_class, keys, one.threshold, entry.version if entry else 0))
    return tuple(found)


def key_of_device(project: Project, device: str) -> str:
    """The pinned public key (hex) of a board that has introduced itself. InputError `device.unknown`."""
    from jetfleet_host.store.database import Database
    from jetfleet_host.store.models import Device

    with closing(Database.open(project.database_url)) as database, database.reading() as session:
        row = session.get(Device, device)
        key = row.key if row else ""
    if not key:
        raise InputError("device.unknown", f"no board {device[:63]!r} has introduced itself", where=project.database_url.partition(":")[0],
                         remedy="jetfleet devices lists those that have; or give its key with --key")
    return key


def accept(project: Project, device_class: str, data: bytes, uncertified: Iterable[str] = ()) -> int:
    """Take over what a builder signed: check it, publish its blob, and name it in the next snapshot. Gives its version; again is fine.

    Args:
        uncertified: names of engines that nobody but their builder has tried; boards do not run them.

    Raises:
        UntrustedError: `trust.no-delegation`, `trust.signature`, `trust.rollback`, `trust.expired`, `trust.fork`.
        MalformedError: `message.large`, `trust.malformed`, `trust.target` (also for engines of another class). InputError `keys.*`.
    """
    found = read_delegated(device_class, data)
    _check_signed(project, device_class, found)
    info = _publish_blob(project, data)
    with project.repository.locked():
        entry = project.repository.load().snapshot.signed.meta.get(f"{role_of_class(device_class)}.json")
        if entry is not None and entry.version >= found.signed.version:
            same = (entry.hashes or {}).get("sha256") == hashlib.sha256(data).hexdigest()
            return _same_again(device_class, found.signed.version, entry.version, same)
        project.repository.accept_delegated(role_of_class(device_class), data, delegation_field(info, uncertified))
    return int(found.signed.version)


def certify(project: Project, device_class: str, uncertified: Iterable[str]) -> bool:
    """Say anew in the snapshot which engines of the class nobody but their builder has tried. False when it says so already.

    Raises:
        StorageError, InputError: as `Repository` when the snapshot cannot be signed here.
    """
    role = role_of_class(device_class)
    with project.repository.locked():
        entry = project.repository.load().snapshot.signed.meta.get(f"{role}.json")
        if entry is None:
            return False
        have = read_delegation(device_class, entry.version, entry.length, (entry.hashes or {}).get("sha256"),
                               entry.unrecognized_fields.get(FIELD))
        wanted = frozenset(uncertified)
        if have.uncertified == wanted:
            return False
        data = project.blobs.read(have.blob, 0, MAX_DELEGATED_BYTES)
        project.repository.accept_delegated(role, data, delegation_field(have.info, wanted))
    return True


def uncertified_of(project: Project, device_class: str) -> frozenset[str]:
    """Names of the class's engines that the snapshot in force says nobody but their builder has tried."""
    found = (one.uncertified for one in blobs_of_classes(project.repository.load().snapshot.signed) if one.device_class == device_class)
    return next(found, frozenset())


def vouched(project: Project, device_class: str) -> Targets | None:
    """What the class's builders have signed last, as it was accepted; None when there is nothing yet."""
    found = next((one for one in blobs_of_classes(project.repository.load().snapshot.signed) if one.device_class == device_class), None)
    return read_delegated(device_class, project.blobs.read(found.blob, 0, MAX_DELEGATED_BYTES)).signed if found is not None else None


def engines_of(project: Project) -> Iterator[tuple[str, EngineTarget]]:
    """Every engine that the accepted metadata of some class names, with its class."""
    for one in blobs_of_classes(project.repository.load().snapshot.signed):
        data = project.blobs.read(one.blob, 0, MAX_DELEGATED_BYTES)
        for path, file in read_delegated(one.device_class, data).signed.targets.items():
            yield one.device_class, read_engine(one.device_class, path, file.hashes.get("sha256", ""), file.custom)


def engine_blobs(project: Project) -> dict[str, dict[str, BlobInfo]]:
    """The engines of each class, which its boards may ask for: those whose bytes are here."""
    found: dict[str, dict[str, BlobInfo]] = {}
    for device_class, target in engines_of(project):
        if project.blobs.size(target.blob) != target.info.size:
            continue  # metadata that was added by hand may name more
        found.setdefault(device_class, {})[target.blob] = target.info
    return found


def blobs_of_classes(snapshot: Snapshot) -> Iterator[DelegationBlob]:
    """The blobs that boards fetch for their classes, as the snapshot names them."""
    for name, entry in snapshot.meta.items():
        device_class = class_of_role(name.removesuffix(".json"))
        if device_class is not None:
            yield read_delegation(device_class, entry.version, entry.length, (entry.hashes or {}).get("sha256"),
                                  entry.unrecognized_fields.get(FIELD))


def read_delegated(device_class: str, data: bytes) -> Metadata[Targets]:
    """Decode what a builder signed and check its engines; signatures are not looked at. MalformedError as `accept`."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Targets

    if len(data) > MAX_DELEGATED_BYTES:
        raise MalformedError("message.large", f"metadata of {len(data)} bytes is over the limit of {MAX_DELEGATED_BYTES}")
    try:
        found: Metadata[Targets] = Metadata.from_bytes(data)
    except (RepositoryError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise MalformedError("trust.malformed", f"this is no targets metadata: {str(error)[:200]}") from None
    if not isinstance(found.signed, Targets) or len(found.signed.targets) > MAX_ENGINES:
        raise MalformedError("trust.malformed", f"this is no targets metadata of at most {MAX_ENGINES} engines")
    for path, file in found.signed.targets.items():
        read_engine(device_class, path, file.hashes.get("sha256", ""), file.custom)
    return found


def _check_signed(project: Project, device_class: str, found: Metadata[Targets]) -> None:
    from tuf.api.exceptions import UnsignedMetadataError

    targets, role = project.repository.load().targets.signed, role_of_class(device_class)
    if targets.delegations is None or role not in (targets.delegations.roles or {}):
        raise UntrustedError("trust.no-delegation", f"nobody may vouch for engines of class {device_class}",
                             remedy="jetfleet keys delegate CLASS --device NAME")
    try:
        targets.verify_delegate(role, found.signed_bytes, found.signatures)
    except (UnsignedMetadataError, ValueError):
        raise UntrustedError("trust.signature", f"the metadata is not signed by a builder of class {device_class}",
                             remedy="see jetfleet keys delegations") from None
    if found.signed.is_expired(datetime.fromtimestamp(time.time(), timezone.utc)):
        raise UntrustedError("trust.expired", "the builder's metadata has expired", remedy="have the builder sign it again")


def _same_again(device_class: str, offered: int, have: int, same: bool) -> int:
    if offered < have:
        raise UntrustedError("trust.rollback", f"version {offered} of class {device_class} is older than {have}", remedy="give the newest")
    if not same:
        raise UntrustedError("trust.fork", f"two different files carry version {offered} of class {device_class}",
                             remedy="do two builders sign for one class? They have to build upon each other's version")
    return have


def _publish_blob(project: Project, data: bytes) -> BlobInfo:
    cut = project.settings.delivery.chunk_kb * 1024
    tabled = table_of(_pieces(data, cut), cut)
    for blob, page in ((tabled.blob, data), *tabled.pages):
        if project.blobs.size(blob) != len(page):
            write_file(project.blobs.path(blob), page)
    return tabled.info


def _pieces(data: bytes, cut: int) -> Iterable[bytes]:
    return (data[at : at + cut] for at in range(0, len(data), cut))
