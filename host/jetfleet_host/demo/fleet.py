"""The demo's fleet: `jetfleet serve` with its embedded broker, and three agents, all real processes on this machine.

Each agent believes that it is a board of another class: the board file bounds what it may use, inference is real.
"""

from __future__ import annotations

import json
import platform
import queue
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jetfleet_contract import topics
from jetfleet_contract.errors import RuntimeFailure
from jetfleet_contract.gates import Gates
from jetfleet_contract.messages import AppConfig, AppSpec, Source, TrialPolicy
from jetfleet_contract.policy import ChoiceRow
from jetfleet_contract.rollout_plan import Plan, waves_of
from jetfleet_contract.rollout_records import Rollout
from jetfleet_host import clock
from jetfleet_host.mqtt import BrokerSettings, MqttLink
from jetfleet_host.project import Project
from jetfleet_host.publish import Published
from jetfleet_host.store import journal
from jetfleet_host.store.database import Database
from jetfleet_host.store.models import RolloutRow

from .children import Children
from .observations import ORIENT, TEXT, Observations
from .summary import Chosen

SERVE = "serve"
_JETFLEET = (sys.executable, "-c", "from jetfleet_host.cli import main; main()")
FPS = 6.0
WINDOW_S = 2.0
POLL_S = 0.1
EXPLAIN_TIMEOUT_S = 60.0
# Three boards share two cores here, and a trial runs two models on one of them: latency is compared loosely. What must be
# strict is agreement. Over any 20 frames of this video: 0.79 at least between the sound versions, 0.40 at most with the bad one.
TRIAL = TrialPolicy(frames=20, min_agreement=0.6, max_p99_ratio=8.0, lease_s=120.0, keep_s=2.0)
GATES = Gates(max_p95_ratio=8.0, min_samples=10, hold_s=2.0, evidence_s=40.0, wave_timeout_s=900.0, on_undecided="pass")


@dataclass(frozen=True)
class Board:
    """One pretended board: its name in the fleet and the board file it runs under."""

    device: str
    board: str
    arch: str

    @property
    def simulate(self) -> bool:
        """Whether this machine is none of that class."""
        return not (self.board.startswith("cpu-") and self.arch == platform.machine())


BOARDS = (Board("yard-orin", "orin-nano", "aarch64"), Board("dock-x86", "cpu-x86", "x86_64"), Board("gate-arm", "cpu-arm64", "aarch64"))
DEVICES = tuple(board.device for board in BOARDS)


