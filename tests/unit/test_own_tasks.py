"""A task that the user brings: loss and score of another kind go through the same stages under the same guard; what is wrong is named."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detection_worlds
import numpy as np
import odd_tasks
import pytest
import torch
from detection_worlds import SIDE, Boxes, rectangles
from odd_tasks import Plain, made, raising
from torch import nn

from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import InputError, RuntimeFailure
from jetfleet_host.bundles import open_bundle
from jetfleet_host.compress.dataset import load_data
from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.floating.task_loss import task_loss
from jetfleet_host.compress.floating.user_task import UserTask
from jetfleet_host.compress.intake.images import data_folder
from jetfleet_host.compress.recipe_file import Distil, FloatStageConfig, Prune, Qat, Training, Tune
from jetfleet_host.compress.task_samples import TaskSamples

SPEC = InputSpec("", SIDE, SIDE, "rgb", "stretch", 1.0 / 255.0)


def shop(folder: Path, task: str = "detection_worlds:task", **training: Any) -> Workshop:
    own = UserTask(task)
    settings = Training(**{"batch": 4, "learning_rate": 4e-3, "task": task, **training})
    return Workshop((1, 3, SIDE, SIDE), Boxes(16, 1), Boxes(8, 2), own.loss, own.score, detection_worlds.net, settings, 0, folder,
                    lambda *_: None, own.collate, own.distance, own.digest)


def after(config: FloatStageConfig, workshop: Workshop) -> nn.Module:
    return stage_for(config)(detection_worlds.net(), config, workshop)


def mean_loss(model: nn.Module, workshop: Workshop) -> float:
    pairs = [workshop.train[index] for index in range(len(workshop.train))]
    assert workshop.collate is not None
    targets = workshop.collate([torch.as_tensor(target) for _, target in pairs])
    with torch.no_grad():
        return float(workshop.loss(model(torch.stack([torch.as_tensor(image) for image, _ in pairs])), targets))


@pytest.mark.parametrize(("config", "cached"), [
    (Tune(epochs=6), True), (Tune(epochs=6), False), (Distil(epochs=6, alpha=0.1), True), (Qat(epochs=5, learning_rate=4e-3), True),
    (Prune(ratio=0.25, importance="taylor", scope="by-layer", round_to=4, epochs=6), True),
], ids=["tune", "tune, read again", "distil", "qat", "prune"])
def test_a_detector_goes_through_a_stage(tmp_path: Path, config: FloatStageConfig, cached: bool) -> None:
    workshop = shop(tmp_path, cache_mb=1024 if cached else 0)
    model = after(config, workshop)
    assert mean_loss(model, workshop) < 0.85 * mean_loss(detection_worlds.net().eval(), workshop)
    assert workshop.score(model, workshop.validation).shape == (8,)


def test_without_collate_the_loss_gets_one_tensor_a_sample() -> None:
    targets = [torch.zeros(0, 5), torch.zeros(2, 5)]
    assert [tuple(target.shape) for target in UserTask("odd_tasks:Plain").collate(targets)] == [(0, 5), (2, 5)]


def test_without_distil_a_student_is_as_far_as_its_outputs_mean_squared_distance() -> None:
    own = UserTask("odd_tasks:Plain")
    one, other = torch.zeros(2, 3), torch.full((2, 3), 2.0)
    assert float(own.distance(one, other)) == 4.0
    assert float(own.distance([one, (one,)], [other, (one,)])) == 2.0


def test_its_own_distil_takes_the_teacher_s_place() -> None:
    assert float(UserTask("odd_tasks:Halved").distance(torch.zeros(2), torch.ones(2))) == 0.5


def test_another_process_makes_it_anew_and_its_text_is_in_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "own_task_text.py"
    source.write_text("from odd_tasks import Plain as make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = UserTask("own_task_text:make")
    before = own.digest
    assert pickle.loads(pickle.dumps(own.loss)).__self__.digest == before  # noqa: S301 - our own bytes
    source.write_text("from odd_tasks import Plain as make  # another loss\n")
    assert own.digest != before


@pytest.mark.parametrize(("loss", "word"), [
    (lambda outputs, _: outputs.square(), r"torch.float32 \(4, 5, 80\), not one float"),
    (lambda outputs, _: outputs.sum().item(), "float, not one float"),
    (lambda outputs, _: outputs.detach().mean(), "no gradient"),
    (raising, r"outputs \(4, 5, 80\) and targets \[\(.* raised KeyError: 'anchors'"),
    (lambda outputs, targets: outputs.mean() + torch.stack(targets).mean(), "stack expects each tensor to be equal size"),
])
def test_a_loss_that_is_none_is_said(tmp_path: Path, loss: Callable[[Any, Any], Any], word: str) -> None:
    made.append(Plain(loss))
    with pytest.raises(InputError, match=word) as caught:
        after(Tune(epochs=1), shop(tmp_path, "odd_tasks:last"))
    assert caught.value.code == "build.loss"


def test_a_line_of_the_user_s_is_named(tmp_path: Path) -> None:
    made.append(Plain(raising))
    with pytest.raises(InputError) as caught:
        after(Tune(epochs=1), shop(tmp_path, "odd_tasks:last"))
    assert caught.value.where.startswith(f"{odd_tasks.__file__}:")


@pytest.mark.parametrize("config", [Tune(epochs=1), Prune(scope="by-layer", epochs=0)])
def test_a_loss_that_is_no_number_ends_the_stage(tmp_path: Path, config: FloatStageConfig) -> None:
    made.append(Plain(lambda outputs, _: outputs.mean() * float("nan")))
    with pytest.raises(RuntimeFailure) as caught:
        after(config, shop(tmp_path, "odd_tasks:last"))
    assert caught.value.code == "build.diverged"


@pytest.mark.parametrize(("score", "word"), [
    (lambda _, split: [1.0] * (len(split) - 1), r"8 samples with values of shape \(7,\)"), (lambda *_: 0.5, r"of shape \(\)"),
    (lambda _, split: [0.5] * 3 + [1.5] + [0.5] * (len(split) - 4), "sample 3 with 1.5"),
    (lambda _, split: [0.5] * 6 + [float("nan")] * 2, r"sample 6 with nan \(2 such\)"), (lambda *_: ["good"], "raised ValueError"),
    (raising, "raised KeyError"),
])
def test_a_score_that_is_none_is_said(tmp_path: Path, score: Callable[[nn.Module, Any], Any], word: str) -> None:
    made.append(Plain(score=score))
    workshop = shop(tmp_path, "odd_tasks:last")
    with pytest.raises(InputError, match=word) as caught:
        workshop.score(nn.Identity(), workshop.validation)
    assert caught.value.code == "build.score"


def test_a_score_is_taken_without_gradients_and_in_evaluation_mode(tmp_path: Path) -> None:
    made.append(Plain(score=lambda model, split: [float(torch.is_inference_mode_enabled() and not model.training)] * len(split)))
    workshop = shop(tmp_path, "odd_tasks:last")
    assert workshop.score(nn.Identity().train(), workshop.validation).tolist() == [1.0] * 8


@pytest.mark.parametrize(("name", "code"), [("nameless", "factory.name"), ("nowhere_at_all:task", "factory.import"),
                                            ("detection_worlds:net", "factory.type")])
def test_what_is_no_task_is_said(name: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        UserTask(name)
    assert caught.value.code == code


def test_boxes_of_a_factory_are_targets_in_input_pixels(tmp_path: Path) -> None:
    folder = data_folder("detection_worlds:data", tmp_path)
    truth = load_data(folder.folder / "validation")
    samples = TaskSamples(truth, SPEC, folder.classes)
    _, boxes = rectangles(160, 2)
    for index in range(8):
        image, target = samples[index]
        assert image.shape == (3, SIDE, SIDE)
        np.testing.assert_array_equal(target, boxes[index])
    wide = InputSpec("", 128, SIDE, "rgb", "letterbox", 1.0 / 255.0)
    index = next(index for index, each in enumerate(boxes) if len(each))
    np.testing.assert_allclose(TaskSamples(truth, wide, folder.classes)[index][1], boxes[index] + np.array([0, 32, 0, 32, 0], np.float32))
    assert TaskSamples(truth, wide, folder.classes).digest != samples.digest


def test_arrays_of_a_factory_lie_beside_the_images_as_they_are(tmp_path: Path) -> None:
    folder = data_folder("detection_worlds:arrays", tmp_path).folder / "train"
    before = load_data(folder)
    samples = TaskSamples(before, SPEC, ())
    for (_, target), boxes in zip((samples[index] for index in range(12)), rectangles(12, 1)[1], strict=True):
        np.testing.assert_array_equal(target, boxes)
        assert target.dtype == np.float32
    np.save(folder / "0000003.npy", np.zeros((1, 5), np.float32))
    assert load_data(folder).digest != before.digest
    (folder / "0000004.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"0000004.npy cannot be read"):
        samples[4]
    (folder / "0000005.npy").unlink()
    with pytest.raises(InputError, match=r"0000005.png has no target") as caught:
        TaskSamples(load_data(folder), SPEC, ())
    assert caught.value.code == "data.unlabelled"


def test_the_loss_of_a_classifier_still_names_the_greatest_label() -> None:
    with pytest.raises(InputError, match=r"answers \(2, 3\) and targets \(2,\) up to 7"):
        task_loss(nn.functional.cross_entropy, torch.zeros(2, 3), torch.tensor([1, 7]))


RECIPE = """
max_drop = 10.0
[training]
task = "detection_worlds:task"
learning_rate = 0.004
batch = 16
[[stage]]
kind = "tune"
epochs = 11
[[stage]]
kind = "prune"
ratio = 0.25
round_to = 4
epochs = 3
[[stage]]
kind = "qat"
epochs = 1
[[stage]]
kind = "quantize"
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_detector_is_tuned_pruned_quantized_and_built(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    tests = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH", "")])])
    done = subprocess.run(
        [sys.executable, "-m", "jetfleet_host", "build", "detection_worlds:net", "--recipe", str(tmp_path / "r.toml"), "--task",
         "detect-yolo", "--shape", "1x3x64x64", "--data", "detection_worlds:data", "--name", "things", "--version", "1", "--target",
         "cpu-x86", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), "--latency-rounds", "0", "--json"],
        capture_output=True, encoding="utf-8", check=False, timeout=280, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    floats = told["build"]["floats"]
    assert [stage["kind"] for stage in floats["stages"]] == ["tune", "prune", "qat"]
    assert all(stage["ending"] != "left-out" for stage in floats["stages"])
    assert floats["metric"] > 0.9 > floats["baseline"] + 0.4
    assert {row["variant"] for row in told["rows"] if row["verdict"] == "accepted"} >= {"fp32", "int8", "uint8"}
    evaluation = open_bundle(tmp_path / "out").evaluation
    assert evaluation.metric == "f1@iou0.5"
    assert max(row.accuracy for row in evaluation.rows if row.variant == "int8") > 0.9
