"""Board files: what a device class is known to have and to run, and where each figure comes from.

A board file is a TOML table, checked here from its plain mapping (reading the file is the caller's). What is not
known is left out and stays unknown (None or empty): nobody may read a missing figure as zero. `sources` maps dotted
paths (``memory_mb``, ``gpu``, ``power_modes``) to the text that names the origin; a path covers what lies below it.

A board file only bounds what a board may try. What it really can do is probed there, and what pays is measured there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from .board_bounds import problems
from .errors import InputError, MalformedError
from .messages import GpuInfo, Message
from .topics import check_name
from .unknown_keys import refuse_unknown

MAX_BOARD_BYTES = 64 * 1024

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8", "nvfp4"]

# These say which board it is, or are our own choice: they are no claims about the world that need a source.
_UNSOURCED = frozenset({"board", "device_class", "title", "support", "why_not", "precedence", "sources", "notes", "fallback"})


class BackendRule(Message, frozen=True):
    """One runtime that the board may use, in the order to prefer when nothing was measured.

    `precisions` are the execution precisions worth trying; `pays` those known to be faster than fp32 there. `needs_isa`
    asks for at least one of the CPU flags (as /proc/cpuinfo spells them) before a precision is tried.
    """

    name: Literal["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"]
    precisions: tuple[Precision, ...]
    pays: tuple[Precision, ...] = ()
    needs_isa: dict[str, tuple[str, ...]] = {}
    fallback: bool = False


class Gpu(Message, frozen=True):
    """The GPU. `sm` is the CUDA compute capability, ``8.7``; `hardware` what its units execute at all.

    `tensor_precisions` are those that its tensor cores multiply. `l2_kb` is its level-2 cache in KiB (1024 bytes).
    """

    name: str
    sm: str
    sm_count: int | None = None
    cuda_cores: int | None = None
    tensor_cores: int | None = None
    l2_kb: int | None = None
    hardware: tuple[Precision, ...] = ()
    tensor_precisions: tuple[Precision, ...] = ()
    dla_cores: int | None = None


class Dla(Message, frozen=True):
    """The deep-learning accelerators beside the GPU, `gpu.dla_cores` of them. `releases`: where TensorRT can still use them."""

    generation: int
    precisions: tuple[Precision, ...]
    sram_kb: int | None = None
    releases: tuple[str, ...] = ()


class PowerMode(Message, frozen=True):
    """One nvpmodel mode. `watts` None: not capped. `memory_gb_s` in 1e9 bytes/s, `gpu_mhz` the GPU's highest clock.

    `dense_tops` is the GPU's peak by precision, `dla_tops` that of all DLA cores together: 1e12 operations/s, no sparsity.
    """

    name: str
    watts: float | None = None
    memory_gb_s: float | None = None
    gpu_mhz: float | None = None
    dense_tops: dict[str, float] = {}
    dla_tops: dict[str, float] = {}


class SystemRelease(Message, frozen=True):
    """One system image that the board runs, with the versions that an engine and a wheel are bound to."""

    name: str
    l4t: str = ""
    cuda: str = ""
    tensorrt: str = ""
    python: str = ""
    glibc: str = ""


class CameraPipeline(Message, frozen=True):
    """A way to a camera: what comes before the appsink, in GStreamer's own syntax."""

    name: str
    pipeline: str


class FlashTarget(Message, frozen=True):
    """A board name as NVIDIA's flashing tools take it: ``tool ... config device``. `first_release` is where it appeared, if known."""

    name: str
    config: str
    tool: Literal["flash.sh", "l4t_initrd_flash.sh"]
    first_release: str = ""


class BoardFile(Message, frozen=True):
    """One board. `support` "agent": the agent runs there today; "planned": facts only, and `why_not` says why.

    `device_tree` holds parts of the device-tree's compatible list that identify the board; `driver` a kernel driver and `any_isa` CPU
    flags (one of them is enough) that tell this class from the plain one of its architecture; of several that fit, the one of the
    highest `precedence` is taken. `memory_gb_s` is 1e9 bytes/s in the default power mode.
    """

    board: str
    device_class: str
    arch: Literal["x86_64", "aarch64"]
    title: str
    support: Literal["agent", "planned"]
    backends: tuple[BackendRule, ...]
    why_not: str = ""
    device_tree: tuple[str, ...] = ()
    driver: Literal["", "nvidia"] = ""
    any_isa: tuple[str, ...] = ()
    precedence: int = 0
    cpu: str = ""
    cores: int | None = None
    memory_mb: int | None = None
    memory_gb_s: float | None = None
    gpu: Gpu | None = None
    dla: Dla | None = None
    thermal_zones: tuple[str, ...] = ()
    power_modes: tuple[PowerMode, ...] = ()
    releases: tuple[SystemRelease, ...] = ()
    cameras: tuple[CameraPipeline, ...] = ()
    flash: tuple[FlashTarget, ...] = ()
    notes: tuple[str, ...] = ()
    sources: dict[str, str] = {}

    def rule(self, backend: str) -> BackendRule | None:
        """The rule for that runtime, or None: the board does not use it."""
        return next((rule for rule in self.backends if rule.name == backend), None)

    def release(self, l4t: str) -> SystemRelease | None:
        """The release that a board of this L4T runs (``36.4.3`` is of ``36.4``), or None: nobody knows."""
        return next((one for one in self.releases if one.l4t and is_within(l4t, one.l4t)), None)


