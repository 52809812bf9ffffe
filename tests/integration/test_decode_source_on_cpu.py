"""The decoding kernels' source, compiled by this machine's C++ compiler and launched as on a GPU, equals its twin to the last bit."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from decode_heads import KINDS, head_of, random_rules
from fake_cuda import FakeCuda

from jetfleet_agent.pipeline.cuda.decode_launch import DecodeLaunch
from jetfleet_agent.pipeline.decode_twin import decode
from jetfleet_agent.pipeline.decoded import record_type
from jetfleet_contract.decode_arguments import HeadRules
from jetfleet_contract.kernels import HEAD_TYPES, HEADS, HeadLayout, HeadType
from jetfleet_host.kernels.building import source_of

pytestmark = pytest.mark.slow
_WIDEN = 'asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));'


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("g++ is not installed")
    folder = tmp_path_factory.mktemp("kernel")
    text = source_of("decode.cu")
    assert text.count("asm(") == text.count(_WIDEN) == 1
    (folder / "kernel.h").write_text(text.replace(_WIDEN, "value = widened(bits);"))
    command = ["g++", "-std=c++20", "-O1", "-w", "-pthread", "-ffp-contract=off", "-shared", "-fPIC",
               f'-DKERNEL_SOURCE="{folder / "kernel.h"}"', "-o", str(folder / "kernel.so"),
               str(Path(__file__).parent.parent / "decode_on_cpu.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "kernel.so"))


class CompiledCuda(FakeCuda):
    """A GPU whose kernels of decoding are those of the source."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self._library = library
        self._library.launch_kernel.restype = ctypes.c_bool

    def launch(self, module: Any, kernel: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Any], stream: int) -> None:
        assert min(grid) >= 1
        packed = [np.frombuffer(one, np.uint8) if isinstance(one, bytes) else np.array([one], np.uint64) for one in arguments]

        def work() -> None:
            pointers = np.array([one.ctypes.data for one in packed], np.uint64)
            assert self._library.launch_kernel(kernel.encode(), (ctypes.c_uint * 3)(*grid), threads, ctypes.c_void_p(pointers.ctypes.data))

        self.queue(stream, kernel, work)


def launched(library: ctypes.CDLL, head: npt.NDArray[Any], rules: HeadRules) -> npt.NDArray[np.void]:
    """What the kernels leave in memory that was full of rubbish; guards behind each buffer must stay."""
    guard = 64

    def buffer(size: int) -> npt.NDArray[np.uint8]:
        room = np.full(size + guard + 16, 0xA5, np.uint8)
        return room[-room.ctypes.data % 16:][:size + guard]

    assert head.nbytes == rules.head_bytes
    workspace, output = buffer(rules.workspace_bytes), buffer(rules.output_bytes)
    cuda = CompiledCuda(library)
    DecodeLaunch(cuda, b"module", rules).enqueue(head.ctypes.data, workspace.ctypes.data, output.ctypes.data, cuda.stream())
    assert (workspace[-guard:] == 0xA5).all()
    assert (output[-guard:] == 0xA5).all()
    return output[:rules.output_bytes].view(record_type(rules))


def check(library: ctypes.CDLL, head: npt.NDArray[Any], rules: HeadRules) -> None:
    got, want = launched(library, head, rules), decode(head, rules)
    for mine, theirs in zip(got, want, strict=True):
        for field in ("kept", "considered", "passed"):
            assert mine[field] == theirs[field]
        kept = int(theirs["kept"])
        assert mine["slots"][:kept].tobytes() == theirs["slots"][:kept].tobytes()
        assert np.array_equal(mine["rest"][:kept], theirs["rest"][:kept], equal_nan=True)


@pytest.mark.parametrize("kind", HEAD_TYPES)
@pytest.mark.parametrize("layout", HEADS)
@pytest.mark.parametrize("scene", KINDS)
def test_source_and_twin_are_one(library: ctypes.CDLL, scene: str, layout: HeadLayout, kind: HeadType) -> None:
    rng = np.random.default_rng()
    for anchors in (1, 3, 63, 64, 65, int(rng.integers(2, 700))):
        rules = random_rules(rng, layout, kind, images=int(rng.integers(1, 3)), anchors=anchors)
        check(library, head_of(rng, rules, scene), rules)


@pytest.mark.parametrize("layout", HEADS)
@pytest.mark.parametrize("scene", ["sure", "ties"])
def test_more_candidates_than_the_bound(library: ctypes.CDLL, scene: str, layout: HeadLayout) -> None:
    rng = np.random.default_rng()
    rules = random_rules(rng, layout, "f32", images=1, anchors=4201)
    check(library, head_of(rng, rules, scene), rules)
