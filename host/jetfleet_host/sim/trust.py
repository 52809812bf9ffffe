"""What a virtual device trusts. Packages are verified by python-tuf once for all devices; who accepts which is each device's own.

The rules for deployments are the agent's: signature, addressee, number, name of the bundle, expiry by a clock that may be wrong.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone

import msgspec

from jetfleet_contract.errors import JetfleetError, UntrustedError
from jetfleet_contract.messages import Deployment, Instant
from jetfleet_contract.trust import (
    FIELD,
    BundleTarget,
    SigningKeys,
    check_deployment,
    decode_package,
    message_digest,
    read_keys,
    read_target,
    unseal,
)
from jetfleet_host.signing import verify_ed25519


class Verified(msgspec.Struct, frozen=True):
    """A package that follows from the pinned root: `version` is its timestamp's."""

    version: int
    keys: SigningKeys
    bundles: dict[str, BundleTarget]


class Packages:
    """Verifies each package once from the pinned root, by the checks of the TUF client workflow (specification 1.0.33, section 5)."""

    def __init__(self, pinned_root: bytes) -> None:
        self._root = pinned_root
        self._known: dict[bytes, Verified | UntrustedError] = {}

    def verified(self, package: bytes, wall: float) -> Verified:
        """Raises UntrustedError `trust.metadata`, MalformedError `message.*`."""
        digest = hashlib.sha256(package).digest()
        if digest not in self._known:
            self._known[digest] = self._verify(package, wall)
        found = self._known[digest]
        if isinstance(found, JetfleetError):
            raise found
        return found

    def _verify(self, data: bytes, wall: float) -> Verified | UntrustedError:
        from tuf.api.exceptions import RepositoryError
        from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
        from tuf.ngclient.config import EnvelopeType

        package = decode_package(data)
        try:
            trusted = TrustedMetadataSet(self._root, EnvelopeType.METADATA)
            trusted.reference_time = datetime.fromtimestamp(wall, timezone.utc)
            for root in package.root:
                if msgspec.json.decode(root)["signed"]["version"] > trusted.root.version:
                    trusted.update_root(bytes(root))
            trusted.update_timestamp(bytes(package.timestamp))
            trusted.update_snapshot(bytes(package.snapshot))
            trusted.update_targets(bytes(package.targets))
        except RepositoryError as error:
            return UntrustedError("trust.metadata", f"the metadata was refused: {error}")
        files = trusted.targets.targets.items()
        bundles = [read_target(path, file.hashes["sha256"], file.custom) for path, file in files if path.startswith("bundle/")]
        keys = read_keys(trusted.targets.unrecognized_fields.get(FIELD))
        return Verified(int(trusted.timestamp.version), keys, {one.manifest: one for one in bundles})


class DeviceTrust:
    """One device's view: the newest package that it has seen, and what it thinks of deployments."""

    def __init__(self, packages: Packages, device: str) -> None:
        self._packages = packages
        self._device = device
        self._state: Verified | None = None

    def update(self, package: bytes, wall: float) -> bool:
        """Take a package over; False when nothing in it is new. Raises UntrustedError, `trust.rollback` for an older one."""
        fresh = self._packages.verified(package, wall)
        if self._state is not None and fresh.version < self._state.version:
            raise UntrustedError("trust.rollback", f"timestamp {fresh.version} is older than {self._state.version}")
        changed = fresh is not self._state
        self._state = fresh
        return changed

    def bundle(self, manifest: str) -> BundleTarget:
        """Raises UntrustedError `trust.no-metadata`, `trust.unknown-bundle`."""
        target = self._trusted().bundles.get(manifest)
        if target is None:
            raise UntrustedError("trust.unknown-bundle", f"no signed target names the bundle {manifest[:16]}...")
        return target

    def deployment(self, data: bytes, last_seq: int, last_digest: str, now: Instant) -> Deployment:
        """Open a deployment's envelope.

        Raises:
            MalformedError. UntrustedError: `trust.no-metadata`, `trust.unknown-key`, `trust.signature`, `trust.device`,
            `trust.seq-lower`, `trust.seq-fork`, `trust.mix`, `trust.expired`.
        """
        state = self._trusted()
        found = check_deployment(unseal(data, "deployment", Deployment, state.keys.deployment, verify_ed25519))
        if found.device != self._device:
            raise UntrustedError("trust.device", f"the deployment is for another board, {found.device}")
        if found.seq < last_seq:
            raise UntrustedError("trust.seq-lower", f"deployment {found.seq} is older than {last_seq}")
        if found.seq == last_seq:
            if message_digest(found) != last_digest:
                raise UntrustedError("trust.seq-fork", f"two different deployments carry the number {found.seq}")
            return found
        for app in found.apps:
            target = state.bundles.get(app.bundle)
            if target is not None and (target.name, target.version) != (app.name, app.version):
                raise UntrustedError("trust.mix", f"app {app.app} names {app.name}:{app.version}, its bundle is {target.name}")
        if now.wall_trusted and found.expires <= now.wall:
            raise UntrustedError("trust.expired", "the deployment has expired by this board's clock")
        return found

    def _trusted(self) -> Verified:
        if self._state is None:
            raise UntrustedError("trust.no-metadata", "no signed metadata has arrived yet")
        return self._state
