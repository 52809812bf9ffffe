"""The doctor's checks of board, cameras and models, each in good and in bad state, over constructed kernel trees and real files."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path

import pytest
from kernel_trees import orin, write
from pipelines import save_video

from jetfleet_agent import doctor_board
from jetfleet_agent.checks import Check
from jetfleet_agent.doctor_board import board_checks
from jetfleet_agent.doctor_cameras import camera_checks
from jetfleet_agent.doctor_models import models, needed_mb
from jetfleet_agent.supervisor.measurements import ChoiceRecord
from jetfleet_contract.messages import Capability
from jetfleet_contract.policy import Candidate, Choice, Measurement
from jetfleet_contract.slot_records import AppSlots, Slot

GOOD_MEMORY: dict[str, object] = {
    "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 4096000 kB\nSwapTotal: 2048000 kB\nSwapFree: 2048000 kB",
    "proc/swaps": "/dev/zram0 partition 2048000 0 5"}


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    assert all(bool(check.remedy) == (check.verdict != "ok") for check in checks)
    return {check.name: check for check in checks}


def test_a_good_board(tmp_path: Path) -> None:
    write(orin(tmp_path, mode=2), GOOD_MEMORY)
    write(tmp_path, {"sys/class/mmc_host/mmc0/mmc0:0001/life_time": "0x02 0x01", "sys/class/mmc_host/mmc0/mmc0:0001/name": "G1M15M"})
    checks = by_name(board_checks(tmp_path, needed_mb=500.0))
    assert {check.verdict for check in checks.values()} == {"ok"}
    assert "44 C below its limit of 95 C" in checks["heat"].finding
    assert "capped by the power mode or by hand: cpu.policy0 at 78%" in checks["throttling"].finding
    assert checks["power mode"].finding == "MAXN_SUPER, 9.0 W now"
    assert checks["memory"].finding == "4000 MB free, 2000 MB zram; the models here need 500 MB at their peak"
    assert checks["flash wear"].finding == "G1M15M: 20 % of its life used at most"


def test_a_bad_board(tmp_path: Path) -> None:
    write(orin(tmp_path, celsius=92.0, throttled=1, over_currents=3, mode=0),
          {"proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 100000 kB\nSwapTotal: 0 kB", "proc/swaps": "",
           "sys/class/mmc_host/mmc0/mmc0:0001/life_time": "0x01 0x0b", "sys/fs/pstore/dmesg-ramoops-0": "Oops"})
    checks = by_name(board_checks(tmp_path))
    assert {name: check.verdict for name, check in checks.items()} == {
        "heat": "warning", "throttling": "warning", "power mode": "warning", "over-current": "warning", "memory": "failed",
        "flash wear": "warning", "last shutdown": "warning"}
    assert "cpu-throttle-alert" in checks["throttling"].finding
    assert "15W" in checks["power mode"].finding
    assert "MAXN_SUPER" in checks["power mode"].finding
    assert "soctherm_oc.oc3_event_cnt 3" in checks["over-current"].finding
    assert "beyond its life" in checks["flash wear"].finding
    assert "dmesg-ramoops-0" in checks["last shutdown"].finding


@pytest.mark.parametrize(("facts", "needed", "verdict", "words"), [
    (GOOD_MEMORY, 5000.0, "warning", "stop-start"),
    ({"proc/meminfo": "MemAvailable: 900000 kB\nSwapTotal: 1000000 kB\nSwapFree: 100000 kB", "proc/swaps": "/dev/mmcblk0p2 partition"}, 0.0,
     "warning", "zram"),
    ({"proc/meminfo": "garbage"}, 0.0, "ok", ""),
])
def test_memory(tmp_path: Path, facts: dict[str, object], needed: float, verdict: str, words: str) -> None:
    check = doctor_board.memory(write(tmp_path, facts), needed)
    assert check.verdict == verdict
    assert words in check.remedy


def test_a_board_that_tells_nothing_is_not_at_fault(tmp_path: Path) -> None:
    assert {check.verdict for check in board_checks(tmp_path)} == {"ok"}


def test_cameras_are_opened_and_give_a_frame_or_a_typed_cause(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    video = save_video(tmp_path / "v.avi", 3)
    (tmp_path / "damaged.avi").write_bytes(b"no video")
    found = by_name(camera_checks({
        "good": str(video), "damaged": str(tmp_path / "damaged.avi"), "gone": str(tmp_path / "gone.avi"), "absent": "v4l2:/dev/video963",
        "refused": f"rtsp://admin:hunter2@127.0.0.1:{port}/x", "odd": "gopher://admin:hunter2@host", "sealed": "secret:gate",
    }, running=False, timeout_s=60.0))
    assert found["camera good"].verdict == "ok"
    assert found["camera good"].finding.startswith("64x48, first frame after")
    assert "[source.missing]" in found["camera gone"].finding
    assert found["camera damaged"].verdict == "failed"
    assert "/dev/video963 does not exist" in found["camera absent"].finding
    assert found["camera refused"].verdict == "failed"
    assert "[source.uri]" in found["camera odd"].finding
    assert found["camera sealed"].verdict == "ok"
    assert not any("hunter2" in check.finding + check.remedy or "admin" in check.finding + check.remedy for check in found.values())


def test_a_camera_that_hangs_costs_no_more_than_its_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never speaks
        began = time.monotonic()
        (check,) = camera_checks({"hung": f"rtsp://u:p@127.0.0.1:{silent.getsockname()[1]}/x"}, running=False, timeout_s=3.0)
        assert time.monotonic() - began < 30.0
    assert check.verdict == "failed"


def test_a_device_that_we_may_not_open_or_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _self: True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    (check,) = camera_checks({"front": "/dev/video0"}, running=False)
    assert (check.verdict, "video USER" in check.remedy) == ("failed", True)
    monkeypatch.setattr(os, "access", lambda *_: True)
    (check,) = camera_checks({"front": "v4l2:/dev/video0"}, running=True)
    assert (check.verdict, check.finding) == ("ok", "/dev/video0 exists; the running agent has it")


def test_models_are_what_their_names_say(tmp_path: Path) -> None:
    weights, manifest = b"weights", b"manifest"
    names = [hashlib.sha256(data).hexdigest() for data in (weights, manifest)]
    for name, data in zip(names, (weights, manifest), strict=True):
        (tmp_path / name).write_bytes(data)
    slot = Slot(bundle=names[1], name="m", version="1", weights=names[0], candidate=Candidate("v", "x", "fp32"))
    states = [AppSlots(app="gate", champion=slot), AppSlots(app="idle")]
    assert models(states, tmp_path) == Check("models", "ok", "2 files, all intact")
    assert models([], tmp_path) == Check("models", "ok", "none here yet")
    assert models(states, tmp_path, read_s=-1.0).finding == "0 of 2 files read, all intact"
    (tmp_path / names[0]).write_bytes(b"weightz")
    check = models(states, tmp_path)
    assert (check.verdict, names[0][:12] in check.finding) == ("failed", True)
    record = ChoiceRecord("m", "1", 0.0, Capability("b", "c", "x86_64", "", (), 1, 1, ()), Choice(()), {},
                          {"v@x:fp32": Measurement(5.0, 6.0, 321.0)})
    assert needed_mb(states, [record]) == 321.0
    assert needed_mb(states, []) == 0.0
