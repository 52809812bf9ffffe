"""TUF's attacks on metadata, each a small mutation of a repository in memory; the board stays where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from signed_repository import DAY, NOW, SignedRepository, when
from trusting_board import MANIFEST, at, flip_signature, refused, unsigned
from tuf.api.metadata import MetaFile

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.errors import MalformedError, UntrustedError
from jetfleet_contract.trust import FIELD, MAX_PACKAGE_BYTES

# --- arbitrary software ---


@pytest.mark.parametrize("damage", [unsigned, flip_signature])
def test_timestamp_without_a_good_signature(repo: SignedRepository, store: TrustStore, damage: Callable[[bytes], bytes]) -> None:
    repo.commit()
    refused(store, repo.package(timestamp=damage(repo.timestamp_bytes)), "trust.signature")


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_snapshot_and_targets_are_bound_by_hash_before_their_signature(repo: SignedRepository, store: TrustStore, role: str) -> None:
    repo.commit()
    refused(store, repo.package(**{role: unsigned(getattr(repo, f"{role}_bytes"))}), "trust.mix")


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
@pytest.mark.parametrize("impostor", ["stranger", "other role"])
def test_signed_by_the_wrong_key(repo: SignedRepository, store: TrustStore, role: str, impostor: str) -> None:
    other = "snapshot" if role == "timestamp" else "timestamp"
    repo.signers[role] = [CryptoSigner.generate_ed25519()] if impostor == "stranger" else repo.signers[other]
    repo.commit()
    refused(store, repo.package(), "trust.signature")


def test_threshold_is_not_met_by_one_key_and_not_by_one_key_twice(repo: SignedRepository, store: TrustStore) -> None:
    second = CryptoSigner.generate_ed25519()
    repo.root.add_key(second.public_key, "timestamp")
    repo.root.roles["timestamp"].threshold = 2
    repo.next_root()
    repo.commit()
    refused(store, repo.package(), "trust.signature")
    metadata = json.loads(repo.timestamp_bytes)
    metadata["signatures"] *= 2
    refused(store, repo.package(timestamp=json.dumps(metadata).encode()), "trust.malformed")
    twin = dict(metadata["signatures"][0], keyid=second.public_key.keyid)
    metadata["signatures"] = [metadata["signatures"][0], twin]
    refused(store, repo.package(timestamp=json.dumps(metadata).encode()), "trust.signature")
    repo.signers["timestamp"].append(second)
    repo.commit()
    assert store.update(repo.package(), at())



# --- rollback, freeze, fork ---


def test_replay_of_an_old_retained_package(repo: SignedRepository, store: TrustStore) -> None:
    old = repo.package()
    repo.commit()
    assert store.update(repo.package(), at())
    refused(store, old, "trust.rollback")


def test_rollback_also_while_the_stored_timestamp_has_expired(repo: SignedRepository, store: TrustStore) -> None:
    old = repo.package()
    repo.commit()
    assert store.update(repo.package(), at())
    refused(store, old, "trust.rollback", at(NOW + 8 * DAY))


def test_snapshot_version_rolled_back_under_a_new_timestamp(repo: SignedRepository, store: TrustStore) -> None:
    repo.snapshot.version -= 1
    repo.commit_snapshot(bump=False)
    repo.commit_timestamp()
    refused(store, repo.package(), "trust.rollback")


def test_targets_version_rolled_back_under_a_new_snapshot(repo: SignedRepository, store: TrustStore) -> None:
    repo.targets.version -= 1
    repo.targets_bytes = repo.sign(repo.targets, "targets")
    repo.commit_snapshot()
    refused(store, repo.package(), "trust.rollback")


def test_snapshot_that_forgets_a_role(repo: SignedRepository, store: TrustStore) -> None:
    repo.snapshot.meta["builders.json"] = MetaFile(1)
    repo.commit_snapshot()
    assert store.update(repo.package(), at())
    del repo.snapshot.meta["builders.json"]
    repo.commit_snapshot()
    refused(store, repo.package(), "trust.metadata")


def test_two_timestamps_of_one_version(repo: SignedRepository, store: TrustStore) -> None:
    repo.timestamp.expires = when(NOW + 6 * DAY)
    repo.commit_timestamp(bump=False)
    refused(store, repo.package(), "trust.fork")


@pytest.mark.parametrize(("role", "days"), [("timestamp", 7), ("snapshot", 30), ("targets", 300), ("root", 1000)])
def test_expired_metadata_is_refused(repo: SignedRepository, store: TrustStore, role: str, days: int) -> None:
    for other in ("timestamp", "snapshot", "targets"):
        if other != role:
            getattr(repo, other).expires = when(NOW + 5000 * DAY)
    if role != "root":
        repo.root.expires = when(NOW + 5000 * DAY)
        repo.next_root()
    repo.commit()
    refused(store, repo.package(), "trust.expired", at(NOW + days * DAY + 1))


def test_a_device_asleep_past_expiry_takes_fresh_metadata(repo: SignedRepository, store: TrustStore) -> None:
    later = NOW + 100 * DAY
    repo.timestamp.expires = repo.snapshot.expires = when(later + DAY)
    repo.signed_at = later
    repo.commit()
    assert store.update(repo.package(), at(later))


def test_the_same_package_again_is_nothing_new(repo: SignedRepository, store: TrustStore) -> None:
    assert not store.update(repo.package(), at())
    refused(store, repo.package(), "trust.expired", at(NOW + 8 * DAY))  # frozen: the host does not refresh



# --- mix and match, endless data, parse attacks ---


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_pieces_of_two_publications(repo: SignedRepository, store: TrustStore, role: str) -> None:
    old = {role: getattr(repo, f"{role}_bytes")}
    repo.commit()
    refused(store, repo.package(**old), "trust.mix")


def test_targets_in_the_place_of_the_snapshot(repo: SignedRepository, store: TrustStore) -> None:
    repo.commit()
    refused(store, repo.package(timestamp=repo.snapshot_bytes), "trust.metadata")


def test_endless_data(store: TrustStore) -> None:
    refused(store, b"[" * (MAX_PACKAGE_BYTES + 1), "message.large")
    refused(store, b'{"root":' + b"[" * 2000 + b"]" * 2000 + b"}", "message.deep")
    refused(store, b"{}", "message.bad")
    refused(store, b"", "message.bad")


def test_no_root_or_too_many(repo: SignedRepository, store: TrustStore) -> None:
    refused(store, repo.package(root=[]), "trust.roots")
    refused(store, repo.package(root=[b"{}"] * 300), "trust.roots")
    refused(store, repo.package(root=[b"{}"]), "trust.malformed")


@pytest.mark.parametrize(("path", "custom"), [
    ("bundle/../../etc", {"size": 1, "table": "", "blobs": {}}),
    ("bundle/toy/2", {"size": 1, "table": "", "blobs": {"../../etc/passwd": [1, 65536, ""]}}),
    ("bundle/toy/2", {"size": 1, "table": "", "blobs": {"cd" * 32: [1 << 60, 65536, "ab" * 32]}}),
    ("bundle/toy/2", {"size": 1, "table": "", "blobs": {"cd" * 32: [1, 0, ""]}}),
    ("bundle/toy/2", {"size": 1, "table": "", "blobs": {"cd" * 32: [100_000, 65536, ""]}}),
    ("bundle/toy/2", {"size": -1, "table": "", "blobs": {}}),
    ("bundle/toy/2", None),
    ("bundle/toy/2", {"size": "x"}),
    ("other/toy/2", {"size": 1, "table": "", "blobs": {}}),
])
def test_a_target_out_of_bounds_changes_nothing(repo: SignedRepository, store: TrustStore, path: str, custom: Any) -> None:
    repo.add_bundle("cd" * 32, version="2")
    file = repo.targets.targets.pop("bundle/toy/2")
    file.unrecognized_fields = {"custom": custom}
    repo.targets.targets[path] = file
    repo.commit()
    before = store.versions
    with pytest.raises(MalformedError):
        store.update(repo.package(), at())
    assert store.versions == before
    assert store.bundle(MANIFEST).version == "1"


@pytest.mark.parametrize("field", [None, {}, {"root": 1, "signed": -1}, {"root": 1, "signed": 1 << 60}, {"root": 1, "signed": "x"}])
def test_a_timestamp_without_its_field(repo: SignedRepository, store: TrustStore, field: Any) -> None:
    repo.timestamp.version += 1
    repo.timestamp.unrecognized_fields[FIELD] = field
    refused(store, repo.package(timestamp=repo.sign(repo.timestamp, "timestamp")), "trust.target")


@pytest.mark.parametrize("version", [True, 1 << 53, 1 << 200])
def test_a_version_that_cannot_be_stored(repo: SignedRepository, store: TrustStore, version: int) -> None:
    repo.timestamp.version = version
    package = repo.package(timestamp=repo.sign(repo.timestamp, "timestamp"))
    fresh = TrustStore(store._folder.with_name("fresh"), store._pinned)
    refused(fresh, package, "trust.malformed")


def test_a_withdrawn_bundle_is_unknown_and_a_new_one_is_known(repo: SignedRepository, store: TrustStore) -> None:
    repo.targets.targets.clear()
    repo.add_bundle("cd" * 32, version="2", blobs={"ef" * 32: BlobInfo(70_000, table="01" * 32)})
    repo.commit()
    assert store.update(repo.package(), at())
    assert store.bundle("cd" * 32).every() == {"cd" * 32: BlobInfo(100), "ef" * 32: BlobInfo(70_000, table="01" * 32)}
    with pytest.raises(UntrustedError) as caught:
        store.bundle(MANIFEST)
    assert caught.value.code == "trust.unknown-bundle"
