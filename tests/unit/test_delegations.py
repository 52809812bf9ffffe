"""Builders of one class vouch for engines of that class: named on the host, fetched by hash, verified on the board, and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from builder_board import SUBJECT, Builder, engine
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from jetfleet_agent.supervisor.delegated import ClassMetadata
from jetfleet_agent.supervisor.identity import Identity
from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.delegations import MAX_TIMING_BYTES, engine_path, read_delegation, read_engine, timing_field
from jetfleet_contract.engines import Footing, timing_name
from jetfleet_contract.errors import JetfleetError, MalformedError
from jetfleet_contract.messages import Birth, Capability, Instant
from jetfleet_host.blob_use import referenced_blobs
from jetfleet_host.cli import app
from jetfleet_host.delegations import accept, delegate, delegations_of, revoke
from jetfleet_host.project import Project
from jetfleet_host.repository import meta_package, refresh_timestamp
from jetfleet_host.store import fleet
from jetfleet_host.store.database import Database

ORIN, XAVIER = "orin-nano", "xavier.nx"


def now(*, after: float = 0.0) -> Instant:
    return Instant(1.0, "boot", time.time() + after, True)


def code_of(call: Any) -> str:
    with pytest.raises(JetfleetError) as caught:
        call()
    return caught.value.code


class Scene:
    """A project, a board's trust, and builders of two classes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = Project.init(folder / "fleet")
        self.orin, self.xavier = Builder(), Builder()
        delegate(self.project, ORIN, [self.orin.public])
        delegate(self.project, XAVIER, [self.xavier.public])
        self.trust = TrustStore(folder / "trust", self.project.root_file.read_bytes())

    def update(self) -> None:
        self.trust.update(meta_package(self.project), now())

    def fetch(self, device_class: str = ORIN) -> None:
        """What the fetcher does: the blob that the snapshot names, as the host has it."""
        wanted = self.trust.delegation(device_class)
        assert wanted is not None
        data = self.project.blobs.read(wanted.blob, 0, 1 << 24)
        assert len(data) == wanted.info.size
        self.trust.accept_delegation(device_class, data, now())

    def publish(self, *names: str, version: int = 1) -> None:
        accept(self.project, ORIN, self.orin.vouch(ORIN, *names, version=version))
        self.update()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_from_builder_to_board(scene: Scene) -> None:
    scene.update()
    path = engine_path(ORIN, "abc")
    assert scene.trust.delegation(ORIN) is None  # delegated, but nothing signed yet
    assert code_of(lambda: scene.trust.engine(ORIN, path)) == "trust.no-delegation"
    scene.publish("abc")
    assert code_of(lambda: scene.trust.engine(ORIN, path)) == "trust.delegation-missing"
    scene.fetch()
    found = scene.trust.engine(ORIN, path)
    assert (found.path, found.blob, found.info, found.subject) == (path, "e0" * 32, BlobInfo(1000), SUBJECT)
    assert scene.trust.delegation(ORIN) is None
    assert code_of(lambda: scene.trust.engine(ORIN, engine_path(ORIN, "other"))) == "trust.unknown-engine"
    again = TrustStore(scene.folder / "trust", scene.project.root_file.read_bytes())  # a restart, with no network
    assert again.engine(ORIN, path) == found
    refresh_timestamp(scene.project, time.time() + 6 * 86_400)
    again.update(meta_package(scene.project), now(after=6 * 86_400))
    assert again.engine(ORIN, path) == found  # a refresh changes nothing


def test_large_metadata_has_a_chunk_table(scene: Scene) -> None:
    accept(scene.project, ORIN, scene.orin.vouch(ORIN, *(f"e{number}" for number in range(1500))))
    scene.update()
    wanted = scene.trust.delegation(ORIN)
    assert wanted is not None
    assert wanted.info.table
    assert {wanted.blob, wanted.info.table} <= referenced_blobs(scene.project)
    scene.fetch()
    assert scene.trust.engine(ORIN, engine_path(ORIN, "e1499"))


def test_a_builder_of_one_class_says_nothing_about_another(scene: Scene) -> None:
    """Attack: wrong class. The host refuses it, and so does a board whose host was made to publish it."""
    foreign = scene.orin.sign({"engine/xavier.nx/a": engine("engine/xavier.nx/a")})
    for call, code in ((lambda: accept(scene.project, ORIN, foreign), "trust.target"),
                       (lambda: accept(scene.project, XAVIER, foreign), "trust.signature"),
                       (lambda: accept(scene.project, XAVIER, scene.orin.vouch(XAVIER, "a")), "trust.signature"),
                       (lambda: accept(scene.project, "agx", scene.orin.vouch("agx", "a")), "trust.no-delegation")):
        assert code_of(call) == code
    for device_class, data, code in ((ORIN, foreign, "trust.target"), (XAVIER, scene.orin.vouch(XAVIER, "a"), "trust.signature")):
        with scene.project.repository.locked():
            scene.project.repository.accept_delegated(f"class-{device_class}", data, {})
        scene.update()
        assert code_of(lambda c=device_class, d=data: scene.trust.accept_delegation(c, d, now())) == code
        assert code_of(lambda c=device_class: scene.trust.engine(c, engine_path(c, "a"))) == "trust.delegation-missing"


