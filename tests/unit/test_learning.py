"""The loop closes: a model meets darkness and another font, the alarm fires, it learns, and the guard lets only what helps pass."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import glyphs
import msgspec
import numpy as np
import pytest
from bundle_maker import parts
from typer.testing import CliRunner

from jetfleet_agent.pipeline.image_stats import luma_and_blur
from jetfleet_contract.app_config import Drift
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.drift import DriftState, Seen, nearest, reference_of, step
from jetfleet_contract.errors import IncompatibleError, InputError
from jetfleet_contract.predictions import Detection
from jetfleet_contract.sketch import sketch_of
from jetfleet_host.bundles import open_bundle, write_bundle
from jetfleet_host.cli import app
from jetfleet_host.commands.database import open_database
from jetfleet_host.compress.dataset import load_data
from jetfleet_host.compress.intake.splitting import joined, load_splits
from jetfleet_host.compress.learning.running import Wish, teach
from jetfleet_host.compress.learning.sets import learning_sets
from jetfleet_host.compress.learning.versions import next_version
from jetfleet_host.compress.recipe_file import Training, Tune
from jetfleet_host.harvest import HarvestFiles
from jetfleet_host.lineage import lineage_of
from jetfleet_host.project import Project
from jetfleet_host.publish import publish
from jetfleet_host.store import harvest
from jetfleet_host.store.models import HardExample

_SEEN = ("--task", "classify", "--shape", "1x3x24x24", "--mean", "0", "--std", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published reader of glyphs (`reader-1`), what it was trained on (`replay`), what its cameras see since the lamp broke (`hard`)."""
    folder = tmp_path_factory.mktemp("learning")
    replay = glyphs.glyph_folder(folder / "replay", 150, 1)
    glyphs.glyph_folder(folder / "hard", 50, 2, gain=0.18, font=1)
    pytest.MonkeyPatch().setenv("GLYPH_WEIGHTS", str(glyphs.trained(folder / "first.pt")))
    made = parts(folder / "weights", name="reader", version="1.0.0")
    paths = load_data(replay).images[::4]
    reference = reference_of([_light(path) for path in paths], [()] * len(paths))
    task = TaskSpec("classify", InputSpec("image", 24, 24, "rgb", "stretch", 1 / 255, (0.0,) * 3, (1.0,) * 3), glyphs.NAMES)
    spec = msgspec.structs.replace(made["spec"], task=task, reference=reference)  # type: ignore[type-var]
    write_bundle(folder / "reader-1", **{**made, "spec": spec})  # type: ignore[arg-type]
    return folder


def _light(path: Path) -> tuple[float, float]:
    return luma_and_blur(np.asarray(cv2.imread(str(path)), np.uint8))


