"""Reasons against an engine, named with their nodes, without TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tiny_models
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from jetfleet_contract.errors import IncompatibleError, InputError, TransportError
from jetfleet_host.cli import app
from jetfleet_host.compress.calibration import calibrate
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.placement import place, quantizable
from jetfleet_host.compress.qdq import write_qdq
from jetfleet_host.engines import rtx_wheels
from jetfleet_host.engines.operator_table import RELEASES
from jetfleet_host.engines.rtx_aot import SMS, checked_sms
from jetfleet_host.engines.screening import screen
from jetfleet_host.engines.sources import Wish, profile_of, weights_of

OLD, NEW = RELEASES["tensorrt-10.3"], RELEASES["tensorrt-11"]


def model_of(*nodes: Any, opset: int = 17, shape: Any = (1, 3, 16, 16), kind: int = TensorProto.FLOAT, weights: Any = ()) -> Any:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(list(nodes), "g", [value("x", kind, list(shape))], [value(nodes[-1].output[0], TensorProto.FLOAT, ["?"])],
                              list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(kind: str, inputs: str = "x", output: str = "y", name: str = "n", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), output.split(), name=name, **attributes)


def codes(model: Any, release: Any = OLD, **more: Any) -> list[tuple[str, str]]:
    return [(fault.code, fault.node) for fault in screen(model, release, **more)]


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
@pytest.mark.parametrize("make", [tiny_models.residual, tiny_models.depthwise, tiny_models.concat, tiny_models.classifier])
def test_what_we_ship_passes(make: Any, release: Any) -> None:
    assert codes(make(), release) == []


def test_operators_are_named_with_every_node_that_uses_them() -> None:
    model = model_of(node("Det", name="a"), node("Relu", "y", "r", name="fine"), node("Unique", "r", "z", name=""))
    assert codes(model) == [("engine.operator", "a"), ("engine.operator", "#2")]


def test_operators_inside_branches_are_found() -> None:
    inner = helper.make_graph([node("Det", "x", "d", name="inside")], "then", [],
                              [helper.make_tensor_value_info("d", TensorProto.FLOAT, None)])
    test = numpy_helper.from_array(np.array(True), "c")
    model = model_of(helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner), weights=[test])
    assert codes(model) == [("engine.operator", "inside")] * 2


def test_a_later_release_has_more() -> None:
    model = model_of(helper.make_node("STFT", ["x", "s"], ["y"], name="spectrum"), weights=[numpy_helper.from_array(np.array(4), "s")])
    assert codes(model) == [("engine.operator", "spectrum")]
    assert codes(model, NEW) == []
    assert codes(model_of(node("Relu"), opset=8), NEW) == [("engine.opset", "")]
    assert codes(model_of(node("Relu"), opset=22)) == [("engine.opset", "")]


@pytest.mark.parametrize(("made", "code"), [
    (node("MaxPool", output="y i", kernel_shape=[2, 2]), "engine.restriction"),
    (node("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), "engine.restriction"),
    (node("AveragePool", kernel_shape=[2]), "engine.restriction"),
    (node("Resize", "x", mode="cubic"), "engine.restriction"),
    (node("Resize", "x", coordinate_transformation_mode="tf_crop_and_resize"), "engine.restriction"),
    (node("TopK", "x k", "y i", sorted=0), "engine.restriction"),
    (node("ScatterND", "x x x", reduction="add"), "engine.restriction"),
    (node("DequantizeLinear", "x s"), "engine.quantised"),
])
def test_restrictions(made: Any, code: str) -> None:
    assert codes(model_of(made)) == [(code, "n")]


def test_types() -> None:
    wide = numpy_helper.from_array(np.ones((1,), np.float64), "w")
    assert codes(model_of(node("Mul", "x w"), weights=[wide])) == [("engine.type", "n")]
    assert codes(model_of(node("Relu"), kind=TensorProto.DOUBLE)) == [("engine.type", "")]
    whole = numpy_helper.from_array(np.array([0, 3], np.int64), "w")
    assert codes(model_of(node("Reshape", "x w"), weights=[whole])) == []  # INT64 is a type of its own since TensorRT 9


def test_the_twin_for_onnx_runtime_is_refused_and_the_int8_layout_is_not(tmp_path: Path) -> None:
    model = tiny_models.residual()
    table = calibrate(write_model(tmp_path / "m.onnx", serialized(model)), [np.random.default_rng(1).random((1, 3, 16, 16), np.float32)])
    view = GraphView(model)
    layers = [layer.output[0] for layer in quantizable(view)]
    assert codes(write_qdq(model, place(view, layers, "qdq-int8"), table)) == []
    assert {code for code, _ in codes(write_qdq(model, place(view, layers, "qdq-uint8"), table))} == {"engine.quantised"}


def test_free_axes_need_a_profile() -> None:
    model = model_of(node("Relu"), shape=("N", 3, 16, "W"))
    (fault,) = screen(model, NEW)
    assert (fault.code, "(N, 3, 16, W)" in fault.what) == ("engine.profile", True)
    assert codes(model, profiled=frozenset("x")) == []


def test_profiles_bind_free_axes_only(tmp_path: Path) -> None:
    def saved(shape: Any) -> Any:
        model = model_of(node("Relu"), shape=shape)
        (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
        return weights_of(tmp_path / "m.onnx", ())[0], model

    weights, model = saved(("N", 3, "H", "W"))
    made = profile_of(weights, model, Wish((1, 4, 8), (32, 64)))
    assert (made.shape, made.spans[0].smallest, made.spans[0].largest) == ((4, 3, 32, 64), (1, 3, 32, 64), (8, 3, 32, 64))
    for wish in (Wish(), Wish((1, 4, 8)), Wish((0, 4, 8), (32, 64)), Wish((4, 1, 8), (32, 64)), Wish((), (32, 64))):
        with pytest.raises(InputError, match=r"engine\.profile"):
            profile_of(weights, model, wish)
    fixed, model = saved((2, 3, 16, 16))
    assert profile_of(fixed, model, Wish()).spans == ()
    with pytest.raises(InputError, match="fixed at 2"):
        profile_of(fixed, model, Wish((1, 2, 4)))
    flat, model = saved((1, 16))
    with pytest.raises(IncompatibleError, match=r"engine\.input"):
        profile_of(flat, model, Wish())


def test_jetson_modules_are_no_targets_of_a_host() -> None:
    assert checked_sms(()) == SMS
    assert checked_sms((89, 75, 89)) == (89, 75)
    with pytest.raises(InputError, match="Jetson boards build their own"):
        checked_sms((87,))


def test_offline_says_what_to_do_and_a_dead_index_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(IncompatibleError, match="91 MB"):
        rtx_wheels.libraries(tmp_path, fetch=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(TransportError, match="cannot fetch TensorRT for RTX"):
        rtx_wheels.libraries(tmp_path, fetch=True)
    assert [entry.name for entry in tmp_path.iterdir()] == []
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(IncompatibleError, match=r"engine\.rtx_platform"):
        rtx_wheels.libraries(tmp_path, fetch=True)


@pytest.mark.parametrize(("arguments", "code"), [
    (("build", "m.onnx", "--with", "magic", "--out", "o"), "engine.backend"),
    (("build", "m.onnx", "--with", "rtx-aot", "--sm", "87", "--out", "o"), "engine.sm"),
    (("build", "m.onnx", "--with", "rtx-aot", "--batch", "1,2", "--out", "o"), "engine.option"),
    (("build", "m.onnx", "--with", "rtx-aot", "--out", "o"), "engine.source"),
    (("check", "m.onnx", "--for", "tensorrt-8"), "engine.release"),
])
def test_wrong_words_are_named(arguments: tuple[str, ...], code: str) -> None:
    said = CliRunner().invoke(app, ["engines", *arguments])
    assert isinstance(said.exception, InputError)
    assert said.exception.code == code


def test_check_prints_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(model_of(node("Det", name="corner")).SerializeToString())
    said = CliRunner().invoke(app, ["engines", "check", str(tmp_path / "m.onnx"), "--for", "tensorrt-10.3"])
    assert said.exit_code == 1
    assert "TensorRT 10.3 has no operator Det at node corner [engine.operator]" in said.stdout


def test_a_bundle_with_a_free_batch_is_built_for_one_frame_as_boards_run_it(tmp_path: Path) -> None:
    model = model_of(node("Relu"), shape=("N", 3, "H", "W"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    lone = weights_of(tmp_path / "m.onnx", ())[0]
    made = profile_of(msgspec.structs.replace(lone, size=(32, 64)), model, Wish())
    assert (made.shape, made.batches) == ((1, 3, 32, 64), ())
    assert made.spans[0].smallest == made.spans[0].largest == made.shape
    with pytest.raises(InputError, match=r"engine\.profile"):
        profile_of(lone, model, Wish())
