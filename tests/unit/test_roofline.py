"""The roofline: by hand on small layers, never above published figures, apart from measurements in the report."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_contract.boards import BackendRule, BoardFile, Gpu, PowerMode
from jetfleet_contract.errors import InputError
from jetfleet_contract.roofline import BYTES_OF, Layer, Work, floor

onnx = pytest.importorskip("onnx")

from jetfleet_host.boards import board_names, load_board  # noqa: E402
from jetfleet_host.network_work import work_of  # noqa: E402

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def board(l2_kb: int | None = 1, tensor: tuple[str, ...] = ("fp16", "int8"), **mode: Any) -> tuple[BoardFile, PowerMode]:
    one = PowerMode("m", **{"memory_gb_s": 100.0, "dense_tops": {"fp16": 1.0, "int8": 2.0}, **mode})
    gpu = Gpu("a GPU", "8.7", l2_kb=l2_kb, hardware=("fp32", "fp16", "int8"), tensor_precisions=tensor)  # type: ignore[arg-type]
    made = BoardFile("b", "b", "aarch64", "a board", "agent", (BackendRule("tensorrt", ("fp16",)),), gpu=gpu, power_modes=(one,))
    return made, one


def test_a_layer_bound_by_operations_by_hand() -> None:
    work = Work((Layer("a", macs=500_000_000, weights=1000, inside=(10,), outside=10),), 10, 10)
    found = floor(work, *board(), "fp16")
    assert found is not None
    # 1e9 operations at 1e12 a second are 1 ms; memory moves 2000 bytes meanwhile
    assert found.ms == found.whole_ms == pytest.approx(1.0)
    assert found.bound == "operations"


def test_a_layer_bound_by_memory_by_hand() -> None:
    work = Work((Layer("a", macs=1000, weights=50_000_000, inside=(1_000_000,), outside=10),), 1_000_000, 10)
    found = floor(work, *board(), "int8")
    assert found is not None
    # 50e6 weights, 1e6 inputs and 10 outputs at 1e11 bytes a second, less 1024 bytes that may be in L2 already
    assert found.ms == pytest.approx((50e6 + 1e6 + 10 - 1024) / 1e11 * 1e3)
    assert found.bound == "memory"


def test_what_fits_into_l2_costs_no_memory() -> None:
    work = Work((Layer("a", 1000, 100_000, (300_000,), 300_000),), 300_000, 300_000)
    small, large = floor(work, *board(l2_kb=1), "int8"), floor(work, *board(l2_kb=2048), "int8")
    assert small is not None
    assert large is not None
    assert large.ms < small.ms
    assert large.ms == pytest.approx(1e3 * 2000 / 2e12)  # nothing but the operations


def test_without_tensor_cores_a_3x3_convolution_may_be_winograd() -> None:
    work = Work((Layer("a", 500_000_000, 10, (10,), 10, winograd=True),), 10, 10)
    direct, winograd = floor(work, *board(), "fp16"), floor(work, *board(tensor=()), "fp16")
    assert direct is not None
    assert winograd is not None
    assert direct.ms == pytest.approx(4.0 * winograd.ms)


def test_unknown_figures_lower_the_floor_or_leave_it_out() -> None:
    work = Work((Layer("a", 500_000_000, 500_000_000, (10,), 10),), 10, 10)
    full, without_l2 = floor(work, *board(), "fp16"), floor(work, *board(l2_kb=None), "fp16")
    assert full is not None
    assert without_l2 is not None
    assert without_l2.ms < full.ms
    assert floor(work, *board(l2_kb=None, dense_tops={}), "fp16") is None
    assert floor(work, *board(), "int4") is None


@given(layers=st.lists(st.builds(Layer, st.just("n"), st.integers(0, 10**10), st.integers(0, 10**8),
                                 st.lists(st.integers(0, 10**8), max_size=2).map(tuple), st.integers(0, 10**8), st.booleans()), max_size=6),
       l2=st.integers(32, 40_000))
def test_a_floor_is_above_its_parts_and_falls_with_a_better_board(layers: list[Layer], l2: int) -> None:
    work = Work(tuple(layers), 100, 100)
    for precision in ("fp16", "int8"):
        found = floor(work, *board(l2_kb=l2), precision)
        better = floor(work, *board(l2_kb=l2, memory_gb_s=200.0, dense_tops={"fp16": 2.0, "int8": 4.0}), precision)
        assert found is not None
        assert better is not None
        assert found.ms >= found.whole_ms >= 0
        assert better.ms <= found.ms * (1 + 1e-9)


def test_every_board_with_a_peak_gives_a_floor_and_every_precision_has_a_width() -> None:
    work = Work((Layer("a", 500_000_000, 50_000_000, (10,), 10),), 10, 10)
    for name in board_names():
        one = load_board(name)
        for mode in one.power_modes:
            for precision in mode.dense_tops:
                assert precision in BYTES_OF
                found = floor(work, one, mode, precision)
                assert found is not None
                assert found.ms > 0


# --- the graph --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_roofline", BENCHMARKS / "roofline.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(("network", "gmacs", "mweights"), [
    ("ResNet-50", 4.09, 25.5), ("MobileNetV2", 0.30, 3.47), ("YOLO11n", 3.27, 2.6), ("YOLO11s", 10.8, 9.4)])
def test_networks_have_the_work_that_their_papers_say(benchmark: Any, network: str, gmacs: float, mweights: float) -> None:
    work = work_of(benchmark.NETWORKS[network]())
    assert work.macs / 1e9 == pytest.approx(gmacs, rel=0.02)
    assert work.weights / 1e6 == pytest.approx(mweights, rel=0.02)


def test_no_floor_is_above_a_published_figure(benchmark: Any) -> None:
    rows = benchmark.rows()
    assert len(rows) == len(benchmark.PUBLISHED) > 20
    assert [row for row in rows if row["floor_ms"] >= row["ms"]] == []
    assert min(row["ratio"] for row in rows) > 1.2
    assert max(row["ratio"] for row in rows) < 60  # a floor near zero would pass as well, and say nothing
    assert json.loads((BENCHMARKS / "results/roofline.json").read_text()) == rows


def conv_model(batch: int | str, side: int | str, quantized: bool) -> Any:
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.int8 if quantized else np.float32), "w")
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")
    nodes = [helper.make_node("Conv", ["xd" if quantized else "x", "wd" if quantized else "w"], ["y"], name="only", pads=[1] * 4)]
    if quantized:
        nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
                 helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
                 helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]), *nodes]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 8, side, side])], [weight, scale, zero])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("batch", [1, "N"])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_convolution_is_counted_through_qdq_and_a_free_batch(batch: int | str, quantized: bool) -> None:
    work = work_of(conv_model(batch, 16, quantized))
    assert work.layers == (Layer("only", 16 * 16 * 8 * 27, 8 * 27, (3 * 256,), 8 * 256, True),)
    assert (work.inputs, work.outputs) == (3 * 256, 8 * 256)


def test_free_sides_name_the_node_and_a_file_that_is_no_model_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        work_of(conv_model("N", "S", False))
    assert caught.value.code == "roofline.shape"
    assert "'only'" in caught.value.what
    (tmp_path / "x.onnx").write_bytes(b"no model at all")
    with pytest.raises(InputError) as caught:
        work_of(tmp_path / "x.onnx")
    assert caught.value.code in ("roofline.model", "roofline.shape")
