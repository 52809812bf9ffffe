"""serve's part in engines, on a database and a project: who is asked, what is taken over, and what is refused by name."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from brokers import until
from builder_board import Builder
from tuf.api.metadata import TargetFile

from jetfleet_agent.supervisor.identity import Identity
from jetfleet_contract import topics
from jetfleet_contract.chunks import table_of
from jetfleet_contract.delegations import engine_field, engine_path, timing_field
from jetfleet_contract.engine_work import Work
from jetfleet_contract.engines import EngineWord, Footing, Passport, Recipe, engine_name, key_of, timing_name
from jetfleet_contract.messages import Instant
from jetfleet_host.collector import Incoming
from jetfleet_host.delegations import delegate, engine_blobs, uncertified_of
from jetfleet_host.durable import write_file
from jetfleet_host.engine_driver import EngineDriver
from jetfleet_host.project import Project
from jetfleet_host.signing import verify_device
from jetfleet_host.store import commands, engines, uploads
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import CommandRow, Device, Rejected, UploadRow
from jetfleet_host.upload_files import UploadFiles

CLASS = "cpu-x86"
WALL = 1_800_000_000.0
CHUNK = 4096
ENGINE = b"compiled " * 3000
PASSPORT = Passport(Footing("openvino", "2026.4.1", "x86_64", "cpu"), Recipe("ab" * 32, "fp32", (1, 3, 48, 64)), "5b" * 32, "fp32", "b1")
KEY, NAME = key_of(PASSPORT), engine_name(key_of(PASSPORT))


def target(engine: bytes = ENGINE, passport: Passport = PASSPORT, path: str = "") -> TargetFile:
    tabled = table_of((engine[at:at + CHUNK] for at in range(0, len(engine), CHUNK)), CHUNK)
    field = {"custom": engine_field(tabled.info, passport.subject, passport)}
    return TargetFile(len(engine), {"sha256": tabled.blob}, path or engine_path(CLASS, engine_name(key_of(passport))), field)


class AtOnce(Executor):
    """Copies while the driver waits, so that a test's next line sees the outcome."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  as an executor does
            future.set_exception(error)
        return future


class Site:
    """The driver, boards b1 and b2 that may build, c1 of the same class that may not, and x1 of another."""

    def __init__(self, folder: Path) -> None:
        self.project = Project.init(folder / "fleet")
        self.database = Database.open(self.project.database_url)
        self.files = UploadFiles(self.project.dir / "uploads")
        self.keys = {name: Identity.load_or_create(folder / name) for name in ("b1", "b2", "c1", "x1")}
        self.signer = Builder()
        delegate(self.project, CLASS, [self.keys["b1"].public_hex, self.keys["b2"].public_hex, self.signer.public])
        with self.database.session() as session:
            for name, identity in self.keys.items():
                session.add(Device(device=name, key=identity.public_hex, device_class="other" if name == "x1" else CLASS, online=True,
                                   first_seen=WALL, last_seen=WALL))
        self.mono = 0.0
        self.copier: Executor = AtOnce()
        self.offers = 0
        self.restart()

    def restart(self) -> None:
        self.driver = EngineDriver(self.project, self.database, self.files, verify_device, self.copier)

    def turn(self, seconds: float = 2.0) -> None:
        self.mono += seconds
        self.driver.poll(Instant(self.mono, "boot", WALL + self.mono, wall_trusted=True))
        with self.database.session() as session:  # the command driver's part: they are numbered and sent
            for row in commands.asked(session):
                row.seq, row.state = commands.next_seq(session, row.device, WALL + self.mono), commands.SENT
                session.flush()

    def say(self, device: str, what: Any, by: str = "", **more: Any) -> None:
        word = EngineWord(device, more.pop("key", KEY), what, WALL, more.pop("passport", PASSPORT), **more)
        self.hear(device, self.keys[by or device].sign("engine", word))

    def hear(self, device: str, payload: bytes) -> None:
        now = Instant(self.mono, "boot", WALL + self.mono, wall_trusted=True)
        self.driver.on_word(Incoming(topics.engine_word(device), payload, now.wall), now)
        self.turn()

    def give(self, device: str, name: str, data: bytes, *, whole: bool = True) -> int:
        """A stored upload that answers the board's newest command, as the receiver leaves it."""
        self.offers += 1
        blob = hashlib.sha256(data).hexdigest()
        with self.database.session() as session:
            seqs = [row.seq or 0 for row in session.query(CommandRow).filter_by(device=device)]
            row = UploadRow(device=device, offer=self.offers, blob=blob, kind="engine", name=name, size=len(data), chunk_size=CHUNK,
                            table_page="", command=max(seqs, default=0), state=uploads.STORED if whole else uploads.OPEN, code="",
                            received=len(data), at=WALL, ended=0.0, expires=WALL * 2)
            session.add(row)
            session.flush()
            number = row.id
        write_file_in(self.files.path(device, blob), data)
        return number

    def finish(self, upload: int) -> None:
        with self.database.session() as session:
            uploads.end(session, upload, uploads.STORED, WALL)

    def give_built(self, device: str = "b1", *, engine: bytes = ENGINE, metadata: bytes = b"") -> None:
        self.give(device, NAME, engine)
        self.give(device, f"class-{CLASS}.json", metadata or self.signed(target(passport=by(device))))
        self.turn()

    def signed(self, *files: TargetFile, version: int = 1, signer: Builder | None = None, expires: float = 0.0) -> bytes:
        return (signer or self.signer).sign({file.path: file for file in files}, version=version, expires=expires)

    @property
    def work(self) -> Work:
        with self.database.reading() as session:
            found = engines.find(session, CLASS, KEY)
        assert found is not None
        return found

    def state(self) -> str:
        return self.work.state

    def asked(self, op: str) -> list[str]:
        with self.database.reading() as session:
            return [row.device for row in session.query(CommandRow).filter_by(op=op).order_by(CommandRow.id)]

    def rejected(self) -> list[str]:
        with self.database.reading() as session:
            return [row.code for row in session.query(Rejected).order_by(Rejected.id)]


