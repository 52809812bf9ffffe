"""Real `Pipelines` over real child processes that run `fake_pipeline.py`, with a control loop that the test turns by hand."""

from __future__ import annotations

import json
import queue
import sys
import time
from collections.abc import Callable
from pathlib import Path

from brokers import until

from jetfleet_agent import ipc
from jetfleet_agent.supervisor.inbox import PipelineEnded, PipelineSaid
from jetfleet_agent.supervisor.pipeline_link import PipelineLink
from jetfleet_agent.supervisor.pipelines import Pipelines
from jetfleet_contract.bundle import InputSpec, ModelSpec, TaskSpec, Variant
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.policy import Candidate
from jetfleet_contract.slot_records import Crashed

TESTS = Path(__file__).parent
PROGRAM = (sys.executable, str(TESTS / "fake_pipeline.py"))
SPEC = ModelSpec("m", "1", TaskSpec("classify", InputSpec("x", 8, 8)), (Variant("v", "sha256:" + "0" * 64, 1, "fp32"),), ("cpu-x86",))


class Bench:
    """Pipelines with a control loop that the test turns by hand."""

    def __init__(self, folder: Path, quiet_s: float = 30.0, program: tuple[str, ...] = PROGRAM) -> None:
        self.folder = folder
        self.posted: queue.Queue[PipelineSaid | PipelineEnded] = queue.Queue()
        self.link = PipelineLink(folder / "s", self.posted.put)
        self.pipelines = Pipelines(self.link, time.monotonic, lambda: 0.0, program=program, quiet_s=quiet_s)
        self.said: list[ipc.Event] = []
        self.crashes: list[Crashed] = []
        self.pipelines.begin()

    def model(self, letter: str, do: str = "") -> ipc.Model:
        path = self.folder / f"{letter}.json"
        path.write_text(json.dumps({"do": do}))
        return ipc.Model(letter * 64, letter, Candidate("v", "onnxruntime", "fp32"), str(path), SPEC)

    def run(self, letter: str, do: str = "", *, config: int = 1, input_from: str = "") -> ipc.Run:
        return ipc.Run(self.model(letter, do), AppConfig(config), input_from=input_from, window_s=0.05)

    def turn(self) -> None:
        self.pipelines.tick()
        try:
            item = self.posted.get(timeout=0.01)
        except queue.Empty:
            return
        if isinstance(item, PipelineEnded):
            crash = self.pipelines.ended(item)
            if crash is not None:
                self.crashes.append(crash)
        elif self.pipelines.said(item):
            self.said.append(item.event)

    def until(self, condition: Callable[[], object], what: str) -> None:
        def turned() -> object:
            self.turn()
            return condition()

        until(turned, f"{what}; said {[type(e).__name__ for e in self.said if not isinstance(e, ipc.Window)]}, crashes {self.crashes}", 30)

    def of(self, kind: type) -> list[ipc.Event]:
        return [event for event in self.said if isinstance(event, kind)]

    def running(self, letter: str, times: int = 1) -> None:
        self.until(lambda: sum(e.bundle == letter * 64 for e in self.of(ipc.Running)) >= times, f"{letter} to run")  # type: ignore[union-attr]
