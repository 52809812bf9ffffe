"""What operators see of engines and change: the list, one engine, a build asked for now, an engine taken back; and what gc must keep."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builder_board import Builder
from bundle_maker import make_bundle
from tuf.api.metadata import TargetFile
from typer.testing import CliRunner

from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.delegations import engine_field, engine_path
from jetfleet_contract.engine_work import Barred, Work
from jetfleet_contract.engines import Footing, Passport, Recipe, engine_name, key_of
from jetfleet_contract.errors import InputError
from jetfleet_host import views
from jetfleet_host.blob_use import referenced_blobs
from jetfleet_host.bundles import open_bundle
from jetfleet_host.cli import app
from jetfleet_host.delegations import accept, certify, delegate, engine_blobs, uncertified_of
from jetfleet_host.durable import write_file
from jetfleet_host.engine_catalogue import find
from jetfleet_host.engine_referrers import ENGINE as ENGINE_TYPE
from jetfleet_host.project import Project
from jetfleet_host.store import engines
from jetfleet_host.store.database import Database

CLASS = "orin-nano"
FOOTING = Footing("tensorrt", "10.3.0.30", "aarch64", "p3767-0005", sm=87, sm_count=8, system="36.4.3")
PASSPORT = Passport(FOOTING, Recipe("ab" * 32, "int8", (1, 3, 640, 640)), "5b" * 32, "int8", "bench-1")
KEY, NAME = key_of(PASSPORT), engine_name(key_of(PASSPORT))
ENGINE = b"a plan " * 500
BLOB = hashlib.sha256(ENGINE).hexdigest()
BUILT = Work(CLASS, KEY, PASSPORT, "certified", ("bench-1", "dock-2", "dock-3"), "bench-1", "dock-2", 100.0, percent=100.0, tries=1,
             blob=BLOB, agreement=0.997, p50_ms=4.25)


class Fleet:
    """A project with one engine that its builder signed, and its database."""

    def __init__(self, folder: Path) -> None:
        self.project = Project.init(folder / "fleet")
        builder = Builder()
        delegate(self.project, CLASS, [builder.public])
        file = TargetFile(len(ENGINE), {"sha256": BLOB}, engine_path(CLASS, NAME),
                          {"custom": engine_field(BlobInfo(len(ENGINE)), PASSPORT.subject, PASSPORT)})
        write_file(self.project.blobs.path(BLOB), ENGINE)
        accept(self.project, CLASS, builder.sign({file.path: file}))

    def save(self, work: Work) -> None:
        with closing(Database.open(self.project.database_url)) as database, database.session() as session:
            engines.save(session, work, 1000.0)

    def work(self, key: str = KEY) -> Work:
        with closing(Database.open(self.project.database_url)) as database, database.reading() as session:
            return find(session, key)

    def say(self, *words: str, as_json: bool = True) -> Any:
        extra = ["--json"] if as_json else []
        done = CliRunner().invoke(app, ["engines", *words, "--dir", str(self.project.dir), *extra], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.output) if as_json else done.output

    def refused(self, *words: str) -> InputError:
        with pytest.raises(InputError) as caught:
            CliRunner().invoke(app, ["engines", *words, "--dir", str(self.project.dir)], catch_exceptions=False)
        return caught.value


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_nothing_yet(fleet: Fleet) -> None:
    assert fleet.say("list") == []
    assert "No board has asked" in fleet.say("list", as_json=False)
    assert fleet.refused("show", KEY).code == "engine.unknown"


def test_a_certified_engine_says_who_built_it_and_what_the_second_board_saw(fleet: Fleet) -> None:
    fleet.save(BUILT)
    row = fleet.say("list", "--class", CLASS)[0]
    assert (row["backend"], row["version"], row["variant"], row["state"]) == ("tensorrt", "10.3.0.30", "int8", "certified")
    assert (row["built_by"], row["tried_by"], row["agreement"], row["p50_ms"]) == ("bench-1", "dock-2", 0.997, 4.25)
    assert (row["size"], row["asked"]) == (len(ENGINE), 3)
    assert fleet.say("list", "--class", "orin-nx") == []
    assert fleet.say("show", KEY[:8])["key"] == KEY
    told = fleet.say("show", KEY[:8], as_json=False)
    assert "dock-2: agreement 0.9970, p50 4.25 ms" in told
    assert "sm_87 with 8 SMs, L4T 36.4.3" in told


def test_what_it_waits_for_and_who_refused_is_told(fleet: Fleet) -> None:
    fleet.save(msgspec.structs.replace(BUILT, state="wanted", by="", second="", blob="", code="store.full", detail="bench-1: no room",
                                       barred=(Barred("bench-1", 2e9, "store.full"),)))
    assert "bench-1: no room [store.full]" in fleet.say("list", as_json=False)
    assert fleet.say("show", KEY)["refusals"] == [{"device": "bench-1", "code": "store.full", "until": 2e9}]
    assert "refused   bench-1: store.full" in fleet.say("show", KEY, as_json=False)


def test_a_withdrawn_engine_is_run_by_no_board_until_it_is_built_anew(fleet: Fleet) -> None:
    fleet.save(BUILT)
    assert uncertified_of(fleet.project, CLASS) == frozenset()
    assert fleet.refused("request", KEY).code == "engine.certified"
    assert fleet.say("withdraw", KEY[:12])["state"] == "given-up"
    assert uncertified_of(fleet.project, CLASS) == {NAME}
    assert fleet.work().code == "engine.withdrawn"
    assert fleet.say("request", KEY[:12])["state"] == "wanted"
    assert uncertified_of(fleet.project, CLASS) == {NAME}, "asking for it certifies nothing"


def test_there_has_to_be_an_engine_to_withdraw_and_one_key_to_mean(fleet: Fleet) -> None:
    fleet.save(msgspec.structs.replace(BUILT, state="building", blob="", second=""))
    assert fleet.refused("withdraw", KEY).code == "engine.unbuilt"
    assert fleet.refused("show", KEY[:5]).code == "engine.unknown"
    fleet.save(msgspec.structs.replace(BUILT, device_class="orin-nano-b"))
    assert fleet.refused("show", KEY).code == "engine.ambiguous"


def test_events_tell_of_engines(fleet: Fleet) -> None:
    fleet.save(BUILT)
    with closing(Database.open(fleet.project.database_url)) as database, database.reading() as session:
        event = next(event for event in views.events(session, 0.0) if event.kind == "engine")
        assert event.device == "dock-2"
        assert "int8 for tensorrt 10.3.0.30: certified" in event.what
        assert [one for one in views.events(session, 1000.0) if one.kind == "engine"] == []


def test_engines_that_are_here_are_served_and_kept(fleet: Fleet) -> None:
    assert engine_blobs(fleet.project) == {CLASS: {BLOB: BlobInfo(len(ENGINE))}}
    assert BLOB in referenced_blobs(fleet.project)
    fleet.project.blobs.path(BLOB).unlink()
    assert engine_blobs(fleet.project) == {}


def test_a_lost_database_certifies_nothing(fleet: Fleet) -> None:
    with closing(Database.open(fleet.project.database_url)) as database, database.session() as session:
        assert engines.untried(session, CLASS, {NAME, "kother"}) == {NAME, "kother"}
        engines.save(session, BUILT, 1.0)
        assert engines.untried(session, CLASS, {NAME, "kother"}) == {"kother"}


def test_certified_engines_go_with_their_bundle_as_referrers(fleet: Fleet, tmp_path: Path) -> None:
    folder = tmp_path / "toy.bundle"
    digest = make_bundle(folder, name="toy", version="1")
    passport = msgspec.structs.replace(PASSPORT, subject=digest.removeprefix("sha256:"), builder="bench-2")
    builder = Builder()
    delegate(fleet.project, "orin-nx", [builder.public])
    file = TargetFile(len(ENGINE), {"sha256": BLOB}, engine_path("orin-nx", NAME),
                      {"custom": engine_field(BlobInfo(len(ENGINE)), passport.subject, passport)})
    accept(fleet.project, "orin-nx", builder.sign({file.path: file}), {NAME})
    assert fleet.say("attach", str(folder)) == [], "it is not certified yet"
    certify(fleet.project, "orin-nx", ())
    made = fleet.say("attach", str(folder))
    assert fleet.say("attach", str(folder)) == made
    index = json.loads((folder / "index.json").read_text())
    entry = next(one for one in index["manifests"] if one.get("artifactType") == ENGINE_TYPE)
    assert [entry["digest"]] == [row["manifest"] for row in made]
    manifest = json.loads((folder / "blobs" / "sha256" / entry["digest"][7:]).read_text())
    assert manifest["subject"]["digest"] == digest
    assert [layer["digest"] for layer in manifest["layers"]] == [f"sha256:{BLOB}"]
    assert open_bundle(folder).manifest_digest == digest, "the bundle itself is as it was"
    fleet.project.blobs.path(BLOB).write_bytes(bytes([ENGINE[0] ^ 1]) + ENGINE[1:])
    assert fleet.refused("attach", str(folder)).code == "bundle.digest"
    assert open_bundle(folder).manifest_digest == digest, "what failed left nothing behind"
