"""A model whose session is a gate: it runs when the test lets it. What the tests of the stages share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jetfleet_agent.ipc import Model
from jetfleet_agent.pipeline import loaded
from jetfleet_agent.pipeline.backends import Backend, Lane, Outputs
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_contract.bundle import InputSpec, ModelSpec, TaskSpec, Variant
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.policy import Candidate

SIZE = 16


class Gate:
    """Lets sessions through: all of them while open, else as many as were allowed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._permits = 0
        self._open = True
        self.passed = 0

    def set_open(self, is_open: bool) -> None:
        with self._changed:
            self._open = is_open
            self._permits = 0
            self._changed.notify_all()

    def allow(self, count: int) -> None:
        with self._changed:
            self._permits += count
            self._changed.notify_all()

    def wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._permits, 60)
            if not self._open:
                self._permits -= 1
            self.passed += 1


class GatedBackend(Backend):
    """Classes (dark, bright) from the mean of each picture; every run waits at the gate, and its batch's size is kept."""

    name = "gated"
    precisions = ("fp32",)
    gate = Gate()

    def _load(self, count: int) -> tuple[Lane, ...]:
        self.batches: list[int] = []
        return tuple(Lane(index, np.zeros(self.input_shape, np.float32), None) for index in range(count))

    def _run(self, lane: Lane) -> Outputs:
        self.gate.wait()
        self.batches.append(len(lane.tensor))
        means = lane.tensor.mean(axis=(1, 2, 3))
        return (np.stack([1 - means, means], axis=1) * 10,)

    def _unload(self) -> None:
        """Nothing is held."""


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Every model that is loaded from now on runs through this gate."""
    with gated_models(monkeypatch.setattr) as made:
        return made


@contextmanager
def gated_models(put: Callable[[Any, str, Any], None]) -> Iterator[Gate]:
    """As the fixture, for tests that have none."""
    made = Gate()
    backend: type[GatedBackend] = type("Gated", (GatedBackend,), {"gate": made})

    def open_gated(_name: str, path: Path, **arguments: Any) -> Backend:
        return backend(path, **arguments)

    put(loaded, "open_backend", open_gated)
    yield made


def gated_model(folder: Path, config: AppConfig | None = None, digit: str = "a") -> LoadedModel:
    """An activated classifier over the gate, which must be open."""
    path = folder / "gated.onnx"
    path.touch()
    spec = ModelSpec("m", "1", TaskSpec("classify", InputSpec("x", SIZE, SIZE), ("dark", "bright")),
                     (Variant("v", "sha256:" + digit * 64, 1, "fp32"),), ("cpu-x86",))
    model = LoadedModel(Model(digit * 64, "1", Candidate("v", "onnxruntime", "fp32"), str(path), spec, threads=1), config or AppConfig())
    model.activate()
    return model


def picture(shade: int = 200) -> Any:
    return np.full((SIZE, SIZE, 3), shade, np.uint8)


def frame_of(source: str, number: int, *, shade: int = 200, age_s: float = 0.0, position: int = -1) -> Frame:
    now = time.monotonic()
    return Frame(source, number, position, picture(shade), now - age_s, time.time(), arrived=now)


def until(condition: Callable[[], object], what: str, timeout: float = 30.0) -> None:
    """Wait on a condition with a deadline."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)
