"""Capability: recorded machines are read as if they were this one; runtimes are asked in processes of their own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from jetfleet_agent.backend_probe import BackendFacts, facts_of
from jetfleet_agent.boards import detect_board, load_board
from jetfleet_agent.capability import Machine, ask_backends, module_of, probe, probe_machine, reasons_withheld
from jetfleet_agent.tables import capability_text
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.messages import Capability, GpuInfo, decode, encode

ORIN_CPUINFO = """\
processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat ilrcpc flagm
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd42
"""
LAPTOP_CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz
flags\t\t: fpu vme sse4_1 sse4_2 avx f16c avx2 fma bmi2
"""
WORKS = {name: BackendFacts(version="9.9") for name in ("openvino", "onnxruntime", "tensorrt")}


@pytest.fixture
def orin_root(tmp_path: Path) -> Path:
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0")
    (tmp_path / "proc/cpuinfo").write_text(ORIN_CPUINFO)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        7802692 kB\nMemFree: 1 kB\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    return tmp_path


@pytest.fixture
def laptop() -> Machine:
    return Machine("x86_64", "a laptop", ("avx2", "fma"), 4, 16000)


def test_a_jetson_is_read_from_its_files(orin_root: Path) -> None:
    machine = probe_machine(orin_root, arch="aarch64", cores=6)
    assert machine.cpu == "Arm Cortex-A78AE"
    assert machine.memory_mb == 7619
    assert machine.l4t == "36.4.3"
    assert "Orin Nano" in machine.model
    assert "nvidia,p3767-0005" in machine.compatible
    assert {"asimd", "fphp", "asimdhp", "asimddp"} <= set(machine.isa)
    assert "crc32" not in machine.isa


@pytest.mark.parametrize(("compatible", "module"), [
    (("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234"), "p3767-0005"),
    (("nvidia,p3737-0000+p3701-0005", "nvidia,tegra234"), "p3701-0005"), (("nvidia,p3450-0000", "nvidia,tegra210"), "p3450-0000"),
    (("raspberrypi,4-model-b",), ""), ((), "")])
def test_a_module_is_told_from_its_carrier(compatible: tuple[str, ...], module: str) -> None:
    assert module_of(compatible) == module


def test_what_a_plan_is_bound_to_is_part_of_the_capability(orin_root: Path) -> None:
    gpu = GpuInfo("Orin", 87, 8, integrated=True, driver="12.6")
    facts = {"tensorrt": BackendFacts("10.3.0", build="10.3.0.30", gpu=gpu), "onnxruntime": BackendFacts("1.23.2")}
    here = probe(load_board("orin-nano"), False, machine=probe_machine(orin_root, arch="aarch64", cores=6), ask=lambda _names: facts)
    assert (here.gpu, here.module, here.system) == (gpu, "p3767-0005", "36.4.3")
    assert decode(encode(here), Capability, limit=100_000) == here
    text = capability_text(here)
    assert "module   p3767-0005, L4T 36.4.3" in text
    assert "gpu      Orin, sm_87, 8 multiprocessors, the host's memory, driver for CUDA 12.6" in text


def test_a_laptop_is_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(LAPTOP_CPUINFO)
    machine = probe_machine(tmp_path, arch="x86_64", cores=8)
    assert machine.cpu == "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz"
    assert machine.isa == ("sse4_1", "sse4_2", "avx", "f16c", "avx2", "fma")
    assert (machine.l4t, machine.model, machine.compatible) == ("", "", ())


@pytest.mark.parametrize(("flags", "driver", "board"), [
    ("fpu sse4_2 avx avx2 fma", False, "cpu-x86-avx2"),
    ("fpu avx2 avx512f avx512_vnni", False, "cpu-x86-vnni"),
    ("fpu avx2 avx512_vnni avx512_bf16 amx_bf16 amx_tile amx_int8", False, "cpu-x86-amx"),
    ("fpu avx2 avx512_vnni amx_int8", True, "x86-gpu"),
])
def test_the_class_of_a_pc_is_told_from_its_files(tmp_path: Path, flags: str, driver: bool, board: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"model name\t: a CPU\nflags\t\t: {flags}\n")
    if driver:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06\n")
    machine = probe_machine(tmp_path, arch="x86_64", cores=8)
    found = detect_board(machine.arch, machine.compatible, machine.isa, machine.drivers)
    assert found.board == board
    capability = probe(found, False, machine=machine, ask=lambda _names: WORKS)
    assert (capability.device_class, capability.simulated) == (board, False)


def test_a_machine_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    assert probe_machine(tmp_path, arch="x86_64", cores=1) == Machine("x86_64", cores=1)


def test_this_machine_can_be_probed() -> None:
    machine = probe_machine()
    assert machine.arch
    assert machine.cores >= 1
    assert machine.memory_mb > 0


def test_a_real_orin_nano_needs_no_simulation(orin_root: Path) -> None:
    machine = probe_machine(orin_root, arch="aarch64", cores=6)
    capability = probe(load_board("orin-nano"), False, machine=machine, ask=lambda _names: WORKS)
    assert not capability.simulated
    assert [(b.name, b.precisions) for b in capability.backends] == [("tensorrt", ("fp32", "fp16", "int8")), ("onnxruntime", ("fp32",))]
    assert capability.memory_mb == 7619