def bounded_dla(board: BoardFile, l4t: str, gpu: GpuInfo) -> GpuInfo:
    """The GPU with the DLA cores that both TensorRT sees (`gpu.dla_cores`) and the board file has, and what runs on them there.

    A release that the file knows and does not name beside the DLA has none; of one that it does not know, TensorRT's word counts.
    """
    release = board.release(l4t)
    cores = min(gpu.dla_cores, (board.gpu.dla_cores if board.gpu is not None else 0) or 0)
    if board.dla is None or not cores or (release is not None and release.name not in board.dla.releases):
        return msgspec.structs.replace(gpu, dla_cores=0, dla_precisions=())
    return msgspec.structs.replace(gpu, dla_cores=cores, dla_precisions=board.dla.precisions)


def is_within(version: str, release: str) -> bool:
    """Whether 10.3.0.30 is of 10.3."""
    return f"{version}.".startswith(f"{release}.")


def board_from(mapping: Mapping[str, Any], *, where: str) -> BoardFile:
    """Check a decoded board file.

    Args:
        where: the file's path, for the error.

    Raises:
        InputError: `board.bad`, naming the offending key and the nearest valid one, or the value and its bound.
    """
    refuse_unknown(dict(mapping), BoardFile, "board.bad", "the board file", where)
    try:
        board = msgspec.convert(mapping, BoardFile)
        check_name("board", board.board)
        check_name("device class", board.device_class)
    except (msgspec.ValidationError, MalformedError) as error:
        what = error.what if isinstance(error, MalformedError) else str(error)
        raise _bad(what, where) from None
    for problem in (*problems(board), *_bad_sources(board, mapping)):
        raise _bad(problem, where)
    return board


def chosen_board(boards: Sequence[BoardFile], arch: str, compatible: Sequence[str], isa: Iterable[str],
                 drivers: Iterable[str]) -> BoardFile | None:
    """The board file that fits a machine: by its device tree, else by what its class is told from, the most particular first.

    Args:
        arch: as ``uname -m`` says it. compatible: the device tree's list. isa: CPU flags as /proc/cpuinfo spells them.
        drivers: kernel drivers of accelerators that are loaded.

    Returns:
        None when no file fits.
    """
    named = next((board for board in boards if names_board(board, compatible)), None)
    if named is not None:
        return named
    flags, loaded = frozenset(isa), frozenset(drivers)
    fitting = [board for board in boards if board.arch == arch and not board.device_tree and _fits(board, flags, loaded)]
    return max(fitting, key=lambda board: board.precedence, default=None)


def names_board(board: BoardFile, compatible: Sequence[str]) -> bool:
    """True when the device tree names the board."""
    return any(part in entry for part in board.device_tree for entry in compatible)


def _fits(board: BoardFile, isa: frozenset[str], drivers: frozenset[str]) -> bool:
    return (not board.any_isa or bool(isa.intersection(board.any_isa))) and (not board.driver or board.driver in drivers)


def allowed_precisions(rule: BackendRule, isa: Iterable[str]) -> tuple[str, ...]:
    """The precisions of a rule that a CPU with these flags can run, in the rule's order."""
    flags = frozenset(isa)
    return tuple(p for p in rule.precisions if p not in rule.needs_isa or flags.intersection(rule.needs_isa[p]))


def withheld_precisions(rule: BackendRule, isa: Iterable[str]) -> dict[str, str]:
    """The other precisions, each with the reason why not."""
    flags = frozenset(isa)
    return {p: f"the CPU has none of {', '.join(needed)}" for p, needed in rule.needs_isa.items() if not flags.intersection(needed)}


def unsourced(mapping: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted paths of all values of a board file that no entry of its `sources` covers."""
    covered = mapping.get("sources", {})
    return tuple(path for key, value in mapping.items() if key not in _UNSOURCED
                 for path in _leaves(key, value) if path.rpartition(".")[2] not in _UNSOURCED and not _covered(path, covered))


def _covered(path: str, covered: Mapping[str, str]) -> bool:
    parts = path.split(".")
    return any(covered.get(".".join(parts[:length]), "").strip() for length in range(1, len(parts) + 1))


def _leaves(path: str, value: object) -> Iterable[str]:
    """Paths of the plain values below `value`; a list of tables is addressed by each table's `name`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
        return
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        for table in value:
            for key, inner in table.items():
                if key != "name":
                    yield from _leaves(f"{path}.{table.get('name', '')}.{key}", inner)
        return
    yield path


def _bad_sources(board: BoardFile, mapping: Mapping[str, Any]) -> Iterable[str]:
    for path, text in board.sources.items():
        if not _names_something(path, mapping):
            yield f"sources names {path!r}, which the file does not hold"
        if not text.strip():
            yield f"sources says nothing for {path!r}; name the origin, or leave the value out"


def _names_something(path: str, mapping: Mapping[str, Any]) -> bool:
    leaves = [leaf for key, value in mapping.items() if key != "sources" for leaf in _leaves(key, value)]
    return any(leaf == path or leaf.startswith(path + ".") for leaf in leaves)


def _bad(what: str, where: str) -> InputError:
    return InputError("board.bad", f"the board file is not valid: {what}", where=where,
                      remedy="compare it with a board file that ships in firmware_configs/")
