"""One app's pipeline process: what it should run, what is known of it, how it is ended, and what its end says."""

from __future__ import annotations

import contextlib
import signal
import subprocess

from jetfleet_agent import ipc
from jetfleet_contract.slot_records import Crashed

from .inbox import PipelineEnded

STOP_S = 5.0


class AppProcess:
    """One app's process and what it should do; `Pipelines` owns it."""

    def __init__(self, run: ipc.Run) -> None:
        self.run = run
        self.trying: ipc.Try | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.ending = False
        self.gone = False
        self.not_before = 0.0
        self.failures = 0
        self.crashes = 0
        self.heard = 0.0
        self.began = 0.0
        self.deadline = 0.0
        self.started_with = ""
        self.live = ""
        self.connected = False
        self.try_sent = False
        self.failed: ipc.Failed | None = None
        self.cause = ""
        self.detail = ""
        self.pace = ipc.Pace()
        self.work_p99_ms = 0.0
        self.crashed_ways: list[ipc.Way] = []

    def new_process(self, process: subprocess.Popen[bytes], now: float, start_s: float) -> None:
        """Nothing is known yet of this one, which has to run within `start_s`."""
        self.process = process
        self.ending = False
        self.heard = self.began = now
        self.deadline = now + start_s
        self.started_with = self.run.model.bundle
        self.live = ""
        self.connected = self.try_sent = False
        self.failed = None
        self.cause = self.detail = ""
        self.work_p99_ms = 0.0

    def end(self, now: float, grace_s: float = 0.0) -> None:
        """The process has to end: at once, or when it is still there after `grace_s`."""
        if self.process is None:
            return
        self.ending = True
        self.deadline = now + max(grace_s, 0.0)
        if grace_s <= 0:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.deadline += STOP_S

    def crash(self, item: PipelineEnded) -> Crashed:
        """What an unexpected end says: who is to blame, and for what."""
        last = item.tail.splitlines()[-1][-300:] if item.tail else ""
        if self.failed is not None:
            return Crashed(self.failed.bundle, self.failed.code, self.failed.detail)
        blamed = "" if self.try_sent else self.live or self.started_with
        if self.cause:
            return Crashed(blamed, self.cause, self.detail or "no sign of life")
        if item.code < 0:
            return Crashed(blamed, "pipeline.killed", f"{signal.Signals(-item.code).name}; {last}")
        return Crashed(blamed, "pipeline.exit", f"exit code {item.code}; {last}")
