"""Small parts of the agent: the state lock, systemd's datagrams, clocks, bundle folders, the doctor's findings, the unit file."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from choices import capability_of

from jetfleet_agent import doctor, state_lock
from jetfleet_agent.arguments import parser
from jetfleet_agent.checks import Check
from jetfleet_agent.clocks import BoardClock, boot_id, kernel_is_synchronized
from jetfleet_agent.config import AgentConfig
from jetfleet_agent.daemon import COMMANDS
from jetfleet_agent.systemd_notify import Heartbeat, ServiceManager
from jetfleet_contract.broker_limits import BrokerLimits
from jetfleet_contract.errors import IncompatibleError, StorageError
from jetfleet_contract.messages import BackendInfo, Capability

UNIT = Path(__file__).resolve().parents[2] / "systemd/jetfleet-agent.service"


# --- state lock -------------------------------------------------------------------------------------------------


def test_two_agents_never_share_a_state_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new/state"
    with state_lock.hold(folder):
        assert state_lock.is_held(folder)
        with pytest.raises(StorageError) as caught, state_lock.hold(folder):
            pass
        assert caught.value.code == "state.locked"
        assert str(os.getpid()) in caught.value.what
    assert not state_lock.is_held(folder)
    with state_lock.hold(folder):
        pass
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_dead_agents_lock_is_free(tmp_path: Path) -> None:
    code = f"import os, pathlib\nfrom jetfleet_agent.state_lock import hold\nwith hold(pathlib.Path({str(tmp_path)!r})): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 9
    assert state_lock.holder(tmp_path)
    with state_lock.hold(tmp_path):
        pass


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught, state_lock.hold(tmp_path / "file/state"):
        pass
    assert caught.value.code == "state.unwritable"


# --- systemd ------------------------------------------------------------------------------------------------


def test_systemd_hears_ready_once_and_the_watchdog_in_time(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        manager = ServiceManager({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "40000000", "WATCHDOG_PID": "7"}, 7)
        assert manager.watchdog_s == 40.0
        readings = iter([0.0, 5.0, 10.0, 11.0])
        heart = Heartbeat(manager, "gate-7", lambda: next(readings))
        for _ in range(4):
            heart.beat()
        manager.stopping()
        heard = [listener.recv(256).decode() for _ in range(4)]
    assert heard == ["READY=1\nSTATUS=gate-7", "WATCHDOG=1", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize("environment", [
    {}, {"NOTIFY_SOCKET": "/no/such/socket"}, {"NOTIFY_SOCKET": "@no-such-abstract-socket", "WATCHDOG_USEC": "x"},
])
def test_without_systemd_nothing_happens(environment: dict[str, str]) -> None:
    manager = ServiceManager(environment, 1)
    assert manager.watchdog_s == 0.0
    Heartbeat(manager, "", lambda: 0.0).beat()


def test_a_watchdog_meant_for_another_process_is_ignored() -> None:
    assert ServiceManager({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "8"}, 7).watchdog_s == 0.0


def test_the_unit_runs_a_command_that_exists_and_hides_no_camera() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT.read_text())
    service = dict(unit["Service"])
    program, *arguments = service["ExecStart"].split()
    assert program.endswith("/jetfleet-agent")
    assert parser(COMMANDS).parse_args(arguments).config == Path("/etc/jetfleet/agent.toml")
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 2 * 30
    assert f"/var/lib/{service['StateDirectory']}" == str(AgentConfig.__struct_defaults__[0])
    assert "Requires" not in unit["Unit"]
    assert not {"PrivateDevices", "ProtectClock", "PrivateTmp", "MemoryDenyWriteExecute"} & set(service)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_unit() -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, check=False, timeout=60)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "jetfleet-agent" in line and "is not executable" not in line]
    assert complaints == []


# --- clocks -------------------------------------------------------------------------------------------------


def test_a_reading_of_the_clock_is_of_this_boot_and_now() -> None:
    reading = BoardClock(lambda: True)()
    assert reading.wall_trusted
    assert abs(reading.wall - time.time()) < 60
    assert 0 < reading.mono <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert reading.boot_id == boot_id()


def test_a_clock_that_nobody_keeps_is_not_trusted(tmp_path: Path) -> None:
    assert not BoardClock(lambda: False)().wall_trusted
    assert boot_id(tmp_path) == ""
    assert kernel_is_synchronized() in (True, False)


# --- doctor -------------------------------------------------------------------------------------------------


ROOT = {"signed": {"_type": "root", "expires": "2036-01-01T00:00:00Z"}}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "root.json").write_text(json.dumps(ROOT))
    path = tmp_path / "agent.toml"
    path.write_text('device = "gate-7"\nroot = "root.json"\nstate_dir = "state"\n[broker]\nhost = "broker"\nport = 1883\n')
    return path


def examine(path: Path, *, capability: Capability | None = None, broker: str = "") -> dict[str, Check]:
    checks = doctor.examine(path, lambda _config: capability or capability_of(), lambda _config: doctor.Tried(broker), path.parent,
                            lambda: "")
    assert all(check.remedy for check in checks if check.verdict != "ok")
    return {check.name: check for check in checks}


def test_a_healthy_board(config_file: Path) -> None:
    checks = examine(config_file)
    assert {name: check.verdict for name, check in checks.items() if name not in ("clock", "disk", "memory")} == dict.fromkeys((
        "config", "state folder", "results", "root metadata", "backends", "heat", "throttling", "power mode", "over-current", "flash wear",
        "last shutdown", "models", "system journal", "crashes", "broker"), "ok")


@pytest.mark.parametrize(("section", "verdict", "word"), [
    ('preview_address = "0.0.0.0"', "warning", "not encrypted"), ('preview_address = "192.0.2.1"', "failed", "192.0.2.1"),
    ('folder = "agent.toml/results"', "failed", "not writable"), ('sockets = "agent.toml/run"', "failed", "not writable")])
def test_where_sinks_cannot_write_or_listen(config_file: Path, section: str, verdict: str, word: str) -> None:
    config_file.write_text(config_file.read_text() + f"[results]\n{section}\n")
    check = examine(config_file)["results"]
    assert check.verdict == verdict
    assert word in check.finding


def test_a_config_that_cannot_be_loaded_is_the_only_finding(config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + "prot = 1\n")
    checks = doctor.examine(config_file, lambda _config: capability_of(), lambda _config: doctor.Tried())
    assert [(check.name, check.verdict) for check in checks] == [("config", "failed")]
    assert "broker.port" in checks[0].remedy
    assert doctor.exit_code(checks) == 1


def test_broker_and_cameras_are_waited_for_side_by_side(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Barrier(2, timeout=30.0)

    def cameras(*_sources: object, running: bool) -> tuple[Check, ...]:
        meeting.wait()
        return (Check("camera door", "ok", f"seen, {running}"),)

    def broker(_config: object) -> doctor.Tried:
        meeting.wait()
        return doctor.Tried()

    monkeypatch.setattr(doctor, "camera_checks", cameras)
    checks = doctor.examine(config_file, lambda _config: capability_of(), broker, config_file.parent)
    assert [check.name for check in checks[-2:]] == ["camera door", "broker"]
    assert checks[-1].verdict == "ok"


def test_a_broker_that_refuses_fails_with_its_reason(config_file: Path) -> None:
    assert "connection refused" in examine(config_file, broker="connection refused")["broker"].finding


@pytest.mark.parametrize(("limits", "verdict", "code"), [
    (BrokerLimits(retain=False), "failed", "broker.retain"),
    (BrokerLimits(max_qos=0), "warning", "broker.qos"),
])
def test_a_broker_that_lacks_something_is_judged_by_what_it_takes(config_file: Path, limits: BrokerLimits, verdict: str, code: str) -> None:
    checks = doctor.examine(config_file, lambda _config: capability_of(), lambda _config: doctor.Tried(limits=limits))
    (check,) = (check for check in checks if check.name == "broker")
    assert check.verdict == verdict
    assert code in check.finding
    assert check.remedy


@pytest.mark.parametrize(("content", "verdict", "words"), [
    ("{}", "failed", "no TUF root"),
    ("\0", "failed", "no TUF root"),
    (json.dumps({"signed": {"expires": "2020-01-01T00:00:00Z"}}), "failed", "expired"),
])
def test_root_metadata_is_judged(config_file: Path, content: str, verdict: str, words: str) -> None:
    (config_file.parent / "root.json").write_text(content)
    check = examine(config_file)["root metadata"]
    assert check.verdict == verdict
    assert words in check.finding


def test_a_board_without_any_runtime_fails_and_one_without_tensorrt_is_warned(config_file: Path) -> None:
    nothing = capability_of(BackendInfo("onnxruntime", missing="not installed (pip install onnxruntime)"))
    assert examine(config_file, capability=nothing)["backends"].verdict == "failed"
    some = capability_of(BackendInfo("tensorrt", missing="no driver"), BackendInfo("onnxruntime", "1", precisions=("fp32",)))
    assert examine(config_file, capability=some)["backends"].verdict == "warning"


def test_a_board_that_is_not_what_its_config_says_fails(config_file: Path) -> None:
    def wrong(_config: AgentConfig) -> Capability:
        raise IncompatibleError("board.arch", "board orin-nano is aarch64, this machine is x86_64", remedy="set simulate")

    checks = doctor.examine(config_file, wrong, lambda _config: doctor.Tried())
    assert [check.finding for check in checks if check.name == "backends"] == ["board orin-nano is aarch64, this machine is x86_64"]


def test_the_broker_probe_waits_for_a_word() -> None:
    attempt = doctor.BrokerProbe()
    assert "no answer" in attempt.outcome(0.01)
    attempt.down("not authorized")
    assert attempt.outcome(1.0) == "not authorized"
    attempt.up()
    assert attempt.outcome(1.0) == ""