def write_file_in(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)


def by(device: str) -> Passport:
    return msgspec.structs.replace(PASSPORT, builder=device)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with closing(made.database):
        yield made


def test_one_is_asked_and_what_it_gives_is_published_uncertified_and_tried(site: Site) -> None:
    site.say("c1", "need")
    site.say("b2", "need")
    assert site.asked("engine-build") == ["b1"]
    site.give_built()
    assert (site.work.state, site.work.by, site.work.second) == ("certifying", "b1", "b2")
    assert uncertified_of(site.project, CLASS) == {NAME}
    assert engine_blobs(site.project)[CLASS].keys() == {site.work.blob}
    assert site.asked("engine-certify") == ["b2"]
    with site.database.reading() as session:
        args = json.loads(session.query(CommandRow).filter_by(op="engine-certify").one().args)
    assert args["key"] == KEY


def test_metadata_that_is_whole_before_its_engine_waits_for_it(site: Site) -> None:
    site.say("b1", "need")
    under_way = site.give("b1", NAME, ENGINE, whole=False)
    site.give("b1", f"class-{CLASS}.json", site.signed(target()))
    site.turn()
    assert site.state() == "building"
    site.finish(under_way)
    site.turn()
    assert site.state() == "uncertified"


def test_a_restart_goes_on_and_old_uploads_fail_nothing(site: Site) -> None:
    site.say("b1", "need")
    site.give_built()
    other = msgspec.structs.replace(PASSPORT, recipe=msgspec.structs.replace(PASSPORT.recipe, precision="bf16"))
    site.say("b1", "need", key=key_of(other), passport=other)
    site.give("b1", engine_name(key_of(other)), b"second " * 900)
    site.give("b1", f"class-{CLASS}.json", site.signed(target(), target(b"second " * 900, other), version=2))
    site.turn()
    third = msgspec.structs.replace(PASSPORT, recipe=msgspec.structs.replace(PASSPORT.recipe, precision="int8"))
    site.say("b1", "need", key=key_of(third), passport=third)
    site.restart()
    site.turn()
    with site.database.reading() as session:
        states = {work.key: work.state for work in engines.every(session)}
    assert states == {KEY: "uncertified", key_of(other): "uncertified", key_of(third): "building"}
    assert site.asked("engine-build") == ["b1"] * 3


def test_an_engine_that_is_built_again_to_the_same_bytes_counts(site: Site) -> None:
    site.say("b1", "need")
    site.give_built()
    with site.database.session() as session:
        engines.save(session, msgspec.structs.replace(site.work, state="wanted", tries=0), WALL)
    site.turn()
    site.give_built(metadata=site.signed(target(), version=2))
    assert site.work.state == "uncertified"


def test_a_timing_cache_comes_with_its_engine_and_is_no_engine(site: Site) -> None:
    timings = b"kernels" * 700
    cut = table_of((timings[at:at + CHUNK] for at in range(0, len(timings), CHUNK)), CHUNK)
    path = engine_path(CLASS, timing_name(PASSPORT.footing))
    beside = TargetFile(len(timings), {"sha256": cut.blob}, path, {"custom": timing_field(cut.info, PASSPORT.subject, PASSPORT.footing)})
    site.say("c1", "need")
    site.give("b1", timing_name(PASSPORT.footing), timings)
    site.give_built(metadata=site.signed(target(passport=by("b1")), beside))
    assert site.state() == "certifying"
    assert set(engine_blobs(site.project)[CLASS]) == {hashlib.sha256(ENGINE).hexdigest(), cut.blob}
    assert uncertified_of(site.project, CLASS) == {NAME}, "nobody runs timings"
    with site.database.reading() as session:
        assert len(engines.every(session)) == 1


@pytest.mark.parametrize("code", ["cuda.driver", "backend.memory", "store.full", "device.offline"])
def test_a_second_board_that_cannot_for_reasons_of_its_own_convicts_nothing(site: Site, code: str) -> None:
    site.say("c1", "need")
    site.give_built()
    assert (site.state(), site.work.second) == ("certifying", "c1")
    site.say("c1", "unfit", code=code, detail="its own")
    assert site.state() == "uncertified"
    assert site.work.detail == f"waits for a second board to try it; not c1 [{code}]"
    site.say("b2", "need")
    assert (site.state(), site.work.second) == ("certifying", "b2")


