"""What this board can do: the machine is probed, each runtime is asked, and the board file bounds the answer.

Nothing is assumed that can be asked. The file system's root is an argument, so that a recorded ``/proc`` and device
tree of any board can be read as if it were this machine's.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from jetfleet_contract.boards import BoardFile, allowed_precisions, bounded_dla, names_board, withheld_precisions
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.messages import BackendInfo, Capability

from .backend_probe import BackendFacts

PROBE_TIMEOUT_S = 60.0
MAX_ANSWER_BYTES = 64 * 1024

# Flags that decide about kernels of the runtimes; the other hundred only make the birth message longer.
_ISA = re.compile(r"sse4_[12]|avx.*|amx_.*|fma|f16c|asimd.*|bf16|i8mm|sve.*|fphp")

_MODULE = re.compile(r"p\d{4}-\d{4}")

# CPU part numbers of /proc/cpuinfo on Arm, which carries no name (Arm's part numbers, as Linux arch/arm64 cputype.h has them).
_ARM_PARTS = {"0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
              "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE",
              "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2"}


class Machine(msgspec.Struct, frozen=True):
    """This machine, as the operating system tells. `memory_mb` is 0 and texts are empty where it does not.

    `drivers` are kernel drivers of accelerators that are loaded: ``nvidia``.
    """

    arch: str
    cpu: str = ""
    isa: tuple[str, ...] = ()
    cores: int = 1
    memory_mb: int = 0
    model: str = ""
    compatible: tuple[str, ...] = ()
    l4t: str = ""
    drivers: tuple[str, ...] = ()


def probe_machine(root: Path = Path("/"), *, arch: str = "", cores: int = 0) -> Machine:
    """Read /proc, the device tree and the L4T release below `root`.

    Args:
        arch: architecture; asked of the running kernel when empty.
        cores: CPU cores; those this process may run on when 0.
    """
    cpuinfo = _text(root / "proc/cpuinfo")
    return Machine(
        arch=arch or platform.machine(),
        cpu=_cpu_name(cpuinfo),
        isa=_flags(cpuinfo),
        cores=cores or len(os.sched_getaffinity(0)),
        memory_mb=_memory_mb(_text(root / "proc/meminfo")),
        model=_text(root / "proc/device-tree/model").strip("\0\n "),
        compatible=tuple(part for part in _text(root / "proc/device-tree/compatible").split("\0") if part),
        l4t=l4t_release(root),
        drivers=("nvidia",) if _text(root / "proc/driver/nvidia/version") else (),
    )


def probe(
    board: BoardFile,
    simulate: bool,
    *,
    machine: Machine | None = None,
    ask: Callable[[Sequence[str]], dict[str, BackendFacts]] | None = None,
) -> Capability:
    """What this machine can do under that board file.

    Args:
        simulate: put the board file over a machine that is no such board. What the machine lacks stays lacking, with its
            reason, so the next best runtime is chosen; cores and memory are the lesser of both.
        machine: a probed machine; this one when None.
        ask: asks runtimes about themselves; in processes of their own when None.

    Raises:
        IncompatibleError: `board.arch` or `board.mismatch` when the machine is no such board and `simulate` is off.
    """
    machine = machine or probe_machine()
    if not simulate:
        _check_is_board(board, machine)
    facts = (ask or ask_backends)([rule.name for rule in board.backends])
    return Capability(
        board=board.board,
        device_class=board.device_class,
        arch=machine.arch,
        cpu=machine.cpu,
        isa=machine.isa,
        cores=min(machine.cores, board.cores or machine.cores),
        memory_mb=min(filter(None, (machine.memory_mb, board.memory_mb)), default=0),
        backends=_backends(board, machine, facts),
        simulated=simulate,
        gpu=next((bounded_dla(board, machine.l4t, fact.gpu) for fact in facts.values() if fact.gpu is not None), None),
        module=module_of(machine.compatible),
        system=machine.l4t,
    )


def module_of(compatible: Sequence[str]) -> str:
    """A Jetson module's part number from the device tree's compatible list: ``nvidia,p3768-0000+p3767-0005-super`` is a p3767-0005 on a
    carrier board p3768-0000. Empty where none is named; of a name without a carrier the first number counts."""
    numbers = [_MODULE.findall(entry) for entry in compatible]
    return next((found[-1] for found in numbers if len(found) > 1), next((found[0] for found in numbers if found), ""))


def reasons_withheld(board: BoardFile, machine: Machine) -> dict[str, str]:
    """For each `backend:precision` that the board file knows and this CPU cannot run: why not."""
    return {f"{rule.name}:{precision}": reason for rule in board.backends
            for precision, reason in withheld_precisions(rule, machine.isa).items()}


def ask_backends(names: Sequence[str], *, timeout_s: float = PROBE_TIMEOUT_S) -> dict[str, BackendFacts]:
    """Ask runtimes about themselves, each in a short-lived process, all at once. A crash or a hang is an answer too."""
    started = {name: subprocess.Popen([sys.executable, "-m", f"{__package__}.backend_probe", name], stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
               for name in names}
    deadline = time.monotonic() + timeout_s
    return {name: _answer(process, deadline, timeout_s) for name, process in started.items()}


def _answer(process: subprocess.Popen[bytes], deadline: float, timeout_s: float) -> BackendFacts:
    try:
        output, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return BackendFacts(missing=f"its import did not end within {timeout_s:.0f} s")
    if process.returncode < 0:
        return BackendFacts(missing=f"its import crashes ({signal.Signals(-process.returncode).name})")
    lines = output[:MAX_ANSWER_BYTES].splitlines()  # a runtime may print too; ours is the last line
    try:
        return msgspec.json.decode(lines[-1] if lines else b"", type=BackendFacts)
    except msgspec.DecodeError:
        return BackendFacts(missing=f"its import ends the process (exit code {process.returncode})")


def _backends(board: BoardFile, machine: Machine, facts: dict[str, BackendFacts]) -> tuple[BackendInfo, ...]:
    found = []
    for rule in board.backends:
        fact = facts.get(rule.name, BackendFacts(missing="was not asked"))
        if fact.missing:
            found.append(BackendInfo(rule.name, missing=fact.missing))
            continue
        precisions = allowed_precisions(rule, machine.isa)
        # A runtime that says what it computes in would run other halves in something else, and be refused for it after a download.
        said = tuple(p for p in precisions if p not in ("bf16", "fp16") or not fact.precisions or p in fact.precisions)
        found.append(BackendInfo(rule.name, version=fact.version, precisions=said, build=fact.build))
    return tuple(found)


def _check_is_board(board: BoardFile, machine: Machine) -> None:
    remedy = f"let the agent find out (board = \"auto\"), or set simulate = true to try {board.board} on this machine"
    if board.arch != machine.arch:
        raise IncompatibleError("board.arch", f"board {board.board} is {board.arch}, this machine is {machine.arch}", remedy=remedy)
    if board.device_tree and not names_board(board, machine.compatible):
        seen = machine.model or "a machine without a device tree"
        raise IncompatibleError("board.mismatch", f"this is no {board.title}: it is {seen}", remedy=remedy)


def _cpu_name(cpuinfo: str) -> str:
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if named:
        return named.group(1).strip()
    part = re.search(r"^CPU part\s*:\s*(0x[0-9a-fA-F]+)$", cpuinfo, re.MULTILINE)
    return f"Arm {_ARM_PARTS.get(part.group(1).lower(), 'part ' + part.group(1))}" if part else ""


def _flags(cpuinfo: str) -> tuple[str, ...]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return tuple(flag for flag in found.group(1).split() if _ISA.fullmatch(flag)) if found else ()


def _memory_mb(meminfo: str) -> int:
    found = re.search(r"^MemTotal:\s*(\d+) kB", meminfo, re.MULTILINE)
    return int(found.group(1)) // 1024 if found else 0


def l4t_release(root: Path) -> str:
    """``# R36 (release), REVISION: 4.3, ...`` is 36.4.3; empty where there is no L4T."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    return f"{found.group(1)}.{found.group(2)}" if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
