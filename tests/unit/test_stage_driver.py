"""Stages of a recipe one after another: what passes stays, what fails is made gentler or left out, what was done is not done again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from float_worlds import PlainNet, digits, seeded, workshop

from jetfleet_contract.errors import InputError, RuntimeFailure
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.recipe_file import FloatStageConfig, Prune, Sparsify, Tune
from jetfleet_host.compress.stage_driver import StageDriver
from jetfleet_host.compress.stage_records import FloatRun

Stage = Callable[[Any, Any, Workshop], Any]


@cache
def trained() -> Any:
    """A net that knows digits; the same for all tests, which never change it."""
    with TemporaryDirectory() as folder:
        return stage_for(Tune())(seeded(PlainNet), Tune(epochs=3), workshop(Path(folder)))


class Bench:
    """A driver over a trained net of digits, and what its stages were asked."""

    def __init__(self, folder: Path, stage: Stage, max_drop: float = 3.0) -> None:
        self.folder, self.stage, self.max_drop = folder, stage, max_drop
        self.ran: list[FloatStageConfig] = []

    def run(self, *stages: FloatStageConfig) -> tuple[Any, FloatRun]:
        def counted(config: FloatStageConfig) -> Any:
            self.ran.append(config)
            return self.stage

        driver = StageDriver(Checkpoints(self.folder / "cache"), counted, lambda index: workshop(self.folder / f"stage{index}"),
                             self.max_drop, lambda *_: None)
        return driver.run(trained(), stages)


def silencing(model: Any, config: Any, _: Workshop) -> Any:
    """Takes away a share of the hidden channels, those that matter least first, without any tuning: what an absurd ratio does."""
    changed = copy.deepcopy(model)
    if isinstance(config, Tune):
        return changed
    weights = changed.conv.weight.detach()
    gone = weights.abs().sum((1, 2, 3)).argsort()[:round(config.ratio * len(weights))]
    with torch.no_grad():
        changed.conv.weight[gone], changed.conv.bias[gone] = 0.0, 0.0
    return changed


def test_a_stage_that_loses_nothing_stays(tmp_path: Path) -> None:
    module, run = Bench(tmp_path, lambda model, *_: copy.deepcopy(model)).run(Tune(epochs=1))
    assert [stage.ending for stage in run.stages] == ["kept"]
    assert run.metric == run.baseline > 0.8
    assert "is within 3.00" in run.stages[0].reason
    assert len(digits()[1]) == run.samples
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), trained().state_dict().values(), strict=True))


def test_an_absurd_ratio_is_rolled_back_to_a_gentler_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, silencing)
    _, run = bench.run(Sparsify(pattern="unstructured", ratio=0.9))
    (stage,) = run.stages
    assert stage.ending == "gentler"
    assert [round(entry.strength, 3) for entry in stage.tried][:2] == [1.0, 0.5]
    assert 0.0 < max(entry.strength for entry in stage.tried if entry.digest == stage.digest) < 1.0
    assert run.baseline - run.metric <= 0.03
    assert "at its own strength: drop of" in stage.reason


def test_what_has_no_gentle_form_is_left_out_and_the_build_goes_on_from_the_very_same_bytes(tmp_path: Path) -> None:
    _, run = Bench(tmp_path, silencing, max_drop=0.0).run(Tune(epochs=0), Prune(ratio=0.99), Tune(epochs=0))
    assert [stage.ending for stage in run.stages] == ["left-out", "left-out", "left-out"]  # no number of samples proves a drop of 0
    assert "may be on either side" in run.stages[0].reason or "sits on the limit" in run.stages[0].reason
    assert len({stage.digest for stage in run.stages}) == 1
    assert run.metric == run.baseline


def test_a_stage_that_breaks_is_a_reason_and_one_that_blames_the_input_an_error(tmp_path: Path) -> None:
    def diverges(*_: Any) -> Any:
        raise RuntimeFailure("build.diverged", "the loss is NaN in epoch 1")

    _, run = Bench(tmp_path, diverges).run(Tune(epochs=1))
    assert run.stages[0].ending == "left-out"
    assert "build.diverged: the loss is NaN" in run.stages[0].reason

    def refuses(*_: Any) -> Any:
        raise InputError("build.prune", "Reshape cannot be pruned")

    with pytest.raises(InputError, match="Reshape"):
        Bench(tmp_path, refuses).run(Prune())


def test_what_was_done_is_not_done_again_and_a_damaged_checkpoint_is(tmp_path: Path) -> None:
    first = Bench(tmp_path, silencing)
    _, before = first.run(Sparsify(pattern="unstructured", ratio=0.9), Tune(epochs=0))
    again = Bench(tmp_path, silencing)
    again.stage = first.stage
    _, after = again.run(Sparsify(pattern="unstructured", ratio=0.9), Tune(epochs=0))
    assert (after, again.ran) == (before, [])
    for path in (tmp_path / "cache").glob("*.onnx"):
        path.write_bytes(path.read_bytes()[:-1])
    _, third = again.run(Sparsify(pattern="unstructured", ratio=0.9), Tune(epochs=0))
    assert third == before
    assert len(again.ran) == len(first.ran)


def test_real_stages_go_through(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda model, config, workshop: stage_for(config)(model, config, workshop))
    _, run = bench.run(Tune(epochs=1))
    assert run.stages[0].ending == "kept"
    assert run.metric >= run.baseline - 0.03
