"""Children that heed Ctrl-C, however the suite itself was started."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from typing import Any


def _heed_interrupts() -> None:
    """A suite that a script started in the background has SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interruptible(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """`subprocess.Popen` of a program that SIGINT reaches."""
    return subprocess.Popen(command, preexec_fn=_heed_interrupts, **options)  # noqa: PLW1509 - one system call, before the exec
