"""The class cache of engines on boards of one class: real trust, stores, builds and OpenVINO; the network between them is a dictionary."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from brokers import until
from fleet_rig import write_model_bundle
from pipelines import classifier_task, save_brightness_model
from supervisor_rig import FakeLink

from jetfleet_agent.capability import probe_machine
from jetfleet_agent.pipeline.backends import open_backend
from jetfleet_agent.supervisor.bundle_reader import BundleReader, blob_of_digest
from jetfleet_agent.supervisor.engine_record import EngineMemory
from jetfleet_agent.supervisor.engine_work import EngineWork
from jetfleet_agent.supervisor.engines import Engines
from jetfleet_agent.supervisor.evaluation_process import PROGRAM
from jetfleet_agent.supervisor.identity import Identity, verify_ed25519
from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_agent.supervisor.trust import TrustStore
from jetfleet_contract import topics
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.delegations import delegation_field, engine_path, role_of_class
from jetfleet_contract.engines import EngineFile, EngineWord, Passport, engine_name, key_of
from jetfleet_contract.errors import TransportError
from jetfleet_contract.footings import footing_of
from jetfleet_contract.messages import BackendInfo, Capability, GpuInfo, Instant, encode
from jetfleet_contract.policy import Candidate
from jetfleet_contract.predictions import Detection
from jetfleet_contract.slot_records import Slot
from jetfleet_contract.trust import unseal
from jetfleet_contract.tuning import Tuning
from jetfleet_contract.uploads import Kind
from jetfleet_host.delegations import accept, certify, delegate
from jetfleet_host.project import Project
from jetfleet_host.publish import publish

openvino = pytest.importorskip("openvino")
pytest.importorskip("onnx")

CLASS = "cpu-test"
CANDIDATE = Candidate("fp32", "openvino", "fp32")
DEFAULTS = Tuning()
WAIT_S = 120.0
ORIN = GpuInfo("Orin", 87, 8, integrated=True, driver="12.6")
TENSORRT = "10.3.0.30"
STUCK = (sys.executable, "-c", "import time; time.sleep(600)")


def now() -> Instant:
    return Instant(time.monotonic(), "boot", time.time(), True)


class Fleet:
    """A project with one bundle, and what boards have given to it."""

    def __init__(self, folder: Path) -> None:
        self.project = Project.init(folder / "fleet", broker="127.0.0.1:1")
        self.given: dict[str, bytes] = {}
        self.offers: list[tuple[str, str, int]] = []
        model = save_brightness_model(folder / "model.onnx")
        answers = ((20, (Detection("dark", 0.99),)), (230, (Detection("bright", 0.99),)))
        self.folder = folder / "toy.bundle"
        self.bundle = write_model_bundle(self.folder, "toy", "1", model, classifier_task(), answers, "openvino")
        publish(self.project, self.folder)

    def delegate(self, *boards: Board) -> None:
        delegate(self.project, CLASS, [board.identity.public_hex for board in boards])

    def accept(self, metadata: bytes, *, uncertified: tuple[str, ...] = ()) -> None:
        if not uncertified:
            accept(self.project, CLASS, metadata)
            return
        with self.project.repository.locked():
            field = delegation_field(BlobInfo(len(metadata)), uncertified)
            self.project.repository.accept_delegated(role_of_class(CLASS), metadata, field)

    def metadata(self) -> bytes:
        return next(self.given[blob] for blob, name, _ in reversed(self.offers) if name.endswith(".json"))


class Board:
    """The engines' part of one board, over real parts."""

    def __init__(self, fleet: Fleet, folder: Path, *, program: Sequence[str] = PROGRAM, own_after_s: float = 3600.0,
                 build: str = openvino.__version__, clock: Callable[[], Instant] = now, orin: bool = False) -> None:
        self.fleet, self.device = fleet, folder.name
        self.identity = Identity.load_or_create(folder / "identity")
        self.trust = TrustStore(folder / "trust", fleet.project.root_file.read_bytes())
        self.store = BlobStore(folder)
        self.link = FakeLink()
        self.link.connected = True
        self.wanted: list[str] = []
        self.slow = [True, True]
        for path in (fleet.folder / "blobs" / "sha256").iterdir():
            self.store.put_bytes(path.name, path.read_bytes())
        machine = probe_machine()
        info = BackendInfo("openvino", "1", precisions=("fp32",), build=build)
        here = Capability("test", CLASS, machine.arch, machine.cpu, machine.isa, machine.cores, backends=(info,))
        self.candidate = CANDIDATE
        if orin:
            info = BackendInfo("tensorrt", "10.3.0", precisions=("fp32",), build=build)
            here = msgspec.structs.replace(here, arch="aarch64", backends=(info,), gpu=ORIN, module="p3767-0005", system="36.4.3")
            self.candidate = Candidate("fp32", "tensorrt", "fp16")
            program = (sys.executable, str(Path(__file__).resolve().parents[1] / "tensorrt_machine.py"), build, "87", "2")
        self.work = EngineWork(folder / "engines", threads=1, program=program)
        self.engines = Engines(self.device, CLASS, partial(footing_of, here), self.trust, self.store, self, self, self.identity, self.link,
                               self.work, EngineMemory(folder / "engines"), clock, random.random, own_after_s=own_after_s)
        spec = BundleReader(self.store).contents(fleet.bundle).spec
        self.slot = Slot(fleet.bundle, "toy", "1", candidate=self.candidate, weights=blob_of_digest(spec.variants[0].digest))
        self.spec = spec

    # the network, as a dictionary

    def want(self, blob: str, info: BlobInfo) -> None:
        self.wanted.append(blob)

    def deliver(self) -> None:
        for blob in [blob for blob in self.wanted if not self.store.has(blob)]:
            assert blob in self.fleet.given
            self.store.put_bytes(blob, self.fleet.given[blob])
            self.engines.blob_done(blob)

    def offer_bytes(self, data: bytes, kind: Kind, name: str, *, command: int = 0) -> str:
        import hashlib

        blob = hashlib.sha256(data).hexdigest()
        assert kind == "engine"
        self.fleet.given[blob] = data
        self.fleet.offers.append((blob, topics.check_name("upload", name), command))
        return blob

    def is_waiting(self, blob: str) -> bool:
        return self.slow.pop() if self.slow else False

    def follow(self) -> None:
        """The fleet's newest metadata, and the class's with it."""
        self.trust.update(self.fleet.project.repository.package(), now())
        if self.trust.delegation(CLASS) is not None:
            self.trust.accept_delegation(CLASS, self.fleet.metadata(), now())
        self.engines.follow()

    def engine(self, tuning: Tuning = DEFAULTS) -> EngineFile | None:
        return self.engines.engine("reader", self.slot, self.spec, self.candidate, tuning, 1)

    def words(self) -> list[EngineWord]:
        return [unseal(payload, "engine", EngineWord, {self.identity.public_hex}, verify_ed25519)
                for topic, payload, *_ in self.link.published if topic == topics.engine_word(self.device)]

    def said(self, what: str) -> EngineWord:
        """Tick until it has said that."""
        def heard() -> bool:
            self.engines.tick()
            self.deliver()
            return any(word.what in (what, "failed", "unfit") for word in self.words())

        until(heard, f"{self.device} to say {what}", WAIT_S)
        last = next(word for word in reversed(self.words()) if word.what in (what, "failed", "unfit"))
        assert last.what == what, (last.code, last.detail)
        return last

    def order(self, op: str, passport: Passport, command: int = 7) -> str:
        code, detail, _ = self.engines.obey(op, command, {"key": key_of(passport), "passport": encode(passport).decode()})
        assert detail
        return code

    def runs(self, engine: EngineFile) -> None:
        entry = self.spec.task.input
        with open_backend("openvino", self.store.path(self.slot.weights), precision="fp32", threads=1,
                          input_shape=(1, 3, entry.height, entry.width), engine=engine) as backend:
            backend.lanes[0].tensor[...] = 0.9
            assert np.argmax(backend.infer(backend.lanes[0])[0]) == 1


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture
def board(fleet: Fleet, tmp_path: Path) -> Iterator[Callable[..., Board]]:
    with contextlib.ExitStack() as stack:
        def make(name: str, **options: object) -> Board:
            made = Board(fleet, tmp_path / name, **options)  # type: ignore[arg-type]
            stack.callback(made.engines.close)
            return made

        yield make


