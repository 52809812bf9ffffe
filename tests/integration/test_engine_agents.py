"""Real agents of one class behind a real broker and `serve`: one builds the engine, the other tries it, fetches it and runs with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from brokers import LOOPBACK, mosquitto, until
from fleet_rig import AgentProcess, write_model_bundle
from pipelines import classifier_task, save_brightness_model
from served_fleet import ServedFleet, fleet_on

from jetfleet_agent.boards import detect_board
from jetfleet_agent.capability import probe_machine
from jetfleet_contract.predictions import Detection
from jetfleet_host.delegations import delegate, key_of_device
from jetfleet_host.publish import publish

pytest.importorskip("openvino")
pytest.importorskip("onnx")

APPS = '[reader]\nsources = [{ name = "front", uri = "local:front", fps = 20.0, loop = true }]\n'
WAIT_S = 180.0


def said(fleet: ServedFleet, device: str) -> str:
    return "\n".join(fleet.cli("device", "logs", device)["lines"])


def runs_with_engine(fleet: ServedFleet, device: str) -> bool:
    return "runs fp32@openvino:fp32 on CPU" in said(fleet, device).partition("runs with engine")[2]


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_one_real_agent_builds_and_another_runs_it(tmp_path: Path) -> None:
    machine = probe_machine()
    device_class = detect_board(machine.arch, machine.compatible, machine.isa, machine.drivers).device_class
    answers = ((20, (Detection("dark", 0.99),)), (230, (Detection("bright", 0.99),)))
    with mosquitto() as broker, fleet_on(tmp_path, f"{LOOPBACK}:{broker.port}") as fleet:
        fleet.apps.write_text(APPS)
        write_model_bundle(tmp_path / "toy.bundle", "toy", "1", save_brightness_model(tmp_path / "model.onnx"), classifier_task(), answers,
                           "openvino")
        publish(fleet.project, tmp_path / "toy.bundle")
        fleet.start()
        agents = [AgentProcess(tmp_path / name, name, broker.port, fleet.project.root_file) for name in ("gate-1", "gate-2")]
        try:
            for agent in agents:
                agent.config.write_text(agent.config.read_text() + "tune_s = 0\n")
                agent.start()
            until(lambda: fleet.knows("gate-1", "gate-2"), "both boards", WAIT_S)
            delegate(fleet.project, device_class, [key_of_device(fleet.project, "gate-1")])
            fleet.begin("toy:1", "--devices", "gate-1,gate-2")
            until(lambda: "engine-certify" in said(fleet, "gate-2"), "the second board to try it", WAIT_S)
            until(lambda: "the next start loads it" in said(fleet, "gate-2"), "the engine", WAIT_S)
            assert " is built" in said(fleet, "gate-1")
            assert "engine-build" not in said(fleet, "gate-2"), "one board of the class builds"
            for name in ("gate-1", "gate-2"):
                fleet.cli("device", "restart", name, "--app", "reader")
                until(partial(runs_with_engine, fleet, name), f"{name} to run with it", WAIT_S)
                assert "engine.load" not in said(fleet, name)
        finally:
            for agent in agents:
                agent.stop()
