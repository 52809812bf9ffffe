"""`jetfleet build FACTORY --recipe`: from the user's Python to a bundle; what is wrong is told; a killed build goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from interrupts import interruptible
from torch import nn

from jetfleet_contract.errors import InputError
from jetfleet_host.bundles import open_bundle
from jetfleet_host.compress.floating.judging import label_loss
from jetfleet_host.compress.recipe import Job, Recipe, make_task
from jetfleet_host.compress.recipe_build import build_by_recipe, float_stages, quantize_of
from jetfleet_host.compress.recipe_file import Prune, Quantize, RecipeFile, Training, Tune
from jetfleet_host.compress.recipe_shelf import names, read_recipe, space_names, text_of
from jetfleet_host.search.space import parse_space

RECIPE = """
max_drop = 3.0
[training]
learning_rate = 0.003
[[stage]]
kind = "tune"
epochs = 2
[[stage]]
kind = "prune"
ratio = 0.25
epochs = 1
[[stage]]
kind = "quantize"
calibrator = "mse"
correct_bias = true
"""


def command(folder: Path, out: str, *extra: str, model: str = "recipe_nets:net", data: str = "recipe_nets:digits") -> list[str]:
    recipe = folder / "r.toml"
    if not recipe.exists():
        recipe.write_text(RECIPE)
    return [sys.executable, "-m", "jetfleet_host", "build", model, "--recipe", str(recipe), "--task", "classify", "--shape", "1x3x16x16",
            "--data", data, "--name", "digits", "--version", "1", "--target", "cpu-x86", "--out", str(folder / out),
            "--cache", str(folder / "cache"), "--latency-rounds", "0", "--json", *extra]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, encoding="utf-8", check=False, timeout=170, env=environment())


def environment() -> dict[str, str]:
    tests = str(Path(__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH", "")])]), "OMP_NUM_THREADS": "1"}


def test_from_a_factory_to_a_bundle_and_the_same_bytes_again(tmp_path: Path) -> None:
    done = run(command(tmp_path, "one"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    floats = told["build"]["floats"]
    assert [stage["kind"] for stage in floats["stages"]] == ["tune", "prune"]
    assert floats["stages"][0]["ending"] == "kept"
    assert floats["best"] > 0.6 > floats["baseline"]
    assert {row["variant"] for row in told["rows"]} >= {"fp32", "int8", "uint8"}
    shown = subprocess.run([sys.executable, "-m", "jetfleet_host", "report", str(tmp_path / "one")], capture_output=True, encoding="utf-8",
                           check=False, timeout=60, env=environment())
    assert "120 validation samples" in shown.stdout
    again = run(command(tmp_path, "two"))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["bundle"] == told["bundle"]


@pytest.mark.slow
def test_two_processes_of_torchrun_train_and_one_writes(tmp_path: Path) -> None:
    _, *arguments = command(tmp_path, "out")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = run(launcher)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["build"]["floats"]["stages"][0]["ending"] == "kept"
    assert open_bundle(tmp_path / "out").spec.name == "digits"


@pytest.mark.slow
def test_killed_in_a_stage_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    undisturbed = run(command(whole, "out"))
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = tmp_path / "killed"
    killed.mkdir()
    child = subprocess.Popen(command(killed, "out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    deadline = time.monotonic() + 120
    while len(list((killed / "cache").glob("*.sha256"))) < 2:  # the model as given, and the first stage's
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    resumed = run(command(killed, "out"))
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["bundle"] == json.loads(undisturbed.stdout)["bundle"]


@pytest.mark.slow
def test_interrupted_in_a_stage_it_ends_cleanly(tmp_path: Path) -> None:
    child = interruptible(command(tmp_path, "out"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "cache").glob("*.sha256"))) < 2:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in said.decode()
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").glob(".*"))


PLANTED = """
max_drop = 3.0
[training]
learning_rate = 0.003
[[stage]]
kind = "tune"
epochs = 2
[[stage]]
kind = "prune"
ratio = 0.95
epochs = 0
[[stage]]
kind = "tune"
epochs = 1
learning_rate = 1000.0
[[stage]]
kind = "quantize"
calibrator = "minmax"
"""


@pytest.mark.slow
def test_planted_bad_stages_are_rolled_back_and_the_build_ends_well(tmp_path: Path) -> None:
    """An absurd ratio, a learning rate that destroys, and a calibration on fog."""
    (tmp_path / "r.toml").write_text(PLANTED)
    done = run(command(tmp_path, "out", data="recipe_nets:calibrated_in_fog"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    tuned, pruned, spoilt = told["build"]["floats"]["stages"]
    assert (tuned["ending"], spoilt["ending"]) == ("kept", "left-out")
    assert pruned["ending"] in ("gentler", "left-out")
    assert spoilt["digest"] == pruned["digest"]
    assert all(entry["verdict"]["outcome"] != "pass" for entry in spoilt["tried"])
    assert told["build"]["floats"]["metric"] >= tuned["metric"] - 0.03
    assert all(row["drop"] <= 3.0 for row in told["rows"] if row["verdict"] == "accepted")
    int8 = [variant.detail for variant in open_bundle(tmp_path / "out").spec.variants if variant.name == "int8"]
    assert not any(detail.startswith("3 of 3 layers") for detail in int8)  # what the fog spoilt stays float


@pytest.mark.slow
def test_without_labels_agreement_is_the_metric_and_the_models_own_answers_train(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('max_drop = 6.0\n[[stage]]\nkind = "prune"\nratio = 0.25\nepochs = 1\n')
    done = run(command(tmp_path, "out", data="recipe_nets:unlabelled"))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["build"]["floats"]["baseline"] == 1.0
    assert open_bundle(tmp_path / "out").evaluation.metric == "agreement"


@pytest.mark.parametrize(("model", "data", "code"), [
    ("recipe_nets:broken", "recipe_nets:digits", "factory.raised"),
    ("recipe_nets:absent", "recipe_nets:digits", "factory.missing"),
    ("recipe_nets:not_finite", "recipe_nets:digits", "model.not-finite"),
    ("recipe_nets:net", "nowhere", "data.not-found"),
    ("nowhere.onnx", "recipe_nets:digits", "model.not-found"),
])
def test_what_is_wrong_is_told(tmp_path: Path, model: str, data: str, code: str) -> None:
    task, shape = make_task("classify", "", shape=(1, 3, 16, 16), labels=(), options={}, overrides={})
    job = Job(Path(model), Path(data), tmp_path / "out", tmp_path / "cache")
    with pytest.raises(InputError) as caught:
        build_by_recipe(model, data, job, Recipe("digits", "1", ("cpu-x86",), task, shape), RecipeFile(stage=(Tune(),)), lambda *_: None)
    assert caught.value.code == code
    assert not (tmp_path / "out").exists()


def test_every_recipe_that_comes_along_can_be_read_and_ends_with_quantize() -> None:
    assert {"ptq", "prune-ptq", "progressive", "distil-student", "qat"} <= set(names())
    for name in names():
        assert isinstance(read_recipe(name).stage[-1], Quantize)


def test_every_space_that_comes_along_is_one_and_is_no_recipe() -> None:
    assert set(space_names()) == {"search", "search-ptq"}
    for name in space_names():
        assert parse_space(text_of(name).encode(), name).parameters
        with pytest.raises(InputError, match="a space of recipes") as caught:
            read_recipe(name)
        assert f"--space {name}" in caught.value.remedy


@pytest.mark.parametrize(("text", "word"), [
    ("[[stage]]\nkind = 'prune'\nratoi = 0.3", "ratoi"), ("[[stage]]\nkind = 'prune'\nratio = 1.5", "ratio"),
    ("[[stage]]\nkind = 'magic'", "magic"), ("max_drop = ", "at end of document"),
])
def test_a_recipe_that_cannot_be_is_refused_by_its_key(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=word) as caught:
        read_recipe(str(path))
    assert caught.value.code == "recipe.bad"


def test_stages_have_an_order() -> None:
    with pytest.raises(InputError, match="after 'quantize'"):
        float_stages(RecipeFile(stage=(Quantize(), Tune())))
    with pytest.raises(InputError, match="two 'quantize'"):
        quantize_of(RecipeFile(stage=(Quantize(), Quantize())))
    assert float_stages(RecipeFile(stage=(Tune(), Prune(), Quantize()))) == (Tune(), Prune())


def test_smoothed_labels_reach_the_loss_and_are_no_matter_of_a_task_of_ones_own() -> None:
    outputs, targets = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0])
    plain, smoothed = (float(label_loss(Training(label_smoothing=share))(outputs, targets)) for share in (0.0, 0.3))
    assert plain == pytest.approx(float(nn.functional.cross_entropy(outputs, targets)))
    assert smoothed == pytest.approx(float(nn.functional.cross_entropy(outputs, targets, label_smoothing=0.3)))
    assert smoothed > plain
    file = RecipeFile(training=Training(task="odd_tasks:Fine", label_smoothing=0.1), stage=(Tune(),))
    with pytest.raises(InputError, match="label_smoothing"):
        float_stages(file)
