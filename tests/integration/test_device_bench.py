"""`jetfleet device bench`: a real agent measures what it runs beside its running app; boards that cannot, and records that are large."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from brokers import Mosquitto, mosquitto, until
from fleet_rig import AgentProcess, make_model_bundle
from served_fleet import ServedFleet, fleet_on
from upload_board import DEVICE, UploadBoard, now

from jetfleet_contract.bench_orders import BenchAnswer
from jetfleet_contract.bench_records import BenchFigures, BenchRecord, why_unusable
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Command, Response, decode, encode
from jetfleet_contract.policy import Candidate
from jetfleet_host.commands.device_bench import bench
from jetfleet_host.matrix.records import load_record
from jetfleet_host.publish import publish

WAIT_S = 90.0
APPS = """
[gate]
sources = [{ name = "front", uri = "local:front", fps = 10.0, loop = true }]
trial = { frames = 5, max_p99_ratio = 1000.0, keep_s = 1.0, share = 0.5 }
"""


@pytest.fixture
def broker() -> Iterator[Mosquitto]:
    with mosquitto() as started:
        yield started


@pytest.fixture
def rig(tmp_path: Path, broker: Mosquitto) -> Iterator[ServedFleet]:
    with fleet_on(tmp_path, f"127.0.0.1:{broker.port}") as made:
        made.start()
        yield made


@pytest.mark.slow
def test_a_board_measures_what_it_runs_and_a_killed_one_says_so(rig: ServedFleet, broker: Mosquitto, tmp_path: Path) -> None:
    rig.apps.write_text(APPS)
    make_model_bundle(tmp_path / "bundles" / "brightness-1", "1")
    publish(rig.project, tmp_path / "bundles" / "brightness-1")
    agent = AgentProcess(tmp_path / "gate-1", "gate-1", broker.port, rig.project.root_file).start()
    try:
        until(lambda: rig.knows("gate-1"), "the board", WAIT_S)
        rollout = rig.begin("brightness:1", "--devices", "gate-1", app="gate")
        until(lambda: rig.phase(rollout) == "done", f"the update, see {agent.log}", WAIT_S)
        pipelines = agent.said().count("pipeline ended")
        record = tmp_path / "gate-1.json"
        told = rig.cli("device", "bench", "gate-1", "--model", "brightness:1", "--record", str(record), "--wait", "50")
        found = load_record(record)
        assert told["record"]["model"] == "brightness"
        assert found == decode(encode(found), BenchRecord)
        measured = [row for row in found.rows if not why_unusable(found, row)]
        assert measured, found
        assert all(row.runs == 50 and row.agreement == 1.0 for row in measured)
        assert agent.said().count("pipeline ended") == pipelines, "the running app went on"
        assert not list((agent.folder / "state" / "bench").glob("under-way.json"))
        with ThreadPoolExecutor(1) as beside:
            asked = beside.submit(_refused, rig, "gate-1")
            until((agent.folder / "state" / "bench" / "under-way.json").exists, "the bench", WAIT_S)
            agent.kill()
            agent.start()
            assert asked.result() == "bench.interrupted"
        assert _refused(rig, "gate-1", app="nobody") == "app.unknown"
        assert _refused(rig, "gate-1", model="brightness:9") == "bench.no-bundle"
    finally:
        agent.stop()
    until(lambda: not _online(rig, "gate-1"), "its goodbye", WAIT_S)
    assert _refused(rig, "gate-1") == "device.offline"
    assert _refused(rig, "nobody-1") == "device.unknown"


def test_a_record_that_no_message_holds_comes_as_an_upload(rig: ServedFleet, broker: Mosquitto, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    board = UploadBoard(tmp_path / "board", rig.root, broker.port)
    record = _record(200)
    data = encode(record)
    assert len(data) > 20_000

    def answer(_board: UploadBoard, asked: Command) -> Response:
        blob = board.uploads.offer_bytes(data, "bench", f"bench-{asked.seq}.json", command=asked.seq)
        return Response(DEVICE, asked.seq, now().wall, body=encode(BenchAnswer(blob=blob)).decode())

    try:
        until(lambda: rig.knows(DEVICE) and board.trust.versions, "the board", WAIT_S)
        board.answer = answer
        file = tmp_path / "board.json"
        bench(DEVICE, "", "toy:1", 20.0, file, rig.dir, as_json=False)
        assert load_record(file) == record
        shown = capsys.readouterr().out
        assert shown.count("fp32 on CPUExecutionProvider") == 200
        assert f"jetfleet matrix --record {file}" in shown
        assert _refused(rig, DEVICE, model="other:1") == "bench.other"
        board.answer = lambda _board, asked: Response(DEVICE, asked.seq, now().wall, body="{}")
        assert _refused(rig, DEVICE) == "bench.answer"
        board.answer = lambda _board, asked: Response(DEVICE, asked.seq, now().wall, code="device.busy", detail="it is hot")
        assert _refused(rig, DEVICE) == "device.busy"
    finally:
        board.kill()


def _record(rows: int) -> BenchRecord:
    figures = tuple(BenchFigures(Candidate("fp32", "onnxruntime", "fp32"), "sha256:" + f"{n:064x}", 1.0, 2.0, 3.0, 50, "",
                                 "CPUExecutionProvider", "fp32") for n in range(rows))
    return BenchRecord("cpu-x86", "cpu-x86", "x86_64", "a CPU", (), 2, Conditions(), {}, "toy", "1", time.time(), figures)


def _refused(rig: ServedFleet, device: str, *, app: str = "gate", model: str = "") -> str:
    with pytest.raises(JetfleetError) as caught:
        bench(device, "" if model else app, model, 20.0, None, rig.dir, as_json=True)
    return caught.value.code


def _online(rig: ServedFleet, name: str) -> bool:
    from jetfleet_host import views

    with rig.reading() as session:
        return any(row.device == name and row.online for row in views.devices(session))
