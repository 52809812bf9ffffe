"""Board files: those that ship are valid and sourced, those of others get one clear error."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest

from jetfleet_agent import boards as agent_boards
from jetfleet_contract.boards import allowed_precisions, board_from, unsourced, withheld_precisions
from jetfleet_contract.errors import IncompatibleError, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = agent_boards.board_names()


def mapping_of(name: str) -> dict[str, Any]:
    path = next(p for folder in agent_boards.FOLDERS if (p := folder / f"{name}.toml").is_file())
    return tomllib.loads(path.read_text())


def test_the_boards_of_this_release_are_there() -> None:
    assert {"orin-nano", "cpu-x86", "cpu-arm64"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_board_file_is_valid_and_named_as_its_file(name: str) -> None:
    assert agent_boards.load_board(name).board == name


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_every_board_file_names_its_source(name: str) -> None:
    assert unsourced(mapping_of(name)) == ()


def test_a_value_without_a_source_is_found() -> None:
    mapping = mapping_of("orin-nano")
    del mapping["sources"]["power_modes"], mapping["sources"]["gpu.sm"]
    assert "gpu.sm" in unsourced(mapping)
    assert "power_modes.7W.watts" in unsourced(mapping)


def test_every_board_has_a_fallback_that_runs_fp32_on_any_cpu() -> None:
    for name in NAMES:
        fallback = [rule for rule in agent_boards.load_board(name).backends if rule.fallback]
        assert [("fp32" in allowed_precisions(rule, ())) for rule in fallback] == [True], name


def test_the_orin_nano_is_described_as_known() -> None:
    board = agent_boards.load_board("orin-nano")
    assert board.gpu is not None
    assert (board.gpu.sm, board.gpu.dla_cores, board.memory_mb) == ("8.7", 0, 8192)
    assert {mode.name: mode.memory_gb_s for mode in board.power_modes} == {"7W": None, "15W": 68.0, "25W": 102.0, "MAXN_SUPER": 102.0}
    assert {release.name: release.tensorrt for release in board.releases} == {"JetPack 6.2": "10.3", "JetPack 7.2": "10.16"}
    tensorrt = board.rule("tensorrt")
    assert tensorrt is not None
    assert set(tensorrt.pays) == {"fp16", "int8"}
    assert board.rule("openvino") is None


@pytest.mark.parametrize(("flags", "runs"), [(("avx2",), False), (("avx2", "avx512_bf16"), True), (("amx_bf16", "amx_int8"), True)])
def test_bf16_on_x86_needs_a_cpu_that_has_it(flags: tuple[str, ...], runs: bool) -> None:
    rule = agent_boards.load_board("cpu-x86").rule("openvino")
    assert rule is not None
    assert ("bf16" in allowed_precisions(rule, flags)) is runs
    assert ("bf16" in withheld_precisions(rule, flags)) is not runs


def test_unknown_stays_unknown() -> None:
    board = agent_boards.load_board("cpu-x86")
    assert (board.memory_mb, board.cores, board.memory_gb_s, board.gpu) == (None, None, None, None)


def test_an_unknown_board_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        agent_boards.load_board("orin-nan")
    assert caught.value.code == "board.unknown"
    assert "orin-nano" in caught.value.remedy
    with pytest.raises(InputError) as caught:
        agent_boards.load_board("../../etc/passwd")
    assert "cpu-x86" in caught.value.remedy


def broken(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(mapping_of("orin-nano")), **changes}


@pytest.mark.parametrize(("mapping", "names"), [
    (broken(memory="8 GB"), "memory"),
    (broken(memory_mb="8192"), "memory_mb"),
    (broken(memory_mb=0), "memory_mb"),
    (broken(arch="mips"), "arch"),
    (broken(board="Orin Nano"), "Orin Nano"),
    (broken(backends=[]), "no backend"),
    (broken(backends=[{"name": "onnxruntime", "precisions": ["fp32"], "pays": ["int8"]}]), "int8"),
    (broken(backends=[{"name": "onnxruntime", "precisions": ["fp33"]}]), "fp33"),
    (broken(backends=[{"name": "onnxruntime", "precisions": ["fp32"]}] * 2), "twice"),
    (broken(sources={"memory_gigabytes": "a guess"}), "memory_gigabytes"),
])
def test_a_wrong_board_file_is_one_error_that_names_what_is_wrong(mapping: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError) as caught:
        board_from(mapping, where="mine.toml")
    assert caught.value.code == "board.bad"
    assert names in caught.value.what
    assert caught.value.where == "mine.toml"


@pytest.mark.parametrize(("arch", "compatible", "board"), [
    ("x86_64", (), "cpu-x86"),
    ("aarch64", (), "cpu-arm64"),
    ("aarch64", ("raspberrypi,5-model-b", "brcm,bcm2712"), "cpu-arm64"),
    ("aarch64", ("nvidia,p3768-0000+p3767-0005-super", "nvidia,tegra234"), "orin-nano"),
    ("aarch64", ("nvidia,p3768-0000+p3767-0000", "nvidia,tegra234"), "cpu-arm64"),  # an Orin NX: known to be none of ours
])
def test_a_machine_is_recognized(arch: str, compatible: tuple[str, ...], board: str) -> None:
    assert agent_boards.detect_board(arch, compatible).board == board


def test_a_machine_of_no_known_architecture_is_refused() -> None:
    with pytest.raises(IncompatibleError) as caught:
        agent_boards.detect_board("riscv64", ())
    assert caught.value.code == "board.unsupported"
    assert "cpu-x86" in caught.value.remedy


def test_host_and_agent_read_the_same_boards() -> None:
    host_boards = pytest.importorskip("jetfleet_host.boards", exc_type=ImportError)
    assert host_boards.board_names() == NAMES
    for name in NAMES:
        assert host_boards.load_board(name) == agent_boards.load_board(name)
    with pytest.raises(InputError) as caught:
        host_boards.load_board("cpu_x86")
    assert "cpu-x86" in caught.value.remedy
