"""What a launch does on the fake GPU: the kernel's numpy twin, on the arguments and the memory that a real launch would be given."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from fake_decode import is_decode, run_decode

from jetfleet_agent.pipeline.kernel_twin import new_tensor, preprocess
from jetfleet_contract.kernel_arguments import FRAME_BYTES, ONE, RULES_BYTES, THREADS, Rules, Sampling
from jetfleet_contract.kernels import VARIANTS, Variant

DTYPES = {"f32": np.float32, "f16": np.float16, "i8": np.int8}
_ROW_BYTES = {"nv12": 1, "yuyv": 2, "bgr": 3, "rgba": 4, "gray": 1}
_VARIANTS = {variant.name: variant for variant in VARIANTS}


class Memory(Protocol):
    def array(self, address: int, shape: tuple[int, ...], dtype: Any = ...) -> Any: ...


def run_kernel(memory: Memory, name: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Any]) -> None:
    if is_decode(name):
        run_decode(memory, name, grid, threads, arguments)
        return
    variant = _VARIANTS[name]
    assert 0 < threads <= THREADS
    assert min(grid) > 0
    if variant.pixels is None:
        _fill(memory, variant, grid, threads, *arguments)
    else:
        _preprocess(memory, variant, grid, threads, *arguments)


def _fill(memory: Memory, variant: Variant, grid: tuple[int, int, int], threads: int, out: int, packed: bytes) -> None:
    rules = unpacked(packed)
    assert grid[0] * threads >= rules.width
    assert grid[1] >= rules.height
    tensor = new_tensor(grid[2], rules, variant.layout, variant.type)
    memory.array(out, tensor.shape, tensor.dtype)[...] = tensor


def _preprocess(memory: Memory, variant: Variant, grid: tuple[int, int, int], threads: int, frames: int, out: int, packed: bytes) -> None:
    rules = unpacked(packed)
    assert variant.pixels is not None
    shape = (3, rules.height, rules.width) if variant.layout == "nchw" else (rules.height, rules.width, 3)
    table = memory.array(frames, (grid[2], FRAME_BYTES), np.uint8)
    for row in table:
        first, second, pitch, second_pitch, left, top, width, height, *fixed, offset = struct.unpack("<QQiiiiiiffffffffq", row.tobytes())
        where = Sampling(left, top, width, height, *(value / ONE for value in fixed))
        if not where.height:
            continue
        assert grid[0] * threads * 4 >= (where.left + where.width + 3) // 4 * 4 - where.left // 4 * 4, "columns that no thread covers"
        assert grid[1] >= where.height
        rows, columns = int(where.high_y) + 2, int(where.high_x) + 2
        planes = [_plane(memory, first, rows, pitch, columns * _ROW_BYTES[variant.pixels])]
        if second:
            planes.append(_plane(memory, second, (rows + 1) // 2, second_pitch, (columns + 1) // 2 * 2))
        dtype = DTYPES[variant.type]
        target = memory.array(out + offset * np.dtype(dtype).itemsize, shape, dtype)
        preprocess(tuple(planes), variant.pixels, where, rules, target, variant.layout, variant.type)


def _plane(memory: Memory, address: int, rows: int, pitch: int, width: int) -> Any:
    """Rows of a plane; after the last one's pixels the memory may end."""
    plane = np.zeros((rows, pitch), np.uint8)
    plane.reshape(-1)[:(rows - 1) * pitch + width] = memory.array(address, ((rows - 1) * pitch + width,), np.uint8)
    return plane


def unpacked(packed: bytes) -> Rules:
    assert len(packed) == RULES_BYTES
    width, height, aligned, *rest = struct.unpack("<6i19f", packed)
    order, (luma, *figures) = rest[:3], rest[3:]
    assert aligned == (width % 4 == 0)
    threes = [tuple(figures[at:at + 3]) for at in range(0, 18, 3)]
    return Rules(width, height, tuple(order), luma, *threes)
