"""The host's clocks, read in one place."""

from __future__ import annotations

import time
import uuid
from functools import cache
from pathlib import Path

from jetfleet_contract.messages import Instant


def now() -> Instant:
    """One reading: seconds since boot (they go on across restarts of this process), and the wall clock, which a host trusts."""
    return Instant(time.monotonic(), _boot_id(), time.time(), True)


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(uuid.uuid4())  # no Linux: each process counts as a boot of its own, and the wall clock bridges them
