"""Pipeline processes under the supervisor: real children, a real socket, a fake program; crashes, hangs, orphans, strangers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from brokers import until
from pipeline_bench import SPEC, TESTS, Bench

from jetfleet_agent import ipc
from jetfleet_agent.supervisor.footing import Footing, resident_mb
from jetfleet_agent.supervisor.inbox import PipelineEnded, PipelineSaid
from jetfleet_agent.supervisor.pipeline_link import PipelineLink, run_folder
from jetfleet_agent.supervisor.pipelines import Pipelines
from jetfleet_contract.errors import StorageError
from jetfleet_contract.governor import Means
from jetfleet_contract.messages import AppConfig, TrialPolicy
from jetfleet_contract.policy import Candidate
from jetfleet_contract.slot_records import Setup


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(run_folder(tmp_path))
    yield made
    made.pipelines.finish()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "fake_pipeline" in " ".join(child.cmdline() or ["fake_pipeline"])]


def test_socket_is_private(bench: Bench) -> None:
    assert bench.link.path.stat().st_mode & 0o777 == 0o600


def test_runs_and_stops_without_a_zombie(bench: Bench) -> None:
    bench.pipelines.start("gate", bench.run("a"))
    bench.running("a")
    pid = bench.pipelines.pids()["gate"]
    bench.pipelines.stop("gate")
    bench.until(lambda: "gate" not in bench.pipelines.pids(), "the end")
    assert not psutil.pid_exists(pid)
    assert bench.crashes == []


def test_the_same_order_twice_changes_nothing(bench: Bench) -> None:
    bench.pipelines.start("gate", bench.run("a"))
    bench.running("a")
    pid = bench.pipelines.pids()["gate"]
    bench.pipelines.start("gate", bench.run("a"))
    bench.turn()
    assert bench.pipelines.pids()["gate"] == pid
    assert bench.of(ipc.SourceEvent) == []


def test_a_changed_setup_is_told_and_a_changed_feed_restarts(bench: Bench) -> None:
    bench.pipelines.start("gate", bench.run("a"))
    bench.running("a")
    pid = bench.pipelines.pids()["gate"]
    bench.pipelines.configure("gate", Setup(AppConfig(5)), ipc.Configure(AppConfig(5)))
    bench.until(lambda: bench.of(ipc.SourceEvent), "the configuration")
    assert bench.pipelines.pids()["gate"] == pid
    bench.pipelines.start("gate", bench.run("a", config=5, input_from="other"))
    bench.running("a", times=2)
    assert bench.pipelines.pids()["gate"] != pid


@pytest.mark.parametrize(("do", "code", "detail"), [
    ("crash", "pipeline.killed", "SIGSEGV; something in the vendor's runtime broke"), ("exit", "pipeline.exit", "exit code 7"),
    ("fail", "runtime.failed", "as planned"), ("camera", "source.gone", "as planned"), ("garbage", "pipeline.killed", "not an event"),
])
def test_a_crash_is_told_with_its_cause_and_started_again(bench: Bench, do: str, code: str, detail: str) -> None:
    bench.pipelines.start("gate", bench.run("a", do))
    bench.until(lambda: len(bench.crashes) >= 2, "two crashes")
    assert bench.crashes[0].code == code
    assert detail in bench.crashes[0].detail
    assert bench.crashes[0].bundle == "a" * 64
    assert bench.pipelines.crashes()["gate"] >= 2
    bench.pipelines.start("gate", bench.run("b"))
    bench.running("b")


def test_restarts_back_off(tmp_path: Path) -> None:
    now = [0.0]
    posted: list[PipelineSaid | PipelineEnded] = []
    link = PipelineLink(run_folder(tmp_path) / "s", posted.append)
    pipelines = Pipelines(link, lambda: now[0], lambda: 1.0, program=(sys.executable, "-c", "raise SystemExit(3)"))
    pipelines.begin()
    run = ipc.Run(ipc.Model("a" * 64, "1", Candidate("v", "x", "fp32"), str(tmp_path / "none.json"), SPEC), AppConfig())
    pipelines.start("gate", run)
    waits = []
    for attempt in range(4):
        pipelines.tick()
        until(lambda count=attempt + 1: sum(isinstance(p, PipelineEnded) for p in posted) >= count, "the end")  # type: ignore[misc]
        pipelines.ended([p for p in posted if isinstance(p, PipelineEnded)][-1])
        waits.append(pipelines.tick())
        now[0] += waits[-1]
    pipelines.finish()
    assert waits == pytest.approx([0.25, 0.5, 1.0, 2.0])


@pytest.mark.parametrize(("do", "code"), [("silent", "pipeline.silent")])
def test_no_progress_is_ended(tmp_path: Path, do: str, code: str) -> None:
    bench = Bench(run_folder(tmp_path), quiet_s=0.5)
    try:
        bench.pipelines.start("gate", bench.run("a", do))
        bench.until(lambda: bench.crashes, "the kill")
        assert bench.crashes[0].code == code
    finally:
        bench.pipelines.finish()


def test_swap_and_way_back_in_memory(bench: Bench) -> None:
    bench.pipelines.start("gate", bench.run("a"))
    bench.pipelines.try_beside("gate", bench.model("b"), TrialPolicy())
    bench.until(lambda: bench.of(ipc.TrialResult), "the comparison")
    pid = bench.pipelines.pids()["gate"]
    bench.pipelines.switch("gate", "b" * 64, 30.0)
    bench.until(lambda: bench.of(ipc.Switched), "the switch")
    bench.pipelines.back("gate", bench.run("a"))
    bench.until(lambda: len(bench.of(ipc.Switched)) == 2, "the way back")
    assert bench.pipelines.pids()["gate"] == pid
    assert [e.bundle[0] for e in bench.of(ipc.Switched)] == ["b", "a"]  # type: ignore[union-attr]


def test_one_model_in_place_of_another_ends_politely_and_the_time_without_answers_is_told_once(bench: Bench) -> None:
    bench.pipelines.start("gate", bench.run("a"))
    bench.running("a")
    pid = bench.pipelines.pids()["gate"]
    bench.pipelines.start("gate", bench.run("b"))
    bench.running("b")
    assert bench.pipelines.pids()["gate"] != pid
    assert bench.crashes == [], "it was meant to end"
    running = bench.of(ipc.Running)[-1]
    assert isinstance(running, ipc.Running)
    assert 0 < bench.pipelines.gap_ms("gate", running.at) < 60_000
    assert bench.pipelines.gap_ms("gate", running.at) == 0.0


def test_what_a_process_stands_on(bench: Bench) -> None:
    assert bench.pipelines.footing("gate") == Footing()
    bench.pipelines.start("gate", bench.run("a"))
    bench.running("a")
    assert bench.pipelines.footing("gate").memory_mb > 1
    assert resident_mb(0) == 0.0


def test_after_a_switch_a_restart_starts_the_new_model_and_back_the_old_one(bench: Bench) -> None:
    bench.pipelines.start("gate", bench.run("a"))
    bench.pipelines.try_beside("gate", bench.model("b"), TrialPolicy())
    bench.until(lambda: bench.of(ipc.TrialResult), "the comparison")
    bench.pipelines.switch("gate", "b" * 64, 30.0)
    bench.until(lambda: bench.of(ipc.Switched), "the switch")
    os.kill(bench.pipelines.pids()["gate"], signal.SIGKILL)
    bench.running("b")
    assert bench.crashes[0].bundle == "b" * 64
    bench.pipelines.back("gate", bench.run("a"))
    bench.running("a", times=2)


def test_a_trial_waits_for_the_pipeline_and_survives_its_restart(bench: Bench) -> None:
    bench.pipelines.start("gate", bench.run("a"))
    bench.pipelines.try_beside("gate", bench.model("b"), TrialPolicy())
    bench.until(lambda: bench.of(ipc.TrialResult), "the comparison")
    os.kill(bench.pipelines.pids()["gate"], signal.SIGKILL)
    bench.until(lambda: len(bench.of(ipc.TrialResult)) == 2, "another comparison")
    assert bench.crashes[0].bundle == "", "with a challenger loaded, nobody can say who did it"


def test_one_that_does_not_stop_is_killed(bench: Bench) -> None:
    bench.pipelines.start("gate", bench.run("a", "slow-stop"))
    bench.running("a")
    bench.pipelines.stop("gate")
    bench.until(lambda: "gate" not in bench.pipelines.pids(), "the end")


def test_strangers_may_not_speak(bench: Bench) -> None:
    bench.pipelines.start("gate", bench.run("a"))
    bench.running("a")
    stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stranger.connect(str(bench.link.path))
    stranger.settimeout(10)
    with stranger:
        assert stranger.recv(1) == b"", "a process that the supervisor did not start is hung up on"
    bench.turn()
    assert bench.crashes == []


def test_children_die_with_their_supervisor(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from pipeline_bench import Bench
bench = Bench(Path({str(run_folder(tmp_path))!r}))
bench.pipelines.start("gate", bench.run("a"))
bench.running("a")
print(bench.pipelines.pids()["gate"], flush=True)
import time; time.sleep(600)
"""
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    assert psutil.pid_exists(pid)
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "the orphan's end")


