"""Keys that were stolen, rotated, missed or are somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from signed_repository import DAY, NOW, SignedRepository, when
from trusting_board import at, flip_signature, refused

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.errors import InputError


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_each_role_rotates(repo: SignedRepository, store: TrustStore, role: str) -> None:
    stolen = list(repo.signers[role])
    repo.rotate(role)
    assert store.update(repo.package(), at())
    if role == "root":
        repo.signers["root"] = stolen
        repo.next_root()
    else:
        repo.signers[role] = stolen
        repo.commit()
    refused(store, repo.package(), "trust.signature")


def test_a_device_that_missed_five_root_rotations(repo: SignedRepository, store: TrustStore) -> None:
    for role in ("root", "timestamp", "root", "snapshot", "root"):
        repo.rotate(role)
    assert store.update(repo.package(), at())
    assert store.versions["root"] == 6
    assert TrustStore(store._folder, store._pinned).versions == store.versions


def test_a_gap_in_the_root_chain_names_the_remedy(repo: SignedRepository, store: TrustStore) -> None:
    repo.rotate("root")
    repo.rotate("root")
    refused(store, repo.package(root=[repo.roots[0], repo.roots[2]]), "trust.root-gap")
    assert store.update(repo.package(root=repo.roots[1:]), at())
    repo.commit()
    assert store.update(repo.package(root=repo.roots[2:]), at())  # the host left out what this board has
    assert TrustStore(store._folder, store._pinned).versions == store.versions


def test_a_new_root_signed_only_by_itself(repo: SignedRepository, store: TrustStore) -> None:
    repo.signers["root"] = [CryptoSigner.generate_ed25519()]
    repo.root.add_key(repo.signers["root"][0].public_key, "root")
    repo.next_root()
    refused(store, repo.package(), "trust.signature")


def test_an_intermediate_root_may_have_expired_the_last_may_not(repo: SignedRepository, store: TrustStore) -> None:
    repo.root.expires = when(NOW - DAY)
    repo.rotate("root")
    refused(store, repo.package(), "trust.expired")
    repo.root.expires = when(NOW + 99 * DAY)
    repo.rotate("root")
    assert store.update(repo.package(), at())


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_recovery_from_a_fast_forward(repo: SignedRepository, store: TrustStore, role: str) -> None:
    """A thief of a key gave out version 2**31; once timestamp's and snapshot's keys have changed, small versions count again."""
    normal = getattr(repo, role).version
    getattr(repo, role).version = 1 << 31
    repo.targets_bytes = repo.sign(repo.targets, "targets")
    repo.commit_snapshot(bump=role == "targets")
    repo.commit_timestamp(bump=role != "timestamp")
    assert store.update(repo.package(), at())
    getattr(repo, role).version = normal
    repo.rotate("snapshot", commit=False)
    repo.rotate("timestamp", commit=False)
    repo.rotate("targets")
    assert store.update(repo.package(), at())
    assert TrustStore(store._folder, store._pinned).versions[role] < 1 << 31


@pytest.mark.parametrize(("role", "rotated"), [("timestamp", "timestamp"), ("snapshot", "snapshot"), ("targets", "snapshot")])
def test_one_rotation_is_enough_to_recover(repo: SignedRepository, store: TrustStore, role: str, rotated: str) -> None:
    """TUF 5.3.11: new keys of timestamp or of snapshot free the versions of both."""
    normal = getattr(repo, role).version
    getattr(repo, role).version = 1 << 31
    repo.targets_bytes = repo.sign(repo.targets, "targets")
    repo.commit_snapshot(bump=role == "targets")
    repo.commit_timestamp(bump=role != "timestamp")
    assert store.update(repo.package(), at())
    getattr(repo, role).version = normal
    repo.rotate(rotated)
    assert store.update(repo.package(), at())
    assert store.versions[role] < 1 << 31


def test_another_projects_package(store: TrustStore) -> None:
    refused(store, SignedRepository().package(), "trust.signature")


def test_a_pinned_root_that_is_none(tmp_path: Path, repo: SignedRepository) -> None:
    for data in (b"", b"{}", repo.timestamp_bytes, flip_signature(repo.roots[0])):
        with pytest.raises(InputError) as caught:
            TrustStore(tmp_path / "t", data)
        assert caught.value.code == "trust.pinned-root"
