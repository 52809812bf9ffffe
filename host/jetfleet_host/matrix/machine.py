"""What this machine is: which target boards it stands for, and what belongs beside every latency that it measures."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from jetfleet_contract.boards import BoardFile

_TOLD = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimddp", "i8mm", "bf16")


@dataclass(frozen=True)
class ThisMachine:
    """`arch` as ``uname -m`` says it, `flags` all CPU flags, `mhz` the cores' mean clock when it was read (0: not told)."""

    arch: str
    cpu: str
    flags: frozenset[str]
    mhz: float

    @property
    def isa(self) -> tuple[str, ...]:
        """The extensions that decide how fast, and on old CPUs how right, int8 and bf16 are."""
        return tuple(flag for flag in _TOLD if flag in self.flags)

    def is_a(self, board: BoardFile) -> bool:
        """Whether what is measured here holds for that target: a CPU class of the same architecture whose extensions this one has."""
        plain = board.arch == self.arch and not board.device_tree and not board.driver
        return plain and (not board.any_isa or bool(self.flags.intersection(board.any_isa)))


def this_machine() -> ThisMachine:
    """Read from Linux; elsewhere only the architecture is known."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        text = ""
    return machine_from(platform.machine(), text)


def machine_from(arch: str, cpuinfo: str) -> ThisMachine:
    """What ``/proc/cpuinfo`` says."""
    pairs = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in cpuinfo.splitlines()) if value]
    last = dict(pairs)
    clocks = [float(value) for key, value in pairs if key == "cpu MHz" and value.replace(".", "", 1).isdigit()]
    flags = frozenset(last.get("flags", last.get("Features", "")).split())
    return ThisMachine(arch, last.get("model name", arch), flags, round(sum(clocks) / len(clocks), 1) if clocks else 0.0)
