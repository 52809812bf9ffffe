"""A TUF repository in memory that signs on demand, so that an attack is a mutation of two or three lines.

It knows nothing of the host's code: what it makes follows the TUF specification and `jetfleet_contract.trust` alone.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.messages import Command, Deployment
from jetfleet_contract.trust import FIELD, MetaPackage, encode_package, seal, target_field, target_path

NOW = 1_800_000_000
DAY = 86_400


def when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def key_hex(signer: CryptoSigner) -> str:
    value: str = signer.public_key.keyval["public"]
    return value


class SignedRepository:
    """Roles, keys and metadata. Change anything, then `commit()` what should be signed anew; `package()` gives the bytes."""

    def __init__(self) -> None:
        roles = ("root", "timestamp", "snapshot", "targets")
        self.signers: dict[str, list[CryptoSigner]] = {role: [CryptoSigner.generate_ed25519()] for role in roles}
        self.deployment = CryptoSigner.generate_ed25519()
        self.command = CryptoSigner.generate_ed25519()
        self.root = Root(expires=when(NOW + 1000 * DAY))
        for role, signers in self.signers.items():
            self.root.add_key(signers[0].public_key, role)
        self.targets = Targets(expires=when(NOW + 300 * DAY), unrecognized_fields={FIELD: {
            "deployment": [key_hex(self.deployment)], "command": [key_hex(self.command)]}})
        self.snapshot = Snapshot(expires=when(NOW + 30 * DAY))
        self.timestamp = Timestamp(expires=when(NOW + 7 * DAY))
        self.signed_at = NOW
        self.roots: list[bytes] = []
        self.targets_bytes = self.snapshot_bytes = self.timestamp_bytes = b""
        self.commit_root()
        self.commit(bump=False)

    def sign(self, signed: Any, role: str) -> bytes:
        metadata = Metadata(signed)
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def commit_root(self, *, extra: tuple[CryptoSigner, ...] = ()) -> None:
        metadata = Metadata(self.root)
        for signer in (*self.signers["root"], *extra):
            metadata.sign(signer, append=True)
        self.roots.append(metadata.to_bytes())

    def next_root(self, *, extra: tuple[CryptoSigner, ...] = ()) -> None:
        self.root.version += 1
        self.commit_root(extra=extra)

    def commit(self, *, bump: bool = True) -> None:
        """Sign targets, snapshot and timestamp, each under the next version."""
        self.targets.version += int(bump)
        self.targets_bytes = self.sign(self.targets, "targets")
        self.commit_snapshot(bump=bump)

    def commit_snapshot(self, *, bump: bool = True) -> None:
        self.snapshot.meta["targets.json"] = MetaFile.from_data(self.targets.version, self.targets_bytes, ["sha256"])
        self.snapshot.version += int(bump)
        self.snapshot_bytes = self.sign(self.snapshot, "snapshot")
        self.commit_timestamp(bump=bump)

    def commit_timestamp(self, *, bump: bool = True) -> None:
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, self.snapshot_bytes, ["sha256"])
        self.timestamp.version += int(bump)
        self.timestamp.unrecognized_fields[FIELD] = {"root": self.root.version, "signed": self.signed_at}
        self.timestamp_bytes = self.sign(self.timestamp, "timestamp")

    def rotate(self, role: str, *, commit: bool = True) -> None:
        """Give `role` a new key by a new root."""
        old_root = tuple(self.signers["root"])
        for signer in self.signers[role]:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519()]
        self.root.add_key(self.signers[role][0].public_key, role)
        self.next_root(extra=old_root if role == "root" else ())
        if commit:
            self.commit()

    def add_bundle(self, manifest: str, name: str = "toy", version: str = "1", *, size: int = 100,
                   blobs: dict[str, BlobInfo] | None = None) -> None:
        custom = {"custom": target_field(BlobInfo(size), blobs or {})}
        path = target_path(name, version)
        self.targets.targets[path] = TargetFile(size, {"sha256": manifest}, path, custom)

    def package(self, **parts: Any) -> bytes:
        """The package; `root` (list), `timestamp`, `snapshot`, `targets` (bytes) replace the current piece."""
        raw = msgspec.Raw
        roots = tuple(raw(data) for data in parts.get("root", self.roots))
        rest = [raw(parts.get(role, getattr(self, f"{role}_bytes"))) for role in ("timestamp", "snapshot", "targets")]
        return encode_package(MetaPackage(roots, *rest))

    def deploy(self, message: Deployment, *, by: CryptoSigner | None = None, kind: str = "deployment") -> bytes:
        return _seal(kind, message, by or self.deployment)

    def order(self, message: Command, *, by: CryptoSigner | None = None) -> bytes:
        return _seal("command", message, by or self.command)


def _seal(kind: str, message: msgspec.Struct, signer: CryptoSigner) -> bytes:
    return seal(kind, message, key_hex(signer), lambda data: bytes.fromhex(signer.sign(data).signature))
