"""A class of boards for tests: a real broker, a real `serve`, real agents that run one model in OpenVINO, and what the host knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brokers import LOOPBACK, mosquitto, until
from fleet_rig import AgentProcess, write_model_bundle
from pipelines import classifier_task
from served_fleet import ServedFleet, fleet_on
from tiny_models import brightness_network

from jetfleet_contract.engine_work import Work
from jetfleet_contract.predictions import Detection
from jetfleet_host import views
from jetfleet_host.delegations import delegate, key_of_device
from jetfleet_host.publish import publish
from jetfleet_host.store import engines

APP = "gate"
APPS = """
[gate]
sources = [{ name = "front", uri = "local:front", fps = 10.0, loop = true }]
trial = { frames = 4, keep_s = 0.5, max_p99_ratio = 1000.0 }
"""
MODEL = "brightness:1"
WAIT_S = 120.0


class EngineClass:
    """All boards are of this machine's class, so one engine serves them all."""

    def __init__(self, folder: Path, fleet: ServedFleet, port: int, names: tuple[str, ...], board: str = "") -> None:
        self.fleet = fleet
        fleet.apps.write_text(APPS)
        self.bundle = bundle = folder / "bundles" / "brightness-1"
        bundle.parent.mkdir()
        model = brightness_network(bundle.parent / "brightness.onnx")
        answers = ((20, (Detection("dark", 0.99),)), (230, (Detection("bright", 0.99),)))
        write_model_bundle(bundle, "brightness", "1", model, classifier_task(), answers, backend="openvino")
        publish(fleet.project, bundle)
        fleet.start()
        self.agents = {name: AgentProcess(folder / name, name, port, fleet.project.root_file) for name in names}
        for agent in self.agents.values():  # settings are part of a key, and boards on one core measure anything
            simulated = f'board = "{board}"\nsimulate = true\n' if board else ""
            agent.config.write_text(simulated + agent.config.read_text() + "tune_s = 0\n")
            agent.start()
        until(lambda: fleet.knows(*names), "all boards", WAIT_S)

    def name_builders(self, *names: str) -> None:
        with self.fleet.reading() as session:
            self.device_class = engines.class_of(session, names[0])
        delegate(self.fleet.project, self.device_class, [key_of_device(self.fleet.project, name) for name in names])

    def roll_out(self) -> None:
        self.fleet.begin(MODEL, "--all", app=APP)
        until(lambda: all(self._runs(name) for name in self.agents), f"the model everywhere; {self.said()}", WAIT_S)

    def _runs(self, name: str) -> bool:
        with self.fleet.reading() as session:
            apps = next(view.apps for view in views.devices(session) if view.device == name)
        return any(app.phase == "committed" for app in apps)

    @property
    def works(self) -> list[Work]:
        with self.fleet.reading() as session:
            return engines.every(session)

    def until_state(self, *states: str) -> Work:
        until(lambda: any(work.state in states for work in self.works), f"an engine that is {states}; {self.works} {self.said()}", WAIT_S)
        return next(work for work in self.works if work.state in states)

    def built(self) -> list[str]:
        """The boards that have built an engine, once for each time."""
        return [name for name in self.agents for line in self.log(name) if "engine " in line and " is built" in line]

    def runs_engine(self, name: str, blob: str) -> bool:
        """Whether the board's pipeline was started with that engine, and has it loaded."""
        after = "\n".join(self.log(name)).partition(f"runs with engine {blob[:16]}")[2]
        return "runs fp32@openvino:fp32 on CPU" in after

    def load_it(self, *names: str) -> None:
        """Have the boards' pipelines start anew, and wait until each runs the certified engine."""
        blob = self.until_state("certified").blob
        for name in names:
            until(lambda name=name: "the next start loads it" in " ".join(self.log(name)) or name == self.works[0].by,  # type: ignore[misc]
                  f"the engine on {name}; {self.said()}", WAIT_S)
            self.fleet.cli("device", "restart", name, "--app", APP)
        for name in names:
            try:
                until(lambda name=name: self.runs_engine(name, blob), f"{name} with the engine", WAIT_S)  # type: ignore[misc]
            except AssertionError as error:
                told = [line for line in self.log(name) if ": logs" not in line]
                raise AssertionError(f"{error}: {told[-30:]}") from None

    def log(self, name: str) -> list[str]:
        lines: list[str] = self.fleet.cli("device", "logs", name)["lines"]
        return lines

    def said(self) -> str:
        return "\n".join(f"--- {name}: {agent.said()[-1200:]}" for name, agent in self.agents.items())

    def stop(self) -> None:
        for agent in self.agents.values():
            if agent.process is not None and agent.process.poll() is None:
                agent.stop()


@contextmanager
def engine_class(folder: Path, *names: str, board: str = "") -> Iterator[EngineClass]:
    """Boards of those names; `board`: the board file that is put over this machine."""
    with mosquitto() as broker, fleet_on(folder, f"{LOOPBACK}:{broker.port}") as fleet:
        made = EngineClass(folder, fleet, broker.port, names, board)
        try:
            yield made
        finally:
            made.stop()
