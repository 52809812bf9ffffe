"""Board files: those that ship are valid and sourced, those of others get one clear error."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert set(NAMES) == {
        "nano", "tx2", "xavier-nx", "agx-xavier", "orin-nano-4", "orin-nano", "orin-nx-8", "orin-nx-16", "agx-orin-32", "agx-orin-64",
        "agx-orin-industrial", "thor-t4000", "thor-t5000", "x86-gpu", "cpu-x86-amx", "cpu-x86-vnni", "cpu-x86-avx2", "cpu-x86", "cpu-arm64"}


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


def gpu(**changes: Any) -> dict[str, Any]:
    return broken(gpu={**mapping_of("orin-nano")["gpu"], **changes})


def mode(**changes: Any) -> dict[str, Any]:
    return broken(power_modes=[{"name": "MAXN", **changes}], sources={})


def release(**changes: Any) -> dict[str, Any]:
    return broken(releases=[{"name": "JetPack", **changes}], sources={})


@pytest.mark.parametrize(("mapping", "names"), [
    (broken(memory_mb="8192"), "memory_mb"),
    (broken(memory_mb=0), "memory_mb is 0; it lies between 256 and"),
    (broken(memory_mb=10**9), "memory_mb is 1e+09; it lies between"),
    (broken(memory_gb_s=float("inf")), "memory_gb_s is inf; it lies between 1 and 20000"),
    (broken(memory_gb_s=float("nan")), "memory_gb_s is nan"),
    (broken(cores=-6), "cores is -6; it lies between 1 and 1024"),
    (broken(arch="mips"), "arch"),
    (broken(board="Orin Nano"), "Orin Nano"),
    (broken(device_class="../x"), "../x"),
    (broken(device_tree=[""]), "device_tree holds ''"),  # would be found in any machine's list
    (broken(support="planned"), "why_not"),
    (broken(why_not="it is slow"), "support is 'agent'"),
    (broken(backends=[]), "no backend"),
    (broken(backends=[{"name": "onnxruntime", "precisions": ["fp32"], "pays": ["int8"]}]), "int8"),
    (broken(backends=[{"name": "onnxruntime", "precisions": ["fp33"]}]), "fp33"),
    (broken(backends=[{"name": "onnxruntime", "precisions": ["fp32"]}] * 2), "twice"),
    (broken(backends=[{"name": "tensorrt", "precisions": ["fp8"]}]), "'fp8', which gpu.hardware does not execute"),
    (broken(sources={"memory_gigabytes": "a guess"}), "memory_gigabytes"),
    (broken(sources={"memory_mb": " "}), "sources says nothing for 'memory_mb'"),
    (broken(dla={"generation": 2, "precisions": ["int8"]}), "gpu.dla_cores names none"),
    (gpu(sm="87"), "gpu.sm is '87'; a compute capability lies between 3.0 and 12.9"),
    (gpu(sm="99.9"), "gpu.sm is '99.9'"),
    (gpu(sm_count=7), "gpu.cuda_cores is 1024, which is no multiple of gpu.sm_count 7"),
    (gpu(l2_kb=2), "gpu.l2_kb is 2; it lies between 32 and"),
    (gpu(tensor_precisions=["fp8"]), "gpu.tensor_precisions names 'fp8'"),
    (mode(watts=25_000.0), "power_modes.MAXN.watts is 25000; it lies between 1 and 2000"),
    (mode(dense_tops={"int8": 0.0}), "power_modes.MAXN.dense_tops.int8 is 0"),
    (mode(dense_tops={"int9": 1.0}), "'int9', which is none of"),
    (mode(dense_tops={"fp8": 1.0}), "'fp8', which gpu.hardware does not execute"),
    (mode(dla_tops={"int8": 1.0}), "the board has no dla"),
    (release(python="3"), "releases.JetPack.python is '3'; it is written as in 3.10"),
    (release(l4t="JetPack 6"), "releases.JetPack.l4t is 'JetPack 6'"),
])
def test_an_impossible_value_is_one_error_that_names_it_and_its_bound(mapping: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError) as caught:
        board_from(mapping, where="mine.toml")
    assert caught.value.code == "board.bad"
    assert names in caught.value.what
    assert caught.value.where == "mine.toml"


@pytest.mark.parametrize(("mapping", "key", "nearest"), [
    (broken(memory="8 GB"), "memory", "memory_mb"),
    (broken(device_three=["p3767-0005"]), "device_three", "device_tree"),
    (gpu(tensor_core=32), "gpu.tensor_core", "gpu.tensor_cores"),
    (mode(wats=25.0), "power_modes.wats", "power_modes.watts"),
    (release(tensor_rt="10.3"), "releases.tensor_rt", "releases.tensorrt"),
])
def test_an_unknown_key_names_the_nearest(mapping: dict[str, Any], key: str, nearest: str) -> None:
    with pytest.raises(InputError) as caught:
        board_from(mapping, where="mine.toml")
    assert (caught.value.code, caught.value.where) == ("board.bad", "mine.toml")
    assert f"unknown key {key} " in caught.value.what
    assert f"did you mean {nearest}?" in caught.value.remedy


@given(path=st.sampled_from(["cores", "memory_mb", "gpu", "power_modes", "releases", "backends", "flash", "dla", "sources", "any_isa"]),
       value=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(
           inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6))
def test_whatever_a_file_holds_is_a_board_or_one_clear_error(path: str, value: Any) -> None:
    try:
        board = board_from(broken(**{path: value}), where="mine.toml")
    except InputError as error:
        assert error.code == "board.bad"  # noqa: PT017 - the other outcome is a board
    else:
        assert board.board == "orin-nano"


VNNI = ("avx2", "avx512f", "avx512_vnni")
JETSONS = {
    "nvidia,p3768-0000+p3767-0005-super": "orin-nano", "nvidia,p3768-0000+p3767-0003": "orin-nano",
    "nvidia,p3768-0000+p3767-0004": "orin-nano-4", "nvidia,p3768-0000+p3767-0001": "orin-nx-8",
    "nvidia,p3768-0000+p3767-0000": "orin-nx-16", "nvidia,p3737-0000+p3701-0004": "agx-orin-32",
    "nvidia,p3737-0000+p3701-0005": "agx-orin-64", "nvidia,p3737-0000+p3701-0000": "agx-orin-64",
    "nvidia,p3737-0000+p3701-0008": "agx-orin-industrial", "nvidia,p4071-0000+p3834-0008": "thor-t5000",
    "nvidia,p4071-0000+p3834-0000": "thor-t4000"}


@pytest.mark.parametrize(("entry", "board"), JETSONS.items())
def test_a_jetson_is_recognized_by_its_device_tree(entry: str, board: str) -> None:
    assert agent_boards.detect_board("aarch64", (entry, "nvidia,tegra234")).board == board


def test_no_two_boards_claim_the_same_module() -> None:
    parts = [part for name in NAMES for part in agent_boards.load_board(name).device_tree]
    assert len(parts) == len(set(parts))


@pytest.mark.parametrize(("entry", "title"), [
    ("nvidia,p3449-0000-b00+p3448-0000-b00", "Jetson Nano"), ("nvidia,p2597-0000+p3310-1000", "TX2"),
    ("nvidia,p3509-0000+p3668-0001", "Xavier NX"), ("nvidia,p2972-0000", "AGX Xavier")])
def test_a_board_of_older_releases_is_known_and_runs_as_a_plain_machine(entry: str, title: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        assert agent_boards.detect_board("aarch64", (entry, "nvidia,tegra")).board == "cpu-arm64"
    assert title in caplog.text
    assert "Python 3." in caplog.text


@pytest.mark.parametrize(("arch", "compatible", "isa", "drivers", "board"), [
    ("x86_64", (), (), (), "cpu-x86"),
    ("x86_64", (), ("sse4_2", "avx"), (), "cpu-x86"),
    ("x86_64", (), ("avx2",), (), "cpu-x86-avx2"),
    ("x86_64", (), VNNI, (), "cpu-x86-vnni"),
    ("x86_64", (), ("avx2", "avx_vnni"), (), "cpu-x86-vnni"),
    ("x86_64", (), (*VNNI, "amx_int8", "amx_bf16"), (), "cpu-x86-amx"),
    ("x86_64", (), (*VNNI, "amx_int8"), ("nvidia",), "x86-gpu"),
    ("aarch64", (), ("asimd",), (), "cpu-arm64"),
    ("aarch64", (), ("asimd",), ("nvidia",), "cpu-arm64"),
    ("aarch64", ("raspberrypi,5-model-b", "brcm,bcm2712"), (), (), "cpu-arm64"),
    ("aarch64", ("nvidia,p3768-0000+p3767-0005-super", "nvidia,tegra234"), (), ("nvidia",), "orin-nano"),
])
def test_a_machine_is_recognized(
    arch: str, compatible: tuple[str, ...], isa: tuple[str, ...], drivers: tuple[str, ...], board: str,
) -> None:
    assert agent_boards.detect_board(arch, compatible, isa, drivers).board == board


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
