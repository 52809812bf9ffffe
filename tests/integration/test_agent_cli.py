"""The agent's commands as a user runs them: separate processes, a real broker, real runtimes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from brokers import embedded, free_port, until
from bundle_maker import make_bundle
from interrupts import interruptible

from jetfleet_agent import state_lock
from jetfleet_agent.bench import BenchRow
from jetfleet_agent.config import parse
from jetfleet_agent.pipeline.evaluate import evaluate
from jetfleet_agent.supervisor.measurements import ChoiceRecord
from jetfleet_contract.bundle import Evaluation, EvaluationRow, InputSpec, ModelSpec, ProbeItem, ProbeSet, TaskSpec, Variant, digest_of
from jetfleet_contract.evaluation import EvaluationJob
from jetfleet_contract.messages import Capability
from jetfleet_host.bundles import write_bundle
from jetfleet_host.project import Project

MAX_WAIT_S = 120


def agent(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "jetfleet_agent.daemon", *map(str, arguments)], capture_output=True, text=True,
                          check=False, timeout=MAX_WAIT_S)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose broker is not there."""
    Project.init(tmp_path / "project")
    path = tmp_path / "agent.toml"
    path.write_text(f'device = "gate-7"\nroot = "project/device/root.json"\nstate_dir = "state"\nwindow_s = 1.0\n'
                    f'[broker]\nhost = "127.0.0.1"\nport = {free_port()}\n')
    return path


def with_port(config: Path, port: int) -> None:
    lines = config.read_text().splitlines()
    config.write_text("\n".join([*lines[:-1], f"port = {port}", ""]))


