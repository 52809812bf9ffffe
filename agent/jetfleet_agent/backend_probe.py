"""What one runtime says about itself, asked in a process of its own: ``python -m jetfleet_agent.backend_probe NAME``.

Importing a vendor's runtime costs tens of megabytes and can end the process (a missing driver has been seen to end in a
segmentation fault), so the supervisor never does it: it starts this program and reads one JSON line.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.messages import GpuInfo

from .gpu_driver import read_gpu

_INFER_LIBRARIES = ("libnvinfer.so", "libtensorrt_rtx.so")


class BackendFacts(msgspec.Struct, frozen=True):
    """`version` when usable, else `missing` says why not. `precisions`: what the runtime itself reports, empty when it does not say.
    `build`: the full version, with what its maker tells builds of one version apart by. `gpu`: what it runs on, where that is a GPU."""

    version: str = ""
    missing: str = ""
    precisions: tuple[str, ...] = ()
    build: str = ""
    gpu: GpuInfo | None = None


def facts_of(name: str) -> BackendFacts:
    """Import the runtime and ask it. Never raises: what goes wrong is the answer."""
    asked = {"onnxruntime": _onnxruntime, "openvino": _openvino, "tensorrt": _tensorrt, "tensorrt-rtx": _tensorrt}.get(name)
    if asked is None:
        return BackendFacts(missing=f"this agent knows no backend {name!r}")
    try:
        module = importlib.import_module(name.replace("-", "_"))
    except ModuleNotFoundError as error:
        if error.name == name.replace("-", "_"):
            return BackendFacts(missing=_how_to_install(name))
        return BackendFacts(missing=f"its import needs {error.name}, which is not installed")
    except Exception as error:  # noqa: BLE001 - a vendor's import may raise anything; the reason is the result
        return BackendFacts(missing=f"its import fails: {_one_line(error)}")
    return _asked(asked, module)


def _asked(ask: Callable[[Any], BackendFacts], module: object) -> BackendFacts:
    try:
        return ask(module)
    except Exception as error:  # noqa: BLE001 - same: the reason is the result
        return BackendFacts(missing=f"imports, but does not answer: {_one_line(error)}")


def _onnxruntime(module: Any) -> BackendFacts:
    providers = module.get_available_providers()
    if "CPUExecutionProvider" not in providers:
        return BackendFacts(missing=f"has no CPU provider, only {', '.join(providers)}")
    return BackendFacts(version=module.__version__)


def _openvino(module: Any) -> BackendFacts:
    core = module.Core()
    if "CPU" not in core.available_devices:
        return BackendFacts(missing=f"sees no CPU device, only {', '.join(core.available_devices) or 'nothing'}")
    names = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "INT8": "int8"}
    reported = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return BackendFacts(version=module.__version__.partition("-")[0], precisions=tuple(names[r] for r in reported if r in names),
                        build=module.__version__)


def _tensorrt(module: Any) -> BackendFacts:
    # The driver is asked first: a TensorRT runtime or builder without one has been seen to end the process.
    try:
        gpu = read_gpu()
    except IncompatibleError as error:
        return BackendFacts(missing=f"it is installed, but {error.what}")
    return BackendFacts(version=module.__version__, build=full_build(module.__version__, _mapped()),
                        gpu=msgspec.structs.replace(gpu, dla_cores=_dla_cores(module)))


def full_build(version: str, libraries: tuple[str, ...]) -> str:
    """``major.minor.patch.build`` of the TensorRT that is loaded: a plan is bound to all four, and JetPack's module tells three.

    Args:
        version: what the module says. libraries: paths of what is loaded into this process.

    Returns:
        Empty when neither the module nor the library tells the build.
    """
    if version.count(".") >= 3:
        return version
    for path in libraries:
        if path.rpartition("/")[2].startswith(_INFER_LIBRARIES):
            try:
                library = ctypes.CDLL(path)
                parts = [getattr(library, f"getInferLib{part}Version")() for part in ("Major", "Minor", "Patch", "Build")]
            except (OSError, AttributeError):  # before TensorRT 10
                return ""
            return ".".join(str(part) for part in parts)
    return ""


def _mapped() -> tuple[str, ...]:
    """Files that are mapped into this process."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if "/" in line))


def _dla_cores(module: Any) -> int:
    """0 where this TensorRT has no DLA, and for TensorRT for RTX."""
    runtime = module.Runtime(module.Logger(module.Logger.ERROR))
    return int(getattr(runtime, "num_DLA_cores", 0))


def _how_to_install(name: str) -> str:
    if name == "tensorrt":
        return "not installed (it comes with JetPack on a Jetson)"
    if name == "tensorrt-rtx":
        return "not installed (pip install tensorrt-rtx-cu12 or tensorrt-rtx-cu13)"
    return f"not installed (pip install {name})"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]


if __name__ == "__main__":
    print(msgspec.json.encode(facts_of(sys.argv[1])).decode())
