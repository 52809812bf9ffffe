"""The kernel's source, compiled by this machine's C++ compiler, equals its twin to the last bit: every format, odd sizes and pitches."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from kernel_frames import in_format, pitched, random_colors

from jetfleet_agent.pipeline.cuda.port import page_aligned
from jetfleet_agent.pipeline.cuda.preprocess_launch import PreprocessLaunch
from jetfleet_agent.pipeline.kernel_twin import new_tensor, preprocess
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.gpu_path import EngineInput, gpu_path
from jetfleet_contract.kernel_arguments import FRAME_BYTES, Fit, rules, sampling
from jetfleet_contract.kernels import FORMATS, LAYOUTS, TYPES, ElementType, Layout, PixelFormat
from jetfleet_host.kernels.building import source_of

pytestmark = pytest.mark.slow
SIZES = ((320, 180), (318, 242), (50, 130), (2, 2))
FITS: tuple[Fit, ...] = ("letterbox", "stretch", "crop", "letterbox")


_PTX = re.compile(r'asm\("([a-z0-9.]+) [^"]*" : "([=+])\w"\((\w+)\) : ([^;]*)\);')
_OPERAND = re.compile(r'"\w"\(((?:[^()]|\([^()]*\))*)\)')


def _call(instruction: re.Match[str]) -> str:
    """One PTX instruction as a call: of what it reads, and of what it adds to."""
    name, kind, result, operands = instruction.groups()
    read = [*_OPERAND.findall(operands), *([result] if kind == "+" else [])]
    return f"{result} = {name.replace('.', '_')}({', '.join(read)});"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("g++ is not installed")
    folder = tmp_path_factory.mktemp("kernel")
    plain = re.sub(r'asm\("" [^;]*;', "", _PTX.sub(_call, source_of("preprocess.cu")))
    (folder / "kernel.h").write_text(plain)
    command = ["g++", "-O1", "-w", "-ffp-contract=off", "-shared", "-fPIC", f'-DKERNEL_SOURCE="{folder / "kernel.h"}"', "-o",
               str(folder / "kernel.so"), str(Path(__file__).parent.parent / "kernel_on_cpu.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "kernel.so"))


@pytest.mark.parametrize("tensor", [(96, 64), (51, 37)])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pixels", FORMATS)
def test_source_and_twin_are_one(library: ctypes.CDLL, pixels: PixelFormat, layout: Layout, kind: ElementType,
                                 tensor: tuple[int, int]) -> None:
    spec = InputSpec("x", *tensor, color="rgb", resize="letterbox", mean=(0.485, 0.456, 0.406), std=(0.2, 0.3, 0.25))
    told = rules(spec, pixels, input_scale=1 / 96 if kind == "i8" else 1.0)  # int8 saturates at both ends
    want = new_tensor(len(SIZES), told, layout, kind)
    kept, places, frames = [], [], b""
    for index, (size, fit) in enumerate(zip(SIZES, FITS, strict=True)):
        planes = tuple(pitched(plane, 4 * index) for plane in in_format(random_colors(np.random.default_rng(), *size), pixels)[0])
        kept.append(planes)
        places.append(sampling(spec, *size, fit))
        first, second = (*[(plane.ctypes.data, plane.shape[1]) for plane in planes], (0, 0))[:2]
        frames += places[-1].pack(*first, *second, index * want[0].size)
        preprocess(planes, pixels, places[-1], told, want[index], layout, kind)
    got = np.full_like(want, 99)
    threads = max(where.grid[0] for where in places)
    wide = max(-(-where.grid[0] * where.grid[1] // threads) for where in places)
    aligned = np.zeros(len(frames) + 16, np.uint8)
    start = -aligned.ctypes.data % 16
    aligned[start:start + len(frames)] = np.frombuffer(frames, np.uint8)
    run = getattr(library, f"run_{pixels}_{layout}_{kind}")
    run(ctypes.c_void_p(aligned.ctypes.data + start), ctypes.c_void_p(got.ctypes.data), told.pack(), wide,
        max(where.height for where in places), len(SIZES), threads)
    assert np.array_equal(got, want)
    assert kind != "i8" or (want.min(), want.max()) == (-128, 127)


class _OnCpu:
    """The launch of the port `Cuda`, by the compiled source; it writes the band too."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def launch(self, module: object, kernel: str, grid: tuple[int, int, int], threads: int, arguments: tuple[Any, ...],
               stream: int) -> None:
        assert (module, stream) == ("cubin", 7)
        frames, out, packed = arguments
        getattr(self._library, kernel.replace("jf_preprocess", "run"))(
            ctypes.c_void_p(frames), ctypes.c_void_p(out), packed, grid[0], grid[1], grid[2], threads)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tensor", [(96, 64), (51, 37), (1100, 20)])
def test_the_agent_s_launch_covers_pictures_wherever_they_lie_and_leaves_out_those_that_are_not_there(
        library: ctypes.CDLL, tensor: tuple[int, int], layout: Layout) -> None:
    """One grid for frames of every size: what a captured graph repeats."""
    spec = InputSpec("x", *tensor, resize="letterbox")
    shape = (4, 3, tensor[1], tensor[0]) if layout == "nchw" else (4, tensor[1], tensor[0], 3)
    fold = gpu_path(spec, EngineInput(shape, "float32")).fold
    assert fold is not None
    table, want = page_aligned((4, FRAME_BYTES), np.uint8), new_tensor(4, fold.rules, layout, "f32")
    frames = [random_colors(np.random.default_rng(), *size) for size in SIZES]
    for index in (0, 1, 3):
        height, width = frames[index].shape[:2]
        where, rows = sampling(spec, width, height, "letterbox"), frames[index].reshape(height, -1)
        table[index] = np.frombuffer(where.pack(rows.ctypes.data, width * 3, offset=index * fold.image_elements), np.uint8)
        preprocess((rows,), "bgr", where, fold.rules, want[index], layout, "f32")
    got = np.full_like(want, 99)
    PreprocessLaunch(cast("Any", _OnCpu(library)), "cubin", fold).enqueue(table.ctypes.data, got.ctypes.data, 7)
    assert np.array_equal(got, want)
