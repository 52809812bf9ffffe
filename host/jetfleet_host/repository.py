"""TUF metadata of a project, in the standard layout, always whole.

    repo/N.root.json  N.targets.json  N.snapshot.json      written first, never seen before
    repo/timestamp.json                                    replaced last: the one step that publishes

The timestamp names the snapshot by version, length and hash, the snapshot the targets, and jetfleet's signed field
in the timestamp the root that it belongs to. So until `timestamp.json` is renamed nothing has happened, and what a
killed writer left behind is swept by the next one. One writer at a time (`flock`), `publish` and `serve` alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from jetfleet_contract.errors import InputError, StorageError
from jetfleet_contract.trust import (
    FIELD,
    MAX_PACKAGE_BYTES,
    MetaPackage,
    SigningKeys,
    TimestampField,
    encode_package,
    read_keys,
    read_timestamp,
)
from jetfleet_host.durable import locked, sweep_partials, write_file
from jetfleet_host.keys import MESSAGE_ROLES, TUF_ROLES, KeyFolder, public_hex

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

    def create(self) -> None:
        """Make the first version of everything; the folder must be empty."""
        from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

        self.folder.mkdir(parents=True, exist_ok=True)
        root = Root(expires=self._expiry("root"))
        for role in TUF_ROLES:
            root.add_key(self.keys.signer(role, self.keys.create(role)).public_key, role)
        named = {role: [self.keys.create(role)] for role in MESSAGE_ROLES}
        targets = Targets(expires=self._expiry("targets"), unrecognized_fields={FIELD: named})
        fresh = Metadatas(Metadata(root), Metadata(Timestamp()), Metadata(Snapshot()), Metadata(targets))
        fresh.timestamp.signed.version = fresh.snapshot.signed.version = 0  # `_commit` gives them their next number
        self._sign(fresh.root, [self._signer(fresh.root, "root")])
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
            raise StorageError("repo.unreadable", f"the project's metadata cannot be read: {error}", where=str(self.folder),
                               remedy="restore the repo folder from a backup") from None
        return Metadatas(root, timestamp, snapshot, targets)

    def edit_targets(self, change: Callable[[Targets], None]) -> None:
        """Apply `change` to the targets and publish the result. Call inside `locked`.

        Raises:
            InputError: `keys.*`, `publish.meta-full`. StorageError.
        """
        current = self.load()
        self._sweep(current)
        change(current.targets.signed)
        current.targets.signed.version += 1
        current.targets.signed.expires = self._expiry("targets")
        self._commit(current)

    def rotate(self, role: str) -> str:
        """Replace the key of `role` by a new one, which is returned (hex). The old private key is removed at the end.

        A new root is signed by the old and the new root key. Timestamp and snapshot metadata are signed anew at once.
        """
        with self.locked():
            current = self.load()
            self._sweep(current)
            new = self._rotate_message_key(current, role) if role in MESSAGE_ROLES else self._rotate_role_key(current, role)
            for public in self.keys.held(role):
                if public != new:  # also what an interrupted rotation left behind: no metadata names it
                    self.keys.remove(role, public)
            return new

    def _rotate_message_key(self, current: Metadatas, role: str) -> str:
        new = self.keys.create(role)
        named = msgspec.to_builtins(current.keys)
        named[role] = [new]
        current.targets.signed.unrecognized_fields[FIELD] = named
        current.targets.signed.version += 1
        current.targets.signed.expires = self._expiry("targets")
        self._commit(current)
        return new

    def _rotate_role_key(self, current: Metadatas, role: str) -> str:
        root = current.root.signed
        if root.roles[role].threshold > 1:
            raise InputError("keys.threshold", f"the role {role} needs {root.roles[role].threshold} signatures",
                             remedy="rotate it with a TUF signing tool where its keys are kept")
        old_root = self._signer(current.root, "root")
        signer = self.keys.signer(role, self.keys.create(role))
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(signer.public_key, role)
        root.version += 1
        root.expires = self._expiry("root")
        self._sign(current.root, [old_root, *([signer] if role == "root" else [])])
        if role == "targets":
            current.targets.signed.version += 1
            current.targets.signed.expires = self._expiry("targets")
        self._write(f"{root.version}.root.json", _bytes(current.root))
        self._commit(current)
        return public_hex(signer)

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
            self._sign(edited.targets, [self._signer(edited.root, "targets")])
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
        self._sign(edited.snapshot, [self._signer(edited.root, "snapshot")])
        return _bytes(edited.snapshot)

    def _next_timestamp(self, edited: Metadatas, snapshot: bytes, now: float | None) -> bytes:
        from tuf.api.metadata import MetaFile

        timestamp = edited.timestamp.signed
        timestamp.snapshot_meta = MetaFile.from_data(edited.snapshot.signed.version, snapshot, ["sha256"])
        timestamp.version += 1
        timestamp.expires = self._expiry("timestamp", now)
        signed = TimestampField(edited.root.signed.version, int(self._clock() if now is None else now))
        timestamp.unrecognized_fields[FIELD] = msgspec.to_builtins(signed)
        self._sign(edited.timestamp, [self._signer(edited.root, "timestamp")])
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
        sweep_partials(self.folder)
        sweep_partials(self.keys.folder)
        keep = {f"{current.targets.signed.version}.targets.json", f"{current.snapshot.signed.version}.snapshot.json"}
        for path in self.folder.glob("*.*.json"):
            number, role, _ = path.name.split(".")
            stale_root = role == "root" and number.isdigit() and int(number) > current.root.signed.version
            if stale_root or (role != "root" and path.name not in keep):
                path.unlink(missing_ok=True)

    def _signer(self, root: Metadata[Root], role: str) -> CryptoSigner:
        """The signer of a role by what `root` says. The first key that is here, thresholds above one are signed elsewhere."""
        publics = [root.signed.keys[keyid].keyval["public"] for keyid in root.signed.roles[role].keyids]
        here = [public for public in publics if self.keys.has(role, public)]
        return self.keys.signer(role, (here or publics)[0])

    def _holds(self, root: Metadata[Root], role: str) -> bool:
        return any(self.keys.has(role, root.signed.keys[keyid].keyval["public"]) for keyid in root.signed.roles[role].keyids)

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
            raise StorageError("repo.unreadable", f"the project's {name} cannot be read: {error.strerror}", where=str(path),
                               remedy="restore the repo folder from a backup") from None

    def _write(self, name: str, data: bytes) -> None:
        write_file(self.folder / name, data)


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