@pytest.mark.parametrize("command", ["run", "probe", "explain", "bench", "doctor", "status"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = agent(command, "--help")
    assert done.returncode == 0
    assert f"jetfleet-agent {command}" in done.stdout
    assert "examples:" in done.stdout
    assert "--json" in done.stdout


def test_probe_tells_what_this_machine_is() -> None:
    done = agent("probe", "--json")
    capability = msgspec.json.decode(done.stdout, type=Capability)
    assert done.returncode == 0
    assert not capability.simulated
    assert any(not backend.missing for backend in capability.backends)


def test_probe_puts_another_board_over_this_machine_and_says_so() -> None:
    done = agent("probe", "--board", "orin-nano")
    assert done.returncode == 0
    assert "simulated" in done.stdout
    assert "tensorrt" in done.stdout


def test_an_unknown_board_is_one_error_in_both_forms() -> None:
    done = agent("probe", "--board", "orin-nan", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "board.unknown"
    assert "orin-nano" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_config_is_valid() -> None:
    done = agent("run", "--example")
    assert done.returncode == 0
    assert parse(done.stdout, Path("/etc/jetfleet/agent.toml")).device == "gate-7"


@pytest.mark.parametrize("command", ["run", "status", "explain"])
def test_an_unknown_key_ends_with_exit_code_2(command: str, config: Path) -> None:
    config.write_text('devise = "x"\n' + config.read_text())
    done = agent(command, "--config", config)
    assert done.returncode == 2
    assert "'devise'" in done.stderr
    assert "did you mean device?" in done.stderr
    assert str(config) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_that_is_not_there_ends_with_exit_code_2(tmp_path: Path) -> None:
    done = agent("run", "--config", tmp_path / "nope.toml")
    assert done.returncode == 2
    assert "--example" in done.stderr


def test_status_and_explain_before_anything_was_deployed(config: Path) -> None:
    status = agent("status", "--config", config, "--json")
    assert status.returncode == 0
    assert json.loads(status.stdout)["running"] is False
    explained = agent("explain", "--config", config)
    assert explained.returncode == 2
    assert "explain.nothing" in explained.stderr
    assert "app.unknown" in agent("explain", "--config", config, "--app", "reader").stderr


def test_a_second_agent_on_one_state_folder_is_refused(config: Path) -> None:
    with state_lock.hold(config.parent / "state"):
        done = agent("run", "--config", config)
        assert json.loads(agent("status", "--config", config, "--json").stdout)["running"] is True
    assert done.returncode == 7
    assert str(os.getpid()) in done.stderr


def test_doctor_without_a_broker_fails_with_a_remedy(config: Path) -> None:
    done = agent("doctor", "--config", config, "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1
    assert checks["broker"]["verdict"] == "failed"
    assert "firewall" in checks["broker"]["remedy"]
    assert checks["root metadata"]["verdict"] == "ok"


def test_doctor_with_a_broker_is_content(config: Path) -> None:
    with embedded() as broker:
        with_port(config, broker.port)
        done = agent("doctor", "--config", config)
    assert done.returncode == 0, done.stdout
    assert "accepts this agent" in done.stdout


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(MAX_WAIT_S)
        yield listener


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("with_broker", [True, False])
def test_the_agent_says_ready_and_ends_clean_on_a_signal(config: Path, notify: socket.socket, number: int, with_broker: bool) -> None:
    with embedded() as broker:
        if with_broker:
            with_port(config, broker.port)
        environment = {**os.environ, "NOTIFY_SOCKET": notify.getsockname(), "WATCHDOG_USEC": "60000000"}
        process = interruptible([sys.executable, "-m", "jetfleet_agent.daemon", "run", "--config", str(config)], env=environment,
                                stderr=subprocess.PIPE, text=True)
        assert notify.recv(512).startswith(b"READY=1\nSTATUS=gate-7")
        assert notify.recv(512) == b"WATCHDOG=1"
        assert state_lock.is_held(config.parent / "state")
        process.send_signal(number)
        _, errors = process.communicate(timeout=MAX_WAIT_S)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert notify.recv(512) == b"STOPPING=1"


def test_the_session_number_grows_with_every_start(config: Path, notify: socket.socket) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": notify.getsockname()}
    for session in (1, 2):
        process = subprocess.Popen([sys.executable, "-m", "jetfleet_agent.daemon", "run", "--config", str(config)], env=environment)
        assert notify.recv(512).endswith(f"session {session}".encode())
        process.terminate()
        assert process.wait(MAX_WAIT_S) == 0
        assert notify.recv(512) == b"STOPPING=1"


# --- measuring -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real network: 3 x 32 x 48 in, 4 scores out."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("GlobalAveragePool", ["c"], ["p"]),
             helper.make_node("Flatten", ["p"], ["y"])]
    graph = helper.make_graph(nodes, "toy", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 48])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])], [weights])
    path = tmp_path_factory.mktemp("model") / "toy.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_bench_measures_a_model_on_every_runtime(model: Path) -> None:
    done = agent("bench", "--model", model, "--size", "48x32", "--runs", "5", "--warmup", "1", "--rounds", "2", "--tune", "0.3", "--json")
    rows = msgspec.json.decode(done.stdout, type=list[BenchRow])
    assert done.returncode == 0
    measured = {row.candidate.name: row for row in rows if not row.error}
    row = measured["fp32@onnxruntime:fp32"]
    assert (row.runs_in, row.layers, row.provider) == ("fp32", {"fp32": 1}, "CPUExecutionProvider")
    assert 0 < row.session.p50 <= row.session.p90 <= row.session.p95 <= row.session.p99 <= row.session.most
    assert row.floor_ms == min(row.rounds_p50_ms) == row.session.p50
    assert len(row.rounds_p50_ms) == 2
    assert row.work.p50 > row.pre_ms > 0
    assert row.overhead > 0
    assert row.runs == 5
    assert {figures.tuning.text for figures in row.tuning.figures} >= {"defaults", "flush"}
    assert any("no tensorrt" in row.error for row in rows)
    assert "[1/" in done.stderr


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    """A bundle of that network with one probe image, evaluated for both CPU runtimes; fp32 on OpenVINO was refused."""
    import cv2
    import numpy as np

    image = np.random.default_rng(2).integers(0, 255, (32, 48, 3), np.uint8)
    png = cv2.imencode(".png", image)[1].tobytes()
    (model.parent / "probe.png").write_bytes(png)
    task = TaskSpec("classify", InputSpec("x", 48, 32), ("a", "b", "c", "d"))
    answer = evaluate(EvaluationJob(str(model), task, "onnxruntime", images=(str(model.parent / "probe.png"),), warmup=0, latency_runs=1))
    weights = model.read_bytes()
    variant = Variant("fp32", digest_of(weights), len(weights), "fp32")
    rows = tuple(EvaluationRow("fp32", backend, precision, "top1", 1.0, drop, 1.0, 1, 0.0, 0.0, len(weights),
                               "refused" if reason else "accepted", reason)
                 for backend, precision, drop, reason in (
                     ("onnxruntime", "fp32", 0.0, ""), ("openvino", "bf16", 0.1, ""),
                     ("openvino", "fp32", 7.0, "drop of 7.00 points is over the limit of 0.50")))
    path = model.parent / "toy.bundle"
    write_bundle(path, spec=ModelSpec("toy", "1", task, (variant,), ("cpu-x86",)),
                 evaluation=Evaluation("top1", "fp32@onnxruntime:fp32", 0.5, "a test", rows),
                 probe=ProbeSet((ProbeItem(digest_of(png), answer.predictions[0]),)), files={digest_of(png): png},
                 weights=[(variant, model)])
    return path


