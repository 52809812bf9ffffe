"""The agent itself, as a process, with a real broker, real trust, delivery, chooser and pipelines: install, update, refuse, survive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from brokers import Mosquitto, mosquitto, until
from fleet_rig import POLICY, AgentProcess, HostRig, app_spec

from jetfleet_contract.messages import AppSpec, Source

DEVICE = "gate-1"
METRICS = {"agreement", "probe_agreement", "champion_p99_ms", "challenger_p99_ms", "frames_lost", "gap_ms", "steady_gap_p99_ms", "bytes"}


class Scene:
    """A broker, a host and one agent that has model 1 committed."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.broker = broker
        self.host = HostRig(folder / "host", broker.port)
        self.agent = AgentProcess(folder / DEVICE, DEVICE, broker.port, self.host.project.root_file).start()
        self.one = self.host.publish("1")

    def install(self) -> Scene:
        outcome = self.host.outcome(self.host.deploy(DEVICE, app_spec(self.one, "1")))
        assert outcome.outcome == "committed", outcome
        return self

    def version_now(self) -> str:
        """The version of the newest result."""
        before = len(self.host.results)
        until(lambda: len(self.host.results) > before + 3, "results")
        return self.host.results[-1].version

    def pipelines(self) -> list[psutil.Process]:
        return [child for child in psutil.Process(self.agent.pid).children() if _is_pipeline(child)]

    def stop(self) -> None:
        try:
            self.agent.stop()
        finally:
            self.host.stop()
        assert not self.host.faults, self.host.faults


def _is_pipeline(process: psutil.Process) -> bool:
    try:
        return "jetfleet_agent.pipeline" in process.cmdline()
    except psutil.Error:  # it ended while we looked
        return False


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with mosquitto() as broker:
        made = Scene(tmp_path, broker)
        yield made
        made.stop()


def test_install_update_and_refuse(scene: Scene) -> None:
    scene.install()
    host = scene.host
    assert host.births[DEVICE].apps[0].version == "1"
    assert host.states[DEVICE].online

    committed = host.outcome(host.deploy(DEVICE, app_spec(host.publish("2"), "2")))
    assert (committed.outcome, committed.from_version, committed.version) == ("committed", "1", "2"), committed
    assert committed.metrics.keys() >= METRICS
    assert (committed.metrics["frames_lost"], committed.metrics["agreement"]) == (0.0, 1.0)
    assert scene.version_now() == "2"

    refused = host.outcome(host.deploy(DEVICE, app_spec(host.publish("3", wrong=True), "3")))
    assert (refused.outcome, refused.code, refused.phase) == ("refused", "trial.probe", "probing"), refused
    assert scene.version_now() == "2"

    refused = host.outcome(host.deploy(DEVICE, app_spec(host.publish("4", broken=True), "4")))
    assert (refused.outcome, refused.code) == ("refused", "choice.none"), refused
    assert scene.version_now() == "2"
    until(lambda: host.births[DEVICE].apps[0].reason == "choice.none", "the birth that says so")

    seq = host.deploy(DEVICE, app_spec(scene.one, "1", source="local:no-such"))
    failed = host.outcome(seq)
    assert (failed.outcome, failed.code) == ("failed", "source.unknown")
    assert scene.version_now() == "2"

    frames = sorted({(r.frame, r.version) for r in host.results})
    assert [frame for frame, _ in frames] == list(range(frames[0][0], frames[0][0] + len(frames))), "a frame was lost or answered twice"


