"""The board's clocks as one reading: seconds since boot, which boot, wall clock, and whether that can be believed."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

from jetfleet_contract.messages import Instant

TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
RECHECK_S = 30.0
_TIMEX_BYTES = 512  # struct timex has 208 bytes on 64-bit Linux; room to spare


class BoardClock:
    """Call it for the time. The wall clock is trusted while the kernel says that somebody keeps it synchronized.

    A board without a battery starts in 1970, or where systemd saved the clock last: both look plausible and both are wrong,
    so plausibility is no reason for trust.

    Args:
        is_synchronized: asked at most every `RECHECK_S` seconds.
    """

    def __init__(self, is_synchronized: Callable[[], bool] | None = None, proc: Path = Path("/proc")) -> None:
        self._is_synchronized = is_synchronized or kernel_is_synchronized
        self._boot_id = boot_id(proc)
        self._trusted = self._is_synchronized()
        self._asked = _since_boot()

    def __call__(self) -> Instant:
        now = _since_boot()
        if now - self._asked >= RECHECK_S:
            self._trusted, self._asked = self._is_synchronized(), now
        return Instant(now, self._boot_id, time.time(), self._trusted)


def kernel_is_synchronized() -> bool:
    """Whether a time service keeps the kernel's clock (adjtimex(2)); False when it cannot be asked."""
    try:
        state = int(ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    except (OSError, AttributeError):
        return False
    return 0 <= state < TIME_ERROR


def boot_id(proc: Path = Path("/proc")) -> str:
    """The kernel's random name of this boot; empty where there is none."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _since_boot() -> float:
    # CLOCK_BOOTTIME counts suspended time too, as a lease must.
    return time.clock_gettime(time.CLOCK_BOOTTIME)