def test_a_board_over_a_laptop_says_that_it_is_simulated_and_what_is_lacking(laptop: Machine) -> None:
    facts = {**WORKS, "tensorrt": BackendFacts(missing="not installed (it comes with JetPack on a Jetson)")}
    capability = probe(load_board("orin-nano"), True, machine=laptop, ask=lambda _names: facts)
    assert capability.simulated
    assert (capability.device_class, capability.arch, capability.cores, capability.memory_mb) == ("orin-nano", "x86_64", 4, 8192)
    assert capability.backends[0].missing == "not installed (it comes with JetPack on a Jetson)"
    assert capability.backends[0].precisions == ()


@pytest.mark.parametrize(("board", "machine", "code"), [
    ("orin-nano", Machine("x86_64"), "board.arch"),
    ("orin-nano", Machine("aarch64", model="Raspberry Pi 5", compatible=("raspberrypi,5-model-b",)), "board.mismatch"),
    ("cpu-arm64", Machine("x86_64"), "board.arch"),
])
def test_a_wrong_board_without_simulation_is_refused(board: str, machine: Machine, code: str) -> None:
    with pytest.raises(IncompatibleError) as caught:
        probe(load_board(board), False, machine=machine, ask=lambda _names: WORKS)
    assert caught.value.code == code
    assert "simulate" in caught.value.remedy


@pytest.mark.parametrize(("isa", "said", "runs"), [
    (("avx2",), ("fp32", "bf16", "int8"), False),
    (("avx512_bf16",), ("fp32", "bf16", "int8"), True),
    (("avx512_bf16",), ("fp32", "int8"), False),
    (("avx512_bf16",), (), True),
])
def test_bf16_needs_the_cpu_and_the_runtime(isa: tuple[str, ...], said: tuple[str, ...], runs: bool) -> None:
    facts = {**WORKS, "openvino": BackendFacts("9.9", precisions=said)}
    capability = probe(load_board("cpu-x86"), False, machine=Machine("x86_64", isa=isa), ask=lambda _names: facts)
    openvino = next(b for b in capability.backends if b.name == "openvino")
    assert ("bf16" in openvino.precisions) is runs
    assert ("openvino:bf16" in reasons_withheld(load_board("cpu-x86"), Machine("x86_64", isa=isa))) is ("avx512_bf16" not in isa)


def test_a_capability_travels() -> None:
    capability = probe(load_board("cpu-x86"), True, machine=probe_machine(), ask=lambda _names: WORKS)
    assert decode(encode(capability), Capability) == capability


# --- asking runtimes, for real --------------------------------------------------------------------------------


def test_an_installed_runtime_gives_its_version() -> None:
    ort = pytest.importorskip("onnxruntime")
    assert ask_backends(["onnxruntime"]) == {"onnxruntime": BackendFacts(version=ort.__version__)}


def test_the_supervisor_never_imports_a_runtime() -> None:
    import subprocess

    code = ("import sys; from jetfleet_agent.capability import *; from jetfleet_agent.boards import load_board\n"
            "probe(load_board('cpu-x86'), True)\n"
            "print([m for m in ('onnxruntime', 'openvino', 'tensorrt', 'numpy', 'cv2') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_a_runtime_that_is_not_installed_says_how_to_get_it() -> None:
    assert "is known" not in facts_of("openvino2").missing
    assert "knows no backend" in facts_of("openvino2").missing


@pytest.fixture
def vendor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules come before the real runtimes."""
    import jetfleet_agent

    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(jetfleet_agent.__file__).parent.parent}")
    return tmp_path


@pytest.mark.parametrize(("source", "reason"), [
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes (SIGSEGV)"),
    ("import os; os._exit(7)", "exit code 7"),
    ("raise OSError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10"),
    ("import not_a_module_at_all", "needs not_a_module_at_all"),
    ("print('hello from a chatty vendor')\ndef get_available_providers(): return ['CPUExecutionProvider']\n__version__ = '1.2.3'", ""),
    ("def get_available_providers(): return ['CUDAExecutionProvider']", "no CPU provider"),
    ("x = 1", "does not answer"),
])
def test_whatever_a_runtimes_import_does_is_an_answer(vendor: Path, source: str, reason: str) -> None:
    (vendor / "onnxruntime.py").write_text(source)
    facts = ask_backends(["onnxruntime"])["onnxruntime"]
    assert reason in facts.missing
    assert bool(facts.missing) is not bool(facts.version)


def test_a_runtime_that_hangs_on_import_costs_the_time_limit_only(vendor: Path) -> None:
    (vendor / "onnxruntime.py").write_text("import time; time.sleep(600)")
    began = time.monotonic()
    facts = ask_backends(["onnxruntime"], timeout_s=0.5)["onnxruntime"]
    assert "did not end" in facts.missing
    assert time.monotonic() - began < 60