def _run(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def _wish(folder: Path, hard: Path | None = None, **changes: Any) -> Wish:
    return replace(Wish(folder / "reader-1", "glyphs:make", folder / "replay", hard or folder / "hard", folder / "none", folder / "cache",
                        max_drop=4.0, replay_per_new=0.7, tune=Tune(7, 0.003), training=Training(batch=32)), **changes)


def _quiet(_stage: str, _done: int, _of: int) -> None: ...


def _alarm(bundle: Path, images: Path) -> bool:
    """What the board's drift watch says of a camera that shows these images."""
    references = open_bundle(bundle).spec.references
    assert references
    paths = load_data(images).images
    state, seen = DriftState(), Seen(len(paths), {"luma": sketch_of([_light(path)[0] for path in paths])})
    for _ in range(3):
        state, _ = step(state, nearest(references, seen) or {}, Drift(windows=2))
    return state.alarmed


def test_darkness_and_another_font_raise_the_alarm_and_are_learned_without_forgetting(folder: Path) -> None:
    assert _alarm(folder / "reader-1", folder / "hard")
    assert not _alarm(folder / "reader-1", folder / "replay")
    taught = teach(_wish(folder), _quiet)
    assert taught.new_metric[0] < 0.7  # what the alarm was about
    assert taught.new_metric[1] > 0.85
    assert taught.old_metric[1] > taught.old_metric[0] - 0.04
    assert (taught.old.outcome, taught.new.outcome) == ("pass", "pass")
    assert taught.new.samples == len(taught.sets.new.images)
    assert taught.run.stages[-1].ending in ("kept", "gentler")


@pytest.mark.slow
def test_the_next_version_is_built_and_published_as_a_delta(folder: Path) -> None:
    (folder / "plain.toml").write_text('[[stage]]\nkind = "quantize"\n')
    made = _run("build", "glyphs:make", "--recipe", folder / "plain.toml", "--data", folder / "replay", "--name", "reader", "--version",
                "1.0.0", "--target", "cpu-x86", "--out", folder / "built", "--cache", folder / "cache", *_SEEN, "--latency-rounds", 0,
                "--max-drop", 4)
    assert made.exit_code == 0, made.output
    project = Project.init(folder / "fleet")
    publish(project, folder / "built")
    done = _run("learn", folder / "built", "--model", "glyphs:make", "--replay", folder / "replay", "--hard", folder / "hard", "--out",
                folder / "reader-2", "--cache", folder / "cache", "--max-drop", 4, "--epochs", 7, "--learning-rate", 0.003, "--batch", 32,
                "--replay-per-new", 0.7, "--publish", "--dir", project.dir, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["from"], told["version"]) == ("1.0.0", "1.0.1")
    assert told["new"]["after"] > told["new"]["before"] + 0.2
    bundle = open_bundle(folder / "reader-2")
    assert bundle.spec.task.labels == glyphs.NAMES
    assert not any(_alarm(folder / "reader-2", folder / name) for name in ("hard", "replay"))  # it was made for both
    assert _alarm(folder / "reader-2", glyphs.glyph_folder(folder / "fog", 20, 3, gain=0.5))
    lineage = lineage_of(bundle.manifest.annotations)
    assert (lineage.parent, lineage.parent_digest) == ("reader:1.0.0", open_bundle(folder / "built").manifest_digest)
    fp32 = next(row for row in bundle.evaluation.rows if row.variant == "fp32" and row.backend == "onnxruntime")
    assert fp32.samples == told["old"]["verdict"]["samples"] + told["new"]["verdict"]["samples"]
    assert fp32.accuracy > 0.9
    assert told["published"]["deltas"]
    assert {row["base"] for row in told["published"]["deltas"]} == {"reader:1.0.0"}
    again = teach(_wish(folder, weights=Path(told["weights"]), tune=Tune(0), min_gain=-100.0), _quiet)
    assert again.new_metric[0] == told["new"]["after"]  # the file holds what was learned


def _refused(folder: Path, hard: Path) -> IncompatibleError:
    with pytest.raises(IncompatibleError) as caught:
        teach(_wish(folder, hard, tune=Tune(2, 0.003)), _quiet)
    return caught.value


def test_too_few_new_images_are_no_proof(folder: Path, tmp_path: Path) -> None:
    error = _refused(folder, glyphs.glyph_folder(tmp_path / "few", 5, 8, gain=0.18, font=1))
    assert error.code in ("learn.undecided", "learn.no-gain")
    assert "new images" in error.what


@pytest.mark.slow
def test_what_helps_nobody_or_makes_it_forget_is_no_version(folder: Path, tmp_path: Path) -> None:
    assert _refused(folder, glyphs.glyph_folder(tmp_path / "known", 25, 9)).code in ("learn.no-gain", "learn.undecided")
    wrong = tmp_path / "wrong"
    for name, said in zip(glyphs.NAMES, glyphs.NAMES[1:] + glyphs.NAMES[:1], strict=True):
        (wrong / said).mkdir(parents=True)
        for path in sorted((folder / "replay" / name).iterdir())[:70]:
            (wrong / said / f"w{path.name}").write_bytes(path.read_bytes())
    error = _refused(folder, wrong)
    assert error.code == "learn.forgets"
    assert error.remedy


def _harvest(project: Project, images: Path, score: float, first: int) -> None:
    """As if boards had given these pictures and the host's model had called them by their folders' names, this sure."""
    with closing(open_database(project)) as database, database.session() as session:
        for number, path in enumerate(sorted(images.rglob("*.png")), first):
            jpeg = bytes(cv2.imencode(".jpg", np.asarray(cv2.imread(str(path)), np.uint8), (cv2.IMWRITE_JPEG_QUALITY, 90))[1])
            digest = hashlib.sha256(jpeg).hexdigest()
            HarvestFiles(project.dir / "harvest").put(digest, jpeg)
            said = msgspec.json.encode((Detection(path.parent.name, score),)).decode()
            harvest.add(session, HardExample(
                device="gate-7", crop=number, app="reader", source="front", frame=number, bundle="b" * 64, version="1.0.0", candidate="c",
                task="classify", digest=digest, size=len(jpeg), canvas_w=24, canvas_h=24, x0=0, y0=0, x1=24, y1=24, edge="[]", said=said,
                model="expert:1", answered=int(score > 0), taken=1.0, at=1.0))


def test_it_learns_straight_from_the_harvest_what_was_clearly_said(folder: Path, tmp_path: Path) -> None:
    project = Project.init(tmp_path / "fleet")
    _harvest(project, glyphs.glyph_folder(tmp_path / "clear", 25, 4, gain=0.18, font=1), 0.9, 1)
    for first, score in ((1001, 0.3), (2001, 0.0)):  # not clear, and not answered
        _harvest(project, glyphs.glyph_folder(tmp_path / str(first), 5, first, gain=0.18, font=1), score, first)
    words = ("learn", folder / "reader-1", "--model", "glyphs:make", "--replay", folder / "replay", "--dir", project.dir, "--out",
             folder / "none", "--cache", tmp_path / "cache", "--app")
    done = _run(*words, "reader", "--max-drop", 4, "--epochs", 7, "--learning-rate", 0.003, "--batch", 32, "--replay-per-new", 0.7,
                "--min-gain", 90)  # so much that nothing is built
    assert isinstance(done.exception, IncompatibleError)
    gain = re.match(r"a gain of (-?[0-9.]+) points on 20 new images", done.exception.what)
    assert done.exception.code == "learn.no-gain"
    assert gain is not None, done.exception.what
    assert float(gain[1]) > 20
    assert str(tmp_path / "cache" / "harvest-reader-") in done.exception.where
    nobody = _run(*words, "sorter")
    assert isinstance(nobody.exception, InputError)
    assert nobody.exception.code == "harvest.empty"


def test_bad_words_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"nothing of torch")
    with pytest.raises(InputError) as caught:
        teach(_wish(folder, weights=tmp_path / "w.pt"), _quiet)
    assert caught.value.code == "learn.weights"
    both = _run("learn", folder / "reader-1", "--model", "glyphs:make", "--replay", folder / "replay", "--hard", folder / "hard", "--app",
                "a", "--out", folder / "none")
    assert isinstance(both.exception, InputError)
    assert both.exception.code == "learn.new-set"


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
