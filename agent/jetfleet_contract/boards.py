"""Board files: what a device class is known to have and to run, and where each figure comes from.

A board file is a TOML table, checked here from its plain mapping (reading the file is the caller's). What is not
known is left out and stays unknown (None or empty): nobody may read a missing figure as zero. `sources` maps dotted
paths (``memory_mb``, ``gpu``, ``power_modes``) to the text that names the origin; a path covers what lies below it.

A board file only bounds what a board may try. What it really can do is probed there, and what pays is measured there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from .errors import InputError, MalformedError
from .messages import Message
from .topics import check_name

MAX_BOARD_BYTES = 64 * 1024
MAX_FIGURE = 1e9

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8", "nvfp4"]

# These say which board it is, or are our own choice: they are no claims about the world that need a source.
_UNSOURCED = frozenset({"board", "device_class", "title", "support", "sources", "notes", "fallback"})


class BackendRule(Message, frozen=True):
    """One runtime that the board may use, in the order to prefer when nothing was measured.

    `precisions` are the execution precisions worth trying; `pays` those known to be faster than fp32 there. `needs_isa`
    asks for at least one of the CPU flags (as /proc/cpuinfo spells them) before a precision is tried.
    """

    name: Literal["tensorrt", "onnxruntime", "openvino"]
    precisions: tuple[Precision, ...]
    pays: tuple[Precision, ...] = ()
    needs_isa: dict[str, tuple[str, ...]] = {}
    fallback: bool = False


class Gpu(Message, frozen=True):
    """The GPU. `sm` is the CUDA compute capability, ``8.7``; `hardware` what its units execute at all."""

    name: str
    sm: str
    cuda_cores: int | None = None
    tensor_cores: int | None = None
    hardware: tuple[Precision, ...] = ()
    dla_cores: int | None = None


class PowerMode(Message, frozen=True):
    """One nvpmodel mode. `watts` None: not capped. `memory_gb_s` in 1e9 bytes/s, `dense_tops` in 1e12 operations/s, no sparsity."""

    name: str
    watts: float | None = None
    memory_gb_s: float | None = None
    dense_tops: dict[str, float] = {}


class SystemRelease(Message, frozen=True):
    """One system image that the board runs, with the versions that an engine is bound to."""

    name: str
    l4t: str = ""
    cuda: str = ""
    tensorrt: str = ""
    python: str = ""


class BoardFile(Message, frozen=True):
    """One board. `support` "agent": the agent runs there today; "planned": facts only.

    `device_tree` holds parts of the device-tree's compatible list that identify the board. `memory_gb_s` is 1e9 bytes/s in the
    default power mode.
    """

    board: str
    device_class: str
    arch: Literal["x86_64", "aarch64"]
    title: str
    support: Literal["agent", "planned"]
    backends: tuple[BackendRule, ...]
    device_tree: tuple[str, ...] = ()
    cpu: str = ""
    cores: int | None = None
    memory_mb: int | None = None
    memory_gb_s: float | None = None
    gpu: Gpu | None = None
    power_modes: tuple[PowerMode, ...] = ()
    releases: tuple[SystemRelease, ...] = ()
    notes: tuple[str, ...] = ()
    sources: dict[str, str] = {}

    def rule(self, backend: str) -> BackendRule | None:
        """The rule for that runtime, or None: the board does not use it."""
        return next((rule for rule in self.backends if rule.name == backend), None)


def board_from(mapping: Mapping[str, Any], *, where: str) -> BoardFile:
    """Check a decoded board file.

    Args:
        where: the file's path, for the error.

    Raises:
        InputError: `board.bad`, naming the offending key or value.
    """
    try:
        board = msgspec.convert(mapping, BoardFile)
        check_name("board", board.board)
        check_name("device class", board.device_class)
    except (msgspec.ValidationError, MalformedError) as error:
        what = error.what if isinstance(error, MalformedError) else str(error)
        raise _bad(what, where) from None
    for problem in _problems(board, mapping):
        raise _bad(problem, where)
    return board


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


def _problems(board: BoardFile, mapping: Mapping[str, Any]) -> Iterable[str]:
    yield from _repeats("backend", [str(rule.name) for rule in board.backends])
    yield from _repeats("power mode", [mode.name for mode in board.power_modes])
    yield from _repeats("release", [release.name for release in board.releases])
    if not board.backends:
        yield "no backend is listed, so nothing could ever run"
    for rule in board.backends:
        for key, named in (("pays", rule.pays), ("needs_isa", tuple(rule.needs_isa))):
            for precision in set(named).difference(rule.precisions):
                yield f"backend {rule.name}: {key} names {precision!r}, which is not among its precisions"
    for name, figure in _figures(board):
        if figure is not None and not 0 < figure < MAX_FIGURE:
            yield f"{name} is {figure}; leave it out when it is not known"
    for path in board.sources:
        if not _names_something(path, mapping):
            yield f"sources names {path!r}, which the file does not hold"


def _repeats(what: str, names: list[str]) -> Iterable[str]:
    return (f"{what} {name!r} is listed twice" for name in dict.fromkeys(names) if names.count(name) > 1)


def _figures(board: BoardFile) -> Iterable[tuple[str, float | None]]:
    yield from (("cores", board.cores), ("memory_mb", board.memory_mb), ("memory_gb_s", board.memory_gb_s))
    for mode in board.power_modes:
        yield from ((f"{mode.name}: watts", mode.watts), (f"{mode.name}: memory_gb_s", mode.memory_gb_s))
        yield from ((f"{mode.name}: dense_tops.{name}", tops) for name, tops in mode.dense_tops.items())


def _names_something(path: str, mapping: Mapping[str, Any]) -> bool:
    leaves = [leaf for key, value in mapping.items() if key != "sources" for leaf in _leaves(key, value)]
    return any(leaf == path or leaf.startswith(path + ".") for leaf in leaves)


def _bad(what: str, where: str) -> InputError:
    return InputError("board.bad", f"the board file is not valid: {what}", where=where,
                      remedy="compare it with a board file that ships in firmware_configs/")
