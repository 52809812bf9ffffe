"""The search for the int8 layers: which rungs are tried, and what is given back after the first that passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models

from jetfleet_host.compress.calibration import Range, ScaleTable
from jetfleet_host.compress.checkpoints import Checkpoints
from jetfleet_host.compress.handles import ModelHandle, serialized, write_model
from jetfleet_host.compress.quantizing import Twins, search_twins
from jetfleet_host.compress.sensitivity import LADDER, LayerNoise, kept_layers

_LAYERS = 12
# Each layer is noisier than the one before: the ladder takes them away from the end.
_NOISE = tuple(LayerNoise(f"c{index}", 0.01 * 1.5**index, 1000) for index in range(_LAYERS))


def _chain(folder: Path) -> ModelHandle:
    net = tiny_models.Net()
    source = "x"
    for index in range(_LAYERS):
        source = net.conv(source, f"c{index}", 3 if index == 0 else 4, 4)
    return write_model(folder / "chain.onnx", serialized(net.model(source)))


def _search(folder: Path, most: int) -> tuple[Twins | None, list[int]]:
    """A guard that accepts files of at most `most` int8 layers, counted in the files themselves."""
    asked: list[int] = []

    def guard(int8: ModelHandle, uint8: ModelHandle) -> bool:
        layers = [sum(tensor.name.endswith(".weight8") for tensor in handle.load().graph.initializer) for handle in (int8, uint8)]
        assert layers[0] == layers[1]
        asked.append(layers[0])
        return bool(layers[0] <= most)

    table = ScaleTable({name: Range(-1.0, 1.0, 1.0) for name in ("x", *(f"c{index}" for index in range(_LAYERS)))}, 1, 100.0)
    return search_twins(_chain(folder), lambda _layers: table, _NOISE, Checkpoints(folder / "cache"), guard, lambda *_: None), asked


@pytest.mark.parametrize("most", range(1, _LAYERS + 1))
def test_what_passes_is_kept_and_nothing_is_tried_twice(most: int, tmp_path: Path) -> None:
    rungs = [len(kept_layers(_NOISE, share)) for share in LADDER]
    found, asked = _search(tmp_path, most)
    assert found is not None
    assert len(asked) == len(set(asked)) <= len(LADDER) + 2
    accepted = [count for count in asked if count <= most]
    assert found.passed == bool(accepted)
    assert found.kept == (max(accepted) if accepted else rungs[-1])
    assert list(found.names) == [f"c{index}" for index in range(found.kept)]


def test_layers_between_two_rungs_come_back(tmp_path: Path) -> None:
    coarse, fine = (len(kept_layers(_NOISE, share)) for share in (LADDER[0], LADDER[-1]))
    gains: list[int] = []
    for most in range(fine, coarse):
        found, _ = _search(tmp_path / str(most), most)
        assert found is not None
        rung = max(len(kept_layers(_NOISE, share)) for share in LADDER if len(kept_layers(_NOISE, share)) <= most)
        gains.append(found.kept - rung)
    assert min(gains) >= 0
    assert max(gains) > 0
