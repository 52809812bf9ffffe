"""The control loop with simulated ports and a real thread: order of messages, bad input, the broker coming and going, goodbyes."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from brokers import until
from slot_worlds import CANDIDATE
from supervised_lives import APP, Shelf
from supervisor_rig import DEVICE, Rig
from web_mirrors import Shop

from jetfleet_agent import ipc
from jetfleet_agent.supervisor import desired
from jetfleet_agent.supervisor.core import begin_session, will
from jetfleet_agent.supervisor.crash_log import CRASHES, read_crashes
from jetfleet_agent.supervisor.inbox import Arrived, Inbox, PipelineSaid
from jetfleet_contract import topics
from jetfleet_contract.app_config import JsonlSink, WebhookSink
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import (
    Ack,
    Birth,
    Command,
    DeviceState,
    Instant,
    Response,
    Result,
    Telemetry,
    encode,
)
from jetfleet_contract.policy import Candidate

OTHER = Candidate("fp32", "openvino", "fp32")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    made = Shelf(tmp_path_factory.mktemp("shelf"), ("1",))
    for bundle in made.bundles.values():  # the fake pipeline reads its weights as JSON: these do nothing special
        assert bundle in made.targets
    return made


@pytest.fixture
def rig(tmp_path: Path, shelf: Shelf) -> Iterator[Rig]:
    made = Rig(tmp_path, shelf)
    yield made
    made.stop()


def test_introduces_itself_and_says_goodbye(rig: Rig) -> None:
    until(lambda: rig.link.subscribed, "subscriptions")
    assert rig.link.subscribed == {topics.META: 1, topics.desired(DEVICE): 1, topics.command(DEVICE): 1, topics.ack(DEVICE): 1,
                                   topics.upload_wants(DEVICE): 1}
    rig.up()
    until(lambda: rig.link.last(topics.birth(DEVICE), Birth), "the birth")
    birth = rig.link.last(topics.birth(DEVICE), Birth)
    assert (birth.session, birth.key, birth.capability.board) == (1, "ab" * 32, "cpu-x86")
    assert rig.link.last(topics.state(DEVICE), DeviceState) == DeviceState(DEVICE, True, 1)
    assert rig.fetcher.ups == 1
    rig.inbox.link_down("gone")
    until(lambda: rig.fetcher.downs, "the loss")
    rig.stop()
    assert rig.link.last(topics.state(DEVICE), DeviceState) == DeviceState(DEVICE, False, 1)
    assert rig.link.published[-1][3], "the goodbye is retained"
    assert will(DEVICE, 1) == (topics.state(DEVICE), encode(DeviceState(DEVICE, False, 1)))


def test_sessions_count_starts(tmp_path: Path, rig: Rig) -> None:
    assert begin_session(rig.journal, rig.now()) == 2
    assert begin_session(rig.journal, rig.now()) == 3


def test_a_deployment_before_its_metadata_waits_and_an_acknowledged_report_is_not_repeated(rig: Rig, shelf: Shelf) -> None:
    rig.up()
    rig.inbox.message(topics.desired(DEVICE), encode(shelf.deployment(1, "1")))
    rig.inbox.message(topics.META, b"package")
    until(lambda: any(r.phase == "trial" for r in rig.reports()), "the trial")
    record = rig.journal.board()
    assert (record.seq, record.session, record.deployment) == (1, 1, shelf.deployment(1, "1"))
    for report in rig.reports():
        rig.inbox.message(topics.ack(DEVICE), encode(Ack(report.id)))
    until(lambda: rig.link.last(topics.birth(DEVICE), Birth).seq == 1, "the birth that tells the number")


def test_metadata_that_the_disk_did_not_take_is_tried_again(rig: Rig, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetfleet_agent.supervisor.desired.RETRY_S", 0.05)
    real = rig.trust.update
    refused: list[bytes] = []

    def full_at_first(package: bytes, now: Instant) -> bool:
        if len(refused) < 3:
            refused.append(package)
            raise StorageError("store.write", "no space left")
        return real(package, now)

    monkeypatch.setattr(rig.trust, "update", full_at_first)
    rig.up()
    rig.inbox.message(topics.desired(DEVICE), encode(shelf.deployment(1, "1")))
    rig.inbox.message(topics.META, b"good")
    until(lambda: bool(rig.reports()), "the deployment to be accepted once the disk took the metadata")
    assert refused == [b"good"] * 3


@pytest.mark.parametrize(("topic", "payload"), [
    (topics.META, b"bad"), (topics.desired(DEVICE), b"forged"), (topics.desired(DEVICE), b"{"), (topics.ack(DEVICE), b"\xff"),
    (topics.command(DEVICE), b"[]"), ("jf/1/d/other/desired", b"x"), (topics.META, b""), (topics.desired(DEVICE), b""),
])
def test_bad_messages_do_not_stop_the_loop(rig: Rig, topic: str, payload: bytes) -> None:
    rig.trust.ready = True
    rig.up()
    rig.inbox.message(topic, payload)
    rig.inbox.message(topics.command(DEVICE), encode(Command(DEVICE, 9, 4e9, "snapshot")))
    until(lambda: rig.link.last(topics.response(DEVICE, 9), Response), "an answer after the bad message")
    assert rig.link.last(topics.response(DEVICE, 9), Response).code == "command.unsupported"


def test_a_bug_is_counted_and_does_not_stop_the_loop(rig: Rig) -> None:
    rig.up()
    rig.fetcher.explode = True
    rig.inbox.message(topics.META, b"x")
    until(lambda: (t := rig.link.last(topics.telemetry(DEVICE), Telemetry)) and t.gauges.get("refused.internal"), "the counter")
    assert rig.thread.is_alive()


def test_a_malformed_deployment_is_dropped(rig: Rig, shelf: Shelf) -> None:
    rig.trust.ready = True
    rig.up()
    bad = msgspec.structs.replace(shelf.deployment(1, "1"), apps=shelf.deployment(1, "1").apps * 2)
    rig.inbox.message(topics.desired(DEVICE), encode(bad))
    until(lambda: (t := rig.link.last(topics.telemetry(DEVICE), Telemetry)) and t.gauges.get("refused.deployment.bad"), "the counter")
    assert rig.reports() == []


def test_results_of_strangers_are_not_forwarded(rig: Rig) -> None:
    rig.up()
    rig.inbox.put(PipelineSaid("gate", 1, ipc.Results((Result("gate", "cam", 0, 0.0, 0.0, "1", "x"),))))
    rig.inbox.message(topics.command(DEVICE), encode(Command(DEVICE, 1, 4e9, "explain")))
    until(lambda: rig.link.last(topics.response(DEVICE, 1), Response), "the answer")
    assert not [p for p in rig.link.published if p[0] == topics.result(DEVICE)]


def test_results_go_to_the_broker_and_to_the_webhook_of_the_settings(rig: Rig, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a deployment to a web server: the supervisor posts, with what the settings say, and tells what it did."""
    monkeypatch.setattr(rig.pipelines, "said", lambda _item: True)  # the shelf's models run nowhere: results come from the test
    with contextlib.closing(Shop()) as shop:
        rig.trust.ready = True
        rig.up()
        [app] = shelf.deployment(1, "1").apps
        config = msgspec.structs.replace(app.config, sinks=(WebhookSink(shop.url, wait_s=0.0), JsonlSink("seen")))
        deployment = msgspec.structs.replace(shelf.deployment(1, "1"), apps=(msgspec.structs.replace(app, config=config),))
        rig.inbox.message(topics.desired(DEVICE), encode(deployment))
        until(lambda: rig.pipelines.config(app.app), "the app")
        places = rig.pipelines._apps[app.app].run.places
        assert places.files.endswith(f"/results/{app.app}")
        assert places.sockets == str(rig.pipelines.result_folder)
        for number in range(3):
            results = ipc.Results((Result(app.app, "cam", number, 1.0, 0.0, "1", "x"),))
            rig.inbox.put(PipelineSaid(app.app, 1, results))
        until(lambda: shop.frames == [0, 1, 2], "the posts")
        headers = shop.asked[0][1]
        assert (headers["Jetfleet-Device"], headers["Jetfleet-App"]) == (DEVICE, app.app)
        assert [p[2] for p in rig.link.published if p[0] == topics.result(DEVICE)] == [0, 0, 0]
        until(lambda: (t := rig.link.last(topics.telemetry(DEVICE), Telemetry))
              and t.gauges.get(f"{app.app}.sink.webhook-0.sent") == 3.0, "the counter")


