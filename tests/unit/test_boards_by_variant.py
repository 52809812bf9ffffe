"""The truth table of boards and variants: what each board file allows, refuses and prefers, each with its reason."""

from __future__ import annotations

import pytest
from choices import evaluation_of, spec_of

from jetfleet_agent.backend_probe import BackendFacts
from jetfleet_agent.boards import board_names, load_board
from jetfleet_agent.capability import Machine, probe
from jetfleet_contract.messages import Capability
from jetfleet_contract.policy import ChoiceRow, choose

SPEC = spec_of("fp32", "fp16", "int8", "uint8")
WORKS = {name: BackendFacts(version="9.9") for name in ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")}
RTX = ("fp32@tensorrt-rtx:fp32", "fp16@tensorrt-rtx:fp16", "int8@tensorrt-rtx:int8")
ALL = (*RTX, "fp32@tensorrt:fp32", "fp32@openvino:bf16", "fp32@openvino:fp32", "fp32@onnxruntime:fp32", "fp16@tensorrt:fp16",
       "fp16@openvino:fp16", "fp16@onnxruntime:fp16", "int8@tensorrt:int8", "int8@openvino:int8", "int8@onnxruntime:int8",
       "uint8@openvino:int8", "uint8@onnxruntime:int8")

JETSON_INT8 = ("fp32@tensorrt:fp32", "fp16@tensorrt:fp16", "int8@tensorrt:int8", "fp32@onnxruntime:fp32")
JETSON_FP16 = ("fp32@tensorrt:fp32", "fp16@tensorrt:fp16", "fp32@onnxruntime:fp32")
CPU_INT8 = ("fp32@openvino:fp32", "int8@openvino:int8", "uint8@openvino:int8", "fp32@onnxruntime:fp32", "int8@onnxruntime:int8",
            "uint8@onnxruntime:int8")
CPU_HALVES = (*CPU_INT8, "fp16@openvino:fp16")
CPU_BF16 = (*CPU_HALVES, "fp32@openvino:bf16")
AMX = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")

# board, CPU flags of the machine, allowed, what is known to pay there (preferred among the allowed once a figure says so).
TABLE = [
    ("nano", (), JETSON_FP16, {"tensorrt": ("fp16",)}),
    ("tx2", (), JETSON_FP16, {"tensorrt": ("fp16",)}),
    ("xavier-nx", (), JETSON_INT8, {"tensorrt": ("fp16", "int8")}),
    ("agx-xavier", (), JETSON_INT8, {"tensorrt": ("fp16", "int8")}),
    ("orin-nano-4", (), JETSON_INT8, {"tensorrt": ("fp16", "int8")}),
    ("orin-nano", (), JETSON_INT8, {"tensorrt": ("fp16", "int8")}),
    ("orin-nx-8", (), JETSON_INT8, {"tensorrt": ("fp16", "int8")}),
    ("orin-nx-16", (), JETSON_INT8, {"tensorrt": ("fp16", "int8")}),
    ("agx-orin-32", (), JETSON_INT8, {"tensorrt": ("fp16", "int8")}),
    ("agx-orin-64", (), JETSON_INT8, {"tensorrt": ("fp16", "int8")}),
    ("agx-orin-industrial", (), JETSON_INT8, {"tensorrt": ("fp16", "int8")}),
    ("thor-t4000", (), JETSON_INT8, {"tensorrt": ("fp8", "nvfp4", "int8", "fp16")}),
    ("thor-t5000", (), JETSON_INT8, {"tensorrt": ("fp8", "nvfp4", "int8", "fp16")}),
    ("x86-gpu", ("avx2",), (*JETSON_INT8, *RTX, *CPU_HALVES),
     {"tensorrt": ("fp16", "int8"), "tensorrt-rtx": ("fp16", "int8")}),
    ("cpu-x86-amx", AMX, CPU_BF16, {"openvino": ("bf16", "int8"), "onnxruntime": ("int8",)}),
    ("cpu-x86-vnni", ("avx2", "avx512_vnni"), CPU_HALVES, {"openvino": ("int8",), "onnxruntime": ("int8",)}),
    ("cpu-x86-avx2", ("avx2",), CPU_INT8, {}),
    ("cpu-x86", AMX, CPU_BF16, {"openvino": ("bf16", "int8"), "onnxruntime": ("int8",)}),
    ("cpu-x86", (), CPU_HALVES, {"openvino": ("bf16", "int8"), "onnxruntime": ("int8",)}),
    ("cpu-arm64", (), CPU_HALVES, {}),
]


def capability_of(name: str, isa: tuple[str, ...], facts: dict[str, BackendFacts] | None = None) -> Capability:
    board = load_board(name)
    machine = Machine(board.arch, isa=isa, cores=4, memory_mb=4000, compatible=tuple(f"nvidia,{part}" for part in board.device_tree))
    return probe(board, False, machine=machine, ask=lambda _names: facts or WORKS)


def rows_on(capability: Capability, ms: dict[str, float] | None = None) -> dict[str, ChoiceRow]:
    table = choose(SPEC, evaluation_of(SPEC, arch=capability.arch, ms=ms), capability, {})
    return {row.candidate.name: row for row in table.rows}


def test_every_board_stands_in_the_table() -> None:
    assert {row[0] for row in TABLE} == set(board_names())


@pytest.mark.parametrize(("name", "isa", "allowed", "pays"), TABLE)
def test_what_a_board_allows_refuses_and_knows_to_pay(
    name: str, isa: tuple[str, ...], allowed: tuple[str, ...], pays: dict[str, tuple[str, ...]],
) -> None:
    rows = rows_on(capability_of(name, isa))
    assert set(rows) == set(ALL)
    assert {row for row, one in rows.items() if one.verdict != "refused"} == set(allowed)
    used = {rule.name for rule in load_board(name).backends}
    for candidate in set(ALL).difference(allowed):
        backend, precision = candidate.partition("@")[2].split(":")
        reason = f"{backend} does not run {precision} on {name}" if backend in used else f"board {name} has no {backend}"
        assert rows[candidate].reason == reason
    assert {rule.name: rule.pays for rule in load_board(name).backends if rule.pays} == pays


@pytest.mark.parametrize(("name", "isa", "allowed", "pays"), TABLE)
def test_among_the_allowed_the_fastest_figure_is_preferred_whatever_the_precision(
    name: str, isa: tuple[str, ...], allowed: tuple[str, ...], pays: dict[str, tuple[str, ...]],
) -> None:
    del pays
    slow = dict.fromkeys(ALL, 20.0)
    for fastest in (candidate for candidate in allowed if "tensorrt" not in candidate):  # the builder has no figure for TensorRT
        rows = rows_on(capability_of(name, isa), {**slow, fastest: 2.0})
        assert rows[fastest].verdict == "chosen"
        assert "2.00 ms by the builder's figure" in rows[fastest].reason


@pytest.mark.parametrize("name", [name for name in board_names() if load_board(name).rule("tensorrt")])
def test_without_tensorrt_every_board_goes_on_with_its_fallback_and_says_why(name: str) -> None:
    missing = {**WORKS, "tensorrt": BackendFacts(missing="no NVIDIA driver is loaded"),
               "tensorrt-rtx": BackendFacts(missing="no NVIDIA driver is loaded")}
    rows = rows_on(capability_of(name, (), missing))
    chosen = next(row for row in rows.values() if row.verdict == "chosen")
    assert chosen.candidate.backend in ("onnxruntime", "openvino")
    assert {row.reason for row in rows.values() if row.candidate.backend == "tensorrt"} == {"tensorrt: no NVIDIA driver is loaded"}


@pytest.mark.parametrize(("name", "isa", "allowed", "pays"), TABLE)
def test_a_variant_that_loses_too_much_is_refused_on_every_board(
    name: str, isa: tuple[str, ...], allowed: tuple[str, ...], pays: dict[str, tuple[str, ...]],
) -> None:
    del pays
    capability = capability_of(name, isa)
    refused = {candidate: "drop 3.1 points" for candidate in ALL if candidate.startswith(("int8", "uint8"))}
    table = choose(SPEC, evaluation_of(SPEC, arch=capability.arch, refused=refused), capability, {})
    for row in table.rows:
        if row.candidate.variant in ("int8", "uint8"):
            assert row.verdict == "refused"
            assert row.candidate.name not in allowed or "drop 3.1 points" in row.reason
    assert table.chosen is not None
