"""Children that do not outlive the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def wait_or_kill(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Wait for the process, so long at most; then end it."""
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def death_signal(parent: int) -> Callable[[], None]:
    """What a child calls between fork and exec: die when the parent dies (prctl(2)), also if it just did."""
    prctl = ctypes.CDLL(None).prctl

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return die_with_parent
