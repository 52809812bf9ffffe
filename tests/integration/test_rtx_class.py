"""Engines of TensorRT for RTX from the host reach boards; one without a GPU refuses them by name and runs on. Real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from brokers import until
from engine_class import WAIT_S, EngineClass, engine_class
from rtx_builds import rtx_builder

from jetfleet_contract.engine_work import Work
from jetfleet_host.engines.sources import Wish, weights_of

pytest.importorskip("openvino")

CLASS = "x86-gpu"


def work_of(site: EngineClass, key: str) -> Work:
    return next(work for work in site.works if work.key == key)


@pytest.mark.timeout(300)
def test_a_plan_reaches_a_board_without_a_gpu_which_runs_on_with_the_next_best(tmp_path: Path) -> None:
    builder = rtx_builder()
    with engine_class(tmp_path, "c1", board=CLASS) as site:
        site.roll_out()
        built = builder.build(weights_of(site.bundle, ())[0], tmp_path / "out", 89, Wish())
        key, blob = built.record.key, built.record.digest.removeprefix("sha256:")
        refused = site.fleet.cli("engines", "publish", str(tmp_path / "out"), "--class", CLASS, fails=True)
        assert refused["error"]["code"] == "engine.not-builder"
        site.fleet.cli("keys", "delegate", CLASS, "--host")
        published = site.fleet.cli("engines", "publish", str(tmp_path / "out"), "--class", CLASS)
        assert [(one["key"], one["blob"], one["fresh"]) for one in published] == [(key, blob, True)]
        assert not site.fleet.cli("engines", "publish", str(tmp_path / "out"), "--class", CLASS)[0]["fresh"]
        assert (work_of(site, key).state, work_of(site, key).by) == ("uncertified", "host")

        until(lambda: "engine.backend" in explained(site), "the board to judge it", WAIT_S)
        row = next(line for line in explained(site).splitlines() if key[:12] in line)
        assert "TensorRT for RTX 1.7.1.116, sm_89 " in row
        assert "tensorrt-rtx" in row.partition("not used")[2], "what to install"

        site.fleet.cli("engines", "try", key, "--device", "c1")
        until(lambda: any(one.code == "cuda.driver" for one in work_of(site, key).barred), f"c1 to refuse it; {site.said()}", WAIT_S)
        stored = site.agents["c1"].folder / "state" / "blobs" / blob
        assert stored.read_bytes() == built.path.read_bytes(), "delivered, and verified"
        until(lambda: work_of(site, key).state == "uncertified", "it to wait for another board", WAIT_S)
        listed = next(one for one in site.fleet.cli("engines", "list", "--class", CLASS) if one["key"] == key)
        assert "not c1 [cuda.driver]" in listed["detail"]
        until(lambda: "it is here and whole; tried, it ended with: the NVIDIA driver" in explained(site), "the reason in explain", WAIT_S)
        told = site.fleet.cli("device", "explain", "c1")
        assert told["apps"]["gate"]["candidate"] == "fp32@openvino:fp32"
        assert [(one["act"], one["code"]) for one in told["judged"] if one["key"] == key] == [("leave", "cuda.driver")]
        assert site.agents["c1"].process is not None
        assert site.agents["c1"].process.poll() is None


def explained(site: EngineClass) -> str:
    """The table that the board itself prints."""
    command = [sys.executable, "-m", "jetfleet_agent.daemon", "explain", "--config", str(site.agents["c1"].config), "--app", "gate"]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    rows = json.loads(subprocess.run([*command, "--json"], capture_output=True, encoding="utf-8", timeout=60, check=True).stdout)
    assert all(row["key"][:12] in shown.stdout for row in rows[0].get("engines", ()))
    return shown.stdout
