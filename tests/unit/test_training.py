"""The trainer under the float stages: same seed, same weights; a killed run goes on; what is wrong is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float_worlds import ArraySplit, DigitNet, PlainNet, accuracy, digits, seeded, workshop
from torch import nn

from jetfleet_contract.errors import InputError, RuntimeFailure
from jetfleet_host.compress.float_stage import Workshop
from jetfleet_host.compress.floating.epoch_state import weights_digest
from jetfleet_host.compress.floating.recomputing import blocks
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.floating.samples import Order
from jetfleet_host.compress.recipe_file import Tune


def tuned(shop: Workshop, epochs: int = 2, model: nn.Module | None = None) -> nn.Module:
    config = Tune(epochs=epochs)
    return stage_for(config)(model or seeded(DigitNet), config, shop)


def test_a_tuned_net_reads_digits_and_the_one_that_came_in_is_left_alone(tmp_path: Path) -> None:
    model = seeded(DigitNet)
    before = weights_digest(model)
    shop = workshop(tmp_path)
    after = tuned(shop, 4, model)
    assert accuracy(after, shop.validation).mean() > 0.9
    assert weights_digest(model) == before


def test_same_seed_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (tuned(workshop(tmp_path / name, seed=seed), 1) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert weights_digest(first) == weights_digest(again) != weights_digest(other)


def test_training_leaves_the_random_numbers_of_its_caller_alone(tmp_path: Path) -> None:
    model = seeded(DigitNet)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tuned(workshop(tmp_path), 1, model)
    assert torch.equal(torch.rand(3), expected)


class _KillError(BaseException):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_killed_run_goes_on_and_ends_with_the_weights_of_one_that_was_not(tmp_path: Path, optimizer: str) -> None:
    whole = tuned(workshop(tmp_path / "whole", optimizer=optimizer), 3)
    steps: list[int] = []

    def killed(what: str, done: int, of: int) -> None:
        if done > of // 2:
            raise _KillError(what)

    with pytest.raises(_KillError):
        tuned(workshop(tmp_path / "killed", progress=killed, optimizer=optimizer), 3)
    resumed = tuned(workshop(tmp_path / "killed", progress=lambda _, done, __: steps.append(done), optimizer=optimizer), 3)
    assert weights_digest(resumed) == weights_digest(whole)
    assert len(steps) == 2 * steps[-1] // 3, "the first epoch ran again"


def test_the_state_of_another_plan_is_not_used(tmp_path: Path) -> None:
    tuned(workshop(tmp_path, seed=1), 1)
    assert weights_digest(tuned(workshop(tmp_path, seed=2), 1)) == weights_digest(tuned(workshop(tmp_path / "new", seed=2), 1))


def test_a_damaged_state_costs_its_epochs_and_nothing_else(tmp_path: Path) -> None:
    first = tuned(workshop(tmp_path), 1)
    (tmp_path / "tune.state").write_bytes(b"PK\x03\x04 half a file")
    assert weights_digest(tuned(workshop(tmp_path), 1)) == weights_digest(first)


def test_divergence_names_epoch_and_step(tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    calls = 0

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return outputs.sum() * (float("nan") if calls == 25 else 1.0)

    with pytest.raises(RuntimeFailure, match=r"epoch 2, step 4") as caught:  # 21 steps an epoch
        tuned(replace(shop, loss=loss), 2)
    assert caught.value.code == "build.diverged"


def test_a_sample_that_is_no_number_is_named(tmp_path: Path) -> None:
    train, _ = digits()
    images = train.images.copy()
    images[17, 0, 3, 3] = np.nan
    with pytest.raises(InputError, match="sample 17") as caught:
        tuned(replace(workshop(tmp_path), train=ArraySplit(images, train.targets)), 1)
    assert caught.value.code == "data.not-finite"


def test_a_label_beyond_the_model_s_classes_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"answers \(64, 7\).* up to 9") as caught:
        tuned(workshop(tmp_path), 1, DigitNet(classes=7))
    assert caught.value.code == "build.loss"


def test_no_samples_is_said(tmp_path: Path) -> None:
    empty = ArraySplit(np.zeros((0, 1, 8, 8), np.float32), np.zeros(0, np.int64))
    with pytest.raises(InputError) as caught:
        tuned(replace(workshop(tmp_path), train=empty), 1)
    assert caught.value.code == "data.empty"


def test_recomputed_activations_change_neither_weights_nor_statistics(tmp_path: Path) -> None:
    plain = tuned(workshop(tmp_path / "plain"), 1)
    recomputed = tuned(workshop(tmp_path / "recomputed", checkpoint_activations=True), 1)
    assert len(blocks(plain)) == 2
    for (name, left), right in zip(plain.state_dict().items(), recomputed.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, msg=name)


def test_loader_workers_and_an_uncached_split_give_the_same_weights(tmp_path: Path) -> None:
    expected = weights_digest(tuned(workshop(tmp_path / "cached"), 1, seeded(PlainNet)))
    for name, workers in (("uncached", 0), ("workers", 2)):
        assert weights_digest(tuned(workshop(tmp_path / name, cache_mb=0, workers=workers), 1, seeded(PlainNet))) == expected


def test_bf16_autocast_trains_float32_weights(tmp_path: Path) -> None:
    shop = workshop(tmp_path, precision="bf16")
    model = tuned(shop, 3)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert accuracy(model, shop.validation).mean() > 0.8


def test_a_trace_opens_in_chrome(tmp_path: Path) -> None:
    tuned(workshop(tmp_path, profile=True), 1)
    trace: dict[str, Any] = json.loads((tmp_path / "tune.trace.json").read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert any("conv" in name for name in names)


def test_progress_ends_at_its_end(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    tuned(workshop(tmp_path, progress=lambda *said: seen.append(said)), 2)
    assert seen[-1] == ("tune: epoch 2 of 2", 42, 42)
    assert [done for _, done, _ in seen] == list(range(1, 43))


@pytest.mark.parametrize(("count", "batch", "world"), [(100, 32, 1), (100, 32, 2), (7, 64, 2), (5, 2, 4)])
def test_ranks_share_out_each_batch_and_take_equal_steps(count: int, batch: int, world: int) -> None:
    ranks = [list(Order(count, batch, seed=3, rank=rank, world=world)) for rank in range(world)]
    assert len({len(steps) for steps in ranks}) == 1
    assert len({len(part) for steps in ranks for part in steps}) == 1
    seen = [index for steps in ranks for part in steps for index in part]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(range(count))


def test_without_torch_a_stage_says_what_to_install() -> None:
    code = ("import sys; sys.modules['torch'] = None\n"
            "from jetfleet_host.compress.floating.registry import stage_for\n"
            "from jetfleet_host.compress.recipe_file import Tune\n"
            "from jetfleet_contract.errors import InputError\n"
            "try: stage_for(Tune())\n"
            "except InputError as error: print(error.code, error.remedy)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.strip() == "build.torch install it: pip install 'jetfleet[compress]'"