def test_explain_measures_a_bundle_and_chooses_what_was_fastest_here(bundle: Path) -> None:
    done = agent("explain", "--bundle", bundle, "--json")
    (record,) = msgspec.json.decode(done.stdout, type=list[ChoiceRecord])
    assert done.returncode == 0, done.stderr
    rows = {row.candidate.name: row for row in record.choice.rows}
    measured = {name: row.p50_ms for name, row in rows.items() if row.origin == "measured" and row.verdict != "refused"}
    assert "fp32@onnxruntime:fp32" in measured
    assert record.choice.chosen is not None
    assert measured[record.choice.chosen.name] == min(measured.values())
    assert rows["fp32@openvino:fp32"].reason == "builder: drop of 7.00 points is over the limit of 0.50"
    assert "no tensorrt" in rows["fp32@tensorrt:fp32"].reason


def test_explain_for_a_simulated_jetson_falls_back_and_says_why(bundle: Path) -> None:
    done = agent("explain", "--bundle", bundle, "--board", "orin-nano")
    assert done.returncode == 0
    assert "chosen: fp32@onnxruntime:fp32" in done.stdout
    assert "tensorrt: " in done.stdout


def test_bench_shows_what_the_builder_refused_and_the_agreement_here(bundle: Path) -> None:
    done = agent("bench", "--bundle", bundle, "--runs", "5", "--warmup", "1", "--tune", "0.3", "--source", bundle.parent / "probe.png",
                 "--json")
    rows = {row.candidate.name: row for row in msgspec.json.decode(done.stdout, type=list[BenchRow])}
    assert rows["fp32@onnxruntime:fp32"].agreement == 1.0
    assert rows["fp32@openvino:fp32"].agreement == 1.0
    assert rows["fp32@openvino:fp32"].session.p50 > 0
    assert rows["fp32@openvino:fp32"].builder.startswith("refused: drop of 7.00")


def test_bench_of_one_candidate_in_words(bundle: Path) -> None:
    done = agent("bench", "--bundle", bundle, "--runs", "5", "--warmup", "1", "--tune", "0", "--candidate", "fp32@onnxruntime:fp32")
    assert done.returncode == 0, done.stderr
    assert "session alone, ms over 5 frames" in done.stdout
    assert "a frame's whole work, ms" in done.stdout
    assert "fp32 (1 of 1 layers), CPUExecutionProvider  defaults" in done.stdout
    assert "openvino" not in done.stdout
    assert "[2/2] fp32@onnxruntime:fp32: round 1 of 1" in done.stderr


