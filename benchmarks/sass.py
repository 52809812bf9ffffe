"""Machine code of a cubin, by NVIDIA's disassembler from PyPI, and how many instructions a thread goes through."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

REQUIREMENT = "nvidia-cuda-nvdisasm==13.5.37"  # 5 MB
_INSIDE = "nvidia/cu13/bin/nvdisasm"
_KERNEL = re.compile(r"^\.text\.(\w+):\s*$", re.MULTILINE)
_LABEL = re.compile(r"^(\.L_\w+):")
_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_INTEGER = ("IADD3", "IMAD", "IDP", "LOP3", "SHF", "PRMT", "IMNMX", "ISETP", "LEA", "SEL", "IABS", "POPC", "FLO", "F2IP", "I2FP")


class Instruction(msgspec.Struct, frozen=True):
    """One line. `guarded`: it runs only where its predicate holds; `target` is where a branch goes to, as an index."""

    name: str
    guarded: bool
    target: int | None

    @property
    def is_integer(self) -> bool:
        """Whether it runs on the integer lanes, of which sm_86 and sm_87 have half as many. A move that is spelled IMAD is none."""
        return self.name.startswith(_INTEGER) and not self.name.startswith("IMAD.MOV")


class Way(msgspec.Struct, frozen=True):
    """A way from a kernel's first instruction to an EXIT, every branch forward taken one way or the other."""

    instructions: tuple[Instruction, ...]

    @property
    def stores(self) -> int:
        return sum(one.name.startswith("STG") for one in self.instructions)

    @property
    def accesses(self) -> int:
        """Loads and stores of global memory."""
        return sum(one.name.startswith(("LDG", "STG")) for one in self.instructions)

    @property
    def integer(self) -> int:
        return sum(one.is_integer for one in self.instructions)


def disassembler(cache: Path) -> Path:
    """``nvdisasm``: of the path, of this environment, else put into `cache` by pip."""
    found = shutil.which("nvdisasm")
    known = [Path(found)] if found else []
    known += [Path(sysconfig.get_paths()["purelib"]) / _INSIDE, cache / REQUIREMENT / _INSIDE]
    present = next((path for path in known if path.is_file()), None)
    if present is not None:
        return present
    print(f"kernels: fetching {REQUIREMENT}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target",
                    str(cache / REQUIREMENT), REQUIREMENT], check=True)
    return known[-1]


def disassembled(tool: Path, cubin: bytes) -> dict[str, list[Instruction]]:
    """By kernel, its instructions without the padding that follows the last one."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True, check=True).stdout
    parts = _KERNEL.split(text)
    return {name: _instructions(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def paths(kernel: list[Instruction]) -> Iterator[Way]:
    """Every way without a branch back."""
    waiting: list[tuple[int, tuple[Instruction, ...]]] = [(0, ())]
    while waiting:
        at, gone = waiting.pop()
        while at < len(kernel):
            one = kernel[at]
            gone = (*gone, one)
            ahead = one.target if one.target is not None and one.target > at else None
            if one.name == "EXIT" and not one.guarded:
                yield Way(gone)
            if not one.guarded and (one.name == "EXIT" or (one.target is not None and ahead is None)):
                break
            if one.guarded and ahead is not None:
                waiting.append((ahead, gone))
            at = ahead if ahead is not None and not one.guarded else at + 1


def loops(kernel: list[Instruction]) -> list[tuple[int, int]]:
    """First and last instruction of each loop; the branch after the last EXIT, which keeps a multiprocessor from running on, is none."""
    last = max((at for at, one in enumerate(kernel) if one.name == "EXIT"), default=0)
    return [(one.target, at) for at, one in enumerate(kernel[:last]) if one.target is not None and one.target <= at]


def a_load(kernel: list[Instruction]) -> tuple[int, float]:
    """Instructions before the loop that loads most, and of that loop for each of its loads."""
    def loaded(loop: tuple[int, int]) -> int:
        return sum(one.name.startswith("LDG") for one in kernel[loop[0]:loop[1] + 1])

    first, last = max(loops(kernel), key=loaded)
    return first, (last + 1 - first) / loaded((first, last))


def _instructions(body: str) -> list[Instruction]:
    labels: dict[str, int] = {}
    rows: list[tuple[str, bool, str]] = []
    for line in body.splitlines():
        label, found = _LABEL.match(line), _LINE.match(line)
        if label:
            labels[label[1]] = len(rows)
        elif found:
            target = _TARGET.search(found[3]) if found[2].startswith("BRA") else None
            guarded = bool(found[1]) or bool(re.match(r"!?U?P\d", found[3]))
            rows.append((found[2], guarded, target[1] if target else ""))
    while rows and rows[-1][0] == "NOP":
        rows.pop()
    return [Instruction(name, guarded, labels.get(target) if target else None) for name, guarded, target in rows]
