"""Everything that can be wrong with what a user gives to `jetfleet build`: one clear error each, and a stable exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import data_folders
import numpy as np
import onnx
import pytest
import tiny_models
from onnx import helper

from jetfleet_agent.pipeline.preprocess import Preprocessor
from jetfleet_agent.pipeline.tasks import load_task
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import IncompatibleError, InputError, JetfleetError
from jetfleet_host.compress.dataset import load_data, read_image, to_tensor
from jetfleet_host.compress.loading import load_checked
from jetfleet_host.compress.recipe import PRESETS, make_task, parse_options, parse_shape, parse_triple


def _refused(path: Path, code: str, kind: type[JetfleetError] = InputError) -> JetfleetError:
    with pytest.raises(kind) as caught:
        load_checked(path)
    assert caught.value.code == code
    assert caught.value.remedy or code == "model.large"
    return caught.value


def _saved(tmp_path: Path, model: Any) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_missing_file(tmp_path: Path) -> None:
    _refused(tmp_path / "none.onnx", "model.not-found")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a zip", b"<html></html>", bytes(range(256)) * 4, b'{"json": 1}'])
def test_not_onnx(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    _refused(path, "model.not-onnx")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = _saved(tmp_path, tiny_models.residual())
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError) as caught:
        load_checked(path)
    assert caught.value.code in ("model.truncated", "model.not-onnx", "model.invalid")


def test_custom_operator_names_the_node(tmp_path: Path) -> None:
    model = tiny_models.residual()
    model.graph.node.append(helper.make_node("Voxelize", ["last"], ["v"], name="voxels_7", domain="com.acme"))
    error = _refused(_saved(tmp_path, model), "model.operator", IncompatibleError)
    assert "voxels_7" in error.where
    assert "com.acme.Voxelize" in error.what


def test_unknown_standard_operator_names_the_node(tmp_path: Path) -> None:
    model = tiny_models.residual()
    model.graph.node.append(helper.make_node("Convolve", ["last"], ["v"], name="typo"))
    assert "typo" in _refused(_saved(tmp_path, model), "model.operator", IncompatibleError).where


def test_opset_from_the_future(tmp_path: Path) -> None:
    model = tiny_models.residual()
    model.opset_import[0].version = 999
    _refused(_saved(tmp_path, model), "model.operator", IncompatibleError)


def test_external_data_missing_and_present(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(tiny_models.residual(), str(path), save_as_external_data=True, location="m.data", size_threshold=0)
    assert load_checked(path).graph.initializer[0].raw_data
    (tmp_path / "m.data").unlink()
    _refused(path, "model.external-data")


def test_external_data_may_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    onnx.save_model(tiny_models.residual(), str(tmp_path / "in" / "m.onnx"), save_as_external_data=True, location="m.data",
                    size_threshold=0)
    data = (tmp_path / "in" / "m.onnx").read_bytes()
    (tmp_path / "in" / "m.data").rename(tmp_path / "m.dat")
    (tmp_path / "in" / "m.onnx").write_bytes(data.replace(b"m.data", b"../m.d"))  # another file, of the same length of name
    _refused(tmp_path / "in" / "m.onnx", "model.external-data")


def test_invalid_graph(tmp_path: Path) -> None:
    model = tiny_models.residual()
    model.graph.node[0].input[0] = "nobody"
    _refused(_saved(tmp_path, model), "model.invalid")


def test_weights_with_nan_are_named(tmp_path: Path) -> None:
    model = tiny_models.residual()
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    spoilt = onnx.numpy_helper.to_array(weight).copy()
    spoilt[0, 0, 0, 0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(spoilt, weight.name))
    assert weight.name in _refused(_saved(tmp_path, model), "model.not-finite").what


def test_data_forms(tmp_path: Path) -> None:
    classes = load_data(data_folders.colour_classes(tmp_path / "a", 2))
    assert classes.truth is not None
    assert classes.labels() == ("0", "1", "2")
    assert [answer[0].label for answer in classes.truth] == ["0", "0", "1", "1", "2", "2"]
    named = load_data(data_folders.plain_images(tmp_path / "b", 2, {"0.png": "cat", "1.png": "dog"}))
    assert named.labels() == ("cat", "dog")
    boxes = load_data(data_folders.plain_images(tmp_path / "c", 2, {
        "0.png": [{"label": "t", "box": [1, 2, 3, 4]}, {"label": "t", "quad": [0, 0, 4, 1, 4, 3, 0, 2]}], "1.png": []}))
    assert boxes.truth is not None
    assert [item.box for item in boxes.truth[0]] == [(1, 2, 3, 4), (0, 0, 4, 3)]
    assert load_data(data_folders.plain_images(tmp_path / "d")).truth is None


def test_digest_follows_content_and_labels(tmp_path: Path) -> None:
    first = load_data(data_folders.plain_images(tmp_path / "a", 2, {"0.png": "x", "1.png": "y"})).digest
    assert load_data(data_folders.plain_images(tmp_path / "b", 2, {"0.png": "x", "1.png": "y"})).digest == first
    assert load_data(data_folders.plain_images(tmp_path / "c", 2, {"0.png": "x", "1.png": "z"})).digest != first


@pytest.mark.parametrize(("labels", "code"), [
    ("{", "data.labels"),
    ("[]", "data.labels"),
    ({"0.png": [], "1.png": [], "2.png": [], "gone.png": []}, "data.labels"),
    ({"0.png": []}, "data.unlabelled"),
    ({"0.png": [{"label": "t"}], "1.png": [], "2.png": []}, "data.labels"),
    ({"0.png": [{"label": "t", "box": [3, 3, 1, 1]}], "1.png": [], "2.png": []}, "data.labels"),
    ({"0.png": [{"label": "t", "quad": [1, 2, 3]}], "1.png": [], "2.png": []}, "data.labels"),
    ({"0.png": 5, "1.png": [], "2.png": []}, "data.labels"),
])
def test_bad_labels(tmp_path: Path, labels: Any, code: str) -> None:
    with pytest.raises(InputError) as caught:
        load_data(data_folders.plain_images(tmp_path / "d", 3, labels))
    assert caught.value.code == code


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    folder = data_folders.plain_images(tmp_path / "d")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(InputError) as caught:
        load_data(folder)
    assert caught.value.code == "data.unreadable"
    assert "broken.jpg" in caught.value.what


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: (p / "class").mkdir(parents=True)])
def test_empty_folder(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "d")
    with pytest.raises(InputError) as caught:
        load_data(tmp_path / "d")
    assert caught.value.code == "data.empty"


@pytest.mark.parametrize("color", ["rgb", "bgr"])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [(640, 480), (200, 300), (64, 48)])
def test_calibration_sees_exactly_what_the_board_sees(color: Any, resize: Any, size: tuple[int, int], tmp_path: Path) -> None:
    spec = InputSpec("x", 64, 48, color, resize, 1 / 255, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    frame = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    board = np.zeros((1, 3, 48, 64), np.float32)
    Preprocessor(spec).run(frame, board)
    np.testing.assert_allclose(to_tensor(frame, spec), board, rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["", "480x640", "1x3x0x5", "1x3xhx5", "1x3x4x5x6"])
def test_bad_shapes(text: str) -> None:
    with pytest.raises(InputError):
        parse_shape(text)


def test_options_are_typed_and_checked() -> None:
    assert parse_options(["a=0.5", "b=true", "c=word"]) == {"a": 0.5, "b": True, "c": "word"}
    assert parse_triple("0.5", "--mean") == (0.5, 0.5, 0.5)
    for bad in (["a"], ["=1"]):
        with pytest.raises(InputError):
            parse_options(bad)
    with pytest.raises(InputError):
        parse_triple("1,2", "--mean")
    for wrong in ({"kind": "segmentation", "preset": ""}, {"kind": "", "preset": "yolo99"}, {"kind": "classify", "preset": "ppocr-det"}):
        with pytest.raises(InputError):
            make_task(wrong["kind"], wrong["preset"], shape=None, labels=(), options={}, overrides={})
    with pytest.raises(InputError):
        make_task("classify", "", shape=(2, 3, 8, 8), labels=(), options={}, overrides={})


@pytest.mark.parametrize("preset", ["yolov5", "yolov8", "yolo11", "yolo26", "yolo-seg", "yolo-pose", "regions", "tensors", "yolo"])
def test_a_preset_is_a_task_that_the_device_has(preset: str) -> None:
    spec, size = make_task("", preset, shape=None, labels=("thing",), options={}, overrides={}, declared=(0, 3, 0, 320))
    assert load_task(spec).input_shape == size
    assert size[3] == 320
    assert size[2] == PRESETS[preset].shape[2]
    assert spec.input.pad == 114


def test_masks_and_key_points_as_labels(tmp_path: Path) -> None:
    data = load_data(data_folders.plain_images(tmp_path / "d", 2, {
        "0.png": [{"label": "t", "outline": [1, 2, 9, 2, 9, 8]}],
        "1.png": [{"label": "t", "box": [0, 0, 9, 9], "points": [1, 2, 2, 3, 4, 0]}]}))
    assert data.truth is not None
    assert [item.box for item in data.truth[0]] == [(1, 2, 9, 8)]
    assert [item.outline for item in data.truth[0]] == [(1, 2, 9, 2, 9, 8)]
    assert [item.points for item in data.truth[1]] == [(1, 2, 1, 3, 4, 0)]
    for wrong in ([1, 2, 3], [1, 2, 3, 4]):
        with pytest.raises(InputError):
            load_data(data_folders.plain_images(tmp_path / str(len(wrong)), 1, {"0.png": [{"label": "t", "outline": wrong}]}))


def _run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", "from jetfleet_host.cli import main; main()"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=120)


def _build_arguments(model: Path, data: Path, out: Path) -> list[str]:
    return ["build", str(model), "--data", str(data), "--name", "m", "--version", "1", "--target", "cpu-x86", "--out", str(out),
            "--task", "classify", "--shape", "1x3x16x16", "--json"]


@pytest.mark.parametrize(("spoil", "exit_code", "code"), [
    ("model", 2, "model.not-onnx"), ("operator", 5, "model.operator"), ("empty", 2, "data.empty"), ("image", 2, "data.unreadable"),
    ("target", 2, "board.unknown"), ("shape", 2, "build.shape"), ("out", 2, "bundle.exists"), ("task", 5, "build.task"),
    ("version", 3, "name.bad"),
])
def test_command_ends_with_one_error_and_its_exit_code(tmp_path: Path, spoil: str, exit_code: int, code: str) -> None:
    model, data, out = _saved(tmp_path, tiny_models.classifier()), data_folders.colour_classes(tmp_path / "data", 1), tmp_path / "out"
    arguments = _build_arguments(model, data, out)
    if spoil == "model":
        model.write_bytes(b"no model")
    elif spoil == "operator":
        broken = tiny_models.classifier()
        broken.graph.node.append(helper.make_node("Odd", ["logits"], ["v"], name="odd", domain="x"))
        model.write_bytes(broken.SerializeToString())
    elif spoil == "empty":
        arguments[arguments.index(str(data))] = str(tmp_path / "empty")
        (tmp_path / "empty").mkdir()
    elif spoil == "image":
        (data / "0" / "0.png").write_bytes(b"")
    elif spoil == "target":
        arguments[arguments.index("cpu-x86")] = "cpu-x68"
    elif spoil == "shape":
        arguments[arguments.index("1x3x16x16")] = "1x3x32x32"
    elif spoil == "out":
        out.mkdir()
        (out / "thesis.txt").write_text("precious")
    elif spoil == "task":
        arguments[arguments.index("classify")] = "detect-db"
    else:
        arguments[arguments.index("1")] = "../1"
    ended = _run(tmp_path, *arguments)
    assert ended.returncode == exit_code, ended.stderr
    error = json.loads(ended.stdout)["error"]
    assert error["code"] == code
    assert "Traceback" not in ended.stderr
    assert spoil == "out" or not out.exists()
    assert spoil != "out" or (out / "thesis.txt").read_text() == "precious"


def test_report_of_no_bundle(tmp_path: Path) -> None:
    ended = _run(tmp_path, "report", str(tmp_path / "none"), "--json")
    assert ended.returncode == 2
    assert json.loads(ended.stdout)["error"]["code"] == "bundle.not-found"


def test_read_image_is_bgr(tmp_path: Path) -> None:
    folder = data_folders.colour_classes(tmp_path / "d", 1)
    red = read_image(folder / "0" / "0.png").reshape(-1, 3).mean(axis=0)
    assert red.argmax() == 2
