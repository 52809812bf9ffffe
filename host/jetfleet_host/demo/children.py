"""The demo's child processes: started with their own log each, watched, and all gone at the end, whatever happened."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from jetfleet_contract.errors import RuntimeFailure

LOG_TAIL_LINES = 15
STOP_GRACE_S = 8.0
KILL_GRACE_S = 5.0

_log = logging.getLogger(__name__)


class Children:
    """Named processes. Use as a context manager: leaving it stops every one of them with its descendants.

    Each child leads its own session, so that a Ctrl-C in the terminal reaches only the demo, which then stops the
    children in order instead of all of them dying at once.
    """

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, IO[bytes]] = {}
        # Every process that ever belonged to a child: (pid, start time) names one process for ever.
        self._family: dict[tuple[int, float], Any] = {}

    def __enter__(self) -> Children:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop_all()

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start a child; what it prints goes to ``NAME.log``."""
        log = self.log_of(name).open("ab")
        self._logs[name] = log
        self._running[name] = subprocess.Popen([*_ends_with_us(), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                               env={**os.environ, **(environment or {})}, start_new_session=True)

    def log_of(self, name: str) -> Path:
        return self._log_folder / f"{name}.log"

    def check(self) -> None:
        """Raise RuntimeFailure `demo.child` with the end of its log when a child has died."""
        self._remember_families()
        for name, process in self._running.items():
            code = process.poll()
            if code is not None:
                ended = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                raise RuntimeFailure("demo.child", f"{name} {ended}; its log ends with:\n{self._tail(name)}",
                                     where=str(self.log_of(name)), remedy="run again with --keep and read that log")

    def stop_all(self) -> None:
        """Ask every child to end, the last started first; kill what is still there after a while."""
        self._remember_families()
        for process in reversed(self._running.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        for name, process in self._running.items():
            _end(name, process, deadline)
        self._kill_leftovers()
        for log in self._logs.values():
            log.close()
        self._running.clear()
        self._logs.clear()

    def _remember_families(self) -> None:
        """Note all descendants while their parents live: an orphan cannot be found by its parent any more."""
        for process in self._running.values():
            for member in _family_of(process.pid):
                self._family[(member.pid, member.create_time())] = member

    def _kill_leftovers(self) -> None:
        import psutil

        left = [member for member in self._family.values() if member.is_running()]
        for member in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(left, timeout=KILL_GRACE_S)
        self._family.clear()

    def _tail(self, name: str) -> str:
        text = self.log_of(name).read_text(encoding="utf-8", errors="replace")
        return "\n".join("    " + line[:300] for line in text.splitlines()[-LOG_TAIL_LINES:]) or "    (nothing)"


def _ends_with_us() -> list[str]:
    """What makes the kernel stop a child whose demo was killed: util-linux's setpriv, which every Debian and Ubuntu has."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _end(name: str, process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        _log.warning("%s did not end within %.0f s and is killed", name, STOP_GRACE_S)
        process.kill()
        process.wait()


def _family_of(pid: int) -> list[Any]:
    """The process and all its descendants; empty when it is gone."""
    import psutil

    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
