"""Frames on a real GPU: read where they are or copied over, one launch in a captured graph, the engine's input equal to the twin's; then
with TensorRT itself behind it. Run by `make test-board`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_network import SHAPE, tiny

from jetfleet_agent import cubin_files
from jetfleet_agent.pipeline.backends import open_backend
from jetfleet_agent.pipeline.backends.tensorrt_frames import Frames
from jetfleet_agent.pipeline.backends.tensorrt_kernels import Kernels, open_kernels
from jetfleet_agent.pipeline.backends.tensorrt_plan import Port
from jetfleet_agent.pipeline.cuda import open_cuda
from jetfleet_agent.pipeline.cuda.port import Cuda, page_aligned
from jetfleet_agent.pipeline.kernel_twin import new_tensor, preprocess
from jetfleet_agent.pipeline.pool import FramePool
from jetfleet_agent.pipeline.preprocess import Image, Preprocessor
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.errors import IncompatibleError, RuntimeFailure
from jetfleet_contract.kernel_arguments import sampling
from jetfleet_host.kernels.building import build, open_compiler
from jetfleet_host.kernels.targets import chosen
from jetfleet_host.kernels.toolchains import default_cache

pytestmark = pytest.mark.gpu
SPEC = InputSpec("x", 96, 64, color="rgb", resize="letterbox", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), input_scale=1 / 32)
SIZES = ((1920, 1080), (640, 480), (101, 77), (1920, 1080))
APART = {"float32": 1e-6, "float16": 2e-3, "int8": 1}


@pytest.fixture(scope="module")
def cuda() -> Iterator[Cuda]:
    opened = open_cuda()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def wheel(cuda: Cuda, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cubins for this GPU, as the device's wheel has it."""
    folder = tmp_path_factory.mktemp("wheel")
    targets = [one for one in chosen((cuda.sm,)) if one.cuda <= cuda.cuda]
    build(folder, targets, lambda major: open_compiler(major, default_cache(), True, print), print)
    return folder


@pytest.fixture
def here(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin_files, "IN_WHEEL", wheel)


def noise(size: tuple[int, int]) -> Image:
    return np.random.default_rng().integers(0, 256, (size[1], size[0], 3), np.uint8)


def by_twin(kernels: Kernels, images: list[Image]) -> Any:
    fold = kernels.launch.fold
    out = new_tensor(len(images), fold.rules, fold.kernel.layout, fold.kernel.type)
    for tensor, image in zip(out, images, strict=True):
        height, width = image.shape[:2]
        where, rows = sampling(SPEC, width, height, SPEC.resize), np.ascontiguousarray(image).reshape(height, -1)
        preprocess((rows,), "bgr", where, fold.rules, tensor, fold.kernel.layout, fold.kernel.type)
    return out


def captured(cuda: Cuda, frames: Frames, stream: int) -> Any:
    """The launch as a graph; None where the binding captures none."""
    frames.stage(stream)
    frames.enqueue(stream)
    cuda.wait(stream)
    try:
        cuda.begin_capture(stream)
    except RuntimeFailure:
        return None
    frames.enqueue(stream)
    return cuda.end_capture(stream)


@pytest.mark.parametrize("dtype", APART)
@pytest.mark.parametrize("shape", [(2, 3, 64, 96), (2, 64, 96, 3)])
@pytest.mark.usefixtures("here")
def test_one_graph_makes_the_input_of_frames_of_every_size(cuda: Cuda, shape: tuple[int, ...], dtype: str) -> None:
    cuda.enter()
    kernels = open_kernels(cuda, SPEC, Port("x", shape, dtype), None)
    frames, stream, pool = Frames(cuda, kernels.launch, SPEC, page_aligned((2, 3, 64, 96), np.float32)), cuda.stream(), FramePool()
    got = page_aligned(shape, dtype)
    cuda.pin(got)
    address = frames.open()
    graph = captured(cuda, frames, stream)
    for first, second in itertools.pairwise(SIZES):
        pooled, stray = pool.take(first[1], first[0]), noise(second)
        pooled[...] = noise(first)
        pair = [pooled[10:, 6:], stray]  # a tile of the pool's memory, and memory of somebody else's
        for index, image in enumerate(pair):
            frames.give(index, image)
        frames.stage(stream)
        if graph is None:
            frames.enqueue(stream)
        else:
            cuda.launch_graph(graph, stream)
        cuda.download(got, address, stream)
        cuda.wait(stream)
        frames.done()
        apart = np.abs(got.astype(np.float64) - by_twin(kernels, pair).astype(np.float64))
        assert apart.max() <= APART[dtype]  # the twin's emulated fma may be one float32 unit off
        assert np.mean(apart > 0) < 1e-4
    if graph is not None:
        cuda.end_graph(graph)
    frames.free()
    cuda.unpin(got)
    cuda.end_stream(stream)
    kernels.close()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.usefixtures("here")
def test_the_engine_answers_for_frames_as_for_the_cpu_s_tensors(tmp_path: Path, name: str) -> None:
    path, spec = tiny(tmp_path / "tiny.onnx"), InputSpec("x", 96, 64, resize="letterbox")
    backend = open_backend(name, path, precision="fp32", threads=0, input_shape=SHAPE, lanes=2, spec=spec)
    try:
        backend.activate()
    except IncompatibleError as error:
        if error.code != "backend.missing":
            raise
        pytest.skip(error.what)
    try:
        assert backend.preparation.startswith("GPU"), backend.preparation
        with open_backend("onnxruntime", path, precision="fp32", threads=1, input_shape=SHAPE) as oracle:
            for turn, size in enumerate(SIZES):
                image, lane = noise(size), backend.lanes[turn % 2]
                given = backend.prepare(image, lane, 0, Preprocessor(spec).run)
                assert given == oracle.prepare(image, oracle.lanes[0], 0, Preprocessor(spec).run)
                wanted = oracle.infer(oracle.lanes[0])[0]
                weights = 27 * 4  # of one output value; each input value may be one level of 255 off
                np.testing.assert_allclose(backend.infer(lane)[0], wanted, atol=weights / 255)
    finally:
        backend.deactivate()
