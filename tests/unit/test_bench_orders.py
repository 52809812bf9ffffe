"""Which bundle a command to measure means, when a board may, and what it does about a bench that ends, is in the way, or was killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from brokers import until
from bundle_maker import make_bundle
from choices import capability_of
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.bundle_folder import read_bundle
from jetfleet_agent.pipeline.frame_times import rest_after
from jetfleet_agent.supervisor.bench_work import BenchJob, BenchOutcome, BenchWork
from jetfleet_agent.supervisor.board_bench import BoardBench
from jetfleet_agent.supervisor.commands import Commands
from jetfleet_agent.supervisor.engine_ports import NoEngines
from jetfleet_agent.supervisor.store import BlobStore
from jetfleet_agent.thermal import Cooling, Thermal, Zone
from jetfleet_contract.bench_orders import (
    BenchAnswer,
    BenchOrder,
    arguments_of,
    check_answer,
    check_free,
    order_of,
    share_of,
    slot_of,
)
from jetfleet_contract.bench_records import MAX_RECORD_BYTES, BenchFigures, BenchRecord
from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError
from jetfleet_contract.messages import AppSpec, BackendInfo, Capability, Command, Instant, Response, TrialPolicy, decode, encode
from jetfleet_contract.policy import Candidate
from jetfleet_contract.slot_records import AppSlots, Setup, Slot, Target
from jetfleet_host.commands.device_bench import bench

BOARD = Capability("cpu-x86", "cpu-x86", "x86_64")
HANGS = (sys.executable, "-c", "import time; time.sleep(600)")


def app(name: str = "gate", *, bundle: str = "a" * 64, share: float = 0.25, **changes: Any) -> AppSlots:
    spec = AppSpec(name, bundle, "toy", "2", trial=TrialPolicy(share=share))
    fields: dict[str, Any] = {"target": Target(1, spec), "champion": Slot(bundle, "toy", "2"), "previous": Slot("b" * 64, "toy", "1")}
    return AppSlots(name, **{**fields, **changes})


def record(rows: int = 1) -> BenchRecord:
    figures = tuple(BenchFigures(Candidate("fp32", "onnxruntime", "fp32"), f"sha256:{n:064x}", 1.0, 2.0, 3.0, 50) for n in range(rows))
    return BenchRecord("cpu-x86", "cpu-x86", "x86_64", "a CPU", (), 2, Conditions(), {}, "toy", "2", 1.0, figures)


# --- what is asked for ----------------------------------------------------------------------------------------


def test_the_host_asks_for_what_the_board_understands() -> None:
    assert order_of(7, arguments_of("gate", "", 60)) == BenchOrder(7, "gate", limit_s=60.0)
    assert order_of(8, arguments_of("", "toy:2", 5.5)) == BenchOrder(8, "", "toy", "2", 5.5)


@pytest.mark.parametrize(("app_name", "model", "limit_s"), [
    ("", "", 60.0), ("gate", "toy:2", 60.0), ("", "toy", 60.0), ("", ":2", 60.0), ("../etc", "", 60.0), ("", "toy:../x", 60.0),
    ("gate", "", 4.0), ("gate", "", 3601.0), ("gate", "", float("nan"))])
def test_a_bad_wish_is_refused_before_a_board_hears_of_it(app_name: str, model: str, limit_s: float) -> None:
    with pytest.raises(InputError) as caught:
        arguments_of(app_name, model, limit_s)
    assert caught.value.code == "bench.order"


@given(st.dictionaries(st.sampled_from(["app", "name", "version", "limit_s"]), st.text(max_size=40)))
def test_whatever_arguments_come_are_an_order_or_malformed(args: dict[str, str]) -> None:
    try:
        order = order_of(1, args)
    except MalformedError as error:
        assert error.code in ("bench.order", "name.bad")  # noqa: PT017
    else:
        assert decode(encode(order), BenchOrder) == order
        assert bool(order.app) != bool(order.name and order.version)


def test_the_bundle_is_what_an_app_runs_or_ran_before() -> None:
    states = {"gate": app()}
    assert slot_of(BenchOrder(1, "gate"), states).version == "2"
    assert slot_of(BenchOrder(1, name="toy", version="1"), states).bundle == "b" * 64
    for order, code in ((BenchOrder(1, "nobody"), "app.unknown"), (BenchOrder(1, name="toy", version="3"), "bench.no-bundle")):
        with pytest.raises(JetfleetError) as caught:
            slot_of(order, states)
        assert caught.value.code == code
    for changed, code in (({"champion": None}, "bench.no-bundle"),
                          ({"champion": Slot("a" * 64, "toy", "2", Setup(runner="exec"))}, "bench.runner")):
        with pytest.raises(JetfleetError) as caught:
            slot_of(BenchOrder(1, "gate"), {"gate": app(**changed)})
        assert caught.value.code == code


def test_it_takes_no_more_time_than_the_strictest_app_gives() -> None:
    assert share_of([app(share=0.5), app("sorter", share=0.1), app("gone", share=0.01, champion=None)]) == 0.1
    assert share_of([]) == 1.0
    with pytest.raises(JetfleetError) as caught:
        share_of([app(share=0.0)])
    assert caught.value.code == "bench.share"


@pytest.mark.parametrize(("state", "changes", "said"), [
    (app(phase="trial"), {}, "app gate is in an update (trial)"), (app(), {"slowed": ("cpufreq-cpu0",)}, "slowed down: cpufreq-cpu0"),
    (app(), {"headroom_c": 4.9}, "5 degrees below"), (app(), {"held": {"gate": "governor.heat"}}, "governor.heat"),
    (app(), {"building": True}, "builds an engine")])
def test_a_board_with_something_better_to_do_is_busy(state: AppSlots, changes: dict[str, Any], said: str) -> None:
    calm: dict[str, Any] = {"slowed": (), "headroom_c": 5.0, "held": {"gate": ""}, "building": False}
    check_free([app()], **calm)
    check_free([app()], **{**calm, "headroom_c": None})
    with pytest.raises(JetfleetError) as caught:
        check_free([state], **{**calm, **changes})
    assert caught.value.code == "device.busy"
    assert said in caught.value.what


def test_an_answer_has_a_record_or_the_name_of_one() -> None:
    for answer in (BenchAnswer(), BenchAnswer(record(), "c" * 64), BenchAnswer(blob="../x")):
        with pytest.raises(MalformedError):
            check_answer(answer)
    assert check_answer(BenchAnswer(blob="c" * 64)).blob


def test_a_file_that_cannot_be_written_is_said_before_the_board_works(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "record.json"):
        with pytest.raises(InputError) as caught:
            bench("dock-1", "gate", "", 60.0, path, tmp_path, as_json=True)
        assert caught.value.code == "bench.record"


# --- the board ------------------------------------------------------------------------------------------------


def test_a_rest_is_as_long_as_the_share_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr("jetfleet_agent.pipeline.frame_times.time.sleep", rests.append)
    rest_after(0.5, 0.25)
    rest_after(0.5, 1.0)
    assert rests == [1.5]


class Work:
    """Holds a bench until the test says what comes of it."""

    def __init__(self) -> None:
        self.jobs: list[BenchJob] = []
        self.outcome: BenchOutcome | None = None
        self.stops = 0

    def start(self, job: BenchJob) -> None:
        self.jobs.append(job)

    def take(self) -> BenchOutcome | None:
        return self.outcome

    def stop(self) -> None:
        self.stops += 1


class Wire:
    """Link, trust, key and uploads at once; `room` is the largest payload that its broker takes."""

    public_hex = "ab" * 32

    def __init__(self, room: int = 0) -> None:
        self.connected = True
        self.limits = BrokerLimits(max_payload_bytes=room)
        self.said: list[Response] = []
        self.given: list[bytes] = []
        self.order = Command("dock-1", 7, 1e12, "bench", arguments_of("gate", "", 60.0))

    def publish(self, _topic: str, payload: bytes, **_: Any) -> bool:
        self.said.append(decode(payload, Response))
        return True

    def sign(self, _kind: str, message: Any) -> bytes:
        return encode(message)

    def command(self, _data: bytes, _device: str, _now: Instant) -> Command:
        return self.order

    def offer_bytes(self, data: bytes, kind: str, name: str, *, command: int = 0) -> str:
        assert (kind, name, command) == ("bench", "bench-7.json", 7)
        self.given.append(data)
        return "d" * 64


class Board:
    """A board with one app whose bundle is in its store."""

    def __init__(self, folder: Path, room: int = 0) -> None:
        self.folder = folder
        bundle = folder / "toy.bundle"
        digest = make_bundle(bundle, name="toy", version="2", weight_bytes=3000, seed=1).removeprefix("sha256:")
        self.store = BlobStore(folder / "state")
        for blob in (bundle / "blobs" / "sha256").iterdir():
            self.store.put_bytes(blob.name, blob.read_bytes())
        self.states: Mapping[str, AppSlots] = {"gate": app(bundle=digest)}
        self.heat = Thermal()
        self.wire, self.work = Wire(room), Work()
        self.start()

    def start(self) -> None:
        self.bench = BoardBench(self.folder / "bench", self.work, self.store, lambda: self.states, lambda: self.heat, dict,
                                lambda: False)
        wire: Any = self.wire
        self.commands = Commands("dock-1", wire, wire, wire, wire, wire, lambda _: [], tuple, dict, lambda: Instant(0, "", 0, True), wire,
                                 lambda: None, NoEngines(), self.bench)

    def codes(self) -> list[str]:
        return [one.code for one in self.wire.said]


def test_a_record_is_the_answer_and_the_next_bench_may_come(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for _ in range(2):
        board.commands.arrived(b"")
        board.commands.tick()
    assert board.codes() == ["device.busy"], "one at a time, and the first is not answered before it ended"
    assert [job.share for job in board.work.jobs] == [0.25]
    assert set(board.work.jobs[0].bundle.paths) == {variant.name for variant in board.work.jobs[0].bundle.spec.variants}
    board.work.outcome = BenchOutcome(board.work.jobs[0].order, record())
    board.wire.connected = False
    board.commands.tick()
    assert board.codes() == ["device.busy"], "it waits for a link"
    board.wire.connected = True
    board.commands.tick()
    board.commands.tick()
    assert board.codes() == ["device.busy", ""]
    assert decode(board.wire.said[-1].body.encode(), BenchAnswer).record == record()
    board.work.outcome = None
    board.commands.arrived(b"")
    assert len(board.work.jobs) == 2


def test_a_record_that_the_broker_does_not_take_is_given_as_an_upload(tmp_path: Path) -> None:
    board = Board(tmp_path, room=4096)
    board.commands.arrived(b"")
    board.work.outcome = BenchOutcome(board.work.jobs[0].order, record(100))
    board.commands.tick()
    assert board.wire.given == [encode(record(100))]
    assert json.loads(board.wire.said[-1].body) == {"blob": "d" * 64}


def test_a_board_that_gets_hot_or_an_update_ends_it(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for heat, states in ((Thermal(slowing=(Cooling("cpufreq-cpu0", 1, 3),)), board.states),
                         (Thermal((Zone("gpu", 90.0, 92.0),)), board.states), (Thermal(), {"gate": app(phase="fetching")})):
        calm = board.states
        board.commands.arrived(b"")
        board.heat, board.states = heat, states
        board.commands.tick()
        board.heat, board.states = Thermal(), calm
    assert board.codes() == ["device.busy"] * 3
    assert board.work.stops == 3
    assert not (tmp_path / "bench" / "under-way.json").exists()


def test_an_agent_that_was_killed_answers_at_its_next_start(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.commands.arrived(b"")
    board.start()
    board.commands.tick()
    board.commands.tick()
    assert [(one.seq, one.code) for one in board.wire.said] == [(7, "bench.interrupted")]
    (tmp_path / "bench" / "under-way.json").write_bytes(b"{" * 9000)
    board.start()
    board.commands.tick()
    assert board.codes() == ["bench.interrupted"], "what cannot be read is owed to nobody"


def test_what_cannot_be_measured_is_refused_at_once(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for args, code in ((arguments_of("nobody", "", 60.0), "app.unknown"), (arguments_of("", "toy:1", 60.0), "store.missing"),
                       (arguments_of("", "toy:9", 60.0), "bench.no-bundle"), ({"app": "gate", "limit_s": "x"}, "bench.order")):
        board.wire.order = Command("dock-1", 7, 1e12, "bench", args)
        board.commands.arrived(b"")
        assert board.codes()[-1] == code
    assert not board.work.jobs


def test_time_that_is_over_and_nothing_to_measure_are_told_apart(tmp_path: Path) -> None:
    job = _job(tmp_path, limit_s=1.0)
    outcome = _awaited(BenchWork(tmp_path / "work", BOARD, threads=1), job)
    assert outcome.code == "bench.nothing", "this board has no runtime"
    able = capability_of(BackendInfo("onnxruntime", "1", precisions=("fp32",)))
    outcome = _awaited(BenchWork(tmp_path / "work", able, threads=1, program=HANGS), job)
    assert outcome.code == "bench.timeout"
    assert "no answer within" in outcome.detail
    outcome = _awaited(BenchWork(tmp_path / "work", able, threads=1, free_mb=lambda: 1.0), job)
    assert outcome.code == "bench.nothing"
    assert "1 MB are free" in outcome.detail


def test_a_stop_kills_the_process_in_hand_and_leaves_no_outcome(tmp_path: Path) -> None:
    able = capability_of(BackendInfo("onnxruntime", "1", precisions=("fp32",)))
    work = BenchWork(tmp_path / "work", able, threads=1, program=HANGS)
    work.start(_job(tmp_path, limit_s=600.0))
    until(lambda: list((tmp_path / "work" / "jobs").glob("job-*/job.json")), "the process", 30.0)
    work.stop()
    until(lambda: not list((tmp_path / "work" / "jobs").iterdir()), "its end", 30.0)
    assert work.take() is None


def test_no_record_that_a_board_makes_is_larger_than_a_host_reads() -> None:
    assert len(encode(record(256))) < MAX_RECORD_BYTES


def _job(folder: Path, *, limit_s: float) -> BenchJob:
    bundle = folder / "toy.bundle"
    make_bundle(bundle, name="toy", version="2", weight_bytes=3000, seed=1)
    return BenchJob(BenchOrder(1, "gate", limit_s=limit_s), read_bundle(bundle), 1.0)


def _awaited(work: BenchWork, job: BenchJob) -> BenchOutcome:
    work.start(job)
    found: list[BenchOutcome] = []

    def came() -> bool:
        outcome = work.take()
        found.extend([outcome] if outcome is not None else [])
        return bool(found)

    until(came, "an outcome", 30.0)
    return found[0]
