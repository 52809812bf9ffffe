"""Months in minutes: four cameras, swaps, dead sources, broker restarts, again and again; memory, threads, descriptors stay as they are.

Sampled at the same quiet point of every cycle, so that what a swap holds for a while is not taken for growth. The long run is
``pytest -m slow tests/endurance``: an hour.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from brokers import Mosquitto, mosquitto, until
from cameras import RtspCamera, need_gstreamer
from fleet_rig import POLICY, AgentProcess, HostRig

from jetfleet_contract.messages import AppConfig, AppSpec, Source

DEVICE = "gate-1"
GROWTH = 1.02
SLACK_MB = 1.0  # the least that an allocator takes or gives back at once


class Sample(msgspec.Struct, frozen=True):
    """One process at one quiet point."""

    at: float
    rss_mb: float
    threads: int
    descriptors: int


class Site:
    """A broker, a host, one agent with one app on four sources: two RTSP cameras, a moving synthetic picture, a looping file."""

    def __init__(self, folder: Path, broker: Mosquitto, cameras: tuple[RtspCamera, RtspCamera]) -> None:
        self.broker, self.cameras = broker, cameras
        self.host = HostRig(folder / "host", broker.port)
        self.agent = AgentProcess(folder / DEVICE, DEVICE, broker.port, self.host.project.root_file)
        lines = "".join(f'cam{i} = "{camera.uri()}"\n' for i, camera in enumerate(cameras))
        self.agent.config.write_text(self.agent.config.read_text().replace("[local_sources]\n", f"[local_sources]\n{lines}"))
        self.agent.start()
        self.bundles = {version: self.host.publish(version) for version in ("1", "2")}
        self.samples: dict[str, list[Sample]] = {"agent": [], "pipeline": []}
        self.pipelines: set[int] = set()

    def run_version(self, version: str) -> None:
        sources = (Source("cam0", "local:cam0", 10.0), Source("cam1", "local:cam1", 10.0), Source("made", "synthetic:320x240", 10.0),
                   Source("front", "local:front", 10.0, loop=True))
        spec = AppSpec("gate", self.bundles[version], "brightness", version, AppConfig(), sources, trial=POLICY, downgrade=True)
        outcome = self.host.outcome(self.host.deploy(DEVICE, spec), deadline_s=120.0)
        assert outcome.outcome == "committed", outcome
        assert outcome.metrics.get("frames_lost", 0.0) == 0.0

    def everything_answers(self) -> None:
        """Three more results of each source."""
        self.host.results.clear()
        until(lambda: all(sum(r.source == name for r in list(self.host.results)) >= 3 for name in ("cam0", "cam1", "made", "front")),
              "results of all four sources", 60.0)

    def _silent(self, source: str) -> bool:
        """None of the last thirty results is of that source."""
        recent = list(self.host.results)[-30:]
        return len(recent) == 30 and all(result.source != source for result in recent)

    def sample(self) -> None:
        agent = psutil.Process(self.agent.pid)
        pipelines = [child for child in agent.children() if "jetfleet_agent.pipeline" in child.cmdline()]
        assert len(pipelines) == 1
        self.pipelines.add(pipelines[0].pid)
        for name, process in (("agent", agent), ("pipeline", pipelines[0])):
            self.samples[name].append(Sample(time.monotonic(), process.memory_info().rss / 1e6, process.num_threads(), process.num_fds()))

    def cycle(self, number: int) -> None:
        """A swap, a camera that is gone for a while, a broker that restarts; then quiet."""
        self.run_version("1" if number % 2 else "2")
        camera = self.cameras[number % 2]
        camera.kill()
        self.host.results.clear()
        until(lambda: self._silent(f"cam{number % 2}"), "the lost camera's silence", 60.0)
        camera.start()
        self.everything_answers()
        sessions = len(self.host.states)
        self.broker.stop()
        self.broker.start()
        until(lambda: self.host.states[DEVICE].online and len(self.host.states) >= sessions, "the board's return")
        self.everything_answers()
        self.sample()

    def stop(self) -> None:
        try:
            self.agent.stop()
        finally:
            self.host.stop()
        assert not self.host.faults, self.host.faults


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    need_gstreamer()
    cameras = RtspCamera(fps=10), RtspCamera(fps=10)
    try:
        with mosquitto() as broker:
            made = Site(tmp_path, broker, cameras)
            yield made
            made.stop()
    finally:
        for camera in cameras:
            camera.kill()


def soak(site: Site, seconds: float, settle_s: float) -> str:
    """Cycles for `seconds`; what came before `settle_s` is not judged. Gives the table of what was seen."""
    began = time.monotonic()
    site.run_version("1")
    number = 0
    while time.monotonic() - began < seconds or number < 6:
        site.cycle(number)
        number += 1
    lines = [f"{number} cycles in {time.monotonic() - began:.0f} s"]
    for name, samples in site.samples.items():
        judged = [sample for sample in samples if sample.at - began >= settle_s] or samples[1:]
        third = max(1, len(judged) // 3)
        first, last = judged[:third], judged[-third:]
        lines.append(f"{name}: rss {statistics.median(s.rss_mb for s in first):.1f} -> {statistics.median(s.rss_mb for s in last):.1f} MB, "
                     f"threads {first[0].threads} -> {last[-1].threads}, descriptors {first[0].descriptors} -> {last[-1].descriptors}")
        assert statistics.median(s.rss_mb for s in last) <= GROWTH * statistics.median(s.rss_mb for s in first) + SLACK_MB, lines
        assert min(s.threads for s in last) <= max(s.threads for s in first), lines
        assert min(s.descriptors for s in last) <= max(s.descriptors for s in first), lines
    assert len(site.pipelines) == 1, "the pipeline process was restarted"
    return "\n".join(lines)


@pytest.mark.timeout(600)
def test_three_minutes_of_everything_going_wrong_leave_no_trace(site: Site) -> None:
    print(soak(site, seconds=170.0, settle_s=60.0))


@pytest.mark.slow
@pytest.mark.timeout(4500)
def test_an_hour_of_it(site: Site) -> None:
    print(soak(site, seconds=3600.0, settle_s=600.0))
