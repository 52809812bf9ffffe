"""The device's TensorRT code over the real TensorRT for RTX, which builds with no GPU: what it builds, what it refuses, and how."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rtx_builds import rtx_libraries
from tiny_network import SHAPE, tiny

PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tensorrt_rtx_bindings as trt
from jetfleet_agent.pipeline.backends import tensorrt_build, tensorrt_plan
from jetfleet_contract.errors import JetfleetError
logger = tensorrt_plan.new_logger(trt)
shape = tuple(json.loads(sys.argv[3]))
try:
    plan = tensorrt_build.build_plan(trt, logger, Path(sys.argv[2]), shape, exact=True)
    runtime = trt.Runtime(logger)
    tensorrt_plan.open_engine(trt, runtime, logger, plan[:100] + bytes(400) if "broken" in sys.argv else plan, "m.engine")
    print(json.dumps(["", ""]))
except JetfleetError as error:
    print(json.dumps([error.code, error.what]))
"""


def said(path: Path, shape: tuple[int, ...] = SHAPE, *more: str) -> tuple[str, str]:
    """(code, sentence) of building and opening it; in a process of its own, so that a crash is seen."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(rtx_libraries()), str(path), json.dumps(shape), *more], capture_output=True,
                           text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    code, what = json.loads(ended.stdout.splitlines()[-1])
    return code, what


def test_a_model_is_built_and_its_engine_opened_or_refused_with_a_reason(tmp_path: Path) -> None:
    """With no GPU the engine is real and cannot be loaded; nothing crashes."""
    code, what = said(tiny(tmp_path / "tiny.onnx"))
    assert code in ("", "backend.load", "cuda.driver", "cuda.error", "engine.sm"), what


def test_bytes_that_are_no_engine_are_refused(tmp_path: Path) -> None:
    code, what = said(tiny(tmp_path / "tiny.onnx"), SHAPE, "broken")
    assert code in ("engine.broken", "backend.load"), what
    assert "m.engine" in what


def test_another_shape_is_named_before_the_build(tmp_path: Path) -> None:
    code, what = said(tiny(tmp_path / "tiny.onnx"), (1, 3, 32, 32))
    assert code == "backend.input"
    assert "'x'" in what


def test_an_operator_that_it_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    onnx: Any = pytest.importorskip("onnx")
    model = onnx.load(str(tiny(tmp_path / "tiny.onnx")))
    model.graph.node[1].op_type, model.graph.node[1].name = "StringSplit", "/head/split"
    onnx.save(model, str(tmp_path / "odd.onnx"))
    code, what = said(tmp_path / "odd.onnx")
    assert code == "backend.operator"
    assert "node /head/split (StringSplit)" in what


def test_the_full_build_is_read_from_the_library_that_is_loaded() -> None:
    """JetPack's module tells three numbers of four; the library tells all."""
    program = ("import sys; sys.path.insert(0, sys.argv[1]); import tensorrt_rtx_bindings as trt\n"
               "from jetfleet_agent import backend_probe\n"
               "print(trt.__version__, backend_probe.full_build(trt.__version__.rpartition('.')[0], backend_probe._mapped()))")
    ended = subprocess.run([sys.executable, "-c", program, str(rtx_libraries())], capture_output=True, text=True, timeout=120, check=False)
    version, build = ended.stdout.split()
    assert version == build
    assert version.count(".") == 3
