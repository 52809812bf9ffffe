"""TensorRT on a real GPU: a tiny network against ONNX Runtime, and the graph against the plain order. Run by `make test-board`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_network import SHAPE, tiny

from jetfleet_agent.backend_probe import facts_of
from jetfleet_agent.pipeline.backends import Backend, open_backend
from jetfleet_contract.errors import IncompatibleError

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """The backend, activated, and the file; skipped by name where its module is not installed."""
    path = tiny(tmp_path / "tiny.onnx")
    backend = open_backend(request.param, path, precision="fp32", threads=0, input_shape=SHAPE, lanes=2)
    try:
        backend.activate()
    except IncompatibleError as error:
        if error.code != "backend.missing":
            raise
        pytest.skip(error.what)
    yield backend, path
    backend.deactivate()


def test_the_engine_gives_what_onnx_runtime_gives(opened: tuple[Backend, Path]) -> None:
    backend, path = opened
    frames = np.random.default_rng().normal(size=(2, *SHAPE)).astype(np.float32)
    with open_backend("onnxruntime", path, precision="fp32", threads=1, input_shape=SHAPE) as oracle:
        for lane, frame in zip(backend.lanes, frames, strict=True):
            lane.tensor[...] = frame
            oracle.lanes[0].tensor[...] = frame
            np.testing.assert_allclose(backend.infer(lane)[0], oracle.infer(oracle.lanes[0])[0], atol=1e-4, rtol=1e-4)


def test_an_engine_that_was_written_is_loaded_again_and_says_the_same(opened: tuple[Backend, Path], tmp_path: Path) -> None:
    backend, path = opened
    engine = backend.export(tmp_path / "tiny.engine")
    backend.lanes[0].tensor[...] = np.random.default_rng().normal(size=SHAPE)
    said = backend.infer(backend.lanes[0])[0].copy()
    with open_backend(backend.name, path, precision="fp32", threads=0, input_shape=SHAPE, engine=engine) as again:
        again.lanes[0].tensor[...] = backend.lanes[0].tensor
        np.testing.assert_array_equal(again.infer(again.lanes[0])[0], said)


def test_a_second_build_reads_the_timings_of_the_first(opened: tuple[Backend, Path], tmp_path: Path) -> None:
    backend, path = opened
    if backend.name != "tensorrt":
        pytest.skip("TensorRT for RTX measures no kernels")
    timing = tmp_path / "kernels.timing"
    for _ in range(2):
        with open_backend("tensorrt", path, precision="fp32", threads=0, input_shape=SHAPE, timing=timing) as built:
            assert built.lanes
        assert timing.stat().st_size > 0


def test_what_the_probe_says_is_what_an_engine_is_bound_to(opened: tuple[Backend, Path]) -> None:
    facts = facts_of(opened[0].name)
    assert (facts.missing, facts.build.count(".")) == ("", 3)
    assert facts.gpu is not None
    assert facts.gpu.sm >= 70
    assert facts.gpu.sm_count > 0


def test_the_graph_gives_what_the_plain_order_gives(opened: tuple[Backend, Path]) -> None:
    backend, _ = opened
    lane = backend.lanes[0]
    if lane.binding.graph is None:
        pytest.skip("no graph could be captured here; the log says why")
    lane.tensor[...] = np.random.default_rng().normal(size=SHAPE)
    graphed = backend.infer(lane)[0].copy()
    lane.outputs[0][...] = 0
    graph, lane.binding.graph = lane.binding.graph, None
    plain = backend.infer(lane)[0].copy()
    lane.binding.graph = graph
    np.testing.assert_array_equal(graphed, plain)


def test_period_against_the_engine_alone(opened: tuple[Backend, Path], record_property: Any) -> None:
    """Written down, not judged: the tiny network is all overhead. A real network's figure is `jetfleet-agent bench`'s."""
    backend, _ = opened
    lane = backend.lanes[0]
    whole = _median_ms(lambda: backend.infer(lane))

    def engine() -> None:
        lane.binding.context.execute_async_v3(lane.binding.stream)
        lane.binding.cuda.wait(lane.binding.stream)

    alone = _median_ms(engine)
    record_property("period_over_engine", round(whole / alone, 3))
    assert whole > 0


def _median_ms(work: Callable[[], object]) -> float:
    took = []
    for _ in range(200):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)