class DemoFleet:
    """Server and agents below one folder. Use inside `Children`; `close` disconnects, `Children` ends the processes.

    Args:
        measurements: where boards keep what they measured of their candidates, so that the next demo need not do it again; the
            agents key it by weights, runtime, CPU and threads.
        elapsed: seconds since the demo began.
    """

    def __init__(self, folder: Path, measurements: Path, children: Children, seen: Observations, video: Path,
                 elapsed: Callable[[], float]) -> None:
        self._folder = folder
        self._measurements = measurements
        self._children = children
        self._seen = seen
        self._video = video
        self._elapsed = elapsed
        self._inbox: queue.SimpleQueue[tuple[str, bytes, float]] = queue.SimpleQueue()
        self.project = Project.init(folder / "project", broker=f"embedded:{_free_port()}")
        broker = self.project.settings.broker
        self._link = MqttLink(BrokerSettings(broker.host, broker.port), f"demo-{secrets.token_hex(4)}", self._heard, lambda: None,
                              lambda _reason: None)
        self._database: Database | None = None

    # --- processes --------------------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Start `jetfleet serve` and wait until its broker answers."""
        self._children.start(SERVE, [*_JETFLEET, "--verbose", "serve", "--dir", str(self.project.dir)])
        for topic in (topics.ALL_BIRTHS, topics.ALL_REPORTS, topics.ALL_TELEMETRY):
            self._link.subscribe(topic, 1)
        self._link.subscribe(topics.ALL_RESULTS, 0)
        self.wait_until(lambda: _listens(self.project.settings.broker.port), 60.0, "the broker to answer")
        self._link.start()
        self.wait_until(lambda: self._link.connected, 60.0, "a connection to the broker")
        self._database = Database.open(self.project.database_url)

    def start_agents(self) -> None:
        for board in BOARDS:
            config = self._folder / board.device / "agent.toml"
            config.parent.mkdir(parents=True, exist_ok=True)
            config.write_text(self._agent_config(board), encoding="utf-8")
            self._keep_measurements(config.parent / "state" / "chooser")
            self._children.start(board.device, [sys.executable, "-m", "jetfleet_agent.daemon", "run", "--verbose", "--config", str(config)])

    def _keep_measurements(self, chooser: Path) -> None:
        chooser.mkdir(parents=True, exist_ok=True)
        self._measurements.mkdir(parents=True, exist_ok=True)
        (chooser / "measurements").symlink_to(self._measurements)

    def _agent_config(self, board: Board) -> str:
        broker = self.project.settings.broker
        text = json.dumps  # TOML's basic strings are JSON's
        return (f'device = {text(board.device)}\nboard = {text(board.board)}\nsimulate = {str(board.simulate).lower()}\n'
                f'state_dir = "state"\nroot = {text(str(self.project.root_file))}\nthreads = 1\nwindow_s = {WINDOW_S}\n\n'
                f'[broker]\nhost = {text(broker.host)}\nport = {broker.port}\n\n'
                f'[local_sources]\nfront = {text(str(self._video))}\n\n'
                # One lock for all: boards that share a machine must not disturb each other's measurements.
                f'[measure]\nruns = 12\nwarmup = 3\ntune_s = 2.0\nlock = {text(str(self._folder / "measure.lock"))}\n')

    def close(self) -> None:
        self._link.stop()
        if self._database is not None:
            self._database.close()

    # --- what the broker says ---------------------------------------------------------------------------------

    def _heard(self, topic: str, payload: bytes) -> None:
        self._inbox.put((topic, payload, self._elapsed()))

    def pump(self, seconds: float = POLL_S) -> None:
        """Take in what came, for a while. RuntimeFailure `demo.child` when a process has died."""
        end = time.monotonic() + seconds
        while True:
            try:
                topic, payload, at = self._inbox.get(timeout=max(end - time.monotonic(), 0.001))
            except queue.Empty:
                break
            self._seen.message(topic, payload, at)
            if time.monotonic() >= end:
                break
        self._children.check()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float, what: str, progress: Callable[[], None] = lambda: None) -> None:
        """Take in messages until `condition` holds.

        Raises:
            RuntimeFailure: `demo.timeout` naming `what` and where each board is; `demo.child`.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            progress()
            self.pump()
            if time.monotonic() > deadline:
                raise RuntimeFailure("demo.timeout", f"waited {timeout_s:.0f} s for {what}; {self.whereabouts()}",
                                     where=str(self._folder), remedy="run again with --keep and read the logs in that folder")

    def settle(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Take in messages until `condition` holds or the time is over: for what is judged afterwards anyway."""
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            self.pump()

    def whereabouts(self) -> str:
        """Where each board's apps are, in a line."""
        told = [f"{device} {app}: {report.outcome or report.phase} {report.code}".rstrip()
                for (device, app), report in sorted(self._seen.progress.items())]
        return "boards: " + ("; ".join(told) or f"{len(self._seen.births)} of {len(DEVICES)} said hello")

    # --- rollouts ---------------------------------------------------------------------------------------------

    def roll_out(self, app: str, published: Published, *, canary: int) -> str:
        """Ask `serve` for a rollout to all boards, as `jetfleet rollout start` does; its id.

        Raises:
            RuntimeFailure: `demo.rollout` when the server refuses it.
        """
        rollout = f"{app}-{published.version}"
        spec = app_spec(app, published)
        plan = Plan(rollout, app, published.manifest, published.name, published.version, waves_of(DEVICES, canary=canary),
                    before={device: state.version for device, state in self._seen.running(app).items() if state.version},
                    gates=GATES, on_breach="rollback")
        with self._opened().session() as session:
            number = journal.ask(session, rollout, journal.StartRequest(plan, spec, keep=False), clock.now().wall)
        self.wait_until(lambda: self._answer(number) is not None, 20.0, f"the server to take rollout {rollout}")
        code, text = self._answer(number) or ("", "")
        if code:
            raise RuntimeFailure("demo.rollout", f"the server refused rollout {rollout}: {text} [{code}]", where=str(self.project.dir))
        return rollout

    def _answer(self, number: int) -> tuple[str, str] | None:
        with self._opened().reading() as session:
            return journal.answer_of(session, number)

    def rollout_state(self, rollout: str) -> Rollout | None:
        """What the server's journal says of it; None before the server has taken the request."""
        with self._opened().reading() as session:
            row = session.get(RolloutRow, rollout)
            return journal.load_state(session, row) if row else None

    def _opened(self) -> Database:
        if self._database is None:
            raise RuntimeFailure("demo.order", "the server has not been started")
        return self._database

    # --- why --------------------------------------------------------------------------------------------------

    def chosen(self, app: str = TEXT) -> list[Chosen]:
        """What each board runs of an app and why, as its own `jetfleet-agent explain` tells."""
        return [self._chosen(board, app) for board in BOARDS]

    def _chosen(self, board: Board, app: str) -> Chosen:
        running = self._seen.running(app).get(board.device)
        version = running.version if running else ""
        birth = self._seen.births.get(board.device)
        device_class = birth.capability.device_class if birth else board.board
        for record in self._explained(board, app):
            row = next((row for row in record.choice.rows if row.verdict == "chosen"), None)
            if record.version == version and row is not None:
                return Chosen(board.device, device_class, version, row.candidate.name, row.reason)
        return Chosen(board.device, device_class, version, running.candidate if running else "", running.reason if running else "")

    def _explained(self, board: Board, app: str) -> list[_Explained]:
        command = [sys.executable, "-m", "jetfleet_agent.daemon", "explain", "--json", "--app", app,
                   "--config", str(self._folder / board.device / "agent.toml")]
        try:
            done = subprocess.run(command, capture_output=True, timeout=EXPLAIN_TIMEOUT_S, check=False)
            return msgspec.json.decode(done.stdout, type=list[_Explained])
        except (subprocess.TimeoutExpired, msgspec.MsgspecError):
            return []


class _Rows(msgspec.Struct):
    rows: tuple[ChoiceRow, ...] = ()


class _Explained(msgspec.Struct):
    """The part of `jetfleet-agent explain --json` that is shown."""

    name: str
    version: str
    choice: _Rows


def app_spec(app: str, published: Published) -> AppSpec:
    """The app on every board: text detection on the camera, the orientation classifier on what it finds."""
    sources: Sequence[Source] = (Source("front", "local:front", fps=FPS, loop=True),) if app == TEXT else ()
    return AppSpec(app, published.manifest, published.name, published.version, AppConfig(), tuple(sources),
                   input_from=TEXT if app == ORIENT else "", trial=TRIAL)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
