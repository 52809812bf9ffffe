"""The exec runner: a real runner process, real hooks, real programs that speak over the real health socket."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from brokers import mosquitto, until
from fleet_rig import AgentProcess, HostRig, app_spec
from pipelines import PipelineProcess, classifier_task, model_of, save_brightness_model

from jetfleet_agent.ipc import Configure, Failed, Model, Run, Running, Stop, TrialResult, Try, Watch, Watched, Window
from jetfleet_contract.messages import AppConfig, TrialPolicy

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "external" / "classify.py"
SAY = """
import json, os, socket, sys, time
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(**message):
    sock.sendto(json.dumps({"bundle": os.environ["JETFLEET_BUNDLE"], **message}).encode(), os.environ["JETFLEET_HEALTH"])
"""


class Site:
    """A board's config with one external app, and a runner process on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "counter"
        self.log = folder / "hooks.log"
        self._running: list[PipelineProcess] = []
        (folder / "root.json").write_text("{}")

    def script(self, name: str, body: str) -> list[str]:
        path = self.folder / f"{name}.py"
        path.write_text(SAY + body)
        return [sys.executable, str(path)]

    def hook(self, name: str, body: str = "") -> list[str]:
        """A hook that notes its name and the release that `current` names."""
        return self.script(name, f"""
with open({str(self.log)!r}, "a") as log:
    current = os.readlink(os.environ["JETFLEET_CURRENT"]) if os.path.islink(os.environ["JETFLEET_CURRENT"]) else "-"
    log.write({name!r} + " " + os.path.basename(os.environ["JETFLEET_RELEASE"]) + " " + os.path.basename(current) + "\\n")
{body}
""")

    def config(self, **keys: object) -> Path:
        path = self.folder / "agent.toml"
        table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items())
        head = 'device = "gate-7"\nroot = "root.json"\n[broker]\nhost = "localhost"\n'
        path.write_text(f'{head}[external.counter]\nfolder = "counter"\n{table}\n')
        return path

    def runner(self, config: Path) -> PipelineProcess:
        program = ("jetfleet_agent.external", "--config", str(config))
        process = PipelineProcess(self.folder / f"run{len(self._running)}", "counter", program=program)
        self._running.append(process)
        return process

    def close(self) -> None:
        for process in self._running:
            process.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Model]:
    def make(digit: str) -> Model:
        path = save_brightness_model(tmp_path / f"weights-{digit}.onnx")
        return model_of(path, classifier_task(), digit=digit, version=digit)
    return make


def order(model: Model) -> Run:
    return Run(model, AppConfig(), window_s=0.3)


HEALTHY = """
while True:
    say(ok=True, frames=5, latency_ms=[1.0, 2.0])
    time.sleep(0.05)
"""


def test_the_worked_example_runs_and_its_latency_is_seen(site: Site, model: Callable[[str], Model]) -> None:
    runner = site.runner(site.config(program=[sys.executable, str(EXAMPLE)]))
    runner.send(order(model("a")))
    running = runner.wait(Running)
    assert (running.bundle, running.provider) == ("a" * 64, "external")
    runner.until(lambda: any(series.stages for window in runner.of(Window) for series in window.series))
    assert (site.home / "current" / "model.onnx").is_file()
    assert (site.home / "current" / "labels.txt").read_text().split() == list(classifier_task().labels)
    assert json.loads((site.home / "current" / "release.json").read_text())["version"] == "a"
    assert runner.stop() == 0


def test_an_update_and_its_rollback_call_the_right_hooks(site: Site, model: Callable[[str], Model]) -> None:
    config = site.config(prepare=site.hook("prepare"), switch=site.hook("switch", "say(ok=True)"),
                         rollback=site.hook("rollback", "say(ok=True)"), stop=site.hook("stop"))
    for digit in ("a", "b", "a"):
        runner = site.runner(config)
        runner.send(order(model(digit)))
        runner.wait(Running)
        assert runner.stop() == 0
    a, b = "a" * 16, "b" * 16
    assert site.log.read_text().splitlines() == [
        f"prepare {a} -", f"switch {a} {a}", f"stop {a} {a}",
        f"prepare {b} {a}", f"switch {b} {b}", f"stop {b} {b}",
        f"rollback {a} {a}", f"stop {a} {a}"]
    assert (site.home / "previous").readlink().name == b


def test_a_restart_prepares_nothing_twice_and_old_releases_go(site: Site, model: Callable[[str], Model]) -> None:
    config = site.config(prepare=site.hook("prepare"), switch=site.hook("switch", "say(ok=True)"))
    for digit in ("a", "b", "b", "c"):
        runner = site.runner(config)
        runner.send(order(model(digit)))
        runner.wait(Running)
        runner.stop()
    assert [line.split()[0] for line in site.log.read_text().splitlines()] == [
        "prepare", "switch", "prepare", "switch", "switch", "prepare", "switch"]
    assert sorted(path.name for path in (site.home / "releases").iterdir()) == ["b" * 16, "c" * 16]