def built(fleet: Fleet, one: Board) -> EngineWord:
    """The named builder builds what it needs; the host has not taken it over yet."""
    fleet.delegate(one)
    one.follow()
    assert one.engine() is None
    passport = one.said("need").passport
    assert one.order("engine-build", passport) == ""
    assert one.order("engine-build", passport) == "engine.busy"
    return one.said("built")


def test_one_board_builds_and_the_others_fetch_and_run(fleet: Fleet, board: Callable[..., Board]) -> None:
    builder, other = board("one"), board("two")
    word = built(fleet, builder)
    assert (word.agreement, word.percent) == (1.0, 100.0)
    assert word.p50_ms > 0
    assert {said.percent for said in builder.words() if said.what == "building"} >= {0.0, 60.0}
    assert [(name.rpartition(".")[2] == "json", command) for _, name, command in fleet.offers] == [(False, 7), (True, 7)]
    own = builder.engine()
    assert own is not None
    builder.runs(own)
    assert builder.order("engine-build", word.passport, 8) == "", "asked again, as when another builder has signed in between"
    until(lambda: builder.engines.tick() > 0 and len(fleet.offers) == 4, "what it has to be signed again", WAIT_S)
    assert fleet.offers[2][0] == word.blob

    other.follow()
    assert other.engine() is None, "compiled, as long as nobody has signed one that it knows of"
    assert other.order("engine-build", other.said("need").passport) == "engine.not-builder"
    fleet.accept(fleet.metadata())
    other.follow()
    assert other.engine() is None, "a model does not wait for its engine"
    assert other.wanted == [word.blob]
    other.deliver()
    fetched = other.engine()
    assert fetched is not None
    assert fetched.digest == word.blob
    other.runs(fetched)
    assert other.engines.held({fleet.bundle}) == {word.blob}, "garbage collection knows it"
    assert other.engines.held(set()) == set(), "and lets it go with its bundle"
    assert "runs with engine" in other.engines.explained()["reader"]

    again = Board(fleet, other.store.folder.parent)  # the agent starts again
    again.follow()
    assert again.engine() == fetched
    again.engines.close()