def test_a_long_state_path_still_gets_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    folder = run_folder(deep)
    assert len(str(folder)) < 60
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        PipelineLink(tmp_path / "none" / "s", lambda _item: None)
    assert caught.value.code == "run.socket"


def test_a_cheaper_candidate_whose_process_ended_is_left_out_from_then_on(bench: Bench) -> None:
    run = bench.run("a")
    lean = ipc.Way(Candidate("small", "onnxruntime", "fp32"), run.model.path)
    run = msgspec.structs.replace(run, model=msgspec.structs.replace(run.model, lean=lean))
    bench.pipelines.start("gate", run)
    bench.running("a")
    assert bench.pipelines.means("gate") == Means(lean=True)
    assert bench.pipelines.means("nobody") == Means()
    hot = ipc.Pace(hot=True, lean=True, reason="governor.heat")
    bench.pipelines.pace("gate", hot)
    os.kill(bench.pipelines.pids()["gate"], signal.SIGKILL)
    bench.until(lambda: bench.crashes, "the end")
    assert bench.pipelines.means("gate") == Means()
    bench.pipelines.pace("gate", hot)
    bench.running("a", 2)
    count = len(bench.crashes)
    os.kill(bench.pipelines.pids()["gate"], signal.SIGKILL)
    bench.until(lambda: len(bench.crashes) > count, "another end, of the model that was chosen")
    other = msgspec.structs.replace(lean, candidate=Candidate("other", "onnxruntime", "fp32"))
    bench.pipelines.start("gate", msgspec.structs.replace(run, model=msgspec.structs.replace(run.model, lean=other)))
    assert bench.pipelines.means("gate") == Means(lean=True), "another one may be tried"
