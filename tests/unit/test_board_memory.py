"""Free memory of a board under an injected root: the kernel's estimate, and the limits of control groups above us."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetfleet_agent.supervisor.memory import BoardMemory

MEMINFO = "MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    2000000 kB\n"


def board(root: Path, *, meminfo: str = MEMINFO, group: str = "0::/system.slice/jetfleet.service\n",
          limits: dict[str, tuple[str, int, int]] | None = None) -> BoardMemory:
    """`limits`: by group folder, what memory.max says, and used and reclaimable bytes."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(meminfo)
    (root / "proc" / "self" / "cgroup").write_text(group)
    for name, (most, used, cache) in (limits or {}).items():
        folder = root / "sys" / "fs" / "cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")
    return BoardMemory(root)


def test_what_the_kernel_calls_available(tmp_path: Path) -> None:
    assert board(tmp_path).free_mb() == pytest.approx(2048.0)


@pytest.mark.parametrize(("limits", "free"), [
    ({"system.slice/jetfleet.service": ("500000000", 300000000, 100000000)}, 300.0),
    ({"system.slice/jetfleet.service": ("max", 1, 0), "system.slice": ("900000000", 800000000, 0)}, 100.0),
    ({"system.slice/jetfleet.service": ("1000", 5000, 0)}, 0.0),
    ({"system.slice/jetfleet.service": ("9000000000", 0, 0)}, 2048.0),
    ({"other.slice": ("1000", 0, 0)}, 2048.0),
])
def test_the_tightest_of_our_control_groups_counts_and_its_page_cache_is_free(tmp_path: Path, limits: dict[str, tuple[str, int, int]],
                                                                             free: float) -> None:
    assert board(tmp_path, limits=limits).free_mb() == pytest.approx(free)


@pytest.mark.parametrize("group", ["", "12:memory:/x\n", "0::/../../etc\n"])
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, group: str) -> None:
    assert board(tmp_path, group=group).free_mb() == pytest.approx(2048.0)
    assert BoardMemory(tmp_path / "none").free_mb() == 0.0


@pytest.mark.parametrize("meminfo", ["", "MemAvailable:\n", "MemAvailable: many kB\n"])
def test_nonsense_is_not_known(tmp_path: Path, meminfo: str) -> None:
    assert board(tmp_path, meminfo=meminfo).free_mb() == 0.0


def test_this_machine_tells() -> None:
    assert BoardMemory().free_mb() > 0
