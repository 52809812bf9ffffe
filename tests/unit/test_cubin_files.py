"""Which cubin serves a board, and by which name everything else is refused; the doctor's words for it; what the driver tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_cubins import cubin, fill

from jetfleet_agent import cubin_files
from jetfleet_agent.boards import load_board
from jetfleet_agent.cubin_files import IN_WHEEL, find_cubin, places
from jetfleet_agent.doctor_kernels import kernels, kernels_line
from jetfleet_agent.gpu_probe import Gpu, ask_driver, gpu_of
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.kernel_sets import INTERFACE
from jetfleet_contract.kernels import MANIFEST

ORIN = ((87, 12), (87, 13), (72, 11))


def test_the_signed_set_comes_first_and_the_newest_cuda_that_loads(tmp_path: Path) -> None:
    fill(tmp_path / "signed", ORIN, source="sha256:" + "a" * 64)
    fill(tmp_path / "wheel", ORIN)
    where = (("signed", tmp_path / "signed"), ("wheel", tmp_path / "wheel"))
    found = find_cubin(87, 12, where)
    assert (found.origin, found.cubin.cuda, found.source[7], found.passed) == ("signed", 12, "a", "")
    assert found.data == cubin(87)
    assert find_cubin(87, 13, where).cubin.cuda == 13
    assert find_cubin(72, 13, where).cubin.sm == 72


def _flip(folder: Path) -> None:
    path = folder / "jetfleet.sm_87.cu12.cubin"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _cut(folder: Path) -> None:
    path = folder / "jetfleet.sm_87.cu12.cubin"
    path.write_bytes(path.read_bytes()[:-1])


def _forge(folder: Path) -> None:
    """Another GPU's file under this one's name, with a manifest that agrees."""
    found = fill(folder, ((72, 12),))
    text = (folder / MANIFEST).read_bytes().replace(b'"sm":72', b'"sm":87').replace(b"sm_72", b"sm_87")
    (folder / MANIFEST).write_bytes(text)
    (folder / found.cubins[0].file).rename(folder / "jetfleet.sm_87.cu12.cubin")


@pytest.mark.parametrize(("spoil", "code"), [
    (_flip, "kernels.digest"),
    (_cut, "kernels.digest"),
    (_forge, "cubin.sm"),
    (lambda folder: (folder / "jetfleet.sm_87.cu12.cubin").unlink(), "kernels.missing"),
    (lambda folder: fill(folder, ((86, 12),)), "kernels.sm"),
    (lambda folder: fill(folder, ((87, 13),)), "kernels.driver"),
    (lambda folder: fill(folder, ORIN, interface=INTERFACE + 1), "kernels.interface"),
    (lambda folder: (folder / MANIFEST).write_text("{"), "message.bad"),
    (lambda folder: (folder / MANIFEST).unlink(), "the host has signed none"),
])
def test_what_is_wrong_is_passed_over_by_name(tmp_path: Path, spoil: Callable[[Path], object], code: str) -> None:
    fill(tmp_path / "signed", ORIN)
    fill(tmp_path / "wheel", ORIN)
    spoil(tmp_path / "signed")
    found = find_cubin(87, 12, (("signed", tmp_path / "signed"), ("wheel", tmp_path / "wheel")))
    assert found.origin == "wheel"
    assert code in found.passed
    spoil(tmp_path / "wheel")
    with pytest.raises(IncompatibleError) as caught:
        find_cubin(87, 12, (("signed", tmp_path / "signed"), ("wheel", tmp_path / "wheel")))
    assert caught.value.code == "kernels.none"
    assert caught.value.what.count(code if code[0] != "t" else "wheel: this wheel was built without cubins") >= 1


def test_a_set_without_a_kernel_that_is_needed_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, ORIN)
    with pytest.raises(IncompatibleError, match=r"cubin\.kernels"):
        find_cubin(87, 12, (("wheel", tmp_path),), frozenset({"jf_of_tomorrow"}))


def test_places_of_a_board(tmp_path: Path) -> None:
    assert places(None) == (("wheel", IN_WHEEL),)
    assert places(tmp_path) == (("signed", tmp_path / "kernels"), ("wheel", IN_WHEEL))


def test_the_doctor_says_which_cubin_serves_or_why_none(tmp_path: Path) -> None:
    assert kernels(Gpu(missing="no GPU"), tmp_path) is None
    silent = kernels(Gpu(87, 0, "board file", "there is no CUDA driver"), tmp_path)
    assert silent is not None
    assert (silent.verdict, "there is no CUDA driver" in silent.finding) == ("warning", True)
    fill(tmp_path / "kernels", ORIN)
    ok = kernels(Gpu(87, 13, "driver"), tmp_path)
    assert ok is not None
    assert ok.verdict == "ok"
    assert "jetfleet.sm_87.cu13.cubin signed by the host" in ok.finding
    none = kernels(Gpu(53, 10, "driver"), tmp_path)
    assert none is not None
    assert none.verdict == "warning"
    assert "only for sm_72, sm_87" in none.finding


def test_the_probe_s_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubin_files, "IN_WHEEL", tmp_path)
    assert "this wheel was built without cubins" in kernels_line(87, 12)
    fill(tmp_path, ORIN)
    assert kernels_line(87, 12).startswith("jetfleet.sm_87.cu12.cubin from this agent's wheel")


def test_the_gpu_of_a_board() -> None:
    silent = lambda: Gpu(missing="there is no CUDA driver")  # noqa: E731
    assert gpu_of(load_board("orin-nano"), "36.4.3", silent) == Gpu(87, 12, "board file", "there is no CUDA driver")
    assert gpu_of(load_board("orin-nano"), "", silent).cuda == 0
    assert gpu_of(load_board("x86-gpu"), "", lambda: Gpu(90, 13, "driver")) == Gpu(90, 13, "driver")
    assert gpu_of(load_board("x86-gpu"), "", silent).sm == 0
    assert gpu_of(load_board("cpu-x86"), "", lambda: pytest.fail("nobody is asked where there is no GPU")).sm == 0


def test_the_driver_is_asked_in_a_process_of_its_own() -> None:
    asked = ask_driver()
    assert bool(asked.missing) != bool(asked.sm and asked.cuda)