def test_config_commands_and_telemetry(scene: Scene) -> None:
    scene.install()
    host = scene.host
    process = scene.pipelines()[0].pid
    changed = host.outcome(host.deploy(DEVICE, app_spec(scene.one, "1", config=2)))
    assert (changed.outcome, changed.phase) == ("committed", "idle")
    assert scene.pipelines()[0].pid == process, "a change of config restarts nothing"

    host.command(DEVICE, 1, "explain")
    until(lambda: host.responses, "the answer")
    explained = json.loads(host.responses[0].body)
    assert explained["apps"]["gate"]["version"] == "1"
    assert explained["choices"]["gate"]["rows"][0]["verdict"] == "chosen"
    host.command(DEVICE, 2, "restart", app="gate")
    until(lambda: any(pipeline.pid != process for pipeline in scene.pipelines()), "another process")
    host.command(DEVICE, 3, "snapshot")
    until(lambda: len(host.responses) == 3, "three answers")
    assert [r.code for r in host.responses] == ["", "", "command.unsupported"]
    host.command(DEVICE, 3, "restart", app="gate")
    host.command(DEVICE, 4, "restart", app="nobody")
    until(lambda: len(host.responses) == 4, "four answers")
    assert (host.responses[3].seq, host.responses[3].code) == (4, "app.unknown"), "a repeated number is not obeyed"

    until(lambda: any(t.series for t in host.telemetry), "telemetry")
    numbers = [window.window for window in host.telemetry]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    series = next(t.series[0] for t in host.telemetry if t.series and t.series[0].done)
    assert (series.app, series.bundle, series.source) == ("gate", scene.one, "front")
    gauges = {"rss_mb", "cpu_pct", "gate.rss_mb", "gate.crashes"}  # the pipeline has just restarted: one window may lack its memory
    until(lambda: gauges <= host.telemetry[-1].gauges.keys(), "all gauges in one window")


def test_one_app_feeds_another(scene: Scene) -> None:
    host = scene.host
    detector = AppSpec("gate", host.publish_detector("1"), "dark-areas", "1", sources=(Source("front", "local:front", 30.0, loop=True),),
                       trial=POLICY)
    reader = AppSpec("reader", scene.one, "brightness", "1", input_from="gate", trial=POLICY)
    seq = host.deploy(DEVICE, detector, reader)
    assert [host.outcome(seq, app).outcome for app in ("gate", "reader")] == ["committed", "committed"]

    def boxes(app: str) -> set[tuple[object, object]]:
        return {(r.position, r.detections[0].box) for r in list(host.results) if r.app == app and r.detections}

    until(lambda: len(boxes("reader") & boxes("gate")) > 5, "the reader's answers on what the gate cut out")
    without = host.deploy(DEVICE, detector)
    assert host.outcome(without, "gate").outcome == "committed"
    until(lambda: [a.app for a in host.births[DEVICE].apps] == ["gate"] and len(scene.pipelines()) == 1, "the reader to be gone")


def test_power_cut_with_no_broker_to_come_back_to(scene: Scene) -> None:
    scene.install()
    pipeline = scene.pipelines()[0]
    scene.agent.kill()
    until(lambda: not pipeline.is_running() or pipeline.status() == psutil.STATUS_ZOMBIE, "the pipeline to die with its supervisor")
    scene.broker.stop()
    scene.agent.start()
    until(scene.pipelines, "the committed model without a network")
    scene.broker.start()
    until(lambda: scene.host.births[DEVICE].session == 2, "the birth of the second session", 40)
    scene.host.publish_meta()
    assert scene.version_now() == "1"


@pytest.mark.parametrize("phase", ["fetching", "choosing", "probing", "trial", "keeping"])
@pytest.mark.slow
def test_killed_in_every_phase_of_a_real_update(scene: Scene, phase: str) -> None:
    scene.install()
    host = scene.host
    seq = host.deploy(DEVICE, app_spec(host.publish("2"), "2"))
    until(lambda: any(r.seq == seq and r.phase == phase for r in host.reports), phase)
    scene.agent.kill()
    scene.agent.start()
    assert host.outcome(seq).outcome == "committed"
    assert scene.version_now() == "2"


def test_reports_wait_for_the_host(scene: Scene) -> None:
    scene.host.mute = True
    seq = scene.host.deploy(DEVICE, app_spec(scene.one, "1"))
    assert scene.host.outcome(seq).outcome == "committed"
    scene.agent.kill()
    kept = list((scene.agent.folder / "state" / "reports").glob("*.json"))
    assert kept, "an outcome without an acknowledgement stays on disk"
    scene.host.mute = False
    scene.agent.start()
    until(lambda: not [p for p in kept if p.exists()], "the report to be acknowledged after the restart", 40)
