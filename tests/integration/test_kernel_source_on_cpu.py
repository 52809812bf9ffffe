"""The kernel's source, compiled by this machine's C++ compiler, equals its twin to the last bit: every format, odd sizes and pitches."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernel_frames import in_format, pitched, random_colors

from jetfleet_agent.pipeline.kernel_twin import new_tensor, preprocess
from jetfleet_contract.bundle import InputSpec
from jetfleet_contract.kernel_arguments import Fit, rules, sampling
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
