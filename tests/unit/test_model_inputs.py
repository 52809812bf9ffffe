"""What a build takes as MODEL: every form on its road to ONNX, the same bytes each time, and one clear error for what has no road."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import model_worlds
import numpy as np
import onnx
import pytest
import tiny_models
import torch
from onnx import TensorProto, helper

from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.equality import outputs_of
from jetfleet_host.compress.intake.channels_first import channels_first
from jetfleet_host.compress.intake.exporting import OPSET, export_module
from jetfleet_host.compress.intake.models import kind_of, onnx_of
from jetfleet_host.compress.preparing import opset_of

SHAPE = model_worlds.SHAPE


def _onnx(text: str, folder: Path) -> Path:
    return onnx_of(text, SHAPE, Checkpoints(folder / "cache"), folder / "converters")


@pytest.fixture
def forms(tmp_path: Path) -> dict[str, str]:
    """One module in every form that torch writes, and as a factory."""
    module, sample = model_worlds.small().eval(), torch.zeros(SHAPE)
    torch.jit.trace(module, sample).save(str(tmp_path / "m.pt"))
    torch.export.save(torch.export.export(module, (sample,)), str(tmp_path / "m.pt2"))
    return {"factory": "model_worlds:small", "script": str(tmp_path / "m.pt"), "exported": str(tmp_path / "m.pt2")}


def test_every_form_of_a_module_becomes_a_file_that_answers_alike(forms: dict[str, str], tmp_path: Path) -> None:
    image = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = model_worlds.small().eval()(image).numpy()
    for kind, text in forms.items():
        assert kind_of(text) == kind
        path = _onnx(text, tmp_path)
        found = outputs_of(onnx.load(path), [image.numpy()])[0][0]
        assert np.allclose(found, expected, atol=1e-5), kind


def test_an_export_holds_nothing_of_this_machine_and_is_the_same_in_another_process(tmp_path: Path) -> None:
    data = export_module(model_worlds.small(), SHAPE)
    model = onnx.load_model_from_string(data)
    assert opset_of(model) == OPSET
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == list(SHAPE)
    assert str(Path(__file__).parent).encode() not in data
    assert b"site-packages" not in data
    program = ("import sys, model_worlds; from jetfleet_host.compress.intake.exporting import export_module\n"
               "sys.stdout.buffer.write(export_module(model_worlds.small(), model_worlds.SHAPE))")
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=120,
                           env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert other.stdout == data


@pytest.mark.parametrize(("text", "code", "words"), [
    ("model_worlds:branching", "build.trace", "model_worlds.py:"),
    ("model_worlds:eigen", "model.operator", "linalg_eig"),
    ("model_worlds:no_module", "factory.type", "dict"),
    ("model_worlds:scripted", "factory.type", "TorchScript"),
    ("model_worlds:nothing", "factory.missing", "nothing"),
    ("no_such_package.x:y", "factory.import", "No module named"),
    ("absent.onnx", "model.not-found", "absent.onnx"),
    ("not a name:!", "model.not-found", "not a name"),
])
def test_what_has_no_road_is_told_with_the_place(text: str, code: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(JetfleetError) as caught:
        _onnx(text, tmp_path)
    assert caught.value.code == code
    assert words in f"{caught.value.what} {caught.value.where}"
    assert isinstance(caught.value, (InputError, IncompatibleError))


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    torch.save(model_worlds.small().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputError, match="may run any code") as caught:
        kind_of(str(tmp_path / "weights.pt"))
    assert caught.value.code == "model.state"


def test_damaged_archives_are_told(tmp_path: Path, forms: dict[str, str]) -> None:
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(Path(forms["exported"]).read_bytes()[:400])
    with pytest.raises(InputError) as caught:
        _onnx(str(cut), tmp_path)
    assert caught.value.code == "model.truncated"


@pytest.mark.parametrize(("name", "flag"), [("m.tflite", "--tflite"), ("m.h5", "--keras")])
def test_without_a_converter_the_commands_are_given(name: str, flag: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")
    with pytest.raises(InputError) as caught:
        _onnx(str(path), tmp_path)
    assert caught.value.code == "model.convert"
    for part in ("-m venv", "pip install", f"-m tf2onnx.convert {flag} {path} --output m.onnx"):
        assert part in caught.value.remedy


def test_a_saved_model_is_a_folder_and_keras_3_is_told_how(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    assert kind_of(str(tmp_path / "saved")) == "savedmodel"
    (tmp_path / "m.keras").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        kind_of(str(tmp_path / "m.keras"))
    assert "export(" in caught.value.remedy


def test_an_installed_converter_is_run_and_its_refusal_told(tmp_path: Path) -> None:
    """The environment's Python stands in: it writes the file that was asked for, or says what is wrong."""
    python = tmp_path / "converters" / "tf2onnx" / "bin" / "python"
    python.parent.mkdir(parents=True)
    source = tmp_path / "made.onnx"
    source.write_bytes(tiny_models.classifier((1, 3, 16, 16)).SerializeToString())
    python.write_text(f'#!/bin/sh\ncp "{source}" "$6"\n')
    python.chmod(0o755)
    (tmp_path / "m.tflite").write_bytes(b"x")
    assert onnx.load(_onnx(str(tmp_path / "m.tflite"), tmp_path)).graph.node
    python.write_text("#!/bin/sh\necho 'Op FOO is not supported' >&2\nexit 1\n")
    (tmp_path / "n.tflite").write_bytes(b"x")
    with pytest.raises(InputError, match="Op FOO is not supported"):
        _onnx(str(tmp_path / "n.tflite"), tmp_path)


@pytest.mark.parametrize("transposed", [True, False])
def test_channels_go_first_without_changing_an_answer(transposed: bool) -> None:
    nodes = [helper.make_node("Transpose", ["x"], ["f"], perm=[0, 3, 1, 2])] if transposed else []
    nodes.append(helper.make_node("GlobalAveragePool", ["f"], ["y"]) if transposed
                 else helper.make_node("ReduceMean", ["x"], ["y"], axes=[1, 2], keepdims=0))
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 3])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    image = np.random.default_rng(2).random((1, 4, 6, 3), np.float32)
    before = outputs_of(model, [image])[0][0]
    moved = channels_first(model)
    after = outputs_of(moved, [np.ascontiguousarray(image.transpose(0, 3, 1, 2))])[0][0]
    assert np.allclose(before.reshape(-1), after.reshape(-1), atol=1e-6)
    assert len(moved.graph.node) == (1 if transposed else 2)
    assert channels_first(moved) is moved
