"""TUF metadata of a project, in the standard layout, always whole.

    repo/N.root.json  N.targets.json  N.class-C.json  N.snapshot.json   written first, never seen before
    repo/timestamp.json                                                 replaced last: the one step that publishes
    repo/handover.targets.json      signed where the keys of snapshot and timestamp are not, for where they are

The timestamp names the snapshot by version, length and hash, the snapshot the targets, and jetfleet's signed field
in the timestamp the root that it belongs to. So until `timestamp.json` is renamed nothing has happened, and what a
killed writer left behind is swept by the next one. One writer at a time (`flock`), `publish` and `serve` alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jetfleet_contract.errors import InputError, StorageError, UntrustedError
from jetfleet_contract.trust import (
    FIELD,
    MAX_KEYS,
    MAX_PACKAGE_BYTES,
    MetaPackage,
    SigningKeys,
    TimestampField,
    encode_package,
    read_keys,
    read_timestamp,
)
from jetfleet_host.durable import locked, sweep_partials, write_file
from jetfleet_host.keys import MESSAGE_ROLES, TUF_ROLES, KeyFolder

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

    from jetfleet_host.project import Project

LIFETIME = {
    "root": timedelta(days=5 * 365),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=30),
    "timestamp": timedelta(days=7),
}
"""How long each role's word holds. `serve` renews timestamp and snapshot; a publication renews targets."""

HANDOVER = "handover.targets.json"
_ROOT_ROOM = 40_000
"""Bytes of the package that the root chain may take; older roots are left out first."""


