"""A real pipeline process driven over a real Unix socket, tiny models and videos: what the pipeline's tests share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from jetfleet_agent.ipc import Event, Hello, Model, Order, Results, Stop, Window, event_from, to_line
from jetfleet_contract.bundle import InputSpec, ModelSpec, TaskSpec, Variant
from jetfleet_contract.messages import Result
from jetfleet_contract.policy import Candidate

E = TypeVar("E", bound=msgspec.Struct)

WIDTH, HEIGHT = 64, 48


class PipelineProcess:
    """Starts ``python -m jetfleet_agent.pipeline`` and plays its supervisor."""

    def __init__(self, folder: Path, app: str = "detector", *, environment: dict[str, str] | None = None,
                 program: Sequence[str] = ("jetfleet_agent.pipeline",)) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{app}.supervisor"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(60)
        self.log = folder / f"{app}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *program, "--app", app, "--socket", str(path)], stderr=log,
                env={**os.environ, **(environment or {})})
        self.link, _ = listener.accept()
        listener.close()
        self.events: list[Event] = []
        self.times: list[float] = []
        self._changed = threading.Condition()
        self._gone = False
        self._taken: dict[type, int] = {}
        threading.Thread(target=self._read, daemon=True).start()
        self.wait(Hello)

    def _read(self) -> None:
        with self.link.makefile("rb") as stream:
            for line in stream:
                with self._changed:
                    self.events.append(event_from(line))
                    self.times.append(time.monotonic())
                    self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def send(self, order: Order) -> None:
        self.link.sendall(to_line(order))

    def until(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        """Wait on a condition over the events; fails with the process's own log."""
        with self._changed:
            if not self._changed.wait_for(lambda: condition() or self._gone, timeout) or not condition():
                last = [type(event).__name__ for event in self.events][-20:]
                raise AssertionError(f"condition not met; last events {last}\n{self.log.read_text()[-4000:]}")

    def wait(self, kind: type[E], timeout: float = 60.0) -> E:
        """The next event of that kind that `wait` has not given yet."""
        start = self._taken.get(kind, 0)

        def found() -> int | None:
            return next((i for i, e in enumerate(self.events) if i >= start and isinstance(e, kind)), None)

        self.until(lambda: found() is not None, timeout)
        index = found()
        assert index is not None
        self._taken[kind] = index + 1
        event = self.events[index]
        assert isinstance(event, kind)
        return event

    def of(self, kind: type[E]) -> list[E]:
        return [e for e in list(self.events) if isinstance(e, kind)]

    @property
    def results(self) -> list[Result]:
        return [result for batch in self.of(Results) for result in batch.results]

    def totals(self) -> dict[str, int]:
        """seen, done and drops by cause over all windows."""
        totals: dict[str, int] = {"seen": 0, "done": 0}
        for window in self.of(Window):
            for series in window.series:
                totals["seen"] += series.seen
                totals["done"] += series.done
                for cause, count in series.dropped.items():
                    totals[cause] = totals.get(cause, 0) + count
        return totals

    def stop(self) -> int:
        """Stop in order; the exit code."""
        self.send(Stop())
        return self.process.wait(30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.link.close()


def save_map_model(path: Path, *, gain: float = 1.0, width: int = WIDTH, height: int = HEIGHT, work: int = 0, batch: int | str = 1) -> Path:
    """An ONNX detector for detect-db: probability = clip(gain * (1 - mean of the channels)), dark areas are text. `work` adds layers, a
    str for `batch` leaves that axis free."""
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(np.full((1, 3, 1, 1), -gain / 3.0, np.float32), "w"),
               numpy_helper.from_array(np.array([gain], np.float32), "b"),
               numpy_helper.from_array(np.float32(0.0), "low"), numpy_helper.from_array(np.float32(1.0), "high")]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["raw"])]
    last = "raw"
    for index in range(work):
        kernel = np.zeros((1, 1, 3, 3), np.float32)
        kernel[0, 0, 1, 1] = 1.0
        weights.append(numpy_helper.from_array(kernel, f"k{index}"))
        nodes.append(helper.make_node("Conv", [last, f"k{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        last = f"c{index}"
    nodes.append(helper.make_node("Clip", [last, "low", "high"], ["map"]))
    return save_graph(path, helper.make_graph(
        nodes, "map", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, [batch, 1, height, width])], weights))


def save_brightness_model(path: Path, *, width: int = WIDTH, height: int = HEIGHT, free: bool = False, batch: int | str = 1) -> Path:
    """An ONNX classifier: logits (1 - mean, mean) * 10 of the tensor. `free` leaves height and width symbolic; a str for `batch`, that."""
    from onnx import TensorProto, helper, numpy_helper

    shape: list[Any] = [batch, 3, "h", "w"] if free else [batch, 3, height, width]
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
             helper.make_node("Gemm", ["f", "w", "b"], ["y"])]
    w = np.array([[-10 / 3, 10 / 3]] * 3, np.float32)
    weights = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array([10.0, 0.0], np.float32), "b")]
    return save_graph(path, helper.make_graph(nodes, "brightness", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                                         [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])], weights))


def save_graph(path: Path, graph: Any) -> Path:
    """Checked, as opset 17."""
    import onnx
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def detector_task(width: int = WIDTH, height: int = HEIGHT, **options: float | str | bool) -> TaskSpec:
    return TaskSpec("detect-db", InputSpec("x", width, height), ("text",), {"dilation": False, **options})


def classifier_task(width: int = WIDTH, height: int = HEIGHT) -> TaskSpec:
    return TaskSpec("classify", InputSpec("x", width, height), ("dark", "bright"))


def model_of(path: Path, task: TaskSpec, *, digit: str = "a", version: str = "1", backend: str = "onnxruntime",
             precision: str = "fp32") -> Model:
    """A `Model` order for a file; `digit` makes the bundle's name."""
    spec = ModelSpec("m", version, task, (Variant("v", "sha256:" + digit * 64, 1, "fp32"),), ("cpu-x86",))
    return Model(digit * 64, version, Candidate("v", backend, precision), str(path), spec, threads=1)


def save_video(path: Path, frames: int, *, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """A white video with one black bar a frame; the bar's column tells the frame's index."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25.0, (width, height))
    assert writer.isOpened()
    for index in range(frames):
        writer.write(bar_image(index, width, height))
    writer.release()
    return path


def bar_image(index: int, width: int = WIDTH, height: int = HEIGHT) -> Any:
    image = np.full((height, width, 3), 255, np.uint8)
    x = 4 + (index * 3) % (width - 24)
    image[height // 3:2 * height // 3, x:x + 16] = 0
    return image
