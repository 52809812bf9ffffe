"""How much memory this board could still give: what the kernel calls available, and what is left below the limits of our control groups.

Read from /proc and /sys/fs/cgroup (version 2) below an injected root. What cannot be read limits nothing.
"""

from __future__ import annotations

from pathlib import Path


class BoardMemory:
    """See the module.

    Args:
        root: what ``/proc`` and ``/sys`` lie below.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        self._groups = root / "sys" / "fs" / "cgroup"

    def free_mb(self) -> float:
        """MB that new work may take, 0 when nothing tells."""
        known = [value for value in (self._available(), self._left_in_groups()) if value is not None]
        return min(known, default=0.0)

    def _available(self) -> float | None:
        """MemAvailable: the kernel's own estimate of what can be had without swapping, page cache that can go included."""
        try:
            for line in (self._proc / "meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024 / 1e6
        except (OSError, ValueError, IndexError):
            return None
        return None

    def _left_in_groups(self) -> float | None:
        """The least that is left in our group and those above it."""
        try:
            lines = (self._proc / "self" / "cgroup").read_text().splitlines()
        except OSError:
            return None
        own = next((line[3:] for line in lines if line.startswith("0::")), None)
        if own is None:
            return None
        folder = self._groups / own.strip("/")
        left = [value for group in (folder, *folder.parents) if group.is_relative_to(self._groups)
                if (value := _left(group)) is not None]
        return min(left, default=None)


def _left(group: Path) -> float | None:
    """MB below one group's limit. Its page cache counts as free: the kernel drops that before it kills."""
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such controller, or "max": no limit
        return None
    return max(limit - used + _cache(group), 0) / 1e6


def _cache(group: Path) -> int:
    try:
        fields = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(fields["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0
