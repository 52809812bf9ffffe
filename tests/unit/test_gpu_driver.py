"""The driver's answers about a GPU, over a stand-in for its C library; and a TensorRT's full build, from the library that is loaded."""

from __future__ import annotations

import ctypes
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from jetfleet_agent import backend_probe
from jetfleet_agent.backend_probe import facts_of, full_build
from jetfleet_agent.gpu_driver import LIBRARY, read_gpu
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.messages import GpuInfo

ORIN = {75: 8, 76: 7, 16: 8, 18: 1}


class Driver:
    """`libcuda.so.1` of a machine with one GPU, or with none."""

    def __init__(self, *, starts: int = 0, gpus: int = 1, version: int = 12060, attributes: dict[int, int] | None = None) -> None:
        self.starts, self.gpus, self.version, self.attributes = starts, gpus, version, attributes or ORIN

    def cuInit(self, _flags: int) -> int:  # noqa: N802  the library's names
        return self.starts

    def cuDeviceGet(self, _device: Any, ordinal: int) -> int:  # noqa: N802
        return 0 if ordinal < self.gpus else 101

    def cuDeviceGetName(self, name: Any, _room: int, _device: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = self.version
        return 0

    def cuDeviceGetAttribute(self, value: Any, number: int, _device: Any) -> int:  # noqa: N802
        if number not in self.attributes:
            return 1
        value._obj.value = self.attributes[number]
        return 0


def test_a_gpu_is_read() -> None:
    assert read_gpu(lambda name: {LIBRARY: Driver()}[name]) == GpuInfo("Orin", 87, 8, integrated=True, driver="12.6")
    apart = read_gpu(lambda _name: Driver(version=13000, attributes={75: 12, 76: 1, 16: 170}))
    assert (apart.sm, apart.sm_count, apart.integrated, apart.driver) == (121, 170, False, "13.0")


def test_a_machine_without_a_driver_or_a_gpu_says_which() -> None:
    def none(_name: str) -> Any:
        raise OSError

    for load, part in ((none, "not installed"), (lambda _name: Driver(starts=100), "cuInit gives 100"),
                       (lambda _name: Driver(gpus=0), "has no GPU")):
        with pytest.raises(IncompatibleError, match=part) as refused:
            read_gpu(load)
        assert refused.value.code == "cuda.driver"


def test_the_full_build_is_the_modules_or_the_loaded_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def load(path: str) -> SimpleNamespace:
        opened.append(path)
        return SimpleNamespace(**{f"getInferLib{part}Version": lambda: 7 for part in ("Major", "Minor", "Patch", "Build")})

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert full_build("10.16.1.11", ("/lib/libnvinfer.so.10",)) == "10.16.1.11"
    assert full_build("10.3.0", ("/lib/libc.so.6", "/lib/libnvinfer_plugin.so.10")) == ""
    assert full_build("10.3.0", ("/lib/libc.so.6", "/lib/libnvinfer.so.10.3.0")) == "7.7.7.7"
    assert opened == ["/lib/libnvinfer.so.10.3.0"]


def test_a_tensorrt_without_a_driver_is_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(*_: object) -> Any:
        raise AssertionError("it was used without a driver")

    def away() -> GpuInfo:
        return read_gpu(lambda _name: Driver(starts=100))

    module = ModuleType("tensorrt")
    vars(module).update(__version__="10.3.0", Runtime=used, Builder=used, Logger=used)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(backend_probe, "read_gpu", away)
    facts = facts_of("tensorrt")
    assert facts.missing.startswith("it is installed, but the NVIDIA driver")
    assert facts.gpu is None