def test_telemetry_expires_and_the_loop_beats(rig: Rig) -> None:
    rig.up()
    until(lambda: len([p for p in rig.link.published if p[0] == topics.telemetry(DEVICE)]) >= 2, "two windows")
    assert next(p[4] for p in rig.link.published if p[0] == topics.telemetry(DEVICE)) == 60
    assert rig.beats


def test_a_full_inbox_makes_others_wait_but_never_the_control_thread() -> None:
    inbox = Inbox(2)
    inbox.take(0.0)
    for number in range(50):
        inbox.put(Arrived(str(number), b""))
    taken = [inbox.take(0.0) for _ in range(50)]
    assert [item.topic for item in taken if isinstance(item, Arrived)] == [str(number) for number in range(50)]
    done = threading.Event()

    def fill() -> None:
        for number in range(5):
            inbox.put(Arrived(str(number), b""))
        done.set()

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    assert not done.wait(0.2)
    inbox.close()
    assert done.wait(5), "a closed inbox lets everybody go"




def test_the_supervisor_imports_nothing_heavy() -> None:
    """Its memory is the board's: no array, image or inference library, directly or through others."""
    script = ("import sys, jetfleet_agent.daemon, jetfleet_agent.supervisor.core, tuf.ngclient, psutil\n"
              "print([name for name in ('numpy', 'cv2', 'onnxruntime', 'openvino', 'onnx', 'torch') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metadata_that_only_the_clock_speaks_against_is_tried_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retained messages come once: a board whose clock is set later must not need another publication."""
    monkeypatch.setattr(desired, "RETRY_S", 0.05)
    rig.trust.clock_is_wrong = True
    rig.up()
    rig.inbox.message(topics.META, b"package")
    until(lambda: rig.supervisor._refused.get("trust.clock", 0) > 1, "a second try")
    assert not rig.trust.ready
    rig.trust.clock_is_wrong = False
    until(lambda: rig.trust.ready, "the metadata")
    until(lambda: rig.supervisor._desired.due_s(0.0) == math.inf, "nothing to be kept")


@pytest.mark.parametrize(("agreement", "runs"), [(0.99, OTHER), (0.2, CANDIDATE)])
def test_another_power_mode_changes_how_a_model_runs_if_the_probe_set_agrees(tmp_path: Path, agreement: float, runs: Candidate) -> None:
    shelf = Shelf(tmp_path / "shelf", ("1",), {"1": "{}"}, keep_s=0.1)
    rig = Rig(tmp_path / "board", shelf)
    try:
        rig.chooser.winners = [CANDIDATE, OTHER]
        rig.chooser.under = Conditions(mode="15W")  # this machine is in none
        rig.up()
        rig.inbox.message(topics.META, b"package")
        rig.inbox.message(topics.desired(DEVICE), encode(shelf.deployment(1, "1")))
        until(lambda: any(r.outcome == "committed" for r in rig.reports()), "the first install")
        rig.chooser.agreement = agreement
        until(lambda: len(rig.chooser.winners) == 1, "the choice for the mode of now")
        if runs == OTHER:
            until(lambda: rig.reports()[-1].candidate == OTHER.name, "the report of what runs now")
            assert "power mode 15W" in rig.reports()[-1].detail
        until(lambda: rig.link.last(topics.birth(DEVICE), Birth).apps[0].candidate == runs.name, "the inventory")
        champion = rig.journal.app(APP).champion
        assert champion is not None
        assert champion.candidate == runs
    finally:
        rig.stop()


def test_the_cheaper_candidate_goes_to_the_pipeline_and_what_ends_it_is_remembered(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "shelf", ("1",), {"1": "{}"}, keep_s=0.1)
    rig = Rig(tmp_path / "board", shelf)
    try:
        rig.chooser.cheaper = OTHER
        rig.up()
        rig.inbox.message(topics.META, b"package")
        rig.inbox.message(topics.desired(DEVICE), encode(shelf.deployment(1, "1")))
        until(lambda: any(r.outcome == "committed" for r in rig.reports()), "the install")
        assert rig.pipelines.means(APP).lean
        until(lambda: rig.pipelines.pids().get(APP), "the process")
        os.kill(rig.pipelines.pids()[APP], signal.SIGKILL)
        until(lambda: APP in read_crashes(tmp_path / "board" / CRASHES), "the end to be remembered")
        (crash,) = read_crashes(tmp_path / "board" / CRASHES)[APP]
        assert crash.code == "pipeline.killed"
    finally:
        rig.stop()