def test_a_plan_of_tensorrt_goes_the_same_way(fleet: Fleet, board: Callable[..., Board]) -> None:
    """TensorRT and the GPU are stand-ins; footing, key, build in a process, signature, delivery and trial are what boards run."""
    builder, other = board("one", orin=True, build=TENSORRT), board("two", orin=True, build=TENSORRT)
    word = built(fleet, builder)
    assert (word.agreement, word.passport.footing.backend, word.passport.footing.device) == (1.0, "tensorrt", "p3767-0005")
    assert fleet.given[word.blob].startswith(b'{"version": "10.3.0.30", "sm": 87')
    accept(fleet.project, CLASS, fleet.metadata(), (engine_name(word.key),))
    other.follow()
    assert other.engine() is None
    assert other.order("engine-certify", other.said("need").passport) == ""
    assert other.said("fit").agreement == 1.0
    certify(fleet.project, CLASS, ())
    other.trust.update(fleet.project.repository.package(), now())
    assert other.engine() == EngineFile(str(other.store.path(word.blob)), word.blob)

    newer = board("three", orin=True, build="10.7.0.23")
    newer.follow()
    assert newer.engine() is None
    assert newer.said("need").key != word.key, "after an upgrade of TensorRT a board asks for another"
    assert newer.order("engine-certify", word.passport) == "engine.version"


