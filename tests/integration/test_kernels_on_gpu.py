"""The kernels on a real GPU against their twin, on fresh random frames. Run by `make test-board`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_port import CudaPort, open_gpu
from kernel_frames import in_format, pitched, random_colors

from jetfleet_agent.pipeline.kernel_twin import new_tensor, preprocess
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.kernel_arguments import Fit, Sampling, rules, sampling
from jetfleet_contract.kernels import FORMATS, LAYOUTS, TYPES, ElementType, Layout, PixelFormat, Variant
from jetfleet_host.kernels.building import UNIT, open_compiler, source
from jetfleet_host.kernels.targets import chosen
from jetfleet_host.kernels.toolchains import default_cache

pytestmark = pytest.mark.gpu
SIZES = ((1920, 1080), (640, 640), (318, 242), (50, 130), (2, 2))
TENSORS = ((640, 640), (96, 64), (51, 37))


@pytest.fixture(scope="module")
def gpu() -> CudaPort:
    return open_gpu()


@pytest.fixture(scope="module")
def module(gpu: CudaPort) -> Any:
    target = max((one for one in chosen((gpu.sm,)) if one.cuda <= gpu.cuda), key=lambda one: one.cuda)
    return gpu.load(open_compiler(target.cuda, default_cache(), True, print).compile(source(), UNIT, gpu.sm))


def uploaded(gpu: CudaPort, planes: tuple[Any, ...], where: Sampling, offset: int) -> bytes:
    """The kernel's `Frame` of planes that are now on the GPU."""
    first, second = (*[(gpu.upload(plane.tobytes()), plane.shape[1]) for plane in planes], (0, 0))[:2]
    return where.pack(*first, *second, offset)


def grid_of(places: list[Sampling]) -> tuple[tuple[int, int, int], int]:
    grids = [where.grid for where in places]
    threads = max(grid[0] for grid in grids)
    return (max(-(-grid[0] * grid[1] // threads) for grid in grids), max(grid[2] for grid in grids), len(places)), threads


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pixels", FORMATS)
def test_one_launch_makes_what_the_twin_makes(gpu: CudaPort, module: Any, pixels: PixelFormat, layout: Layout, kind: ElementType,
                                              tensor: tuple[int, int]) -> None:
    """A batch of cameras of every size, each with a pitch of its own and each way to fit: equal to the last bit of float32's rounding."""
    random = np.random.default_rng()
    spec = InputSpec("x", *tensor, color="rgb", resize="letterbox", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    told = rules(spec, pixels, input_scale=1 / 48 if kind == "i8" else 1.0)
    want = new_tensor(len(SIZES), told, layout, kind)
    fits: tuple[Fit, ...] = ("letterbox", "stretch", "crop")
    places, frames = [], b""
    for index, size in enumerate(SIZES):
        planes = tuple(pitched(plane, 4 * index) for plane in in_format(random_colors(random, *size), pixels)[0])
        places.append(sampling(spec, *size, fits[index % 3]))
        frames += uploaded(gpu, planes, places[-1], index * want[0].size)
        preprocess(planes, pixels, places[-1], told, want[index], layout, kind)
    got = np.zeros_like(want)
    out = gpu.upload(got.tobytes())
    cover = (-(-told.width // 32), told.height, len(SIZES))
    gpu.launch(module, Variant(None, layout, kind).name, cover, 32, [out, told.pack()])
    grid, threads = grid_of(places)
    gpu.launch(module, Variant(pixels, layout, kind).name, grid, threads, [gpu.upload(frames), out, told.pack()])
    gpu.download(out, got)
    apart = np.abs(got.astype(np.float64) - want.astype(np.float64))
    assert np.max(apart) <= {"f32": 1e-6, "f16": 2e-3, "i8": 1}[kind]  # the twin's emulated fma may be one float32 unit off
    assert np.mean(apart > 0) < 1e-4


def test_bandwidth_of_64_frames(gpu: CudaPort, module: Any, record_property: Any) -> None:
    """64 frames of 1080p, beyond any L2: at least 80 % of what a copy on the same device moves."""
    spec = InputSpec("x", 640, 640, resize="letterbox")
    told, where, images = rules(spec, "nv12"), sampling(spec, 1920, 1080, "letterbox"), 64
    planes = in_format(random_colors(np.random.default_rng(), 1920, 1080), "nv12")[0]
    frames = gpu.upload(b"".join(uploaded(gpu, planes, where, index * 3 * 640 * 640) for index in range(images)))
    out = gpu.upload(bytes(images * 3 * 640 * 640 * 2))
    grid, threads = grid_of([where] * images)
    moved = images * (2_419_200 + 1_382_400)  # touched rows, and the picture in float16

    def run() -> None:
        gpu.launch(module, "jf_preprocess_nv12_nchw_f16", grid, threads, [frames, out, told.pack()])

    size = 256 << 20
    first, second = gpu.upload(bytes(size)), gpu.upload(bytes(size))
    run()
    ours = min(gpu.milliseconds(run) for _ in range(20))
    copies = min(gpu.milliseconds(lambda: gpu.copy(second, first, size)) for _ in range(20))
    share = (moved / ours) / (2 * size / copies)
    record_property("share_of_copy", round(share, 3))
    assert share >= 0.8
