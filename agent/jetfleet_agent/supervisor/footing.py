"""What a pipeline process stands on: the memory that it takes, and how fast its model has been."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Footing(NamedTuple):
    """What an app's process stands on now: memory in MB, and its model's p99 a frame in ms; 0 where not known."""

    memory_mb: float = 0.0
    work_p99_ms: float = 0.0


def resident_mb(pid: int) -> float:
    """Resident memory of that process in MB (1e6 bytes), 0 when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
