"""`jetfleet demo`, the whole of it: what it promises has happened, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from interrupts import interruptible

JETFLEET = [sys.executable, "-c", "from jetfleet_host.cli import main; main()"]
DEVICES = {"yard-orin", "dock-x86", "gate-arm"}


def descendants() -> list[psutil.Process]:
    return list(psutil.Process().children(recursive=True))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_whole_loop(tmp_path: Path) -> None:
    report = tmp_path / "result.json"
    done = subprocess.run([*JETFLEET, "demo", "--seconds", "20", "--headless", "--json", str(report), "--out", str(tmp_path / "out")],
                          capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    outcome = json.loads(report.read_text())
    assert outcome["passed"]
    by_version = {version: {u["device"]: u["outcome"] for u in outcome["updates"] if (u["app"], u["to"]) == ("text", version)}
                  for version in ("1.0.0", "2.0.0", "3.0.0")}
    assert by_version["1.0.0"] == by_version["2.0.0"] == dict.fromkeys(DEVICES, "committed")
    assert set(by_version["3.0.0"].values()) == {"refused"}
    assert len(by_version["3.0.0"]) == 1  # the canary stopped it: no other board ever saw it
    (refusal,) = [u for u in outcome["updates"] if u["to"] == "3.0.0"]
    assert refusal["code"] == "trial.agreement"
    swaps = [u for u in outcome["updates"] if u["app"] == "text" and u["from"] == "1.0.0" and u["outcome"] == "committed"]
    assert len(swaps) == 3
    assert all(u["frames_lost"] == 0 and u["gap_ms"] > 0 for u in swaps)
    assert set(outcome["latency_ms"]) == set(outcome["chosen"]) == DEVICES
    assert all(stages["infer"]["p99"] >= stages["infer"]["p50"] > 0 for stages in outcome["latency_ms"].values())
    assert outcome["frames"]["dropped"] == {}  # a file's frames all count
    assert all(chosen["reason"] and chosen["candidate"] for chosen in outcome["chosen"].values())
    first = max(f1 for name, f1 in outcome["f1"].items() if name.startswith("text 1.0.0 "))
    second = max(f1 for name, f1 in outcome["f1"].items() if name.startswith("text 2.0.0 "))
    assert first > 0.75
    assert second > 0.8
    assert all(accuracy > 0.8 for accuracy in outcome["orientation_accuracy"].values())
    for picture in outcome["pictures"].values():
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["frame.png", "latency.png"]
    assert not descendants()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_half_way_it_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    log = (tmp_path / "log").open("wb")
    with interruptible([*JETFLEET, "demo", "--seconds", "60", "--headless", "--out", str(out)], stdout=log, stderr=log) as demo:
        deadline = time.monotonic() + 800
        while len(list(out.glob("fleet/*/state"))) < len(DEVICES):  # all agents have begun
            assert demo.poll() is None, (tmp_path / "log").read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        family = psutil.Process(demo.pid).children(recursive=True)
        os.kill(demo.pid, number)
        assert demo.wait(60) == 130
    assert len(family) > len(DEVICES)
    _, left = psutil.wait_procs(family, timeout=10)
    assert not left, left
    assert not (out / "fleet").exists()


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "thesis.txt").write_text("all I have")
    command = [*JETFLEET, "demo", "--headless", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "demo.folder" in done.stderr
    assert (tmp_path / "fleet" / "thesis.txt").read_text() == "all I have"
