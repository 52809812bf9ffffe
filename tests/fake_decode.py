"""What launches of decoding do on the fake GPU: their numpy twin, once the last launch that needs the head knows all arguments.

The workspace carries from launch to launch what a real one keeps there, only shorter: how far the decode is, and which head it reads.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jetfleet_agent.pipeline.decode_twin import decode
from jetfleet_agent.pipeline.decoded import record_type
from jetfleet_contract.decode_arguments import COMPARE_THREADS, KEEP_THREADS, RULES_BYTES, SCAN_THREADS, HeadRules
from jetfleet_contract.kernels import DECODE_CLEAR, DECODE_COMPARE, DECODE_KEEP, DECODE_RANK, HEAD_VARIANTS

_SCANS = [variant for variant in HEAD_VARIANTS if variant.step == "scan"]
_HEADS = {variant.name: variant for variant in HEAD_VARIANTS}
_NOTE = struct.Struct("<IIQ")  # launches so far, number of the scan, address of the head
_ORDER = ("clear", "scan", "rank", "compare", "keep")


class Memory(Protocol):
    def array(self, address: int, shape: tuple[int, ...], dtype: Any = ...) -> Any: ...


def is_decode(name: str) -> bool:
    return name.startswith("jf_decode_")


def run_decode(memory: Memory, name: str, grid: tuple[int, int, int], threads: int, arguments: Sequence[Any]) -> None:
    if name in _HEADS and _HEADS[name].step == "gather":
        _gather(memory, name, grid, threads, *arguments)
        return
    workspace = arguments[1] if name in _HEADS else arguments[0]
    note = memory.array(workspace, (_NOTE.size,), np.uint8)
    done, scan, head = (0, 0, 0) if name == DECODE_CLEAR else _NOTE.unpack(note.tobytes())
    assert name.startswith(f"jf_decode_{_ORDER[done]}"), f"{name} after {done} launches"
    if name in _HEADS:
        scan, head = _SCANS.index(_HEADS[name]), arguments[0]
    rules = _rules(arguments[-1], _SCANS[scan].name, grid[2] if name == DECODE_COMPARE else grid[1])
    assert (grid, threads) == {DECODE_CLEAR: (rules.image_grid, 1), DECODE_COMPARE: (rules.compare_grid, COMPARE_THREADS),
                               DECODE_KEEP: (rules.image_grid, KEEP_THREADS), DECODE_RANK: (rules.scan_grid, SCAN_THREADS)
                               }.get(name, (rules.scan_grid, SCAN_THREADS))
    memory.array(workspace, (rules.workspace_bytes,), np.uint8)
    note[:] = np.frombuffer(_NOTE.pack(done + 1, scan, head), np.uint8)
    if name == DECODE_KEEP:
        found = _decoded(memory, head, rules)
        target = memory.array(arguments[1], (rules.images,), record_type(rules))
        for field in ("kept", "considered", "passed"):
            target[field] = found[field]
        for mine, its in zip(target, found, strict=True):
            mine["slots"][:its["kept"]] = its["slots"][:its["kept"]]


def _gather(memory: Memory, name: str, grid: tuple[int, int, int], threads: int, head: int, output: int, packed: bytes) -> None:
    rules = _rules(packed, name, grid[1])
    assert (grid, threads) == (rules.gather_grid, SCAN_THREADS)
    target, found = memory.array(output, (rules.images,), record_type(rules)), _decoded(memory, head, rules)
    for mine, its in zip(target, found, strict=True):
        assert mine["kept"] == its["kept"]
        mine["rest"][:its["kept"]] = its["rest"][:its["kept"]]


def _decoded(memory: Memory, head: int, rules: HeadRules) -> Any:
    return decode(memory.array(head, rules.shape, np.float32 if rules.type == "f32" else np.float16), rules)


def _rules(packed: bytes, name: str, images: int) -> HeadRules:
    assert len(packed) == RULES_BYTES
    anchors, classes, extra, slots, words, most, agnostic, _, threshold, iou, workspace, output = struct.unpack("<8i2f2i", packed)
    variant = _HEADS[name]
    rules = HeadRules(variant.head, variant.type, images, anchors, classes, extra, threshold, iou, most, bool(agnostic))
    assert (slots, words, workspace, output) == (rules.slots, rules.words, rules.image_workspace, rules.image_output)
    return rules
