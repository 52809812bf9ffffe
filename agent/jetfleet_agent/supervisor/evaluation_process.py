"""Runs one evaluation job in a process of its own; whatever happens to that process, the answer is a result.

A vendor's runtime may crash, hang or eat the memory. The supervisor must outlive all of it, so a crash, a time-out or
an unreadable answer becomes `EvaluationResult.error` with its reason, never an exception. And the running models must outlive it:
the process may not write to more memory than the board has, and should the kernel run out all the same, it kills this one first.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from jetfleet_contract.errors import MalformedError
from jetfleet_contract.evaluation import MAX_RESULT_BYTES, EvaluationJob, EvaluationResult
from jetfleet_contract.messages import decode, encode

PROGRAM = (sys.executable, "-m", "jetfleet_agent.pipeline.evaluate")
NICE = 10  # the running model keeps its cores: a measurement beside it is a guest
STDERR_TAIL = 400
FIRST_TO_GO = "1000"
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "out of memory")


class EvaluationProcess:
    """Runs jobs one after another; `stop` may come from another thread.

    Args:
        folder: where jobs and results are written while they run.
        timeout_s: how long one job may take, start of Python included.
        command: the program, to which the two paths are appended.
        nice: its scheduling priority, 0 (as ours) to 19 (least).
    """

    def __init__(self, folder: Path, timeout_s: float, command: Sequence[str] = PROGRAM, *, nice: int = NICE) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._command = tuple(command)
        self._nice = nice
        self._guard = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, job: EvaluationJob, limit_mb: float = 0.0) -> EvaluationResult:
        """The result, or one whose `error` is `evaluate.crash`, `.timeout`, `.exit`, `.result`, `.disk` or `.stopped`, or `backend.memory`.

        Args:
            limit_mb: private memory that the process may write to (RLIMIT_DATA, which counts no address space that is only reserved, as
                CUDA does); 0: no limit.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix="job-") as folder:
                return self._run_in(Path(folder), job, limit_mb)
        except OSError as error:
            return _failed(job, "evaluate.disk", f"the job could not be written or started: {error.strerror or error}")

    def stop(self) -> None:
        """Kill the job in hand and refuse later ones."""
        with self._guard:
            self._stopped = True
            if self._running is not None:
                _kill(self._running)

    def _run_in(self, folder: Path, job: EvaluationJob, limit_mb: float) -> EvaluationResult:
        (folder / "job.json").write_bytes(encode(job))
        with (folder / "stderr").open("wb") as stderr:
            process = self._start((*self._command, str(folder / "job.json"), str(folder / "result.json")), stderr.fileno(), limit_mb)
        if process is None:
            return _failed(job, "evaluate.stopped", "the agent is stopping")
        try:
            process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            return _failed(job, "evaluate.timeout", f"no answer within {self._timeout_s:.0f} s")
        finally:
            _kill(process)  # also what a crashed runtime may have left behind in its process group
            process.wait()
            with self._guard:
                self._running = None
        return self._answer(folder, job, process.returncode)

    def _start(self, command: tuple[str, ...], stderr: int, limit_mb: float) -> subprocess.Popen[bytes] | None:
        with self._guard:
            if self._stopped:
                return None
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
            self._running = process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, self._nice)
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(FIRST_TO_GO)
        with contextlib.suppress(OSError, ValueError):  # ValueError: a tighter limit is in force already
            if limit_mb:
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (int(limit_mb * 1e6), int(limit_mb * 1e6)))
        return process

    def _answer(self, folder: Path, job: EvaluationJob, code: int) -> EvaluationResult:
        if self._stopped:
            return _failed(job, "evaluate.stopped", "the agent is stopping")
        said = _tail(folder / "stderr") if code else ""
        if code == -signal.SIGKILL:  # not ours: a time-out has been answered by now
            return _failed(job, "backend.memory", "the kernel killed the process (SIGKILL), as it does when memory runs out")
        if code and any(sign in said for sign in _OUT_OF_MEMORY):
            return _failed(job, "backend.memory", f"the process ran out of memory: {said}")
        if code < 0:
            return _failed(job, "evaluate.crash", f"the runtime crashed ({_signal_name(-code)})")
        if code > 0:
            return _failed(job, "evaluate.exit", f"the measurement ended with exit code {code}" + (f": {said}" if said else ""))
        try:
            with (folder / "result.json").open("rb") as file:
                return decode(file.read(MAX_RESULT_BYTES + 1), EvaluationResult, limit=MAX_RESULT_BYTES)
        except FileNotFoundError:
            return _failed(job, "evaluate.result", "the measurement ended without a result")
        except MalformedError as error:
            return _failed(job, "evaluate.result", error.what[:STDERR_TAIL])


def _failed(job: EvaluationJob, code: str, detail: str) -> EvaluationResult:
    return EvaluationResult(job.backend, error=code, detail=detail)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - STDERR_TAIL))
        text = file.read(STDERR_TAIL).decode(errors="replace")
    return " ".join(text.split())
