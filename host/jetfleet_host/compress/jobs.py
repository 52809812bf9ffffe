"""Starts the board's own evaluation program, one process a measurement, and reads its answer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from jetfleet_contract.errors import RuntimeFailure
from jetfleet_contract.evaluation import MAX_RESULT_BYTES, EvaluationJob, EvaluationResult
from jetfleet_contract.messages import decode, encode

PROGRAM = "jetfleet_agent.pipeline.evaluate"
TIMEOUT_S = 1800.0
_TAIL = 400


class JobRunner:
    """Runs jobs one after another. A job that crashes, hangs or is killed is an answer with an error, not an exception.

    Whatever stops the builder (Ctrl-C, an error) kills the running child before it goes on.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def run(self, job: EvaluationJob) -> EvaluationResult:
        with tempfile.TemporaryDirectory(prefix="jetfleet-job-") as folder:
            request, answer = Path(folder) / "job.json", Path(folder) / "result.json"
            request.write_bytes(encode(job))
            failed = self._run_child([sys.executable, "-m", PROGRAM, str(request), str(answer)])
            if answer.is_file():
                return decode(answer.read_bytes(), EvaluationResult, limit=MAX_RESULT_BYTES)
            return EvaluationResult(job.backend, error="backend.crash", detail=failed)

    def _run_child(self, command: list[str]) -> str:
        """Wait for the child; "" when it ended well, else what happened."""
        try:
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment())
        except OSError as error:
            raise RuntimeFailure("build.job", f"cannot start the evaluation process: {error.strerror}", where=command[0],
                                 remedy="check that the Python environment is whole") from None
        try:
            output, _ = child.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            return f"no answer within {self._timeout_s:.0f} s"
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if child.returncode == 0:
            return ""
        text = output.decode(errors="replace").strip()
        ended = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        return f"the process ended with {ended}: {text[-_TAIL:]}"


def _environment() -> dict[str, str]:
    """Ours, with the folders that we import from: a child finds the agent also when it is run from sources."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    return environment
