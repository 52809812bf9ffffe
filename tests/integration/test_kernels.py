"""Kernels compiled for real by NVRTC, with no GPU; the folder and its commands."""

from __future__ import annotations

import hashlib
import json
import locale
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jetfleet_contract.cubins import check_cubin
from jetfleet_contract.errors import (
    IncompatibleError,
    InputError,
    JetfleetError,
    RuntimeFailure,
    StorageError,
    TransportError,
    UntrustedError,
)
from jetfleet_contract.kernels import NAMES, VARIANTS
from jetfleet_host.cli import app
from jetfleet_host.kernels import building, toolchains
from jetfleet_host.kernels.nvrtc import Nvrtc
from jetfleet_host.kernels.targets import TARGETS, TOOLCHAINS, Toolchain, chosen


@pytest.fixture(scope="module")
def old_nvrtc() -> Nvrtc:
    """NVRTC 11.8, of this environment: it knows sm_72 and sm_87."""
    found = toolchains.find(TOOLCHAINS[11], Path("/nonexistent"))
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{TOOLCHAINS[11].requirement} is not installed")
    return Nvrtc(found, TOOLCHAINS[11].version)


@pytest.fixture
def compiler(old_nvrtc: Nvrtc) -> Callable[[int], building.Compiler]:
    return lambda _cuda: old_nvrtc


def quiet(_line: str) -> None:
    return


XAVIER = chosen((72,))
READ = {"nv12": 720 + 540, "yuyv": 2 * 720, "bgr": 3 * 720, "rgba": 4 * 720, "gray": 720}  # rows of 1920 bytes that a tensor's rows touch


def worth_of_bytes(pixels: str, kind: str) -> float:
    """Instructions a pixel in the time of its bytes: Orin Nano Super, 8 x 128 lanes at 1.02 GHz, 102 GB/s, 1080p into 640x360."""
    moved = READ[pixels] * 1920 / (640 * 360) + 3 * {"f32": 4, "f16": 2, "i8": 1}[kind]
    return moved / 102e9 * 8 * 128 * 1.02e9


def test_the_compiler_leaves_the_locale_as_it_was(old_nvrtc: Nvrtc) -> None:
    before = locale.setlocale(locale.LC_ALL)
    old_nvrtc.compile(building.source(), building.UNIT, 87)
    assert locale.setlocale(locale.LC_ALL) == before


@pytest.mark.parametrize("sm", [72, 87])
def test_every_kernel_is_in_a_real_cubin(old_nvrtc: Nvrtc, sm: int) -> None:
    data = old_nvrtc.compile(building.source(), building.UNIT, sm)
    found = check_cubin(data, sm, NAMES)
    assert found.kernels.keys() == NAMES
    for variant in VARIANTS:
        if variant.pixels is not None:  # a thread makes four pixels; a kernel of fewer instructions than this would do nothing
            assert 100 < found.instructions(variant.name) <= 4 * worth_of_bytes(variant.pixels, variant.type), variant.name
    for cut in range(0, len(data) - 1, 997):
        with pytest.raises(JetfleetError):
            check_cubin(data[:cut], sm, NAMES)


def test_the_same_source_is_the_same_bytes_and_nothing_is_made_twice(tmp_path: Path, compiler: Callable[[int], building.Compiler]) -> None:
    first = building.build(tmp_path / "a", XAVIER, compiler, quiet)
    building.build(tmp_path / "b", XAVIER, compiler, quiet)
    assert [built.fresh for built in first] == [True]
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}

    def never(_cuda: int) -> building.Compiler:
        raise AssertionError("nothing has changed")

    assert [built.fresh for built in building.build(tmp_path / "a", XAVIER, never, quiet)] == [False]


def test_a_damaged_cubin_is_named_and_made_again(tmp_path: Path, compiler: Callable[[int], building.Compiler]) -> None:
    building.build(tmp_path, XAVIER, compiler, quiet)
    path = tmp_path / XAVIER[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UntrustedError) as caught:
        building.read_folder(tmp_path)
    assert caught.value.code == "kernels.digest"
    assert [built.fresh for built in building.build(tmp_path, XAVIER, compiler, quiet)] == [True]
    assert building.read_folder(tmp_path).cubins[0].sm == 72
    path.unlink()
    with pytest.raises(StorageError):
        building.read_folder(tmp_path)


