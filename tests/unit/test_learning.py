"""The loop closes: a model meets darkness and another font, the alarm fires, it learns, and the guard lets only what helps pass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import glyphs
import numpy as np
import pytest
from typer.testing import CliRunner

from jetfleet_agent.pipeline.image_stats import luma_and_blur
from jetfleet_contract.app_config import Drift
from jetfleet_contract.drift import DriftState, Seen, judge, step
from jetfleet_contract.errors import InputError
from jetfleet_contract.sketch import sketch_of
from jetfleet_host.bundles import open_bundle
from jetfleet_host.cli import app
from jetfleet_host.compress.dataset import load_data
from jetfleet_host.compress.intake.splitting import load_splits
from jetfleet_host.learning.sets import joined, learning_sets
from jetfleet_host.learning.versions import next_version
from jetfleet_host.lineage import lineage_of
from jetfleet_host.project import Project
from jetfleet_host.publish import publish


@dataclass(frozen=True)
class World:
    """A published reader of glyphs, what it was trained on, and what its cameras see since the lamp broke."""

    folder: Path
    project: Path
    bundle: Path
    replay: Path
    hard: Path
    cache: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("learning")
    replay = glyphs.glyph_folder(folder / "replay", 150, 1)
    hard = glyphs.glyph_folder(folder / "hard", 70, 2, gain=0.18, font=1)
    patch = pytest.MonkeyPatch()
    patch.setenv("GLYPH_WEIGHTS", str(glyphs.trained(folder / "first.pt")))
    (folder / "plain.toml").write_text('[[stage]]\nkind = "quantize"\n')
    made = _run("build", "glyphs:make", "--recipe", folder / "plain.toml", "--data", replay, "--name", "reader", "--version", "1.0.0",
                "--target", "cpu-x86", "--out", folder / "reader-1", "--cache", folder / "cache", *_SEEN, "--latency-rounds", 0,
                "--max-drop", 3)
    assert made.exit_code == 0, made.output
    project = Project.init(folder / "fleet")
    publish(project, folder / "reader-1")
    return World(folder, project.dir, folder / "reader-1", replay, hard, folder / "cache")


_SEEN = ("--task", "classify", "--shape", "1x3x24x24", "--mean", "0", "--std", "1")


def _run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def _learn(world: World, *more: object, hard: Path | None = None, out: str = "reader-2") -> Any:
    return _run("learn", world.bundle, "--model", "glyphs:make", "--replay", world.replay, "--hard", hard or world.hard, "--out",
                world.folder / out, "--cache", world.cache, "--max-drop", 3, "--epochs", 10, "--learning-rate", 0.003, "--batch", 32, *more)


def _alarm(world: World, images: Path) -> bool:
    """What the board's drift watch says of a camera that shows these images."""
    reference = open_bundle(world.bundle).spec.reference
    assert reference is not None
    paths = load_data(images).images
    luma = sketch_of([luma_and_blur(np.asarray(cv2.imread(str(path)), np.uint8))[0] for path in paths])
    state, seen = DriftState(), Seen(len(paths), {"luma": luma})
    for _ in range(3):
        state, _ = step(state, judge(reference, seen) or {}, Drift(windows=2))
    return state.alarmed


def test_a_model_that_drift_spoiled_learns_and_is_published_as_a_delta(world: World) -> None:
    assert _alarm(world, world.hard)
    assert not _alarm(world, world.replay)
    done = _learn(world, "--publish", "--dir", world.project, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["from"], told["version"]) == ("1.0.0", "1.0.1")
    assert told["new"]["before"] < 0.7  # what the alarm was about
    assert told["new"]["after"] > 0.9
    assert told["old"]["after"] > told["old"]["before"] - 0.03
    assert told["old"]["verdict"]["outcome"] == told["new"]["verdict"]["outcome"] == "pass"
    bundle = open_bundle(world.folder / "reader-2")
    assert bundle.spec.task.labels == glyphs.NAMES
    lineage = lineage_of(bundle.manifest.annotations)
    assert (lineage.parent, lineage.parent_digest) == ("reader:1.0.0", open_bundle(world.bundle).manifest_digest)
    fp32 = next(row for row in bundle.evaluation.rows if row.variant == "fp32" and row.backend == "onnxruntime")
    both = told["old"]["verdict"]["samples"] + told["new"]["verdict"]["samples"]
    assert fp32.samples == both
    assert fp32.accuracy > 0.9
    assert told["published"]["deltas"]
    assert {row["base"] for row in told["published"]["deltas"]} == {"reader:1.0.0"}


