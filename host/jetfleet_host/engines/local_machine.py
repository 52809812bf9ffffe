"""This machine as a builder: the agent's programs, started as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from jetfleet_contract.errors import RuntimeFailure
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult
from jetfleet_contract.messages import Capability, decode
from jetfleet_host.compress.jobs import JobRunner
from jetfleet_host.engines.board_builds import Told
from jetfleet_host.engines.sources import Weights

PROBE = ("-m", "jetfleet_agent.daemon", "probe", "--json")
_PROBE_S = 120.0


class LocalMachine:
    """See `board_builds.Machine`. Whatever stops a build kills its process."""

    name = "local"

    def __init__(self) -> None:
        self._runner = JobRunner(3600.0)

    def probe(self) -> Capability:
        """Raises RuntimeFailure `engine.probe`."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        try:
            done = subprocess.run([sys.executable, *PROBE], capture_output=True, check=False, timeout=_PROBE_S, env=environment)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeFailure("engine.probe", f"the agent's probe did not run: {error}") from None
        return capability_of(done.stdout, self.name)

    def build(self, job: EvaluationJob, weights: Weights, engine: Path, told: Told) -> EvaluationResult:
        """The agent's evaluation program, with the weights where they lie."""
        told("Compiling", 10.0)
        result = self._runner.run(msgspec.structs.replace(job, model=str(weights.path.resolve()), export=str(engine.resolve())))
        told("Compiled", 100.0)
        return result


def capability_of(said: bytes, name: str) -> Capability:
    """The probe's answer.

    Raises:
        RuntimeFailure: `engine.probe`.
    """
    try:
        return decode(said, Capability)
    except Exception as error:  # noqa: BLE001  the decoder's own error, as this command's
        raise RuntimeFailure("engine.probe", f"the agent on {name} does not say what the machine is: {str(error)[:200]}",
                             remedy="the agent there must be of this version: jetfleet-agent probe --json shows its answer") from None