@pytest.mark.parametrize("path", ["engine/orin-nano/../x", "engine/orin-nano", "engine/orin-nano/a/b", "bundle/toy/1", "engine//a", "x"])
def test_paths_outside_the_class(scene: Scene, path: str) -> None:
    assert code_of(lambda: accept(scene.project, ORIN, scene.orin.sign({path: engine(path)}))) in ("trust.target", "name.bad")


def test_other_bytes_than_the_snapshot_names(scene: Scene) -> None:
    scene.publish("a")
    other = scene.orin.vouch(ORIN, "b")
    assert code_of(lambda: scene.trust.accept_delegation(ORIN, other, now())) == "trust.mix"
    assert code_of(lambda: scene.trust.accept_delegation(ORIN, b"{}", now())) in ("trust.mix", "trust.malformed")
    assert code_of(lambda: scene.trust.accept_delegation("agx", other, now())) == "trust.no-delegation"
    scene.fetch()


def test_versions_only_grow(scene: Scene) -> None:
    scene.publish("a", version=2)
    scene.fetch()
    assert code_of(lambda: accept(scene.project, ORIN, scene.orin.vouch(ORIN, "a", version=1))) == "trust.rollback"
    assert code_of(lambda: accept(scene.project, ORIN, scene.orin.vouch(ORIN, "b", version=2))) == "trust.fork"
    scene.publish("b", version=3)
    assert code_of(lambda: scene.trust.engine(ORIN, engine_path(ORIN, "a"))) == "trust.delegation-missing"
    scene.fetch()
    assert code_of(lambda: scene.trust.engine(ORIN, engine_path(ORIN, "a"))) == "trust.unknown-engine"


def test_a_revoked_builder(scene: Scene) -> None:
    scene.publish("a")
    scene.fetch()
    thief = scene.orin.vouch(ORIN, "a", "backdoor", version=2)
    delegate(scene.project, ORIN, [Builder().public])
    scene.update()
    assert code_of(lambda: accept(scene.project, ORIN, thief)) == "trust.signature"
    assert code_of(lambda: scene.trust.engine(ORIN, engine_path(ORIN, "a"))) == "trust.delegation-missing"
    revoke(scene.project, ORIN)
    scene.update()
    assert code_of(lambda: scene.trust.engine(ORIN, engine_path(ORIN, "a"))) == "trust.no-delegation"
    assert [one.device_class for one in delegations_of(scene.project)] == [XAVIER]
    assert code_of(lambda: revoke(scene.project, ORIN)) == "keys.unknown"
    revoke(scene.project, XAVIER)
    scene.update()


def test_two_builders_have_to_agree_where_the_threshold_says_so(scene: Scene) -> None:
    second = Builder()
    delegate(scene.project, ORIN, [scene.orin.public, second.public], threshold=2)
    path = engine_path(ORIN, "a")
    assert code_of(lambda: accept(scene.project, ORIN, scene.orin.sign({path: engine(path)}))) == "trust.signature"
    accept(scene.project, ORIN, scene.orin.sign({path: engine(path)}, also=(second,)))
    scene.update()
    scene.fetch()


def test_expired_and_malformed(scene: Scene) -> None:
    path = engine_path(ORIN, "a")
    assert code_of(lambda: accept(scene.project, ORIN, scene.orin.sign({path: engine(path)}, expires=time.time() - 5))) == "trust.expired"
    for data in (b"", b"{}", b"[" * 5000, (scene.project.repo_dir / "timestamp.json").read_bytes()):
        assert code_of(lambda d=data: accept(scene.project, ORIN, d)) == "trust.malformed"
    assert code_of(lambda: accept(scene.project, ORIN, b" " * (5 << 20))) == "message.large"
    bad: tuple[dict[str, Any], ...] = (
        {}, {"size": 1}, {"size": -1, "subject": SUBJECT}, {"size": 1, "subject": "../x"}, {"size": 1 << 60, "subject": SUBJECT})
    for custom in bad:
        with pytest.raises(MalformedError):
            accept(scene.project, ORIN, scene.orin.sign({path: engine(path, custom=custom)}))
    scene.publish("a")
    wanted = scene.trust.delegation(ORIN)
    assert wanted is not None
    late = now(after=6.9 * 86_400)
    data = scene.project.blobs.read(wanted.blob, 0, 1 << 20)
    assert code_of(lambda: scene.trust.accept_delegation(ORIN, data, now(after=40 * 86_400))) == "trust.expired"
    scene.trust.accept_delegation(ORIN, data, late)