def test_a_large_engine_is_copied_beside_the_control_thread(site: Site) -> None:
    held, free = threading.Event(), threading.Event()

    def slow(work: Callable[..., Any], *args: Any) -> Any:
        held.set()
        assert free.wait(30)
        return work(*args)

    class Held(AtOnce):
        def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return pool.submit(slow, work, *args)

    with ThreadPoolExecutor(1) as pool:
        site.copier = Held()
        site.restart()
        site.say("c1", "need")
        site.give_built()
        assert held.wait(30)
        site.turn()
        assert site.state() == "building", "polls go on while it is copied"
        free.set()

        def taken() -> bool:
            site.turn()
            return site.state() == "certifying"

        until(taken, "the copy to be taken", 30)


def flipped(site: Site) -> None:
    site.give_built(engine=bytes([ENGINE[0] ^ 1]) + ENGINE[1:])


def truncated(site: Site) -> None:
    site.give_built(engine=ENGINE[:-1])


def forged(site: Site) -> None:
    site.give_built(metadata=site.signed(target(), signer=Builder()))


def other_class(site: Site) -> None:
    site.give_built(metadata=site.signed(target(path=engine_path("orin-nano", NAME))))


def another_builders(site: Site) -> None:
    site.give_built(metadata=site.signed(target(passport=by("b2"))))


def another_key(site: Site) -> None:
    site.give_built(metadata=site.signed(target(path=engine_path(CLASS, "k" + "0" * 62))))


def expired(site: Site) -> None:
    site.give_built(metadata=site.signed(target(), expires=1_000_000_000.0))


def no_metadata(site: Site) -> None:
    site.give_built(metadata=b"not metadata at all")


@pytest.mark.parametrize(("attack", "code"), [
    (flipped, "engine.missing"), (truncated, "engine.missing"), (forged, "trust.signature"), (other_class, "trust.target"),
    (another_builders, "engine.passport"), (another_key, "engine.passport"), (expired, "trust.expired"), (no_metadata, "trust.malformed"),
])
def test_what_is_wrong_is_refused_by_name_and_another_builds(site: Site, attack: Callable[[Site], None], code: str) -> None:
    site.say("b1", "need")
    attack(site)
    site.turn()
    assert [(one.device, one.code) for one in site.work.barred] == [("b1", code)]
    assert (site.work.state, site.work.by) == ("building", "b2")
    assert engine_blobs(site.project) == {}


def test_stale_metadata_is_refused_and_so_is_what_leaves_engines_out(site: Site) -> None:
    site.say("b1", "need")
    site.give_built(metadata=site.signed(target(), version=5))
    other = msgspec.structs.replace(PASSPORT, recipe=msgspec.structs.replace(PASSPORT.recipe, precision="bf16"))
    key = key_of(other)
    for metadata, code in ((site.signed(target(), target(b"more " * 900, other), version=4), "trust.rollback"),
                           (site.signed(target(b"more " * 900, other), version=6), "engine.dropped")):
        site.say("b1", "need", key=key, passport=other)
        with site.database.reading() as session:
            work = engines.find(session, CLASS, key)
        assert work is not None
        site.give(work.by, engine_name(key), b"more " * 900)
        mine = other if work.by == "b1" else msgspec.structs.replace(other, builder=work.by)
        again = metadata if work.by == "b1" else site.signed(target(b"more " * 900, mine), version=6)
        site.give(work.by, f"class-{CLASS}.json", again)
        site.turn()
        with site.database.reading() as session:
            after = engines.find(session, CLASS, key)
        assert after is not None
        assert code in {one.code for one in after.barred}


def test_a_board_of_another_class_and_forged_words_change_nothing(site: Site) -> None:
    site.say("b1", "need")
    site.say("b1", "failed", by="c1", code="engine.build")
    site.say("x1", "built")
    site.hear("b1", b"{}")
    site.say("b1", "need", key="0" * 64)
    assert len(site.rejected()) == 3
    assert site.rejected()[-1] == "engine.key"
    assert (site.work.state, site.work.by) == ("building", "b1")
    site.give("x1", f"class-{CLASS}.json", site.signed(target()))
    site.turn()
    assert engine_blobs(site.project) == {}


def test_builders_of_a_class_work_one_after_the_other(site: Site) -> None:
    other = msgspec.structs.replace(PASSPORT, recipe=Recipe("cd" * 32, "fp32", (1, 3, 48, 64)))
    site.say("c1", "need")
    site.say("c1", "need", passport=other, key=key_of(other))
    assert site.asked("engine-build") == ["b1"], "b2 is free, but would sign beside b1"
    with site.database.reading() as session:
        waiting = engines.find(session, CLASS, key_of(other))
    assert waiting is not None
    assert (waiting.state, waiting.code) == ("wanted", "engine.queue")
    site.give_built("b1")
    site.turn()
    assert len(site.asked("engine-build")) == 2, "the next one's turn"
