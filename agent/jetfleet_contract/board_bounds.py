"""What a board file cannot say: impossible figures, each named with its bound, and parts that contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .boards import BoardFile, Gpu, PowerMode

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "nvfp4")

# (least, most): wide enough for any machine that could be a board or an edge server, narrow enough to catch a wrong unit.
_CORES = (1, 1024)
_MEMORY_MB = (256, 8 * 1024 * 1024)
_GB_S = (1.0, 20_000.0)
_WATTS = (1.0, 2_000.0)
_MHZ = (50.0, 5_000.0)
_TOPS = (0.01, 50_000.0)
_SM_COUNT = (1, 512)
_CUDA_CORES = (1, 65_536)
_TENSOR_CORES = (0, 4_096)
_L2_KB = (32, 512 * 1024)
_DLA_CORES = (0, 8)
_SRAM_KB = (1, 64 * 1024)
_MAX_SM = (12, 9)

_VERSIONS = {"l4t": r"\d{2}\.\d+(\.\d+)?", "cuda": r"\d{1,2}\.\d+", "tensorrt": r"\d{1,2}(\.\d+){1,3}", "python": r"3\.\d{1,2}",
             "glibc": r"2\.\d{1,2}"}


def problems(board: BoardFile) -> Iterable[str]:
    """Everything that cannot be true of the board, one sentence each: the value's path, the value, and its bound."""
    yield from _repeated(board)
    if not board.backends:
        yield "no backend is listed, so nothing could ever run"
    yield from _backend_problems(board)
    yield from _identity_problems(board)
    yield from _out_of_bounds(board)
    if board.gpu is not None:
        yield from _gpu_problems(board.gpu)
    yield from _dla_problems(board)
    for mode in board.power_modes:
        yield from _mode_problems(board, mode)
    for release in board.releases:
        for key, pattern in _VERSIONS.items():
            version = getattr(release, key)
            if version and not re.fullmatch(pattern, version):
                yield f"releases.{release.name}.{key} is {version!r}; it is written as in {_EXAMPLES[key]}"


_EXAMPLES = {"l4t": "36.4 or 36.4.3", "cuda": "12.6", "tensorrt": "10.3 or 10.16.2", "python": "3.10", "glibc": "2.35"}


def _repeated(board: BoardFile) -> Iterable[str]:
    yield from _repeats("backend", [str(rule.name) for rule in board.backends])
    yield from _repeats("power mode", [mode.name for mode in board.power_modes])
    yield from _repeats("release", [release.name for release in board.releases])
    yield from _repeats("camera", [camera.name for camera in board.cameras])
    yield from _repeats("flash target", [target.name for target in board.flash])


def _repeats(what: str, names: list[str]) -> Iterable[str]:
    return (f"{what} {name!r} is listed twice" for name in dict.fromkeys(names) if names.count(name) > 1)


def _backend_problems(board: BoardFile) -> Iterable[str]:
    for rule in board.backends:
        for key, named in (("pays", rule.pays), ("needs_isa", tuple(rule.needs_isa))):
            for precision in set(named).difference(rule.precisions):
                yield f"backend {rule.name}: {key} names {precision!r}, which is not among its precisions"
        if rule.name != "tensorrt" or board.gpu is None or not board.gpu.hardware:
            continue
        for precision in set(rule.precisions).difference(board.gpu.hardware):
            yield f"backend tensorrt: precisions names {precision!r}, which gpu.hardware does not execute"


def _identity_problems(board: BoardFile) -> Iterable[str]:
    if board.support == "planned" and not board.why_not:
        yield "support is 'planned', but why_not does not say what is missing"
    if board.support == "agent" and board.why_not:
        yield "why_not says why the agent does not run there, but support is 'agent'"
    for part in board.device_tree:
        if len(part) < 8:  # a shorter part, or an empty one, is found in many boards' lists
            yield f"device_tree holds {part!r}; a part has at least 8 characters, as in p3767-0005"