def test_bench_on_a_provider_that_is_not_here_says_so_and_runs_nothing_else(bundle: Path) -> None:
    done = agent("bench", "--bundle", bundle, "--runs", "5", "--candidate", "fp32@onnxruntime:fp32",
                 "--provider", "NoSuchProvider", "--json")
    (row,) = msgspec.json.decode(done.stdout, type=list[BenchRow])
    assert done.returncode == 5
    assert "[backend.fallback]" in row.error
    assert "NoSuchProvider" in row.error


def test_bench_names_a_source_without_frames(bundle: Path, tmp_path: Path) -> None:
    done = agent("bench", "--bundle", bundle, "--runs", "5", "--tune", "0", "--candidate", "fp32@onnxruntime:fp32",
                 "--source", tmp_path / "nope.mp4", "--json")
    (row,) = msgspec.json.decode(done.stdout, type=list[BenchRow])
    assert done.returncode == 5
    assert "nope.mp4" in row.error
    assert "[source.missing]" in row.error


def test_ctrl_c_ends_a_bench_at_once_and_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jetfleet_agent.daemon", "bench", "--bundle", str(bundle), "--runs", "100000", "--tune", "0"]
    process = interruptible(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert process.stderr is not None
    while "round 1" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped" in said
    assert "Traceback" not in said
    assert list(tmp_path.glob("jetfleet-*")) == []
    assert not any(str(tmp_path) in line for line in _command_lines())


def _command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (("--model", "nope.onnx"), 2, "there is no model file"),
    (("--bundle", "nope"), 2, "no bundle folder"),
    (("--model", "nope.onnx", "--size", "640"), 2, "WIDTHxHEIGHT"),
    (("--model", "nope.onnx", "--runs", "0"), 2, "1 to 100000"),
    (("--model", "nope.onnx", "--tune", "-1"), 2, "0 to 3600"),
    ((), 2, "required"),
])
def test_bench_with_wrong_arguments(arguments: tuple[str, ...], code: int, words: str, tmp_path: Path) -> None:
    done = agent("bench", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bundle_that_cannot_run_is_a_table_of_reasons(tmp_path: Path) -> None:
    make_bundle(tmp_path / "toy.bundle", weight_bytes=1000)
    done = agent("explain", "--bundle", tmp_path / "toy.bundle", "--json")
    (record,) = msgspec.json.decode(done.stdout, type=list[ChoiceRecord])
    assert done.returncode == 5
    assert record.choice.chosen is None
    reasons = {row.candidate.name: row.reason for row in record.choice.rows}
    assert "does not run here" in reasons["fp32@onnxruntime:fp32"]


@pytest.mark.parametrize(("damage", "code"), [("flip", "bundle.flipped"), ("truncate", "bundle.truncated"), ("remove", "bundle.missing")])
def test_a_damaged_bundle_is_refused_by_name(tmp_path: Path, damage: str, code: str) -> None:
    make_bundle(tmp_path / "toy.bundle")
    blob = max((tmp_path / "toy.bundle/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    if damage == "flip":
        data[100] ^= 1
        blob.write_bytes(data)
    elif damage == "truncate":
        blob.write_bytes(data[:-1])
    else:
        blob.unlink()
    done = agent("explain", "--bundle", tmp_path / "toy.bundle", "--json")
    assert done.returncode in (3, 4)
    assert json.loads(done.stdout)["error"]["code"] == code


def test_a_running_agent_can_be_asked_for_its_status(config: Path, notify: socket.socket) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": notify.getsockname()}
    process = subprocess.Popen([sys.executable, "-m", "jetfleet_agent.daemon", "run", "--config", str(config)], env=environment)
    try:
        notify.recv(512)
        until(lambda: json.loads(agent("status", "--config", config, "--json").stdout)["process"] == str(process.pid), "status")
    finally:
        process.terminate()
        assert process.wait(MAX_WAIT_S) == 0
