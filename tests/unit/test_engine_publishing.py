"""Engines that the host built, published for a class; and a board that an operator has try one."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from bundle_maker import make_bundle

from jetfleet_contract import engine_work as machine
from jetfleet_contract.bundle import digest_of
from jetfleet_contract.engines import Footing, Passport, Recipe, engine_name, key_of
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import encode
from jetfleet_host.delegations import delegate, engine_blobs, uncertified_of
from jetfleet_host.engine_catalogue import try_on
from jetfleet_host.engine_publishing import host_key, publish_engines
from jetfleet_host.engines.records import Record
from jetfleet_host.project import Project
from jetfleet_host.publish import publish
from jetfleet_host.store import engines
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import CommandRow, Device, EngineRow

CLASS, WALL = "x86-gpu", 1_800_000_000.0


class Site:
    """A project with one bundle, and a folder of engines that were built from it."""

    def __init__(self, folder: Path) -> None:
        self.project = Project.init(folder / "fleet")
        self.subject = make_bundle(folder / "toy.bundle", name="toy", version="1").removeprefix("sha256:")
        publish(self.project, folder / "toy.bundle")
        self.out = folder / "out"
        self.out.mkdir()
        self.database = Database.open(self.project.database_url)

    def built(self, sm: int, data: bytes, subject: str = "") -> Passport:
        passport = Passport(Footing("tensorrt-rtx", "1.7.1.116", "x86_64", "", sm=sm), Recipe("ab" * 32, "fp32", (1, 3, 48, 64)),
                            subject or self.subject, "fp32", "bench")
        name = engine_name(key_of(passport))
        (self.out / f"{name}.rtx").write_bytes(data)
        (self.out / f"{name}.json").write_bytes(encode(Record(key_of(passport), passport, digest_of(data), len(data))))
        return passport

    def publish(self) -> list[bool]:
        with self.database.session() as session:
            return [one.fresh for one in publish_engines(self.project, session, CLASS, self.out, WALL)]

    def work(self, passport: Passport) -> machine.Work:
        with self.database.reading() as session:
            found = engines.find(session, CLASS, key_of(passport))
        assert found is not None
        return found

    def board(self, name: str, device_class: str = CLASS, *, online: bool = True) -> None:
        with self.database.session() as session:
            session.add(Device(device=name, key="ab" * 32, device_class=device_class, online=online, first_seen=WALL, last_seen=WALL))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_engines_are_signed_by_the_host_and_wait_for_a_board_to_try_them(site: Site) -> None:
    first = site.built(86, b"vrtr" * 50_000)
    with pytest.raises(InputError) as refused:
        site.publish()
    assert refused.value.code == "engine.not-builder"
    delegate(site.project, CLASS, [host_key(site.project)])
    assert host_key(site.project) == host_key(site.project), "one key, however often it is asked for"
    assert site.publish() == [True]
    assert site.publish() == [False]
    second = site.built(89, b"vrtr" * 60_000)
    assert sorted(site.publish()) == [False, True], "the earlier one stays"
    assert {engine_name(key_of(one)) for one in (first, second)} == uncertified_of(site.project, CLASS)
    assert {info.size for info in engine_blobs(site.project)[CLASS].values()} == {200_000, 240_000}
    assert (site.work(first).state, site.work(first).by, site.work(first).passport.builder) == ("uncertified", "host", "host")


def test_another_build_of_a_key_replaces_only_what_nobody_runs(site: Site) -> None:
    delegate(site.project, CLASS, [host_key(site.project)])
    passport = site.built(86, b"vrtr" * 100)
    site.publish()
    first = site.work(passport).blob
    for state, again in (("uncertified", False), ("certified", False), ("given-up", True)):
        with site.database.session() as session:
            engines.save(session, msgspec.structs.replace(site.work(passport), state=state), WALL)
        site.built(86, b"vrtr" * 99 + b"vrt" + state[:1].encode())
        assert site.publish() == [again]
        assert (site.work(passport).blob != first) == again
    assert site.work(passport).state == "uncertified"


def test_what_a_cut_off_run_signed_is_entered_by_the_next(site: Site) -> None:
    delegate(site.project, CLASS, [host_key(site.project)])
    passport = site.built(86, b"vrtr" * 100)
    site.publish()
    with site.database.session() as session:
        session.query(EngineRow).delete()
    assert site.publish() == [False]
    assert site.work(passport).state == "uncertified"


def test_what_is_damaged_or_of_no_bundle_here_is_refused_by_name(site: Site) -> None:
    delegate(site.project, CLASS, [host_key(site.project)])
    passport = site.built(86, b"vrtr" * 100)
    (site.out / f"{engine_name(key_of(passport))}.rtx").write_bytes(b"vrtr" * 99)
    for code in ("engine.nothing", "engine.subject"):
        with pytest.raises(InputError) as refused:
            site.publish()
        assert refused.value.code == code
        site.built(86, b"vrtr" * 100, subject="cd" * 32)


def test_an_operator_has_a_board_try_an_engine(site: Site) -> None:
    delegate(site.project, CLASS, [host_key(site.project)])
    passport = site.built(86, b"vrtr" * 100)
    site.publish()
    for name, device_class, online in (("c1", CLASS, True), ("x1", "other", True), ("gone", CLASS, False)):
        site.board(name, device_class, online=online)
    with site.database.session() as session:
        for name, code in (("nobody", "engine.away"), ("gone", "engine.away"), ("x1", "engine.class")):
            with pytest.raises(InputError) as refused:
                try_on(session, key_of(passport)[:12], name, WALL)
            assert refused.value.code == code
        work = try_on(session, key_of(passport)[:12], "c1", WALL)
        row = session.query(CommandRow).one()
        assert (work.state, work.second, row.device, row.op) == ("certifying", "c1", "c1", "engine-certify")
        assert json.loads(row.args)["key"] == key_of(passport)
        engines.save(session, msgspec.structs.replace(work, state="certified"), WALL)
        with pytest.raises(InputError) as refused:
            try_on(session, key_of(passport)[:12], "c1", WALL)
        assert refused.value.code == "engine.certified"
    site.database.close()


def test_a_closed_project_keeps_its_key(site: Site) -> None:
    with closing(site.database):
        assert host_key(Project.load(site.project.dir)) == host_key(site.project)