@dataclass(frozen=True)
class Metadatas:
    """The four current pieces of metadata. Editing works on copies of them."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]

    @property
    def keys(self) -> SigningKeys:
        return read_keys(self.targets.signed.unrecognized_fields.get(FIELD))


class Repository:
    """The ``repo/`` folder of a project together with its keys."""

    def __init__(self, folder: Path, keys: KeyFolder, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.keys = keys
        self._clock = clock

    def create(self, root_keys: int = 1, root_threshold: int = 1) -> None:
        """Make the first version of everything; the folder must be empty.

        Raises:
            InputError: `keys.threshold`.
        """
        from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

        self.folder.mkdir(parents=True, exist_ok=True)
        root = Root(expires=self._expiry("root"))
        check_threshold(root_keys, root_threshold)
        for role in TUF_ROLES:
            for _ in range(root_keys if role == "root" else 1):
                root.add_key(self.keys.signer(role, self.keys.create(role)).public_key, role)
        root.roles["root"].threshold = root_threshold
        named = {role: [self.keys.create(role)] for role in MESSAGE_ROLES}
        targets = Targets(expires=self._expiry("targets"), unrecognized_fields={FIELD: named})
        fresh = Metadatas(Metadata(root), Metadata(Timestamp()), Metadata(Snapshot()), Metadata(targets))
        fresh.timestamp.signed.version = fresh.snapshot.signed.version = 0  # `_commit` gives them their next number
        self._sign(fresh.root, self._signers(fresh.root, "root"))
        self._write("1.root.json", _bytes(fresh.root))
        self._commit(fresh)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the repository against other processes; nobody waits for a dead one."""
        if not self.folder.is_dir():
            raise InputError("project.broken", "the project has no metadata folder", where=str(self.folder),
                             remedy="restore it from a backup")
        with locked(self.folder):
            yield

    def load(self) -> Metadatas:
        """Read the current metadata.

        Raises:
            StorageError: `repo.unreadable`.
        """
        from tuf.api.exceptions import RepositoryError
        from tuf.api.metadata import Metadata

        try:
            timestamp: Metadata[Timestamp] = Metadata.from_bytes(self._read("timestamp.json"))
            field = read_timestamp(timestamp.signed.unrecognized_fields.get(FIELD))
            snapshot: Metadata[Snapshot] = Metadata.from_bytes(self._read(f"{timestamp.signed.snapshot_meta.version}.snapshot.json"))
            targets: Metadata[Targets] = Metadata.from_bytes(self._read(f"{snapshot.signed.meta['targets.json'].version}.targets.json"))
            root: Metadata[Root] = Metadata.from_bytes(self._read(f"{field.root}.root.json"))
        except (RepositoryError, KeyError) as error:
            raise _unreadable(self.folder, str(error)) from None
        return Metadatas(root, timestamp, snapshot, targets)

    def edit_targets(self, change: Callable[[Targets], None]) -> None:
        """Apply `change` to the targets and publish the result; where the keys of snapshot and timestamp are elsewhere, sign it for a
        handover only. Call inside `locked`.

        Raises:
            InputError: `keys.*`, `publish.meta-full`. StorageError.
        """
        current = self.load()
        self._sweep(current)
        current = replace(current, targets=self.newest_targets())
        change(current.targets.signed)
        current.targets.signed.version += 1
        current.targets.signed.expires = self._expiry("targets")
        if self.can_publish(current.root):
            self._commit(current)
            return
        self._sign(current.targets, self._signers(current.root, "targets"))
        self._write(HANDOVER, _bytes(current.targets))

    def newest_targets(self) -> Metadata[Targets]:
        """The targets that the next change builds upon: those that wait for a handover, else the published ones."""
        current, waiting = self.load().targets, self.handover()
        return waiting if waiting is not None and waiting.signed.version > current.signed.version else current

    def handover(self) -> Metadata[Targets] | None:
        """Targets that were signed here and wait to be accepted where snapshot and timestamp are signed."""
        from tuf.api.exceptions import RepositoryError
        from tuf.api.metadata import Metadata, Targets

        if not (self.folder / HANDOVER).exists():
            return None
        try:
            return Metadata[Targets].from_bytes(self._read(HANDOVER))
        except RepositoryError as error:
            raise _unreadable(self.folder / HANDOVER, str(error)) from None

    def accept_targets(self, offered: Metadata[Targets]) -> bool:
        """Publish targets that were signed elsewhere. False when they are published already. Call inside `locked`.

        Raises:
            UntrustedError: `trust.signature`, `trust.rollback`, `trust.expired`. InputError: `keys.*`, `publish.meta-full`.
        """
        from tuf.api.exceptions import UnsignedMetadataError

        current = self.load()
        self._sweep(current)
        try:
            current.root.signed.verify_delegate("targets", offered.signed_bytes, offered.signatures)
        except (UnsignedMetadataError, ValueError):
            raise UntrustedError("trust.signature", "the offered targets are not signed by this project's targets key",
                                 remedy="was the key rotated? Then copy the repo folder to the builder first") from None
        if offered.signed.is_expired(datetime.fromtimestamp(self._clock(), timezone.utc)):
            raise UntrustedError("trust.expired", "the offered targets have expired", remedy="publish again at the builder")
        have = current.targets.signed.version
        if offered.signed.version < have:
            raise UntrustedError("trust.rollback", f"the offered targets {offered.signed.version} are older than {have}",
                                 remedy="copy the repo folder to the builder and publish again there")
        if _bytes(offered) == _bytes(current.targets):
            return False
        if offered.signed.version == have:
            raise UntrustedError("trust.fork", f"two different targets carry the version {have}", remedy="publish again at the builder")
        self._write(f"{offered.signed.version}.targets.json", _bytes(offered))
        self._commit(replace(current, targets=offered))
        return True

    def accept_root(self, root: Metadata[Root], targets_key_changes: bool) -> None:
        """Publish the next root, whose signatures were checked. Call inside `locked`. InputError `keys.*`; StorageError."""
        current = self.load()
        self._sweep(current)
        edited = replace(current, root=root)
        for role in ("snapshot", "timestamp", *(("targets",) if targets_key_changes else ())):
            self._signers(root, role)  # nothing is written that could not be completed
        if targets_key_changes:
            edited.targets.signed.version += 1
            edited.targets.signed.expires = self._expiry("targets")
        self._write(f"{root.signed.version}.root.json", _bytes(root))
        self._commit(edited)

    def accept_delegated(self, role: str, data: bytes, field: dict[str, object]) -> None:
        """Name a delegated role's metadata, which was checked, in the next snapshot. Call inside `locked`.

        Args:
            field: jetfleet's field of the snapshot's entry: the chunk table by which boards fetch it.
        """
        from tuf.api.metadata import Metadata, MetaFile, Targets

        current = self.load()
        self._sweep(current)
        version = Metadata[Targets].from_bytes(data).signed.version
        entry = MetaFile.from_data(version, data, ["sha256"])
        entry.unrecognized_fields[FIELD] = field
        current.snapshot.signed.meta[f"{role}.json"] = entry
        self._write(f"{version}.{role}.json", data)
        self._commit(current)

    def can_publish(self, root: Metadata[Root]) -> bool:
        """Whether snapshot and timestamp can be signed here."""
        return all(self._holds(root, role) for role in ("snapshot", "timestamp"))

    def rotate(self, role: str) -> str:
        """Replace the keys of `role` by as many new ones; the first is returned (hex). The old private keys are removed at the end.

        A new root is signed by old and new root keys. Timestamp and snapshot metadata are signed anew at once.

        Raises:
            InputError: `keys.missing`, `keys.threshold`: not enough of the root's keys are here; see `jetfleet keys root-draft`.
        """
        with self.locked():
            current = self.load()
            self._sweep(current)
            new = self._rotate_message_key(current, role) if role in MESSAGE_ROLES else self._rotate_role_key(current, role)
            for public in self.keys.held(role):
                if public not in new:  # also what an interrupted rotation left behind: no metadata names it
                    self.keys.remove(role, public)
            return new[0]

    def _rotate_message_key(self, current: Metadatas, role: str) -> list[str]:
        new = self.keys.create(role)
        named = msgspec.to_builtins(current.keys)
        named[role] = [new]
        current.targets.signed.unrecognized_fields[FIELD] = named
        current.targets.signed.version += 1
        current.targets.signed.expires = self._expiry("targets")
        self._commit(current)
        return [new]

    def _rotate_role_key(self, current: Metadatas, role: str) -> list[str]:
        root = current.root.signed
        old_roots = self._signers(current.root, "root")
        publics = [self.keys.create(role) for _ in root.roles[role].keyids]
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for public in publics:
            root.add_key(self.keys.signer(role, public).public_key, role)
        root.version += 1
        root.expires = self._expiry("root")
        self._sign(current.root, [*old_roots, *(self._signers(current.root, "root") if role == "root" else [])])
        if role == "targets":
            current.targets.signed.version += 1
            current.targets.signed.expires = self._expiry("targets")
        self._write(f"{root.version}.root.json", _bytes(current.root))
        self._commit(current)
        return publics

    def refresh(self, now: float) -> bool:
        """Sign anew what has less than half of its time left: timestamp, snapshot, and targets where its key is here.

        Returns:
            True if something was signed.
        """
        with self.locked():
            current = self.load()
            targets_due = _is_due(current, "targets", now) and self._holds(current.root, "targets")
            if not targets_due and not any(_is_due(current, role, now) for role in ("timestamp", "snapshot")):
                return False
            self._sweep(current)
            if targets_due:
                current.targets.signed.version += 1
                current.targets.signed.expires = self._expiry("targets", now)
            self._commit(current, now=now)
            return True

    def package(self) -> bytes:
        """The retained package of the current metadata."""
        with self.locked():
            current = self.load()
            snapshot, targets = current.snapshot.signed.version, current.targets.signed.version
            return self._package(current.root.signed.version, self._read("timestamp.json"), self._read(f"{snapshot}.snapshot.json"),
                                 self._read(f"{targets}.targets.json"))

    # --- one publication -------------------------------------------------------------------------------

    def _commit(self, edited: Metadatas, now: float | None = None) -> None:
        """Sign what changed and write it, the timestamp last. Everything before that can be lost without harm."""
        targets_name = f"{edited.targets.signed.version}.targets.json"
        if not (self.folder / targets_name).exists():
            self._sign(edited.targets, self._signers(edited.root, "targets"))
            self._write(targets_name, _bytes(edited.targets))
        targets = self._read(targets_name)
        snapshot = self._next_snapshot(edited, targets, now)
        timestamp = self._next_timestamp(edited, snapshot, now)
        size = len(self._package(edited.root.signed.version, timestamp, snapshot, targets))
        if size > MAX_PACKAGE_BYTES:
            raise InputError("publish.meta-full", f"the metadata package would have {size} bytes, over the limit of {MAX_PACKAGE_BYTES}",
                             where=str(self.folder), remedy="retire versions that no board runs: jetfleet models retire NAME:VERSION")
        self._write(f"{edited.snapshot.signed.version}.snapshot.json", snapshot)
        self._write("timestamp.json", timestamp)
        self._sweep(edited)

    def _next_snapshot(self, edited: Metadatas, targets: bytes, now: float | None) -> bytes:
        from tuf.api.metadata import MetaFile

        snapshot = edited.snapshot.signed
        snapshot.meta["targets.json"] = MetaFile.from_data(edited.targets.signed.version, targets, ["sha256"])
        snapshot.version += 1
        snapshot.expires = self._expiry("snapshot", now)
        self._sign(edited.snapshot, self._signers(edited.root, "snapshot"))
        return _bytes(edited.snapshot)

    def _next_timestamp(self, edited: Metadatas, snapshot: bytes, now: float | None) -> bytes:
        from tuf.api.metadata import MetaFile

        timestamp = edited.timestamp.signed
        timestamp.snapshot_meta = MetaFile.from_data(edited.snapshot.signed.version, snapshot, ["sha256"])
        timestamp.version += 1
        timestamp.expires = self._expiry("timestamp", now)
        signed = TimestampField(edited.root.signed.version, int(self._clock() if now is None else now))
        timestamp.unrecognized_fields[FIELD] = msgspec.to_builtins(signed)
        self._sign(edited.timestamp, self._signers(edited.root, "timestamp"))
        return _bytes(edited.timestamp)

    def _package(self, newest_root: int, timestamp: bytes, snapshot: bytes, targets: bytes) -> bytes:
        """Put the pieces together, with as much of the root chain as fits: older boards need a newer root.json by hand."""
        roots: list[msgspec.Raw] = []
        room = _ROOT_ROOM
        for version in range(newest_root, 0, -1):
            data = self._read(f"{version}.root.json")
            room -= len(data)
            if roots and room < 0:
                break
            roots.insert(0, msgspec.Raw(data))
        return encode_package(MetaPackage(tuple(roots), msgspec.Raw(timestamp), msgspec.Raw(snapshot), msgspec.Raw(targets)))

    def _sweep(self, current: Metadatas) -> None:
        """Remove what a killed writer left, and versions that nothing names any more. Roots up to the current one stay."""
        version = current.snapshot.signed.version
        sweep_partials(self.folder)
        sweep_partials(self.keys.folder)
        keep = {f"{version}.snapshot.json", *(f"{file.version}.{name}" for name, file in current.snapshot.signed.meta.items())}
        keep.add(f"{current.targets.signed.version}.targets.json")  # not in the snapshot yet while everything is being made
        for path in self.folder.glob("*.*.json"):
            number, _, name = path.name.partition(".")
            if not number.isdigit() or path.name in keep or (name == "root.json" and int(number) <= current.root.signed.version):
                continue
            path.unlink(missing_ok=True)

    def _signers(self, root: Metadata[Root], role: str) -> list[CryptoSigner]:
        """As many signers of a role as `root` asks for, of the keys that are here.

        Raises:
            InputError: `keys.missing` (none is here), `keys.threshold` (too few), `keys.mode`, `keys.bad`.
        """
        publics, threshold = role_keys(root, role), root.signed.roles[role].threshold
        here = [public for public in publics if self.keys.has(role, public)][:threshold]
        if 0 < len(here) < threshold:
            raise InputError("keys.threshold", f"{len(here)} {role} key is here, {threshold} have to sign", where=str(self.keys.folder),
                             remedy="bring another holder's key for this command, or begin a ceremony: jetfleet keys root-draft")
        return [self.keys.signer(role, public) for public in here or publics[:1]]

    def _holds(self, root: Metadata[Root], role: str) -> bool:
        return sum(self.keys.has(role, public) for public in role_keys(root, role)) >= root.signed.roles[role].threshold

    @staticmethod
    def _sign(metadata: Metadata[Any], signers: list[CryptoSigner]) -> None:
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)

    def _expiry(self, role: str, now: float | None = None) -> datetime:
        start = datetime.fromtimestamp(self._clock() if now is None else now, timezone.utc)
        return (start + LIFETIME[role]).replace(microsecond=0)

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise _unreadable(path, str(error.strerror)) from None

    def _write(self, name: str, data: bytes) -> None:
        write_file(self.folder / name, data)


