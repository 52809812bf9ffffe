"""Engines of TensorRT for RTX, really built on a machine without a GPU; what cannot be built is refused by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from convolution_shapes import mobilenet_v2
from onnx import TensorProto, helper
from resnet_shape import resnet50
from rtx_builds import rtx_builder, rtx_libraries, saved
from typer.testing import CliRunner
from yolo_shape import write_tiny, write_yolo

from jetfleet_agent.pipeline.backends import open_backend
from jetfleet_contract.bundle import Evaluation, InputSpec, ModelSpec, ProbeItem, ProbeSet, TaskSpec, Variant, digest_of
from jetfleet_contract.engines import EngineFile, engine_name, key_of, why_foreign
from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError, RuntimeFailure, UntrustedError
from jetfleet_host.bundles import digest_file, write_bundle
from jetfleet_host.cli import app
from jetfleet_host.compress.calibration import calibrate
from jetfleet_host.compress.equality import outputs_of
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.halving import halve
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.placement import place, quantizable
from jetfleet_host.compress.qdq import write_qdq
from jetfleet_host.demo.models import text_detector
from jetfleet_host.engines import rtx_wheels
from jetfleet_host.engines.jobs import MAGIC
from jetfleet_host.engines.records import Built, Record
from jetfleet_host.engines.records import read_record as read_any
from jetfleet_host.engines.rtx_aot import RtxBuilder
from jetfleet_host.engines.sources import Weights, Wish, weights_of

PLAIN = Wish()
# A suite that was started in the background may have interrupts ignored; its children would inherit that.
INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from jetfleet_host.cli import main; main()"


def read_record(record: Path, engine: Path) -> Record | None:
    return read_any(record, engine, MAGIC)


def check_whole(built: Built, weights: Weights) -> None:
    """Magic, size, digest, key and passport are what they should be."""
    data, record = built.path.read_bytes(), built.record
    assert data[:4] == MAGIC
    assert len(data) == record.size > weights.path.stat().st_size // 2
    assert digest_of(data) == record.digest
    assert record.key == key_of(record.passport)
    assert built.path.name == engine_name(record.key) + ".rtx"
    assert record.passport.footing.version == rtx_wheels.VERSION
    assert record.passport.recipe.weights == weights.digest
    assert read_record(built.path.with_suffix(".json"), built.path) == record


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "yolo11n"])
def test_known_shapes_become_engines(name: str, tmp_path: Path) -> None:
    builder, path = rtx_builder(), tmp_path / "model.onnx"
    if name == "yolo11n":
        weights = weights_of(write_yolo(path), ())[0]
    else:
        weights = saved(resnet50() if name == "resnet50" else mobilenet_v2(), path)
    told: list[float] = []
    built = builder.build(weights, tmp_path / "out", 89, PLAIN, told=lambda _phase, percent: told.append(percent))
    assert built.fresh
    check_whole(built, weights)
    assert told == sorted(told)
    assert told[-1] == 100


def test_the_demos_text_detector_becomes_an_engine_with_its_free_axes_bound(tmp_path: Path) -> None:
    weights = weights_of(text_detector(), ())[0]
    built = rtx_builder().build(weights, tmp_path, 86, Wish((1, 1, 2), (480, 640)))
    check_whole(built, weights)
    assert built.record.passport.recipe.shape == (1, 3, 480, 640)


def test_a_free_batch_needs_a_profile_and_is_built_with_one(tmp_path: Path) -> None:
    builder, weights = rtx_builder(), weights_of(write_tiny(tmp_path / "free.onnx", batch="N"), ())[0]
    with pytest.raises(InputError, match=r"images .* has free axes and no profile") as caught:
        builder.build(weights, tmp_path / "out", 89, PLAIN)
    assert caught.value.code == "engine.profile"
    one, other = (builder.build(weights, tmp_path / "out", 89, Wish(batches)) for batches in ((1, 4, 8), (1, 4, 16)))
    check_whole(one, weights)
    assert one.record.passport.recipe.batches == (1, 4, 8)
    assert one.record.key != other.record.key


def test_a_key_names_inputs_not_bytes_and_nothing_is_built_twice(tmp_path: Path) -> None:
    builder, weights = rtx_builder(), weights_of(write_tiny(tmp_path / "tiny.onnx"), ())[0]
    first, elsewhere = (builder.build(weights, tmp_path / folder, 89, PLAIN) for folder in ("one", "two"))
    assert first.record.key == elsewhere.record.key
    assert first.path.stat().st_size == elsewhere.path.stat().st_size
    again = builder.build(weights, tmp_path / "one", 89, PLAIN)
    assert (again.fresh, again.record) == (False, first.record)
    assert builder.build(weights, tmp_path / "one", 120, PLAIN).record.key != first.record.key


@pytest.mark.parametrize("harm", ["flipped", "truncated", "record"])
def test_a_damaged_engine_is_never_taken_for_a_whole_one(harm: str, tmp_path: Path) -> None:
    builder, weights = rtx_builder(), weights_of(write_tiny(tmp_path / "tiny.onnx"), ())[0]
    built = builder.build(weights, tmp_path / "out", 89, PLAIN)
    data = bytearray(built.path.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "record":
        built.path.with_suffix(".json").write_bytes(b"{}")
    else:
        built.path.write_bytes(data if harm == "flipped" else data[:-1])
    assert read_record(built.path.with_suffix(".json"), built.path) is None
    again = builder.build(weights, tmp_path / "out", 89, PLAIN)
    assert again.fresh
    check_whole(again, weights)


def test_an_operator_that_it_lacks_is_named_with_its_node(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="first"), helper.make_node("Det", ["y"], ["z"], name="corner/det")]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, [1, 3, 4, 4])], [value("z", TensorProto.FLOAT, [1, 3])])
    weights = saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "det.onnx")
    with pytest.raises(IncompatibleError, match="Det") as caught:
        rtx_builder().build(weights, tmp_path / "out", 89, PLAIN)
    assert (caught.value.code, caught.value.where) == ("engine.operator", "node corner/det")
    assert list((tmp_path / "out").iterdir()) == []
    (fault,) = rtx_builder().faults(weights.path)
    assert (fault.code, fault.node, fault.operator) == ("engine.operator", "corner/det", "Det")


@pytest.mark.parametrize("keep", [40, 200_000])
def test_a_damaged_model_is_refused_by_us_and_by_the_parser(keep: int, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.onnx")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.(truncated|not-onnx)"):
        rtx_builder().build(weights_of(path, ())[0], tmp_path / "out", 89, PLAIN)
    assert [fault.code for fault in rtx_builder().faults(path)] == ["engine.model"]


def test_too_little_memory_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    weights = saved(resnet50(), tmp_path / "model.onnx")
    with pytest.raises((RuntimeFailure, IncompatibleError)) as caught:
        RtxBuilder(rtx_libraries(), memory_mb=512).build(weights, tmp_path / "out", 89, PLAIN)
    assert caught.value.code in ("engine.memory", "engine.crash", "engine.build", "engine.library")
    assert list((tmp_path / "out").iterdir()) == []


def test_ctrl_c_ends_the_builder_and_leaves_nothing(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.onnx")
    libraries = rtx_libraries().parent
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", INTERRUPTIBLE, "engines", "build", str(path), "--with", "rtx-aot", "--out", str(out),
                           "--libraries", str(libraries)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        gone = threading.Event()
        watch = threading.Thread(target=_interrupt_at_first_part, args=(child, out, gone), daemon=True)
        watch.start()
        _, said = child.communicate(timeout=60)
        gone.set()
        watch.join()
    assert child.returncode == 130, said
    assert [entry.name for entry in out.iterdir() if entry.name.startswith(".")] == []
    for record in out.glob("*.json"):
        assert read_record(record, record.with_suffix(".rtx")) is not None


def _interrupt_at_first_part(child: subprocess.Popen[bytes], out: Path, gone: threading.Event) -> None:
    while not gone.wait(0.01):
        if out.is_dir() and any(entry.name.startswith(".build-") for entry in out.iterdir()):
            child.send_signal(signal.SIGINT)
            return


def test_a_half_precision_model_halves_the_engine_and_int8_is_taken_as_typed(tmp_path: Path) -> None:
    """Typed ONNX against fp32 in ONNX Runtime: cosine over 0.999 for fp16 and 0.98 for int8, error within 1 and 25 % of the range."""
    path = write_tiny(tmp_path / "fp32.onnx")
    import onnx

    model = onnx.load(str(path))
    rng = np.random.default_rng(4)
    frames = [rng.random((1, 3, 320, 320), dtype=np.float32) for _ in range(2)]
    table = calibrate(write_model(tmp_path / "calibrated.onnx", serialized(model)), frames)
    view = GraphView(model)
    layers = [node.output[0] for node in quantizable(view)][:20]
    typed = {"fp16": halve(model, table), "int8": write_qdq(model, place(view, layers, "qdq-int8"), table)}
    reference, sizes = outputs_of(model, frames)[0][0], {}
    for name, (cosine, error) in {"fp16": (0.999, 0.01), "int8": (0.98, 0.25)}.items():
        found = outputs_of(typed[name], frames)[0][0]
        assert _cosine(reference, found) > cosine, name
        assert np.abs(reference - found).max() < error * np.abs(reference).max(), name
        weights = saved(typed[name], tmp_path / f"{name}.onnx")
        built = rtx_builder().build(weights, tmp_path / "out", 89, PLAIN)
        check_whole(built, weights)
        assert built.record.passport.recipe.precision == name
        sizes[name] = built.record.size
    whole = rtx_builder().build(weights_of(path, ())[0], tmp_path / "out", 89, PLAIN).record.size
    assert sizes["fp16"] < 0.8 * whole


def _cosine(one: Any, other: Any) -> float:
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_a_board_without_that_gpu_can_say_why_the_engine_is_not_for_it(tmp_path: Path) -> None:
    built = rtx_builder().build(weights_of(write_tiny(tmp_path / "tiny.onnx"), ())[0], tmp_path, 89, PLAIN)
    made = built.record.passport.footing
    assert why_foreign(made, made) == ("", "")
    assert why_foreign(made, msgspec.structs.replace(made, sm=86)) == ("engine.sm", "is for sm_89, this GPU is sm_86")
    assert why_foreign(made, msgspec.structs.replace(made, version="1.6.0.1"))[0] == "engine.version"


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
def test_a_board_without_a_gpu_refuses_the_plan_by_name(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny.onnx")
    built = rtx_builder().build(weights_of(model, ())[0], tmp_path, 89, PLAIN)
    with pytest.raises(JetfleetError) as caught, open_backend("tensorrt-rtx", model, precision="fp32", threads=1,
                                                              input_shape=(1, 3, 320, 320),
                                                              engine=EngineFile(str(built.path), built.record.digest[7:])):
        pytest.fail("there is no GPU here")
    assert caught.value.code.partition(".")[0] in ("engine", "backend", "cuda")


def test_the_command_builds_the_variants_of_a_bundle_and_says_so_in_json(tmp_path: Path) -> None:
    weights = write_tiny(tmp_path / "tiny.onnx")
    variant = Variant("fp32", digest_file(weights), weights.stat().st_size, "fp32")
    task = TaskSpec("detect-yolo", InputSpec("images", 320, 320), ("a",))
    png = b"\x89PNG\r\n\x1a\nnot a picture, but bytes"
    digest = write_bundle(tmp_path / "y.bundle", spec=ModelSpec("y", "1", task, (variant,), ("cpu-x86",)),
                          evaluation=Evaluation("f1", "fp32", 0.5, "a test", ()), probe=ProbeSet((ProbeItem(digest_of(png), ()),)),
                          files={digest_of(png): png}, weights=[(variant, weights)])
    command = ["engines", "build", str(tmp_path / "y.bundle"), "--with", "rtx-aot", "--sm", "86", "--sm", "89", "--out",
               str(tmp_path / "out"), "--libraries", str(rtx_libraries().parent), "--offline"]
    said = CliRunner().invoke(app, [*command, "--json"])
    assert said.exit_code == 0, said.output
    rows = json.loads(said.stdout)["engines"]
    assert [row["passport"]["footing"]["sm"] for row in rows] == [86, 89]
    assert {row["passport"]["subject"] for row in rows} == {digest[7:]}
    assert all(Path(row["file"]).is_file() and row["fresh"] for row in rows)
    assert CliRunner().invoke(app, command).stdout.count("unchanged") == 2


def test_check_asks_the_parser_and_ends_with_one(tmp_path: Path) -> None:
    good = write_tiny(tmp_path / "tiny.onnx")
    where = ["--for", "tensorrt-rtx", "--libraries", str(rtx_libraries().parent), "--json"]
    said = CliRunner().invoke(app, ["engines", "check", str(good), *where])
    assert (said.exit_code, json.loads(said.stdout)["models"]) == (0, [{"name": "model", "judge": "parser", "faults": []}])
    free = write_tiny(tmp_path / "free.onnx", batch="N")
    said = CliRunner().invoke(app, ["engines", "check", str(free), *where])
    assert said.exit_code == 1
    assert [fault["code"] for fault in json.loads(said.stdout)["models"][0]["faults"]] == ["engine.profile"]


def test_other_bytes_than_the_pinned_are_refused(tmp_path: Path) -> None:
    real, copy = rtx_libraries(), rtx_wheels.folder_of(tmp_path)
    copy.mkdir()
    for name in (*rtx_wheels.PINNED, "tensorrt_rtx_bindings/tensorrt_rtx.so", "installed.json"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).symlink_to(real / name)
    assert rtx_wheels.libraries(tmp_path, fetch=False) == copy
    parser = copy / "tensorrt_rtx_libs/libtensorrt_onnxparser_rtx.so.1"
    data = bytearray(parser.read_bytes())
    data[-1] ^= 1
    parser.unlink()
    parser.write_bytes(data)
    with pytest.raises(UntrustedError, match=r"engine\.rtx_damaged"):
        rtx_wheels.libraries(tmp_path, fetch=True)
