"""What the pipeline's benchmarks share: the real pipeline process driven over its socket, the demo's model and video."""

from __future__ import annotations

import functools
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jetfleet_agent.ipc import Event, Failed, Model, Order, Results, Stop, Window, event_from, to_line
from jetfleet_contract.bundle import InputSpec, ModelSpec, TaskSpec, Variant
from jetfleet_contract.messages import Result
from jetfleet_contract.policy import Candidate
from jetfleet_contract.sketch import Sketch
from jetfleet_host.bundles import OpenBundle, open_bundle
from jetfleet_host.demo.catalogue import make_catalogue
from jetfleet_host.demo.observations import TEXT
from jetfleet_host.demo.scene import make_video
from jetfleet_host.demo.summary import BETTER

E = TypeVar("E", bound=msgspec.Struct)

WIDTH, HEIGHT = 640, 480
SHAPE = (1, 3, HEIGHT, WIDTH)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetfleet"
TASK = TaskSpec("detect-db", InputSpec("x", WIDTH, HEIGHT, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)), ("text",))


@functools.cache
def demo_bundle() -> OpenBundle:
    """The demo's version 2 as the builder made it (built now when the cache does not hold it: about two minutes)."""
    made = make_catalogue(CACHE, lambda _share, _what: None)
    return open_bundle(made.bundles[TEXT, BETTER], verify=False)


def demo_models() -> dict[str, Path]:
    """Weight files of the demo's text detector at 1x3x480x640, by variant; under names that end in .onnx."""
    bundle, folder = demo_bundle(), CACHE / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    named = {}
    for variant in bundle.spec.variants:
        named[variant.name] = folder / f"{variant.digest[7:19]}-{variant.name}.onnx"
        if not named[variant.name].exists():
            named[variant.name].symlink_to(bundle.blob_path(variant.digest).resolve())
    return named


def demo_model() -> Path:
    """The fp32 file."""
    return demo_models()["fp32"]


def demo_video(seconds: float) -> Path:
    return make_video(CACHE / "bench", seconds=seconds).path


def order_of(path: Path, candidate: Candidate, threads: int, digit: str = "a", version: str = "1") -> Model:
    """The order to load a file, as a supervisor would give it."""
    spec = ModelSpec("text-detector", version, TASK, (Variant("v", "sha256:" + digit * 64, 1, "fp32"),), ("cpu-x86",))
    return Model(digit * 64, version, candidate, str(path), spec, threads)


class Pipeline:
    """``python -m jetfleet_agent.pipeline`` with this process as its supervisor; `more` are further arguments of its."""

    def __init__(self, *more: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="jetfleet-bench-")
        path = Path(self._folder.name) / "supervisor.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            command = [sys.executable, "-m", "jetfleet_agent.pipeline", "--app", "bench", "--socket", str(path), *more]
            self.process = subprocess.Popen(command)
            listener.settimeout(60)
            self._link, _ = listener.accept()
        self.events: list[Event] = []
        self._changed = threading.Condition()
        self._gone = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self._link.makefile("rb") as stream:
            for line in stream:
                with self._changed:
                    self.events.append(event_from(line))
                    self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def send(self, order: Order) -> None:
        self._link.sendall(to_line(order))

    def until(self, condition: Callable[[], Any], timeout: float = 600.0) -> None:
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._gone, timeout)
        if not condition():
            raise SystemExit(f"the pipeline did not get there: {self.of(Failed) or self.events[-3:]}")

    def until_more(self, kind: type[msgspec.Struct], count: int) -> None:
        """Wait for more than `count` events of a kind."""
        self.until(lambda: len(self.of(kind)) > count)

    def until_results(self, count: int) -> None:
        self.until(lambda: len(self.results) > count)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in list(self.events) if isinstance(event, kind)]

    @property
    def results(self) -> list[Result]:
        return [result for batch in self.of(Results) for result in batch.results]

    def stages(self) -> dict[str, Sketch]:
        """All windows' sketches by stage, merged."""
        merged: dict[str, Sketch] = {}
        for window in self.of(Window):
            for series in window.series:
                for name, sketch in series.stages.items():
                    merged[name] = merged.get(name, Sketch()).merged(sketch)
        return merged

    def stop(self) -> None:
        self.send(Stop())
        self.process.wait(30)
        self.until(lambda: self._gone)
        self._link.close()
        self._folder.cleanup()


def result_times(results: list[Result]) -> list[float]:
    """When each answer was ready, seconds."""
    return [result.at + result.age_ms / 1e3 for result in results]


def percentile(values: list[float], share: float) -> float:
    """Nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"