@pytest.mark.slow
def test_what_the_model_knows_already_gives_no_version(world: World, tmp_path: Path) -> None:
    known = glyphs.glyph_folder(tmp_path / "known", 40, 9)
    done = _learn(world, "--json", hard=known, out="known")
    assert done.exit_code != 0
    assert json.loads(done.stdout)["error"]["code"] in ("learn.no-gain", "learn.undecided")
    assert not (world.folder / "known").exists()


@pytest.mark.slow
def test_new_images_that_are_mislabelled_give_no_version(world: World, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    for name, said in zip(glyphs.NAMES, glyphs.NAMES[1:] + glyphs.NAMES[:1], strict=True):
        (wrong / said).mkdir(parents=True)
        for path in sorted((world.replay / name).iterdir())[:70]:
            (wrong / said / f"w{path.name}").write_bytes(path.read_bytes())
    done = _learn(world, "--json", hard=wrong, out="bad")
    assert done.exit_code != 0
    assert json.loads(done.stdout)["error"]["code"] == "learn.forgets"
    assert not (world.folder / "bad").exists()


@pytest.mark.slow
def test_too_few_new_images_say_how_many_more(world: World, tmp_path: Path) -> None:
    few = glyphs.glyph_folder(tmp_path / "few", 5, 8, gain=0.18, font=1)
    done = _learn(world, "--json", hard=few, out="few")
    assert done.exit_code != 0
    error = json.loads(done.stdout)["error"]
    assert error["code"] in ("learn.undecided", "learn.no-gain")
    assert "new images" in error["what"]


def test_bad_words_are_named(world: World, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"nothing of torch")
    for more, code in ((("--weights", tmp_path / "w.pt"), "learn.weights"), (("--app", "reader"), "learn.new-set")):
        done = _learn(world, "--json", *more, out="never")
        assert done.exit_code != 0
        assert json.loads(done.stdout)["error"]["code"] == code


def test_sets_stay_apart_and_the_replay_is_as_large_as_asked(tmp_path: Path) -> None:
    old = load_splits(glyphs.glyph_folder(tmp_path / "old", 20, 1), 0, 8)
    new = load_splits(glyphs.glyph_folder(tmp_path / "new", 10, 2), 0, 8)
    sets = learning_sets(old, new, replay_per_new=1.5, seed=0)
    assert len(sets.train.images) == len(new.train.images) + round(1.5 * len(new.train.images))
    assert not set(sets.train.images) & (set(sets.old.images) | set(sets.new.images))
    assert sets.train.truth is not None
    assert all(image.parent.name == answer[0].label for image, answer in zip(sets.train.images, sets.train.truth, strict=True))
    everything = learning_sets(old, new, replay_per_new=99.0, seed=0)
    assert set(everything.train.images) == {*old.train.images, *new.train.images}
    assert learning_sets(old, new, replay_per_new=1.5, seed=1).train.digest != sets.train.digest
    assert joined((old.train, new.train)).digest != joined((new.train, old.train)).digest


@pytest.mark.parametrize(("before", "after"), [("1.0.0", "1.0.1"), ("7", "8"), ("1.0.9", "1.0.10"), ("2026-009", "2026-010"),
                                               ("v99", "v100")])
def test_the_next_version(before: str, after: str) -> None:
    assert next_version(before) == after
    with pytest.raises(InputError, match="does not end in a number"):
        next_version(f"{before}-beta")
