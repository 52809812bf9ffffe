"""Search: the space, the recipe as a file, trials that go on and are shared by processes, and a whole search of a tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_folders
import glyphs
import msgspec
import pytest
import search_party
import tiny_models
from databases import postgres_url
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from jetfleet_contract.errors import InputError
from jetfleet_host.cli import app
from jetfleet_host.compress.recipe_file import Distil, Prune, Qat, Quantize, RecipeFile, Separate, Sparsify, Training, Tune
from jetfleet_host.compress.recipe_shelf import read_recipe
from jetfleet_host.search.recipe_text import recipe_text
from jetfleet_host.search.space import Choices, Range, parse_space
from jetfleet_host.search.study import Search

SPACE = b"""
max_drop = 1.0
[training]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
[[stage]]
kind = "prune"
optional = true
ratio = { low = 0.1, high = 0.5, step = 0.1 }
importance = { choices = ["l1", "taylor"] }
epochs = { low = 1, high = 3 }
[[stage]]
kind = "quantize"
calibrator = { choices = ["minmax", "entropy"] }
"""


def test_a_space_names_what_may_vary_and_under_which_switch() -> None:
    found = {parameter.name: parameter for parameter in parse_space(SPACE, "s").parameters}
    assert list(found) == ["training.learning_rate", "stage1.prune", "stage1.prune.ratio", "stage1.prune.importance", "stage1.prune.epochs",
                           "stage2.quantize.calibrator"]
    assert found["training.learning_rate"].domain == Range(1e-4, 1e-2, log=True)
    assert found["stage1.prune.epochs"].domain == Range(1, 3, whole=True)
    assert found["stage1.prune"].domain == Choices((True, False))
    assert found["stage1.prune.ratio"].under == "stage1.prune"
    assert found["stage2.quantize.calibrator"].under == ""


def test_a_point_is_a_recipe_and_a_stage_that_is_off_is_not_in_it() -> None:
    space = parse_space(SPACE, "s")
    values: dict[str, Any] = {"training.learning_rate": 0.001, "stage1.prune": False, "stage2.quantize.calibrator": "entropy"}
    assert space.recipe_at(values) == RecipeFile(max_drop=1.0, stage=(Quantize(calibrator="entropy"),))
    on = {**values, "stage1.prune": True, "stage1.prune.ratio": 0.3, "stage1.prune.importance": "taylor", "stage1.prune.epochs": 2}
    assert space.recipe_at(on).stage == (Prune(ratio=0.3, importance="taylor", epochs=2), Quantize(calibrator="entropy"))


@pytest.mark.parametrize(("text", "word"), [
    ("max_drop = 1.0", "nothing in the space may vary"), ("= 1", "not TOML"), ("stage = 3", "stages are tables"),
    ("[[stage]]\nkind = 'prune'\nratio = { low = 0.5, high = 0.1 }", "stage1.prune.ratio: low 0.5, high 0.1"),
    ("[[stage]]\nkind = 'prune'\nratio = { low = 0.1, high = 1.5 }", "no recipe"),
    ("[[stage]]\nkind = 'shrink'\nx = { choices = [1] }", "no recipe"),
    ("[[stage]]\nkind = 'quantize'\ncalibrator = { choices = ['minmax', 'magic'] }", "magic"),
    ("[[stage]]\nkind = 'quantize'\ncalibrator = { choices = [] }", "choices is a list"),
    ("[[stage]]\nkind = 'quantize'\nimages = { low = 1, high = 9, stride = 2 }", "a range is"),
    ("[[stage]]\nkind = 'quantize'\noptional = 1\nimages = { low = 1, high = 9 }", "neither true nor false"),
    ("[training]\nlearning_rate = { low = 0, high = 1, log = true }", "logarithmic")])
def test_a_wrong_space_is_refused_before_the_first_trial(text: str, word: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_space(text.encode(), "s.toml")
    assert caught.value.code == "search.space"
    assert word in f"{caught.value.what} {caught.value.remedy}"


_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_STAGES = st.one_of(
    st.builds(Tune, epochs=st.integers(0, 9)), st.builds(Prune, ratio=st.floats(0, 0.99), ignore=st.lists(_TEXT, max_size=3).map(tuple)),
    st.builds(Sparsify, pattern=st.sampled_from(["unstructured", "2:4"])), st.builds(Distil, teacher=_TEXT, hints=st.floats(0, 1e9)),
    st.builds(Separate, share=st.floats(0, 0.5)), st.builds(Qat, learning_rate=st.floats(1e-9, 1)),
    st.builds(Quantize, per_channel=st.booleans(), scales=_TEXT))
_RECIPES = st.builds(RecipeFile, name=_TEXT, seed=st.integers(0, 2**40), stage=st.lists(_STAGES, max_size=4).map(tuple),
                     training=st.builds(Training, learning_rate=st.floats(1e-12, 1e12), profile=st.booleans()))


@given(_RECIPES, _TEXT.map(lambda text: " ".join(text.split())))
def test_a_recipe_written_is_the_recipe_read(recipe: RecipeFile, comment: str) -> None:
    printable = "".join(letter for letter in comment if letter.isprintable())
    assert msgspec.convert(tomllib.loads(recipe_text(recipe, printable)), RecipeFile) == recipe


# --- trials ----------------------------------------------------------------------------------------------------------


def _points(url: str, trials: int, seed: int = 3, name: str = "s") -> list[tuple[float, float]]:
    search = Search(url, name, search_party.PARAMETERS, seed, "same")
    search.run(trials, search_party.judged, lambda _done, _of: None)
    return [(float(told.values["x"]), float(told.values["y"])) for told in search.ended()]


def test_the_same_seed_proposes_the_same_points_also_in_two_goes(tmp_path: Path) -> None:
    whole = _points(f"sqlite:///{tmp_path / 'a.db'}", 10)
    halves = f"sqlite:///{tmp_path / 'b.db'}"
    assert _points(halves, 6) == whole[:6]
    assert _points(halves, 10) == whole
    assert _points(halves, 10) == whole  # and nothing more is tried
    assert _points(f"sqlite:///{tmp_path / 'c.db'}", 4, seed=4) != whole[:4]
    assert len(set(whole)) == 10


def test_refused_trials_are_kept_with_their_reason(tmp_path: Path) -> None:
    search = Search(f"sqlite:///{tmp_path / 'a.db'}", "s", search_party.PARAMETERS, 3, "same")
    search.run(16, search_party.judged, lambda _done, _of: None)
    refused = [told for told in search.ended() if told.judged is None]
    assert refused
    assert {told.reason for told in refused} == {"too much"}
    assert all(float(told.values["x"]) > 0.9 for told in refused)
    assert len(search.ended()) == 16


def test_another_search_under_the_same_name_and_a_bad_storage_are_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    Search(url, "s", search_party.PARAMETERS, 3, "same")
    with pytest.raises(InputError, match="another space"):
        Search(url, "s", search_party.PARAMETERS, 3, "other")
    with pytest.raises(InputError) as caught:
        Search("postgresql+psycopg://me:secret@127.0.0.1:1/x", "s", search_party.PARAMETERS, 3, "same")
    assert caught.value.code == "search.storage"
    assert "secret" not in caught.value.diagnostics()


def _party(url: str, trials: int, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, search_party.__file__, url, str(trials), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")


@pytest.mark.parametrize("storage", [lambda folder: f"sqlite:///{folder / 'shared.db'}", lambda _folder: postgres_url()],
                         ids=["sqlite", "postgresql"])
def test_two_processes_search_together(tmp_path: Path, storage: Callable[[Path], str]) -> None:
    url = storage(tmp_path)
    Search(url, "party", search_party.PARAMETERS, 3, "same")  # the tables are there before the two begin
    parties = [_party(url, 12, 0.2) for _ in range(2)]
    for party in parties:
        _, said = party.communicate(timeout=120)
        assert party.returncode == 0, said
    ended = Search(url, "party", search_party.PARAMETERS, 3, "same").ended()
    assert len(ended) == 12
    assert len({tuple(told.values.values()) for told in ended}) == 12


@pytest.mark.slow
def test_a_trial_whose_process_was_killed_is_done_by_the_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    Search(url, "party", search_party.PARAMETERS, 3, "same")
    doomed = _party(url, 6, 600.0)
    deadline = time.monotonic() + 60
    while not Search(url, "party", search_party.PARAMETERS, 3, "same").begun():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    doomed.kill()
    doomed.communicate(timeout=60)
    other = _party(url, 6, 0.0)
    _, said = other.communicate(timeout=180)
    assert other.returncode == 0, said
    assert len(Search(url, "party", search_party.PARAMETERS, 3, "same").ended()) == 6


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_search_writes_the_best_recipe_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "colours.onnx").write_bytes(tiny_models.classifier(("n", 3, "h", "w"), opset=12).SerializeToString())
    data_folders.colour_classes(tmp_path / "data")
    (tmp_path / "s.toml").write_text('[[stage]]\nkind = "quantize"\ncalibrator = { choices = ["minmax", "entropy"] }\nimages = 4\n')

    def run(trials: int) -> dict[str, Any]:
        done = CliRunner().invoke(app, [
            "search", str(tmp_path / "colours.onnx"), "--space", str(tmp_path / "s.toml"), "--data", str(tmp_path / "data"), "--out",
            str(tmp_path / "found"), "--target", "orin-nano", "--shape", "1x3x16x16", "--mean", "0", "--std", "1", "--trials", str(trials),
            "--threads", "1", "--json"])
        assert done.exit_code == 0, done.output
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    told = run(2)
    assert told["origin"] == "floor"
    assert [trial["number"] for trial in told["trials"]] == [0, 1]
    best = next(trial for trial in told["trials"] if trial["number"] == told["best"])
    assert best["candidate"] == "int8@tensorrt:int8"
    assert best["latency"] < 1.0  # the floor in int8 is under the floor in fp32
    assert best["on_front"]
    recipe = msgspec.convert(tomllib.loads(Path(told["recipe"]).read_text()), RecipeFile)
    assert recipe.stage == (Quantize(calibrator=best["values"]["stage1.quantize.calibrator"], images=4),)
    again = run(3)
    assert again["trials"][:2] == told["trials"]
    assert len(again["trials"]) == 3


@pytest.mark.slow
def test_a_search_over_stages_of_a_torch_model_prunes_what_the_guard_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glyphs.glyph_folder(tmp_path / "data", 150, 1)
    monkeypatch.setenv("GLYPH_WEIGHTS", str(glyphs.trained(tmp_path / "first.pt")))
    (tmp_path / "s.toml").write_text(
        'max_drop = 4.0\n[training]\nbatch = 32\n[[stage]]\nkind = "prune"\nratio = { choices = [0.2, 0.95] }\nround_to = 4\n'
        'epochs = 1\n[[stage]]\nkind = "quantize"\n')
    done = CliRunner().invoke(app, [
        "search", "glyphs:make", "--space", str(tmp_path / "s.toml"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "found"),
        "--target", "orin-nano", "--shape", "1x3x24x24", "--mean", "0", "--std", "1", "--trials", "6", "--threads", "1", "--json"])
    assert done.exit_code == 0, done.output
    trials = json.loads(done.stdout)["trials"]
    kept = [trial for trial in trials if trial["refused"] is None]
    assert kept
    assert all(trial["latency"] < 1.0 and trial["drop"] <= 4.0 for trial in kept)
    assert all("prune" in trial["refused"] for trial in trials if trial["refused"] is not None)
    recipe = read_recipe(str(tmp_path / "found" / "best.toml"))
    assert isinstance(recipe.stage[0], Prune)
    assert recipe.training.batch == 32
