"""Structured pruning: what goes together goes together, outputs stay, and what cannot be pruned is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float_worlds import BareParameters, DigitNet, FixedSizes, GroupedNet, ThreeColours, accuracy, seeded, workshop
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.floating.allocation import Sensitivity, Stock, by_importance, by_sensitivity
from jetfleet_host.compress.floating.channel_groups import macs
from jetfleet_host.compress.floating.epoch_state import weights_digest
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.recipe_file import Prune, Qat, Tune

SHAPE = (1, 1, 8, 8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    config = Tune(epochs=4)
    return stage_for(config)(seeded(DigitNet), config, workshop(tmp_path_factory.mktemp("trained")))


def pruned(model: nn.Module, folder: Path, **config: Any) -> nn.Module:
    stage = Prune(**{"ratio": 0.5, "round_to": 4, "epochs": 0, **config})
    return stage_for(stage)(model, stage, workshop(folder))


def convolutions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("importance", ["l1", "taylor", "bn-scale"])
@pytest.mark.parametrize("scope", ["global", "by-layer"])
def test_half_of_the_channels_go_in_whole_tiles_and_the_classes_stay(trained: nn.Module, tmp_path: Path, importance: str,
                                                                     scope: str) -> None:
    after = pruned(trained, tmp_path, importance=importance, scope=scope)
    widths = [conv.out_channels for conv in convolutions(after)]
    assert all(width % 4 == 0 for width in widths)
    assert 3 * 16 * 0.4 <= widths[0] + widths[1] + widths[3] <= 3 * 16 * 0.7  # stem (with both skips) and two inner ones
    assert after(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert macs(after, SHAPE) < 0.7 * macs(trained, SHAPE)
    assert [conv.out_channels for conv in convolutions(trained)] == [16] * 5, "the model that came in was changed"


def test_tuning_between_the_steps_brings_the_metric_back(trained: nn.Module, tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    config = Prune(ratio=0.5, round_to=4, steps=2, epochs=4)
    after = stage_for(config)(trained, config, shop)
    assert accuracy(after, shop.validation).mean() > 0.95 * accuracy(trained, shop.validation).mean()


def test_same_seed_same_pruned_weights(trained: nn.Module, tmp_path: Path) -> None:
    digests = {weights_digest(pruned(trained, tmp_path / name, importance="taylor", epochs=1)) for name in ("a", "b")}
    assert len(digests) == 1


def test_an_ignored_module_keeps_its_channels_with_all_that_is_in_it(trained: nn.Module, tmp_path: Path) -> None:
    after = pruned(trained, tmp_path, ignore=("blocks.0",))
    assert after.blocks[0].conv1.out_channels == 16
    assert after.stem[0].out_channels == 16, "the skip ties the stem to the block"
    assert after.blocks[2].conv1.out_channels < 16


def test_an_ignored_name_that_is_nowhere_is_said(trained: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'block9'") as caught:
        pruned(trained, tmp_path, ignore=("block9",))
    assert caught.value.code == "build.prune"


def test_a_graph_that_breaks_without_its_channels_names_the_operation(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"y\.view\(y\.shape\[0\], 16, 64\)") as caught:
        pruned(FixedSizes(), tmp_path, ratio=0.6)
    assert caught.value.code == "build.prune"
    assert "float_worlds.py" in caught.value.where


def test_a_model_that_does_not_run_names_the_module(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"conv \(Conv2d\)") as caught:
        pruned(ThreeColours(), tmp_path)
    assert caught.value.code == "build.prune"


def test_a_model_without_layers_has_nothing_to_prune(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no channels that could be removed") as caught:
        pruned(BareParameters(), tmp_path)
    assert caught.value.code == "build.prune"


def test_bn_scale_without_batch_norm_is_said(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 6), nn.Flatten())
    with pytest.raises(InputError, match="no batch norm"):
        pruned(net, tmp_path, importance="bn-scale")


def test_grouped_and_depthwise_convolutions_and_concatenations_are_pruned_together(tmp_path: Path) -> None:
    after = pruned(seeded(GroupedNet), tmp_path, ratio=0.4)
    assert after(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert after.grouped.groups == 4
    assert after.grouped.in_channels % 4 == 0
    assert after.depthwise.groups == after.depthwise.in_channels == after.stem.out_channels
    assert after.point.in_channels == after.depthwise.out_channels + after.grouped.out_channels < 32


stocks = st.lists(st.tuples(st.integers(4, 64), st.sampled_from([1, 1, 2, 4]), st.integers(0, 2**31)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(stocks, st.floats(0.0, 0.9), st.sampled_from([1, 4, 8]))
def test_no_group_is_emptied_and_no_more_is_removed_than_was_asked_for(sizes: list[tuple[int, int, int]], ratio: float, tile: int) -> None:
    given_stocks = [Stock(str(n), units, sets, np.random.default_rng(seed).random(units)) for n, (units, sets, seed) in enumerate(sizes)]
    counts = by_importance(given_stocks, ratio, tile)
    whole = sum(stock.original * stock.sets for stock in given_stocks)
    assert sum(count * stock.sets for count, stock in zip(counts, given_stocks, strict=True)) <= ratio * whole + 1e-9
    for stock, count in zip(given_stocks, counts, strict=True):
        assert 0 <= count < stock.present
        assert not count or (stock.present - count) * stock.sets % tile == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.01, 5.0), st.floats(0.01, 5.0)), min_size=2, max_size=6), st.floats(0.1, 0.7))
def test_what_hurts_more_loses_less(rises: list[tuple[float, float, float]], ratio: float) -> None:
    seen = [Sensitivity((0.0, 0.25, 0.5, 0.75), (0.0, *np.cumsum(rise))) for rise in rises]
    counts = by_sensitivity([Stock(str(n), 1000, 1, np.ones(1000)) for n in range(len(seen))], seen, ratio, 1.0, 1)
    assert sum(counts) / (1000 * len(seen)) == pytest.approx(ratio, abs=0.02)
    for one, other in zip(range(len(seen)), range(1, len(seen)), strict=False):
        if all(a > b for a, b in zip(seen[one].rises[1:], seen[other].rises[1:], strict=True)):
            assert counts[one] <= counts[other]


def test_a_network_that_trained_with_quantization_can_be_pruned_after_it(trained: nn.Module, tmp_path: Path) -> None:
    quantized = stage_for(Qat())(trained, Qat(epochs=0), workshop(tmp_path / "qat"))
    after = pruned(quantized, tmp_path / "prune", epochs=1)
    assert macs(after, SHAPE) < 0.7 * macs(trained, SHAPE)
    again = stage_for(Qat())(after, Qat(epochs=0), workshop(tmp_path / "again"))
    assert again(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
