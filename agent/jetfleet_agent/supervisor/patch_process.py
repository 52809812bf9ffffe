"""Runs `jetfleet_agent.patching` in a process of its own, with bounded memory and time; whatever happens to it becomes one named error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from jetfleet_contract.errors import JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import decode

PROGRAM = (sys.executable, "-m", "jetfleet_agent.patching")
MEMORY_MB = 1024
"""Of address space; what it uses of it is a tenth."""
THREADS = 4
NICE = 10
START_S = 60.0
SLOWEST_BYTES_S = 500_000
MAX_SAID = 4096
_TRUST = ("delta.base-damaged", "delta.wrong-result")
_DISK = ("delta.base-missing", "store.full", "store.io")


class _Said(msgspec.Struct, frozen=True):
    code: str
    what: str


class PatchProcess:
    """Applies deltas one after another; `stop` may come from another thread."""

    def __init__(self, command: Sequence[str] = PROGRAM, *, memory_mb: int = MEMORY_MB, start_s: float = START_S, nice: int = NICE) -> None:
        self._command = tuple(command)
        self._memory_mb = memory_mb
        self._start_s = start_s
        self._nice = nice
        self._guard = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def apply(self, base: Path, delta: Path, target: Path, size: int) -> None:
        """Make `target` of `size` bytes.

        Raises:
            MalformedError: `delta.malformed`. UntrustedError: `delta.base-damaged`, `delta.wrong-result`.
            StorageError: `delta.base-missing`, `delta.memory`, `delta.timeout`, `delta.crash`, `delta.stopped`, `store.full`, `store.io`.
        """
        command = (*self._command, str(base), str(delta), str(target), "--threads", str(THREADS), "--memory-mb", str(self._memory_mb))
        limit = self._start_s + size / SLOWEST_BYTES_S
        process = self._start(command)
        try:
            said, complaint = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            raise StorageError("delta.timeout", f"a delta was not applied within {limit:.0f} s") from None
        finally:
            _kill(process)
            process.wait()
            with self._guard:
                self._running = None
        if process.returncode != 0:
            raise self._error(process.returncode, said, complaint)

    def stop(self) -> None:
        """Kill the one in hand and refuse later ones."""
        with self._guard:
            self._stopped = True
            if self._running is not None:
                _kill(self._running)

    def _start(self, command: tuple[str, ...]) -> subprocess.Popen[bytes]:
        with self._guard:
            if self._stopped:
                raise StorageError("delta.stopped", "the agent is stopping")
            environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                           start_new_session=True, env=environment)
            except OSError as error:
                raise StorageError("delta.crash", f"the program that applies deltas cannot be started: {error.strerror}") from None
            self._running = process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, self._nice)
        return process

    def _error(self, code: int, said: bytes, complaint: bytes) -> JetfleetError:
        if self._stopped:
            return StorageError("delta.stopped", "the agent is stopping")
        with contextlib.suppress(MalformedError):
            told = decode(said, _Said, limit=MAX_SAID)
            if told.code in _TRUST:
                return UntrustedError(told.code, told.what)
            if told.code == "delta.malformed":
                return MalformedError(told.code, told.what)
            if told.code in _DISK or told.code == "delta.memory":
                return StorageError(told.code, told.what)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        tail = " ".join(complaint[-300:].decode(errors="replace").split())
        return StorageError("delta.crash", f"the program that applies deltas ended with {how}" + (f": {tail}" if tail else ""))


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return  # its number may be another process's by now
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
