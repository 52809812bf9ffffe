"""What a board trusts survives restarts, damage and power cuts, and never falls below what it has seen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from signed_repository import NOW, SignedRepository
from trusting_board import MANIFEST, at, refused
from tuf.api.metadata import Metadata

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.errors import JetfleetError, UntrustedError


@pytest.fixture
def repo() -> SignedRepository:
    made = SignedRepository()
    made.add_bundle(MANIFEST)
    made.commit()
    return made


@pytest.fixture
def store(repo: SignedRepository, tmp_path: Path) -> TrustStore:
    store = TrustStore(tmp_path / "trust", repo.roots[0])
    assert store.update(repo.package(), at())
    return store



def test_state_survives_a_restart_with_no_network(repo: SignedRepository, store: TrustStore) -> None:
    again = TrustStore(store._folder, store._pinned)
    assert again.versions == store.versions
    assert again.bundle(MANIFEST) == store.bundle(MANIFEST)


@pytest.mark.parametrize("damage", [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-20]),
    lambda path: path.write_bytes(path.read_bytes().replace(b'"sig":"', b'"sig":"00')),
    lambda path: path.write_bytes(bytes(range(256))),
])
def test_damaged_state_falls_back_to_the_pinned_root_but_not_below_the_floor(repo: SignedRepository, store: TrustStore,
                                                                                  damage: Any) -> None:
    old = repo.package()
    repo.commit()
    assert store.update(repo.package(), at())
    damage(store._folder / "trust.json")
    again = TrustStore(store._folder, store._pinned)
    assert again.versions == {}
    with pytest.raises(UntrustedError) as caught:
        again.bundle(MANIFEST)
    assert caught.value.code == "trust.no-metadata"
    refused(again, old, "trust.rollback")
    assert again.update(repo.package(), at())


def test_floor_holds_the_root_too(repo: SignedRepository, store: TrustStore) -> None:
    old = repo.package()
    repo.rotate("timestamp")
    assert store.update(repo.package(), at())
    (store._folder / "trust.json").unlink()
    refused(TrustStore(store._folder, store._pinned), old, "trust.rollback")


def test_restored_older_state_is_not_believed(repo: SignedRepository, store: TrustStore, tmp_path: Path) -> None:
    shutil.copy(store._folder / "trust.json", tmp_path / "old.json")
    repo.commit()
    assert store.update(repo.package(), at())
    shutil.copy(tmp_path / "old.json", store._folder / "trust.json")
    assert TrustStore(store._folder, store._pinned).versions == {}


def test_power_lost_between_state_and_floor(repo: SignedRepository, store: TrustStore) -> None:
    floor = (store._folder / "floor.json").read_bytes()
    old = repo.package()
    repo.commit()
    assert store.update(repo.package(), at())
    (store._folder / "floor.json").write_bytes(floor)
    again = TrustStore(store._folder, store._pinned)
    assert again.versions == store.versions
    (store._folder / "trust.json").unlink()
    refused(TrustStore(store._folder, store._pinned), old, "trust.rollback")


def test_damaged_floor_leaves_the_state_in_charge(repo: SignedRepository, store: TrustStore) -> None:
    old = repo.package()
    repo.commit()
    assert store.update(repo.package(), at())
    path = store._folder / "floor.json"
    path.write_bytes(path.read_bytes().replace(b'"timestamp":3', b'"timestamp":1'))
    again = TrustStore(store._folder, store._pinned)
    assert again.versions == store.versions
    refused(again, old, "trust.rollback")


def test_a_floor_raised_by_bit_rot_does_not_lock_the_board(repo: SignedRepository, store: TrustStore) -> None:
    path = store._folder / "floor.json"
    path.write_bytes(path.read_bytes().replace(b'"timestamp":2', b'"timestamp":9'))
    again = TrustStore(store._folder, store._pinned)
    repo.commit()
    assert again.update(repo.package(), at())


def test_a_board_given_to_another_project_starts_anew(repo: SignedRepository, store: TrustStore) -> None:
    repo.rotate("root")
    assert store.update(repo.package(), at())
    other = SignedRepository()
    moved = TrustStore(store._folder, other.roots[0])
    assert moved.versions == {}
    assert moved.update(other.package(), at())
    assert moved.clock_floor >= NOW


def test_a_newer_pinned_root_keeps_the_state(repo: SignedRepository, store: TrustStore) -> None:
    repo.rotate("targets")
    assert store.update(repo.package(), at())
    again = TrustStore(store._folder, repo.roots[1])
    assert again.versions == store.versions


def test_a_failing_disk_changes_nothing(repo: SignedRepository, store: TrustStore) -> None:
    repo.commit()
    before = store.versions
    store._folder.joinpath("trust.json").unlink()
    store._folder.joinpath("trust.json").mkdir()
    store._folder.joinpath("trust.json", "in-the-way").touch()
    with pytest.raises(JetfleetError) as caught:
        store.update(repo.package(), at())
    assert caught.value.code == "store.write"
    assert store.versions == before


def test_builder_makes_what_python_tuf_calls_valid(repo: SignedRepository) -> None:
    root = Metadata.from_bytes(repo.roots[0])
    root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