def _out_of_bounds(board: BoardFile) -> Iterable[str]:
    yield from _bound("cores", board.cores, _CORES)
    yield from _bound("memory_mb", board.memory_mb, _MEMORY_MB)
    yield from _bound("memory_gb_s", board.memory_gb_s, _GB_S)
    yield from _bound("precedence", board.precedence, (0, 100))


def _gpu_problems(gpu: Gpu) -> Iterable[str]:
    yield from _bound("gpu.sm_count", gpu.sm_count, _SM_COUNT)
    yield from _bound("gpu.cuda_cores", gpu.cuda_cores, _CUDA_CORES)
    yield from _bound("gpu.tensor_cores", gpu.tensor_cores, _TENSOR_CORES)
    yield from _bound("gpu.l2_kb", gpu.l2_kb, _L2_KB)
    yield from _bound("gpu.dla_cores", gpu.dla_cores, _DLA_CORES)
    found = re.fullmatch(r"(\d{1,2})\.(\d)", gpu.sm)
    if found is None or not (3, 0) <= (int(found[1]), int(found[2])) <= _MAX_SM:
        yield f"gpu.sm is {gpu.sm!r}; a compute capability lies between 3.0 and {_MAX_SM[0]}.{_MAX_SM[1]}, as in 8.7"
    if gpu.sm_count and gpu.cuda_cores and gpu.cuda_cores % gpu.sm_count:
        yield f"gpu.cuda_cores is {gpu.cuda_cores}, which is no multiple of gpu.sm_count {gpu.sm_count}"
    for precision in set(gpu.tensor_precisions).difference(gpu.hardware):
        yield f"gpu.tensor_precisions names {precision!r}, which gpu.hardware does not execute"
    if gpu.tensor_precisions and gpu.tensor_cores == 0:
        yield "gpu.tensor_precisions is given, but gpu.tensor_cores is 0"


def _dla_problems(board: BoardFile) -> Iterable[str]:
    if board.dla is None:
        return
    yield from _bound("dla.generation", board.dla.generation, (1, 2))
    yield from _bound("dla.sram_kb", board.dla.sram_kb, _SRAM_KB)
    if board.gpu is None or not board.gpu.dla_cores:
        yield "dla is given, but gpu.dla_cores names none"
    for name in set(board.dla.releases).difference(release.name for release in board.releases):
        yield f"dla.releases names {name!r}, which is not among the releases"


def _mode_problems(board: BoardFile, mode: PowerMode) -> Iterable[str]:
    where = f"power_modes.{mode.name}"
    yield from _bound(f"{where}.watts", mode.watts, _WATTS)
    yield from _bound(f"{where}.memory_gb_s", mode.memory_gb_s, _GB_S)
    yield from _bound(f"{where}.gpu_mhz", mode.gpu_mhz, _MHZ)
    for key, peaks in (("dense_tops", mode.dense_tops), ("dla_tops", mode.dla_tops)):
        for precision, tops in peaks.items():
            if precision not in PRECISIONS:
                yield f"{where}.{key} names {precision!r}, which is none of {', '.join(PRECISIONS)}"
            yield from _bound(f"{where}.{key}.{precision}", tops, _TOPS)
    hardware = board.gpu.hardware if board.gpu is not None else ()
    for precision in set(mode.dense_tops).intersection(PRECISIONS).difference(hardware or PRECISIONS):
        yield f"{where}.dense_tops names {precision!r}, which gpu.hardware does not execute"
    if mode.dla_tops and board.dla is None:
        yield f"{where}.dla_tops is given, but the board has no dla"


def _bound(name: str, value: float | None, bounds: tuple[float, float]) -> Iterable[str]:
    least, most = bounds
    if value is not None and not least <= value <= most:
        yield f"{name} is {value:g}; it lies between {least:g} and {most:g}, leave it out when it is not known"
