"""Zeros in the weights, in their pattern, kept through tuning; dense convolutions in two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from float_worlds import BareParameters, DigitNet, accuracy, seeded, workshop
from torch import nn

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.floating.channel_groups import macs
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.floating.separate import separated
from jetfleet_host.compress.floating.sparsify import two_of_four
from jetfleet_host.compress.recipe_file import Separate, Sparsify, Tune


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    config = Tune(epochs=4)
    return stage_for(config)(seeded(DigitNet), config, workshop(tmp_path_factory.mktemp("trained")))


def in_fours(weight: torch.Tensor) -> torch.Tensor:
    """Zeros in each run of four input channels."""
    runs = weight.detach().movedim(1, -1).reshape(-1, 4)
    return (runs == 0).sum(1)


def test_two_of_four_are_zero_after_tuning_in_layers_of_whole_runs_alone(trained: nn.Module, tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    config = Sparsify(pattern="2:4", epochs=2)
    after = stage_for(config)(trained, config, shop)
    assert (in_fours(after.blocks[0].conv1.weight) == 2).all()
    assert (in_fours(after.head.weight) == 2).all()
    assert (after.stem[0].weight != 0).all(), "one input channel is no run of four"
    assert accuracy(after, shop.validation).mean() > 0.95 * accuracy(trained, shop.validation).mean()


def test_the_two_that_stay_are_the_larger_ones() -> None:
    layer = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1, -3.0, 2.0, 0.2, 5.0, 4.0, -4.5, 0.0]]))
    masks = two_of_four(layer)
    assert masks.masks[""].tolist() == [[0, 1, 1, 0, 1, 0, 1, 0]]


@pytest.mark.parametrize("steps", [1, 2])
def test_the_smallest_weights_of_all_layers_are_zero_after_tuning(trained: nn.Module, tmp_path: Path, steps: int) -> None:
    config = Sparsify(pattern="unstructured", ratio=0.6, steps=steps, epochs=1)
    after = stage_for(config)(trained, config, workshop(tmp_path))
    weights = torch.cat([m.weight.detach().reshape(-1) for m in after.modules() if isinstance(m, (nn.Conv2d, nn.Linear))])
    assert float((weights == 0).float().mean()) == pytest.approx(0.6, abs=0.001)


def test_a_model_that_cannot_take_the_pattern_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        stage_for(Sparsify())(BareParameters(), Sparsify(), workshop(tmp_path))
    assert caught.value.code == "build.sparsify"


def test_a_kernel_that_is_a_product_is_separated_exactly() -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(6, 5, 3, stride=2, padding=1)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(5, 6, 1, 1) * torch.randn(1, 6, 3, 3))
    image = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(separated(dense)(image), dense(image), rtol=1e-4, atol=1e-5)


def test_the_pair_is_nearer_to_the_dense_kernel_than_the_kernel_s_mean_over_outputs() -> None:
    torch.manual_seed(1)
    dense = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    pair = separated(dense)
    product = pair[1].weight * pair[0].weight[:, 0][None]
    mean = dense.weight.mean(0, keepdim=True).expand_as(dense.weight)
    assert (product - dense.weight).square().sum() < (mean - dense.weight).square().sum()


def test_separation_saves_and_the_network_learns_again(trained: nn.Module, tmp_path: Path) -> None:
    shop = workshop(tmp_path)
    config = Separate(share=0.5, epochs=4)
    after = stage_for(config)(trained, config, shop)
    assert macs(after, shop.shape) < 0.75 * macs(trained, shop.shape)
    assert accuracy(after, shop.validation).mean() > 0.9


def test_a_model_of_pointwise_layers_has_nothing_to_separate(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        stage_for(Separate())(nn.Sequential(nn.Conv2d(1, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), Separate(), workshop(tmp_path))
    assert caught.value.code == "build.separate"