def role_keys(root: Metadata[Root], role: str) -> list[str]:
    """Public keys (hex) that `root` names for a role, in its order."""
    return [root.signed.keys[keyid].keyval["public"] for keyid in root.signed.roles[role].keyids]


def check_threshold(keys: int, threshold: int) -> None:
    """InputError `keys.threshold` unless 1 <= threshold <= keys <= 16."""
    if not 1 <= threshold <= keys <= MAX_KEYS:
        raise InputError("keys.threshold", f"{threshold} of {keys} keys cannot be asked for", where="--root-keys, --root-threshold",
                         remedy=f"1 <= threshold <= keys <= {MAX_KEYS}; 2 of 3 survives a lost key and a stolen one")


def _unreadable(path: Path, why: str) -> StorageError:
    return StorageError("repo.unreadable", f"the project's metadata cannot be read: {why}", where=str(path),
                        remedy="restore the repo folder from a backup")


def _bytes(metadata: Metadata[Any]) -> bytes:
    """Compact JSON: what hashes and lengths cover, and what travels."""
    from tuf.api.serialization.json import JSONSerializer

    return metadata.to_bytes(JSONSerializer(compact=True))


def _is_due(current: Metadatas, role: str, now: float) -> bool:
    left = getattr(current, role).signed.expires.timestamp() - now
    return bool(left < LIFETIME[role].total_seconds() / 2)


def meta_package(project: Project) -> bytes:
    """The one retained package of the meta topic, at most `MAX_PACKAGE_BYTES`."""
    return project.repository.package()


def refresh_timestamp(project: Project, now: float) -> bool:
    """Renew timestamp and snapshot where due (`now`: seconds since 1970). True means: publish `meta_package` again."""
    return project.repository.refresh(now)
