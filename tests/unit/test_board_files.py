"""Int8 files that only some targets want, calibration caches of TensorRT, and counts of nodes and kernels."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_models
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.errors import InputError
from jetfleet_host.boards import load_board
from jetfleet_host.compress.board_files import dynamic_int8, layouts_for
from jetfleet_host.compress.calibration import Range, ScaleTable
from jetfleet_host.compress.calibration_cache import cached_scales, check_names
from jetfleet_host.compress.equality import outputs_of, relative_error
from jetfleet_host.compress.fused import count_graph, count_groups
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import serialized, write_model


@pytest.mark.parametrize(("targets", "layouts"), [
    (("cpu-arm64",), ("qdq-arm",)), (("cpu-x86-avx2",), ("qdq-uint8-narrow",)), (("cpu-x86-vnni", "cpu-x86-amx", "cpu-x86"), ()),
    (("orin-nano", "x86-gpu"), ()), (("cpu-x86-avx2", "orin-nano", "cpu-arm64"), ("qdq-arm", "qdq-uint8-narrow"))])
def test_layouts_follow_the_targets_board_files(targets: tuple[str, ...], layouts: tuple[str, ...]) -> None:
    assert layouts_for([load_board(name) for name in targets]) == layouts


def test_the_dynamic_file_quantizes_products_alone(tmp_path: Path) -> None:
    net = tiny_models.Net()
    net.node("GlobalAveragePool", [net.conv("x", "c", 3, 32)], "mean")
    net.node("Flatten", ["mean"], "flat")
    net.node("Gemm", ["flat", net.constant("w", net.rng.normal(size=(32, 24)).astype(np.float32))], "y")
    model = net.model("y")
    handle = write_model(tmp_path / "m.onnx", serialized(model))
    data = dynamic_int8(handle)
    assert data is not None
    made = onnx.load_model_from_string(data)
    kinds = {node.op_type for node in made.graph.node}
    assert "DynamicQuantizeLinear" in kinds
    assert "Conv" in kinds
    images = [np.random.default_rng(1).normal(size=(1, 3, 16, 16)).astype(np.float32)]
    assert 0.0 < relative_error(outputs_of(model, images)[0][0], outputs_of(made, images)[0][0]) < 0.03
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_there_is_no_dynamic_file_without_products(tmp_path: Path) -> None:
    assert dynamic_int8(write_model(tmp_path / "m.onnx", serialized(tiny_models.residual()))) is None


def _cache(tmp_path: Path, *lines: str, header: str = "TRT-8503-EntropyCalibration2") -> Path:
    path = tmp_path / "model.cache"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def _hex(scale: float) -> str:
    return struct.pack("!f", scale).hex()


@given(st.dictionaries(st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=20),
                       st.floats(2.0**-20, 1e4, width=32), max_size=8))
def test_a_cache_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, scales: dict[str, float]) -> None:
    path = _cache(tmp_path_factory.mktemp("cache"), *(f"{name}: {_hex(scale)}" for name, scale in scales.items()))
    assert cached_scales(path).tensors == scales


def test_cached_scales_replace_calibrated_ones_and_the_rest_is_kept(tmp_path: Path) -> None:
    held = cached_scales(_cache(tmp_path, "(Unnamed Layer* 3) [Convolution]_output: 3c000000", "skip: 3d000000", "zeros: 00000000"))
    table = ScaleTable({"skip": Range(0.0, 9.0, 9.0), "other": Range(-1.0, 1.0, 1.0)}, 4, 100.0)
    check_names(held, table, "model.cache")
    mixed = held.over(table)
    assert mixed.scale("skip") == np.float32(2.0**-5)
    assert mixed.scale("other") == table.scale("other")
    assert "zeros" not in held.tensors
    assert held.origin == "model.cache (TRT-8503-EntropyCalibration2)"


@pytest.mark.parametrize(("lines", "header", "where"), [
    ((), "", "line 1"), ((), "ONNX", "line 1"), (("x: 3c00",  "y 3c000000"), "TRT-8503-EntropyCalibration2", "line 3"),
    (("x: 3g000000",), "TRT-10300-MinMaxCalibration", "line 2"), (("x: 7f800000",), "TRT-8503-EntropyCalibration2", "line 2"),
    (("x: bf800000",), "TRT-8503-EntropyCalibration2", "line 2"), (("x: 3c0000001",), "TRT-8503-EntropyCalibration2", "line 2")])
def test_a_malformed_cache_names_its_line(lines: Any, header: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        cached_scales(_cache(tmp_path, *lines, header=header))
    assert caught.value.code == "build.scales-file"
    assert where in caught.value.where


def test_a_cache_that_is_missing_or_of_another_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        cached_scales(tmp_path / "none.cache")
    with pytest.raises(InputError) as caught:
        check_names(cached_scales(_cache(tmp_path, "a: 3c000000")), ScaleTable({"b": Range(0.0, 1.0, 1.0)}, 1, 100.0), "model.cache")
    assert caught.value.code == "build.scales-names"


def test_groups_and_kernels_of_a_residual_block(tmp_path: Path) -> None:
    """Four convolutions; each takes what is behind it along: ReLU, or the Add with its ReLU."""
    model = tiny_models.residual()
    assert count_groups(GraphView(model)) == 4
    count = count_graph(write_model(tmp_path / "m.onnx", serialized(model)))
    assert (count.nodes, count.groups) == (8, 4)
    assert 4 <= count.kernels <= 8