def test_cubins_of_another_source_go(tmp_path: Path, compiler: Callable[[int], building.Compiler]) -> None:
    (tmp_path / "preprocess.sm_53.cu10.cubin").write_bytes(b"old")
    building.build(tmp_path, XAVIER, compiler, quiet)
    assert {path.name for path in tmp_path.iterdir()} == {"kernels.json", XAVIER[0].file}


def test_what_does_not_compile_says_where(old_nvrtc: Nvrtc) -> None:
    with pytest.raises(RuntimeFailure, match=r"bad\.cu\(2\): error") as caught:
        old_nvrtc.compile("\n__global__ void k() { nothing(); }", "bad.cu", 87)
    assert caught.value.code == "kernels.compile"
    with pytest.raises(RuntimeFailure, match="sm_110"):
        old_nvrtc.compile(building.source(), building.UNIT, 110)


def test_missing_and_foreign_toolchains_are_named(tmp_path: Path) -> None:
    absent = Toolchain(13, "nvidia-cuda-nvrtc-absent", "13.0.88", 90, "x", "libx.so", "liby.so")
    assert toolchains.find(absent, tmp_path) is None
    assert "pip install nvidia-cuda-nvrtc-absent==13.0.88" in toolchains.missing(absent, tmp_path).remedy
    for name in ("libx.so", "liby.so"):
        (tmp_path / name).write_bytes(b"no library")
    with pytest.raises(IncompatibleError) as caught:
        Nvrtc(toolchains.Libraries(tmp_path / "libx.so", tmp_path / "liby.so"), "13.0.88")
    assert caught.value.code == "kernels.nvrtc"


def test_a_damaged_cache_is_noticed(tmp_path: Path) -> None:
    kept = Toolchain(11, "some-nvrtc", "1", 1, "lib", "a.so", "b.so")
    folder = tmp_path / "some-nvrtc-1"
    (folder / "lib").mkdir(parents=True)
    (folder / "lib/a.so").write_bytes(b"a")
    (folder / "lib/b.so").write_bytes(b"b")
    (folder / "installed.json").write_text(json.dumps({f"lib/{x}.so": hashlib.sha256(x.encode()).hexdigest() for x in "ab"}))
    assert toolchains.find(kept, tmp_path) == toolchains.Libraries(folder / "lib/a.so", folder / "lib/b.so")
    (folder / "lib/a.so").write_bytes(b"x")
    with pytest.raises(StorageError) as caught:
        toolchains.find(kept, tmp_path)
    assert caught.value.code == "kernels.toolchain_damaged"


def test_a_wheel_that_cannot_be_fetched_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(TransportError, match="cannot fetch"):
        toolchains.install(TOOLCHAINS[13], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(InputError, match="sm_88") as caught:
        chosen((88,))
    assert "sm_87" in caught.value.remedy
    assert {target.cuda for target in chosen((87,))} == {12, 13}


def test_the_commands(tmp_path: Path, old_nvrtc: Nvrtc) -> None:
    out = str(tmp_path / "cubins")
    done = CliRunner().invoke(app, ["kernels", "build", "--out", out, "--sm", "72", "--offline", "--toolchains", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)["cubins"][0]
    assert (row["sm"], row["nvrtc"], row["compiled"]) == (72, old_nvrtc.version, True)
    listed = CliRunner().invoke(app, ["kernels", "list", out])
    assert "sm_72" in listed.output
    assert f"{len(NAMES)} kernels" in listed.output
    refused = CliRunner().invoke(app, ["kernels", "build", "--out", str(tmp_path), "--sm", "72"])
    assert isinstance(refused.exception, InputError)  # the folder holds other things
    nowhere = str(tmp_path / "none")
    offline = CliRunner().invoke(app, ["kernels", "build", "--out", out, "--sm", "110", "--offline", "--toolchains", nowhere])
    assert isinstance(offline.exception, IncompatibleError)
    assert offline.exception.code == "kernels.toolchain"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_target_by_its_own_compiler(tmp_path: Path) -> None:
    """All GPUs, all variants; the compilers (200 MB) come from PyPI once and stay in the user's cache."""
    def compiler(cuda: int) -> building.Compiler:
        return building.open_compiler(cuda, toolchains.default_cache(), True, quiet)

    done = building.build(tmp_path / "a", TARGETS, compiler, quiet)
    building.build(tmp_path / "b", TARGETS, compiler, quiet)
    assert len(done) == len(TARGETS)
    for built in done:
        data = (tmp_path / "a" / built.cubin.file).read_bytes()
        assert data == (tmp_path / "b" / built.cubin.file).read_bytes()
        assert check_cubin(data, built.cubin.sm, NAMES).kernels.keys() == NAMES
