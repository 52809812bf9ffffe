"""`jetfleet sim` as an operator runs it: a real broker, the real server, faults on, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from brokers import mosquitto, until
from bundle_maker import make_bundle
from interrupts import interruptible

FAULTS = """
[chunks]
loss = 0.1
duplicate = 0.05
reorder = 0.1
corrupt = 0.03

[readers]
slow_share = 0.1
slow_ms = 5.0
sleepy_share = 0.1
sleep_s = 1.0

[devices]
kills = 2.0
power_cuts = 1.0
mid_write = 0.6
restart_s = 0.5
clock_jumps = 1.0
clock_wrong_s = 1.0

[broker]
restarts = 1

[host]
kills = 1
down_s = 0.5
"""


def sim(*arguments: str, code: int = 0, timeout: float = 170) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "jetfleet_host", "sim", "--json", *arguments], capture_output=True, text=True,
                          timeout=timeout, check=False)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def nothing_lost(outcome: dict[str, Any]) -> None:
    assert {rule: found for rule, found in outcome["rules"].items() if found} == {}
    assert not outcome["lost"]


def test_forty_devices_with_everything_going_wrong(tmp_path: Path) -> None:
    faults = tmp_path / "faults.toml"
    faults.write_text(FAULTS)
    outcome = sim("--devices", "40", "--faults", str(faults), "--seed", "3", "--hold", "0.5", "--window", "0.5", "--wave", "20", "--plot",
                  str(tmp_path / "sim.png"))
    nothing_lost(outcome)
    assert [one["phase"] for one in outcome["rollouts"]] == ["done", "done"]
    injected = outcome["faults"]
    assert (injected["broker restart"], injected["host kill"], outcome["serve_starts"]) == (1, 1, 2)
    assert injected["kill"] + injected["power-cut"] > 10
    assert injected["chunk-lost"] > 0
    assert outcome["sessions"] > 40
    assert (tmp_path / "sim.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_bad_model_is_stopped_at_the_canary_and_undone() -> None:
    outcome = sim("--devices", "30", "--scenario", "bad-model", "--hold", "0.5", "--window", "0.5")
    nothing_lost(outcome)
    last = outcome["rollouts"][-1]
    assert (last["phase"], "p95" in last["reason"]) == ("reverted", True)
    assert [row["outcomes"] for row in outcome["waves"] if row["rollout"] == last["id"]] == [{"reverted": 6}]


@pytest.mark.slow
def test_a_version_that_boards_refuse_is_no_success(tmp_path: Path) -> None:
    faults = tmp_path / "faults.toml"
    faults.write_text("[model]\nbad_share = 1.0\n")
    outcome = sim("--devices", "12", "--faults", str(faults), "--hold", "0.5", "--window", "0.5", code=1)
    assert [rule for rule, found in outcome["rules"].items() if found] == ["the rollout ended as expected"]
    assert 2 <= outcome["outcomes"]["refused trial.probe"] <= 6  # the second one stops it
    assert outcome["rollouts"][-1]["phase"] == "reverted"


def test_a_broker_in_use_is_left_alone() -> None:
    import paho.mqtt.client as paho

    with mosquitto() as broker:
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        client.publish("jf/1/meta", b"somebody's metadata", qos=1, retain=True).wait_for_publish(20)
        outcome = sim("--devices", "2", "--broker", f"127.0.0.1:{broker.port}", code=2)
        client.loop_stop()
    assert outcome["error"]["code"] == "sim.broker-used"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_leaves_no_process_and_no_folder(number: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        child = interruptible([sys.executable, "-m", "jetfleet_host", "sim", "--devices", "10"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": scratch}, start_new_session=True)
        me = psutil.Process(child.pid)
        until(lambda: len(me.children()) >= 2 or child.poll() is not None, "broker and host", 60)
        family = me.children(recursive=True)
        child.send_signal(number)
        assert child.wait(60) == 130
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
        assert list(Path(scratch).iterdir()) == []


def test_the_example_can_be_given_back(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "jetfleet_host", "sim", "--faults-example"], capture_output=True, text=True, check=True)
    path = tmp_path / "faults.toml"
    path.write_text(done.stdout.replace("loss =", "los ="))
    outcome = sim("--devices", "2", "--faults", str(path), code=2)
    assert outcome["error"]["code"] == "faults.unknown"
    assert "chunks.loss" in outcome["error"]["remedy"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_hundred_devices_with_the_default_faults() -> None:
    nothing_lost(sim("--devices", "300", "--mosquitto", timeout=880))


@pytest.mark.slow
def test_real_bundles_are_rehearsed_with(tmp_path: Path) -> None:
    for version in ("1", "2"):
        make_bundle(tmp_path / f"{version}.bundle", version=version, seed=int(version))
    outcome = sim("--devices", "8", "--calm", "--hold", "0.5", "--window", "0.5", "--bundle", str(tmp_path / "1.bundle"), "--bundle",
                  str(tmp_path / "2.bundle"))
    nothing_lost(outcome)
    assert outcome["outcomes"] == {"committed": 16}