@pytest.mark.parametrize(("keys", "code", "words"), [
    ({"prepare": "import sys\nprint('no space on device'); sys.exit(3)"}, "external.prepare", "no space on device"),
    ({"switch": "time.sleep(600)", "hook_s": 0.5}, "external.switch", "within 0 s"),
    ({"program": "sys.exit(7)"}, "external.ended", "ended with 7"),
    ({"program": "os.kill(os.getpid(), 11)"}, "external.ended", "-11"),
    ({"program": "say(ok=False, detail='camera unplugged')\ntime.sleep(60)"}, "external.failed", "camera unplugged"),
    ({"program": "time.sleep(600)", "healthy_s": 0.5}, "external.unhealthy", "did not become healthy"),
    ({"program": "say(ok=True)\ntime.sleep(600)", "quiet_s": 0.5}, "external.silent", "went silent"),
    ({"program": "say(ok=True, bundle='" + "f" * 16 + "')\ntime.sleep(600)", "healthy_s": 1.0}, "external.unhealthy", "healthy"),
])
def test_every_way_to_fail_is_told_by_name(
        site: Site, model: Callable[[str], Model], keys: dict[str, object], code: str, words: str) -> None:
    given = {key: site.script(key, value) if isinstance(value, str) else value for key, value in keys.items()}
    runner = site.runner(site.config(**given))
    runner.send(order(model("a")))
    failed = runner.wait(Failed)
    assert (failed.bundle, failed.code) == ("a" * 64, code)
    assert words in failed.detail
    runner.process.wait(30)
    assert runner.process.returncode != 0


def test_a_command_that_is_not_there_is_named(site: Site, model: Callable[[str], Model]) -> None:
    runner = site.runner(site.config(switch=["/nowhere/at-all"]))
    runner.send(order(model("a")))
    failed = runner.wait(Failed)
    assert failed.code == "external.switch"
    assert "/nowhere/at-all" in failed.detail


def test_nonsense_on_the_health_socket_is_counted_and_harmless(site: Site, model: Callable[[str], Model]) -> None:
    noisy = site.script("noisy", """
for junk in (b"", b"{", b"\\xff" * 100, b"[" * 5000, b'{"ok": 1}', b'{"ok": true, "frames": -1}', b"x" * 9000):
    sock.sendto(junk, os.environ["JETFLEET_HEALTH"]) if junk else None
""" + HEALTHY)
    runner = site.runner(site.config(program=noisy))
    runner.send(order(model("a")))
    runner.wait(Running)
    runner.until(lambda: any(window.gauges["health_refused"] == 6 for window in runner.of(Window)))
    assert runner.stop() == 0


def test_a_trial_beside_is_refused_and_settings_arrive(site: Site, model: Callable[[str], Model]) -> None:
    runner = site.runner(site.config(program=site.script("good", HEALTHY)))
    runner.send(order(model("a")))
    runner.wait(Running)
    runner.send(Try(model("b"), TrialPolicy()))
    assert runner.wait(TrialResult).code == "external.no-trial"
    runner.send(Configure(AppConfig(version=9)))
    settings = site.home / "current" / "config.json"
    runner.until(lambda: json.loads(settings.read_text()).get("version") == 9)
    assert runner.stop() == 0


def test_the_program_dies_with_a_killed_runner(site: Site, model: Callable[[str], Model]) -> None:
    note = f"open({str(site.folder / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    runner = site.runner(site.config(program=site.script("good", note + HEALTHY)))
    runner.send(order(model("a")))
    runner.wait(Running)
    program = int((site.folder / "pid").read_text())
    runner.process.send_signal(signal.SIGKILL)
    runner.process.wait(30)

    def gone() -> bool:
        try:
            return "\nState:\tZ" in Path(f"/proc/{program}/status").read_text()
        except FileNotFoundError:
            return True

    until(gone, "the program's end")


def test_the_old_release_s_time_a_frame_is_what_the_new_one_is_held_against(site: Site, model: Callable[[str], Model]) -> None:
    runner = site.runner(site.config(program=site.script("good", HEALTHY)))
    runner.send(order(model("a")))
    runner.wait(Running)
    runner.send(Watch("a" * 64, TrialPolicy(), 0.5))
    watched = runner.wait(Watched)
    assert (watched.bundle, watched.numbers.old_p99_ms, watched.numbers.p99_ms) == ("a" * 64, 0.5, 2.0)
    runner.until(lambda: any(window.gauges.get("work_p99_ms") == 2.0 for window in runner.of(Window)))


def test_a_whole_board_updates_a_program_of_somebody_else_and_takes_a_bad_one_back(tmp_path: Path) -> None:
    """Real broker, host, agent, delivery, choice and probe; the program itself says that version 3 is no good."""
    program = tmp_path / "program.py"
    program.write_text(SAY + """
while True:
    say(ok=os.environ["JETFLEET_VERSION"] != "3", frames=5, latency_ms=[1.0] * 5, detail="it sees ghosts")
    time.sleep(0.05)
""")
    with mosquitto() as broker:
        host = HostRig(tmp_path / "host", broker.port)
        agent = AgentProcess(tmp_path / "gate-1", "gate-1", broker.port, host.project.root_file)
        with agent.config.open("a") as config:
            config.write(f'[external.gate]\nfolder = "counter"\nprogram = {json.dumps([sys.executable, str(program)])}\n')
        agent.start()
        try:
            outcomes = {}
            for version in ("1", "2", "3"):
                spec = msgspec.structs.replace(app_spec(host.publish(version), version), runner="exec", sources=())
                outcomes[version] = host.outcome(host.deploy("gate-1", spec), deadline_s=120.0)
            assert [outcomes[v].outcome for v in "123"] == ["committed", "committed", "refused"], outcomes
            assert "ghosts" in outcomes["3"].detail
            current = agent.folder / "counter" / "current" / "release.json"
            until(lambda: json.loads(current.read_text())["version"] == "2", "version 2 again")
            seq = host.deploy("gate-1", msgspec.structs.replace(app_spec(host.publish("4"), "4", app="other"), runner="exec"))
            assert host.outcome(seq, "other").code == "runner.unsupported"
        finally:
            agent.stop()
            host.stop()


def test_stop_is_possible_at_any_time(site: Site) -> None:
    runner = site.runner(site.config(program=["/bin/true"]))
    runner.send(Stop())
    assert runner.process.wait(30) == 0