def test_builders_of_a_class_build_upon_each_others_timings_on_gpu_and_dla(fleet: Fleet, board: Callable[..., Board]) -> None:
    first, second = board("one", orin=True, build=TENSORRT), board("two", orin=True, build=TENSORRT)
    fleet.delegate(first, second)
    first.follow()
    assert first.engine() is None
    assert first.order("engine-build", first.said("need").passport) == ""
    first.said("built")
    names = [name for _, name, _ in fleet.offers]
    assert [name[0] for name in names] == ["k", "t", "c"], "the engine, its timings, and what names both"
    accept(fleet.project, CLASS, fleet.metadata())
    second.follow()
    dla = Tuning(provider="DLA1")
    assert second.engine(dla) is None
    passport = second.said("need").passport
    assert passport.recipe.dla
    assert second.order("engine-certify", passport) == "trust.unknown-engine"
    second.deliver()
    assert second.order("engine-build", passport, 9) == ""
    built_by_second = second.said("built")
    line = fleet.given[built_by_second.blob].partition(b"\n")[0]
    assert line == b'{"version": "10.3.0.30", "sm": 87, "device": "DLA", "known": 1}'
    timings = [fleet.given[blob] for blob, name, _ in fleet.offers if name.startswith("t")]
    assert timings == [b"timings:1", b"timings:2"]
    accept(fleet.project, CLASS, fleet.metadata())
    assert {one.timing is not None for one in second.trust.engines(CLASS)} == {True, False}


def test_a_bit_that_flipped_on_disk_is_found_before_the_engine_is_loaded(fleet: Fleet, board: Callable[..., Board]) -> None:
    builder, other = board("one"), board("two")
    blob = built(fleet, builder).blob
    fleet.accept(fleet.metadata())
    other.follow()
    other.engine()
    other.deliver()
    path = other.store.path(blob)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert other.engine() is None, "compiled"
    assert not other.store.has(blob)
    other.store.part(blob).unlink()
    other.engines.follow()
    other.engines.tick()
    other.deliver()
    engine = other.engine()
    assert engine is not None, "and fetched again"
    other.runs(engine)


def test_a_second_board_certifies_what_only_its_builder_has_tried(fleet: Fleet, board: Callable[..., Board]) -> None:
    builder, other = board("one"), board("two")
    word = built(fleet, builder)
    fleet.accept(fleet.metadata(), uncertified=(engine_name(word.key),))
    other.follow()
    assert other.engine() is None
    assert "engine.uncertified" in other.engines.explained()["reader"]
    assert other.wanted == []
    assert other.said("need").key == word.key, "the host is to know who could try it"
    assert other.order("engine-certify", word.passport) == ""
    fit = other.said("fit")
    assert (fit.key, fit.blob, fit.agreement, other.wanted) == (word.key, word.blob, 1.0, [word.blob])
    assert fit.p50_ms > 0
    assert other.engine() is None, "it runs once the host has said so"
    assert other.engines.held({word.passport.subject}) == {word.blob}, "what was tried is wanted here: it must not be fetched twice"


def test_a_second_board_that_cannot_fetch_the_engine_convicts_nobody(fleet: Fleet, board: Callable[..., Board]) -> None:
    builder, other = board("one"), board("two")
    word = built(fleet, builder)
    fleet.accept(fleet.metadata(), uncertified=(engine_name(word.key),))
    other.follow()
    assert other.engine() is None
    assert other.order("engine-certify", word.passport) == ""
    other.engines.blob_failed(word.blob, TransportError("blob.denied", "the host does not give it"))
    told = other.words()[-1]
    assert (told.what, told.code) == ("failed", "blob.denied")
    assert other.order("engine-certify", word.passport) == "", "it can be asked again"


