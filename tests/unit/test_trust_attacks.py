"""The attack list on metadata: each is a small mutation of a repository in memory, and the board stays where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from signed_repository import DAY, NOW, SignedRepository, when
from tuf.api.metadata import Metadata, MetaFile

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_agent.supervisor.trust_floor import BUILD_TIME
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, UntrustedError
from jetfleet_contract.messages import Command, Deployment, Instant
from jetfleet_contract.trust import FIELD, MAX_PACKAGE_BYTES

MANIFEST = "ab" * 32


def at(wall: float = NOW, *, trusted: bool = True) -> Instant:
    return Instant(10.0, "boot", wall, trusted)


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


def refused(store: TrustStore, package: bytes, code: str, now: Instant | None = None) -> None:
    """`package` is refused with `code`, and what was trusted before still is: in memory and on disk."""
    before = store.versions
    with pytest.raises(JetfleetError) as caught:
        store.update(package, now or at())
    assert caught.value.code == code
    assert isinstance(caught.value, (UntrustedError, MalformedError))
    assert store.versions == before
    again = TrustStore(store._folder, store._pinned)
    assert again.versions == before


# --- arbitrary software ------------------------------------------------------------------------------------


def _unsigned(data: bytes) -> bytes:
    metadata = json.loads(data)
    metadata["signatures"] = []
    return json.dumps(metadata).encode()


def _flip_signature(data: bytes) -> bytes:
    metadata = json.loads(data)
    sig = metadata["signatures"][0]["sig"]
    metadata["signatures"][0]["sig"] = ("0" if sig[0] != "0" else "1") + sig[1:]
    return json.dumps(metadata).encode()


@pytest.mark.parametrize("damage", [_unsigned, _flip_signature])
def test_timestamp_without_a_good_signature(repo: SignedRepository, store: TrustStore, damage: Callable[[bytes], bytes]) -> None:
    repo.commit()
    refused(store, repo.package(timestamp=damage(repo.timestamp_bytes)), "trust.signature")


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_snapshot_and_targets_are_bound_by_hash_before_their_signature(repo: SignedRepository, store: TrustStore, role: str) -> None:
    repo.commit()
    refused(store, repo.package(**{role: _unsigned(getattr(repo, f"{role}_bytes"))}), "trust.mix")


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


# --- rollback, freeze, fork --------------------------------------------------------------------------------


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


# --- clocks ------------------------------------------------------------------------------------------------


def test_an_untrusted_clock_neither_blocks_nor_opens(repo: SignedRepository, tmp_path: Path) -> None:
    store = TrustStore(tmp_path / "t", repo.roots[0])
    assert store.clock_floor == BUILD_TIME
    assert store.update(repo.package(), at(4e9, trusted=False))
    assert store.clock_floor == NOW
    repo.timestamp.expires = when(NOW - 1)  # past by the floor, though the clock says 1970
    repo.commit_timestamp()
    refused(store, repo.package(), "trust.expired", at(0.0, trusted=False))


def test_a_trusted_clock_set_back_does_not_revive_what_has_expired(repo: SignedRepository, store: TrustStore) -> None:
    repo.signed_at = NOW + 20 * DAY
    repo.timestamp.expires = when(NOW + 27 * DAY)
    repo.commit()
    assert store.update(repo.package(), at(NOW + 20 * DAY))
    repo.timestamp.expires = when(NOW + 10 * DAY)
    repo.commit_timestamp()
    refused(store, repo.package(), "trust.expired", at(NOW))


def test_metadata_from_the_future_is_refused_by_a_trusted_clock(repo: SignedRepository, store: TrustStore) -> None:
    repo.signed_at = NOW + 3 * DAY
    repo.commit()
    refused(store, repo.package(), "trust.future")
    assert store.clock_floor == NOW


def test_a_strict_board_takes_nothing_new_until_its_clock_is_set(repo: SignedRepository, store: TrustStore) -> None:
    """The policy for boards without a battery-backed clock: a withheld, expired package is not even looked at."""
    strict = TrustStore(store._folder, store._pinned, "strict")
    repo.commit()
    refused(strict, repo.package(), "trust.clock", at(NOW, trusted=False))
    deployment, command = Deployment("gate-7", 5, NOW + 60.0, ()), Command("gate-7", 5, NOW + 60.0, "restart")
    for call in (lambda: strict.deployment(repo.deploy(deployment), "gate-7", 4, "", at(NOW, trusted=False)),
                 lambda: strict.command(repo.order(command), "gate-7", at(NOW, trusted=False))):
        with pytest.raises(UntrustedError) as caught:
            call()
        assert caught.value.code == "trust.clock"
    assert strict.deployment(repo.deploy(deployment), "gate-7", 5, "", at(NOW, trusted=False)) == deployment  # what runs goes on
    assert strict.bundle(MANIFEST)
    assert strict.update(repo.package(), at())
    assert strict.command(repo.order(command), "gate-7", at()) == command


@pytest.mark.parametrize("wall", [float("nan"), float("inf"), -1e300, 1e300])
def test_absurd_clocks_do_not_crash(repo: SignedRepository, tmp_path: Path, wall: float) -> None:
    store = TrustStore(tmp_path / "t", repo.roots[0])
    try:
        store.update(repo.package(), at(wall))
    except UntrustedError as error:
        assert error.code == "trust.expired"  # noqa: PT017


# --- mix and match, endless data, parse attacks ------------------------------------------------------------


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


# --- keys --------------------------------------------------------------------------------------------------


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
    for data in (b"", b"{}", repo.timestamp_bytes, _flip_signature(repo.roots[0])):
        with pytest.raises(InputError) as caught:
            TrustStore(tmp_path / "t", data)
        assert caught.value.code == "trust.pinned-root"


# --- durable state -----------------------------------------------------------------------------------------


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
