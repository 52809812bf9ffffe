"""What each kind of engine is bound to on a machine, and what it is made from there: one row a runtime. Pure.

OpenVINO compiles for the instruction sets and the number of cores that it sees. A TensorRT plan is bound to the full build of TensorRT, the
GPU with its multiprocessors, the Jetson module and its L4T release; not to the driver, which refuses a plan only when it is too old. An
engine of TensorRT for RTX is bound to version and compute capability alone: the machine's driver finishes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from .bundle import InputSpec
from .engines import EngineBackend, Footing, Recipe
from .messages import BackendInfo, Capability
from .tuning import Tuning

DLA = "DLA"
"""Name of a DLA core as a provider: ``DLA0``, ``DLA1``."""


class EngineKind(msgspec.Struct, frozen=True):
    """One runtime's engines. `footing` gives None where the machine does not tell what they are bound to. `threaded`: code is laid out for
    a number of threads; `folds`: normalising may be part of it; `dla`: it may run on a DLA core; `timed`: a build measures kernels, which
    a cache spares the next one (TensorRT for RTX measures none, and asks for a GPU when it is given a cache)."""

    backend: EngineBackend
    footing: Callable[[Capability, BackendInfo], Footing | None]
    threaded: bool = False
    folds: bool = False
    dla: bool = False
    timed: bool = False


def _openvino(here: Capability, info: BackendInfo) -> Footing:
    return Footing("openvino", info.build, here.arch, here.cpu, tuple(sorted(here.isa)), cores=here.cores)


def _tensorrt(here: Capability, info: BackendInfo) -> Footing | None:
    gpu = here.gpu
    if gpu is None or not gpu.sm or (gpu.integrated and not here.module):
        return None  # a Jetson that does not say which module it is could be any of those with its GPU
    return Footing("tensorrt", info.build, here.arch, here.module or gpu.name, sm=gpu.sm, sm_count=gpu.sm_count, system=here.system)


def _tensorrt_rtx(here: Capability, info: BackendInfo) -> Footing | None:
    return Footing("tensorrt-rtx", info.build, here.arch, "", sm=here.gpu.sm) if here.gpu is not None and here.gpu.sm else None


KINDS: dict[str, EngineKind] = {kind.backend: kind for kind in (
    EngineKind("openvino", _openvino, threaded=True, folds=True),
    EngineKind("tensorrt", _tensorrt, dla=True, timed=True),
    EngineKind("tensorrt-rtx", _tensorrt_rtx),
)}


def footing_of(capability: Capability, backend: str) -> Footing | None:
    """The footing of engines of `backend` here; None when it makes none, is not usable here, or does not tell what they are bound to."""
    kind = KINDS.get(backend)
    info = next((one for one in capability.backends if one.name == backend), None)
    if kind is None or info is None or info.missing or not info.build:
        return None
    return kind.footing(capability, info)


def why_no_footing(capability: Capability, backend: str) -> str:
    """Why no engine of `backend` can run here, as a sentence; empty where one may."""
    if footing_of(capability, backend) is not None:
        return ""
    info = next((one for one in capability.backends if one.name == backend), None)
    if info is None or backend not in KINDS:
        return f"{capability.board} does not use {backend[:40]}"
    return info.missing or f"{backend} does not tell its full version, its GPU, or the module that it runs on"


def recipe_of(backend: str, weights: str, precision: str, entry: InputSpec, tuning: Tuning, threads: int) -> Recipe | None:
    """How an engine of these weights is made where it runs with that tuning; None where the runtime makes none for such a set-up.

    Args:
        weights: SHA-256 (hex) of the ONNX file. threads: of the session, where `tuning` names none; 0 lets the runtime decide.
    """
    kind = KINDS.get(backend)
    on_dla = tuning.provider.startswith(DLA)
    if kind is None or (tuning.provider and not (on_dla and kind.dla)) or (tuning.folded and not kind.folds):
        return None
    digest = hashlib.sha256(msgspec.json.encode(entry)).hexdigest() if tuning.folded else ""
    return Recipe(weights, precision, (1, 3, entry.height, entry.width), (tuning.threads or threads) if kind.threaded else 0,
                  tuning.folded, digest, on_dla)


def runs_on_dla(capability: Capability, backend: str, precision: str) -> bool:
    """Whether a DLA core of this board runs a model of that precision."""
    gpu, kind = capability.gpu, KINDS.get(backend)
    return kind is not None and kind.dla and gpu is not None and gpu.dla_cores > 0 and precision in gpu.dla_precisions


def tuning_of(recipe: Recipe) -> Tuning:
    """The set-up of a runtime that makes, or runs, an engine of that recipe. A DLA engine runs on either core; it is made on core 0."""
    return Tuning(folded=recipe.folded, threads=recipe.threads, provider=f"{DLA}0" if recipe.dla else "")