def test_a_build_that_is_killed_leaves_nothing_and_begins_again(fleet: Fleet, board: Callable[..., Board], tmp_path: Path) -> None:
    stuck = board("one", program=STUCK)
    fleet.delegate(stuck)
    stuck.follow()
    stuck.engine()
    assert stuck.order("engine-build", stuck.said("need").passport) == ""
    (tmp_path / "one" / "engines" / ".half.engine.00.partial").write_bytes(b"half")
    stuck.engines.close()
    again = board("one")
    assert list((tmp_path / "one" / "engines").glob(".*")) == []
    word = again.said("built")
    assert (word.blob in fleet.given, fleet.offers[0][2]) == (True, 7), "for the command that was under way"
    assert not list((tmp_path / "one" / "engines").glob("*.engine"))


def test_a_builder_whose_clock_nobody_has_set_signs_from_the_newest_signed_time_on(fleet: Fleet, board: Callable[..., Board]) -> None:
    lost, other = board("one", clock=lambda: Instant(time.monotonic(), "boot", 12.0, False)), board("two")
    blob = built(fleet, lost).blob
    fleet.accept(fleet.metadata())
    other.follow()
    assert other.engine() is None
    assert other.wanted == [blob], "it has not expired in 1970"


def test_a_build_that_fails_is_told_with_its_code(fleet: Fleet, board: Callable[..., Board]) -> None:
    broken = board("one", program=(sys.executable, "-c", "import os; os.abort()"))
    fleet.delegate(broken)
    broken.follow()
    broken.engine()
    assert broken.order("engine-build", broken.said("need").passport) == ""
    assert broken.said("failed").code == "evaluate.crash"
    assert fleet.offers == []


def test_who_is_served_by_nobody_builds_for_itself(fleet: Fleet, board: Callable[..., Board]) -> None:
    alone = board("one", own_after_s=0.0)
    alone.follow()
    assert alone.engine() is None

    def served() -> bool:
        alone.engines.tick()
        return alone.engine() is not None

    until(served, "its own engine", WAIT_S)
    engine = alone.engine()
    assert engine is not None
    alone.runs(engine)
    assert fleet.offers == [], "what it signs counts for nobody"
    assert {word.what for word in alone.words()} == {"need"}


def test_an_engine_that_failed_is_remembered_and_a_new_runtime_asks_anew(fleet: Fleet, board: Callable[..., Board]) -> None:
    one = board("one")
    blob = built(fleet, one).blob
    assert one.engine() is not None
    assert one.engines.ended("reader", "pipeline.killed"), "while it was being loaded"
    assert not one.engines.ended("reader", "pipeline.killed"), "it had none any more"
    fleet.accept(fleet.metadata())
    one.follow()
    assert one.engine() is None
    assert "pipeline.killed" in one.engines.explained()["reader"]
    again = Board(fleet, one.store.folder.parent)
    again.follow()
    assert again.engine() is None, "also after a restart"
    again.engines.close()
    newer = board("two", build="9999.1-1-new")
    newer.follow()
    assert newer.engine() is None
    need = newer.said("need")
    assert need.passport.footing.version == "9999.1-1-new"
    assert blob not in newer.wanted


def test_orders_for_other_machines_and_other_keys_are_refused_by_name(fleet: Fleet, board: Callable[..., Board]) -> None:
    one = board("one")
    fleet.delegate(one)
    one.follow()
    one.engine()
    passport = one.said("need").passport
    foreign = msgspec.structs.replace(passport, footing=msgspec.structs.replace(passport.footing, device="Another CPU"))
    assert one.order("engine-build", foreign) == "engine.device"
    assert one.order("engine-build", msgspec.structs.replace(passport, subject="9" * 64)) == "engine.no-weights"
    assert one.engines.obey("engine-build", 1, {"key": "0" * 64, "passport": encode(passport).decode()})[0] == "engine.key"
    assert one.engines.obey("engine-build", 1, {"passport": "{"})[0].startswith("message.")
    assert one.order("engine-certify", passport) == "trust.no-delegation"
    assert engine_path(CLASS, engine_name(key_of(passport))).startswith(f"engine/{CLASS}/k")
