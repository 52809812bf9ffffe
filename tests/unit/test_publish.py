"""Publishing: a version never changes, what is signed is what lies in the blobs, and keys rotate."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from bundle_maker import make_bundle

from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.chunks import CHUNK_BYTES, lower_pages, open_table, top_page
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import Ack, Command, Deployment, Instant
from jetfleet_contract.trust import MAX_PACKAGE_BYTES, message_digest, seal
from jetfleet_host.custody import key_table
from jetfleet_host.keys import ROLES
from jetfleet_host.project import CONFIG, Project
from jetfleet_host.publish import find_bundle, models, publish, published, withdraw
from jetfleet_host.repository import LIFETIME, meta_package, refresh_timestamp
from jetfleet_host.signing import resigned, sign_command, sign_deployment, verify_device


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.init(tmp_path / "fleet")


def now(*, after: float = 0.0) -> Instant:
    return Instant(1.0, "boot", time.time() + after, True)


def board(project: Project, tmp_path: Path, name: str = "board") -> TrustStore:
    return TrustStore(tmp_path / name, project.root_file.read_bytes())


def test_round_trip_to_a_board(project: Project, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", weight_bytes=3 * CHUNK_BYTES + 5)
    done = publish(project, tmp_path / "b")
    assert done.new
    trust = board(project, tmp_path)
    assert trust.update(meta_package(project), now())
    target = trust.bundle(done.manifest)
    assert (target.name, target.version) == ("toy", "1")
    assert len(target.every()) == done.blobs
    for blob, info in target.every().items():
        data = project.blobs.read(blob, 0, 1 << 30)
        assert hashlib.sha256(data).hexdigest() == blob
        assert len(data) == info.size
        top = top_page(info)
        pages = []
        if top is not None:
            pages = [project.blobs.read(top.blob, 0, top.size)]
            assert hashlib.sha256(pages[0]).hexdigest() == info.table
            assert not lower_pages(info, pages[0])
        table = open_table(blob, info, pages)
        for index in range(table.count):
            assert table.matches(index, data[table.offset(index):table.offset(index) + table.length(index)])
    deployment = Deployment("gate-7", 1, time.time() + 60, ())
    assert trust.deployment(sign_deployment(project, deployment), "gate-7", 0, "", now()) == deployment
    command = Command("gate-7", 1, time.time() + 60, "explain")
    assert trust.command(sign_command(project, command), "gate-7", now()) == command


def test_the_same_bundle_again_signs_nothing(project: Project, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    publish(project, tmp_path / "b")
    before = meta_package(project)
    again = publish(project, tmp_path / "b")
    assert not again.new
    assert meta_package(project) == before


def test_chunks_of_another_size_are_signed_for_every_bundle_that_has_the_blob(project: Project, tmp_path: Path) -> None:
    for version in ("1", "2"):
        make_bundle(tmp_path / version, version=version, weight_bytes=3 * CHUNK_BYTES + 5)
        publish(project, tmp_path / version)
    weights = max(find_bundle(project, "toy", "1").blobs.items(), key=lambda item: item[1].size)[0]
    trust = board(project, tmp_path)
    (project.dir / CONFIG).write_text("[delivery]\nchunk_kb = 16\n")
    small = Project.load(project.dir)
    assert publish(small, tmp_path / "2").recut
    assert not publish(small, tmp_path / "2").recut
    assert trust.update(meta_package(small), now())
    for version in ("1", "2"):
        target = trust.bundle(find_bundle(small, "toy", version).manifest)
        assert target.release == int(version)
        info = target.blobs[weights]
        assert info.chunk_size == 16 * 1024
        table = open_table(weights, info, [small.blobs.read(info.table, 0, 1 << 20)])
        assert table.count == 13
        assert table.matches(12, small.blobs.read(weights, 12 * 16 * 1024, 1 << 20))


def test_the_same_version_with_other_bytes_is_refused(project: Project, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    make_bundle(tmp_path / "other", seed=1)
    publish(project, tmp_path / "b")
    before = meta_package(project)
    with pytest.raises(InputError) as caught:
        publish(project, tmp_path / "other")
    assert caught.value.code == "publish.version-taken"
    assert "--version" in caught.value.remedy
    assert meta_package(project) == before


def test_a_damaged_bundle_publishes_nothing(project: Project, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    biggest = max((tmp_path / "b/blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
    data = bytearray(biggest.read_bytes())
    data[1000] ^= 1
    biggest.write_bytes(data)
    with pytest.raises(UntrustedError) as caught:
        publish(project, tmp_path / "b")
    assert caught.value.code == "bundle.flipped"
    assert published(project) == ()
    biggest.write_bytes(data[:-1])
    with pytest.raises(MalformedError) as truncated:
        publish(project, tmp_path / "b")
    assert truncated.value.code == "bundle.truncated"
    assert list((project.dir / "blobs").glob("[!.]*")) == []


def test_a_rotten_published_blob_is_healed(project: Project, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    done = publish(project, tmp_path / "b")
    rotten = project.blobs.path(done.manifest)
    rotten.write_bytes(b"x" * len(rotten.read_bytes()))
    with pytest.raises(UntrustedError):
        models(project)
    publish(project, tmp_path / "b")
    assert [model.variants for model in models(project)] == [("fp32",)]


def test_models_lists_and_find_names_what_there_is(project: Project, tmp_path: Path) -> None:
    for version in ("1", "2"):
        make_bundle(tmp_path / version, version=version)
        publish(project, tmp_path / version)
    assert [(m.name, m.version) for m in models(project)] == [("toy", "1"), ("toy", "2")]
    assert find_bundle(project, "toy", "2").version == "2"
    with pytest.raises(InputError) as caught:
        find_bundle(project, "toy", "3")
    assert "toy:2" in caught.value.remedy


def test_withdrawn_versions_are_unknown_to_boards(project: Project, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    done = publish(project, tmp_path / "b")
    trust = board(project, tmp_path)
    trust.update(meta_package(project), now())
    withdraw(project, "toy", "1")
    assert trust.update(meta_package(project), now())
    with pytest.raises(UntrustedError):
        trust.bundle(done.manifest)


def test_a_full_package_is_refused_before_anything_changes(project: Project, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b")
    publish(project, tmp_path / "b")
    from jetfleet_contract.trust import target_path

    def crowd(targets: object) -> None:
        table = targets.targets  # type: ignore[attr-defined]
        file = table[target_path("toy", "1")]
        for number in range(200):
            table[target_path("toy", f"x{number}")] = file

    before = meta_package(project)
    with pytest.raises(InputError) as caught, project.repository.locked():
        project.repository.edit_targets(crowd)
    assert caught.value.code == "publish.meta-full"
    assert meta_package(project) == before
    assert len(before) < MAX_PACKAGE_BYTES
    make_bundle(tmp_path / "c", version="2")
    publish(project, tmp_path / "c")


@pytest.mark.parametrize("role", ROLES)
def test_each_key_rotates_and_the_old_one_is_gone(project: Project, tmp_path: Path, role: str) -> None:
    trust = board(project, tmp_path)
    trust.update(meta_package(project), now())
    old = {row.role: row.public for row in key_table(project)}
    new = project.rotate(role)
    rows = {row.role: row for row in key_table(project)}
    assert rows[role].public == new != old[role]
    assert all(row.use == "current" and row.held for row in rows.values())
    assert len(list(project.keys_dir.iterdir())) == len(ROLES)
    assert trust.update(meta_package(project), now())
    assert board(project, tmp_path, "newcomer").update(meta_package(project), now())
    deployment = Deployment("gate-7", 1, time.time() + 60, ())
    assert trust.deployment(sign_deployment(project, deployment), "gate-7", 0, "", now()) == deployment


def test_a_board_that_slept_through_many_rotations(project: Project, tmp_path: Path) -> None:
    trust = board(project, tmp_path)
    trust.update(meta_package(project), now())
    for role in ("root", "timestamp", "root", "targets", "root", "snapshot", "deployment"):
        project.rotate(role)
    make_bundle(tmp_path / "b")
    done = publish(project, tmp_path / "b")
    assert trust.update(meta_package(project), now())
    assert trust.bundle(done.manifest).version == "1"
    assert trust.versions["root"] == 7


def test_the_root_chain_stays_within_its_room(project: Project, tmp_path: Path) -> None:
    for _ in range(30):
        project.rotate("timestamp")
    package = meta_package(project)
    assert len(package) < MAX_PACKAGE_BYTES
    assert len(json.loads(package)["root"]) < 31
    assert board(project, tmp_path).update(package, now())


def test_rotation_without_the_root_key_says_where_it_is_needed(project: Project) -> None:
    for path in project.keys_dir.glob("root.*"):
        path.unlink()
    before = meta_package(project)
    with pytest.raises(InputError) as caught:
        project.rotate("timestamp")
    assert caught.value.code == "keys.missing"
    assert meta_package(project) == before
    project.rotate("deployment")  # needs the targets key only


def test_refresh_signs_when_half_the_time_is_gone(project: Project, tmp_path: Path) -> None:
    trust = board(project, tmp_path)
    trust.update(meta_package(project), now())
    assert not refresh_timestamp(project, time.time())
    later = LIFETIME["timestamp"].total_seconds() * 0.6
    assert refresh_timestamp(project, time.time() + later)
    assert trust.update(meta_package(project), now(after=later))
    much_later = LIFETIME["targets"].total_seconds() * 0.9
    assert refresh_timestamp(project, time.time() + much_later)
    assert trust.update(meta_package(project), now(after=much_later))
    assert trust.versions["targets"] == 2


def test_refresh_works_without_the_targets_key(project: Project) -> None:
    for role in ("targets", "root"):
        for path in project.keys_dir.glob(f"{role}.*"):
            path.unlink()
    assert refresh_timestamp(project, time.time() + LIFETIME["timestamp"].total_seconds())
    assert not refresh_timestamp(project, time.time() + LIFETIME["timestamp"].total_seconds())


def test_unreadable_metadata_is_one_clear_error(project: Project) -> None:
    (project.repo_dir / "1.targets.json").write_bytes(b"{}")
    with pytest.raises(StorageError) as caught:
        meta_package(project)
    assert caught.value.code == "repo.unreadable"
    (project.repo_dir / "timestamp.json").unlink()
    with pytest.raises(StorageError):
        published(project)


def test_a_deployment_that_boards_would_refuse_is_not_signed(project: Project) -> None:
    with pytest.raises(MalformedError):
        sign_deployment(project, Deployment("../x", 1, 1.0, ()))


def test_stored_deployments_are_signed_again_after_a_rotation_only(project: Project, tmp_path: Path) -> None:
    deployment = Deployment("gate-7", 3, time.time() + 60, ())
    stored = [("gate-7", sign_deployment(project, deployment))]
    assert resigned(project, stored) == stored
    project.rotate("deployment")
    fresh = resigned(project, stored)
    assert fresh != stored
    trust = board(project, tmp_path)
    trust.update(meta_package(project), now())
    assert trust.deployment(fresh[0][1], "gate-7", 3, message_digest(deployment), now()) == deployment
    with pytest.raises(UntrustedError):
        trust.deployment(stored[0][1], "gate-7", 0, "", now())


def test_what_a_board_signs(tmp_path: Path) -> None:
    from jetfleet_agent.supervisor.identity import Identity

    identity, other = Identity.load_or_create(tmp_path / "a"), Identity.load_or_create(tmp_path / "b")
    data = identity.sign("ack", Ack(7))
    assert verify_device(data, identity.public_hex, "ack", Ack) == Ack(7)
    for key, kind in ((other.public_hex, "ack"), (identity.public_hex, "report")):
        with pytest.raises(JetfleetError):
            verify_device(data, key, kind, Ack)
    forged = seal("ack", Ack(7), identity.public_hex, lambda _: bytes(64))
    with pytest.raises(UntrustedError):
        verify_device(forged, identity.public_hex, "ack", Ack)


def test_digest_of_a_message_ignores_how_numbers_were_written() -> None:
    assert message_digest(Deployment("a", 1, 5, ())) == message_digest(Deployment("a", 1, 5.0, ()))
    assert message_digest(Deployment("a", 1, 5, ())) != message_digest(Deployment("a", 1, 6, ()))
