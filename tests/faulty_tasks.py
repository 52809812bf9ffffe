"""A task plug-in that breaks as told, at a frame that is told: what a vendor's library does to a process, replayed.

``install(folder)`` makes the folder look like an installed distribution, so that a process with it on its path finds the task through
the entry points, as it finds anybody's. The task is ``faulty-classify`` or ``faulty-detect``: the real one, with these options more:

    fault   segv (a read at address 0), abort, memory (more than there is), raise (a bug), slow (so many `ms` more a frame), blind (it
            finds nothing any more)
    after   answers that come before it breaks
    when    a file; it breaks only while that is there, so that a test says in which phase
"""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from pathlib import Path
from typing import Any

import msgspec

from jetfleet_agent.pipeline.tasks import GROUP, Task
from jetfleet_agent.pipeline.tasks.classify import Classify
from jetfleet_agent.pipeline.tasks.detect_db import DetectDb
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.predictions import Prediction

_MARKER = "faulty_tasks-1.0.dist-info"


class _Fault:
    def __init__(self, spec: TaskSpec) -> None:
        self.kind = str(spec.options["fault"])
        self.left = int(spec.options.get("after", 0))
        self.ms = float(spec.options.get("ms", 0.0))
        self.when = str(spec.options.get("when", ""))

    def strike(self) -> bool:
        """Break, if it is time; True: answer nothing."""
        self.left -= 1
        if self.left >= 0 or (self.when and not Path(self.when).exists()):
            return False
        if self.kind == "segv":
            ctypes.string_at(0)
        elif self.kind == "abort":
            os.abort()
        elif self.kind == "memory":
            bytearray(1 << 46)
        elif self.kind == "raise":
            raise RuntimeError("a bug in the plug-in")
        elif self.kind == "slow":
            time.sleep(self.ms / 1e3)
        return self.kind == "blind"


def _real(spec: TaskSpec) -> TaskSpec:
    options = {name: value for name, value in spec.options.items() if name not in ("fault", "after", "ms", "when")}
    return msgspec.structs.replace(spec, options=options)


class FaultyClassify(Classify):
    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(_real(spec))
        self._fault = _Fault(spec)

    def decode(self, outputs: Any, geometry: Any) -> Prediction:
        return () if self._fault.strike() else super().decode(outputs, geometry)


class FaultyDetect(DetectDb):
    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(_real(spec))
        self._fault = _Fault(spec)

    def decode(self, outputs: Any, geometry: Any) -> Prediction:
        return () if self._fault.strike() else super().decode(outputs, geometry)


KINDS: dict[str, type[Task]] = {"faulty-classify": FaultyClassify, "faulty-detect": FaultyDetect}


def install(folder: Path) -> str:
    """Make a distribution of this module in `folder`; gives the PYTHONPATH with it."""
    marker = folder / _MARKER
    marker.mkdir(parents=True)
    shutil.copy(__file__, folder / "faulty_tasks.py")
    (marker / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-tasks\nVersion: 1.0\n")
    (marker / "entry_points.txt").write_text(
        f"[{GROUP}]\n" + "".join(f"{kind} = faulty_tasks:{task.__name__}\n" for kind, task in KINDS.items()))
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)


def faulty(spec: TaskSpec, fault: str, *, after: int = 0, ms: float = 0.0, when: str = "") -> TaskSpec:
    """The same task, which breaks."""
    kind = {"classify": "faulty-classify", "detect-db": "faulty-detect"}[spec.kind]
    return msgspec.structs.replace(spec, kind=kind, options={**spec.options, "fault": fault, "after": float(after), "ms": ms, "when": when})


def hungry_model(path: Path, *, side: int, width: int = 64, height: int = 48) -> Path:
    """The detector of `pipelines.save_map_model`, which on its way makes a tensor of side x side floats: a small file, much memory."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(np.full((1, 3, 1, 1), -1.0 / 3.0, np.float32), "w"),
               numpy_helper.from_array(np.array([1.0], np.float32), "b"), numpy_helper.from_array(np.array([1, 1, side, side]), "many"),
               numpy_helper.from_array(np.float32(0.0), "zero")]
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["map0"]), helper.make_node("ReduceMax", ["map0"], ["top"], keepdims=1),
             helper.make_node("Expand", ["top", "many"], ["huge"]), helper.make_node("Sqrt", ["huge"], ["huger"]),
             helper.make_node("ReduceMax", ["huger"], ["one"], keepdims=1), helper.make_node("Mul", ["one", "zero"], ["none"]),
             helper.make_node("Add", ["map0", "none"], ["map"])]
    graph = helper.make_graph(nodes, "hungry", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, height, width])],
                              [helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 1, height, width])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