def test_damage_on_the_boards_disk_is_fetched_again(scene: Scene) -> None:
    scene.publish("a")
    scene.fetch()
    path = scene.folder / "trust" / f"class-{ORIN}.json"
    path.write_bytes(path.read_bytes()[:-9])
    again = TrustStore(scene.folder / "trust", scene.project.root_file.read_bytes())
    assert code_of(lambda: again.engine(ORIN, engine_path(ORIN, "a"))) == "trust.delegation-missing"
    assert again.delegation(ORIN) is not None


def test_the_supervisors_part_fetches_what_is_missing_and_only_that(scene: Scene) -> None:
    store, wanted = BlobStore(scene.folder / "store"), []
    at = [0.0]

    class Fetcher:
        def want(self, blob: str, info: BlobInfo) -> None:
            wanted.append(blob)

    part = ClassMetadata(ORIN, scene.trust, store, Fetcher(), lambda: Instant(at[0], "boot", time.time(), True))
    assert part.tick() == 60.0
    scene.publish("a")
    assert part.tick() == 60.0
    assert wanted == []
    part.follow()
    part.tick()
    [blob] = wanted
    part.blob_failed(blob, MalformedError("x", "x"))
    at[0] = 61.0
    part.tick()
    assert wanted == [blob, blob]
    store.put_bytes(blob, scene.project.blobs.read(blob, 0, 1 << 20))
    part.blob_done("ff" * 32)
    part.blob_done(blob)
    at[0] = 200.0
    part.tick()
    assert wanted == [blob, blob]
    assert scene.trust.engine(ORIN, engine_path(ORIN, "a"))


FIELDS = st.dictionaries(st.sampled_from(["size", "subject", "table", "chunk_size", "x"]), st.integers() | st.text(max_size=66), max_size=5)


@given(st.text(max_size=40), st.text(max_size=70), st.none() | FIELDS)
def test_any_engine_target(path: str, blob: str, custom: Any) -> None:
    with pytest.raises(MalformedError):
        read_engine(ORIN, path, blob, custom)
    with pytest.raises(MalformedError):
        read_delegation(ORIN, 1, len(path), blob, custom)


def test_commands(tmp_path: Path) -> None:
    project, builder = Project.init(tmp_path / "fleet"), Builder()
    identity = Identity.load_or_create(tmp_path / "bench")

    def run(*arguments: str, fails: str = "") -> Any:
        result = CliRunner().invoke(app, ["keys", *arguments, "--dir", str(project.dir), "--json"])
        assert getattr(result.exception, "code", "") == fails if fails else result.exit_code == 0, (result.output, result.exception)
        return None if fails else json.loads(result.output)

    with Database.open(project.database_url).session() as session:
        birth = Birth("bench-1", 1, "0.1", 1, identity.public_hex, Capability("b", ORIN, "x"))
        fleet.hold_devices(session, [])
        fleet.save_birth(session, None, birth, b"birth", 1.0)
    run("delegate", ORIN, fails="keys.whom")
    run("delegate", ORIN, "--device", "bench-2", fails="device.unknown")
    run("delegate", ORIN, "--key", "xyz", fails="keys.bad")
    run("delegate", ORIN, "--key", builder.public, "--threshold", "2", fails="keys.threshold")
    made = run("delegate", ORIN, "--key", builder.public, "--device", "bench-1")
    assert made["keys"] == [builder.public, identity.public_hex]
    (tmp_path / "signed.json").write_bytes(builder.vouch(ORIN, "a", version=4))
    assert run("add-delegated", ORIN, str(tmp_path / "signed.json"))["version"] == 4
    run("add-delegated", ORIN, str(tmp_path / "none"), fails="keys.file")
    assert [(row["device_class"], row["version"]) for row in run("delegations")] == [(ORIN, 4)]
    run("revoke", ORIN)
    assert run("delegations") == []
    for command in ("delegate", "delegations", "revoke", "add-delegated"):
        assert "Example" in CliRunner().invoke(app, ["keys", command, "--help"]).output


def test_a_timing_cache_is_named_by_its_footing_bounded_and_no_engine() -> None:
    footing = Footing("tensorrt", "10.3.0.30", "aarch64", "p3767-0005", sm=87, sm_count=8)
    path = engine_path(ORIN, timing_name(footing))
    field = timing_field(BlobInfo(1000), "5b" * 32, footing)
    read = read_engine(ORIN, path, "e0" * 32, field)
    assert (read.timing, read.passport) == (footing, None)
    other = engine_path(ORIN, timing_name(Footing("tensorrt", "10.3.0.31", "aarch64", "p3767-0005", sm=87, sm_count=8)))
    large = timing_field(BlobInfo(MAX_TIMING_BYTES + 1, table="ab" * 32), "5b" * 32, footing)
    for wrong, custom in ((other, field), (path, large)):
        with pytest.raises(MalformedError) as refused:
            read_engine(ORIN, wrong, "e0" * 32, custom)
        assert refused.value.code == "trust.target"
