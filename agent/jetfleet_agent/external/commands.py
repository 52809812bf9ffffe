"""Runs the board's own commands: without a shell, in a session of their own, dead when we are, and never for longer than they may."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping

from jetfleet_agent.child_processes import death_signal
from jetfleet_contract.errors import RuntimeFailure

log = logging.getLogger(__name__)

_TAIL_LINES = 5


def run_hook(what: str, command: tuple[str, ...], environment: Mapping[str, str], limit_s: float) -> None:
    """Run a command to its end.

    Raises:
        RuntimeFailure: `external.prepare`, `external.switch` ... (by `what`): it cannot be started, takes too long, or does not end with
            0; its last words are in the message.
    """
    if not command:
        return
    code = f"external.{what}"
    child = Child(what, command, environment)
    ended = child.wait(limit_s)
    if ended is None:
        child.kill()
        raise RuntimeFailure(code, f"{command[0]} did not end within {limit_s:.0f} s", remedy="make it quicker, or raise its limit")
    if ended:
        raise RuntimeFailure(code, f"{command[0]} ended with {_ending(ended)}; its last words: {child.tail or 'none'}")


class Child:
    """A process of ours. Its output goes to the log; `tail` is the end of it."""

    def __init__(self, what: str, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        try:
            self._process = subprocess.Popen(command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                                             preexec_fn=death_signal(os.getpid()))  # noqa: PLW1509  prctl only, bound before the fork
        except OSError as error:
            raise RuntimeFailure(f"external.{what}", f"{command[0]} cannot be started: {error.strerror or error}",
                                 remedy="check the command in [external.APP] of the agent's config") from None
        self._what = what
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._reader = threading.Thread(target=self._read, name=f"{what}-output", daemon=True)
        self._reader.start()

    @property
    def tail(self) -> str:
        self._reader.join(0.5)
        return " | ".join(self._lines)[-300:]

    def wait(self, limit_s: float | None) -> int | None:
        """The exit code, or None when it still runs after `limit_s` seconds."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def when_ended(self, tell: Callable[[Child, int], None]) -> None:
        """Call `tell` with the exit code from a thread of its own."""
        threading.Thread(target=lambda: tell(self, self._process.wait()), name=f"{self._what}-end", daemon=True).start()

    def end(self, grace_s: float) -> None:
        """Ask it to end; kill it and its children when it does not within `grace_s`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        if self.wait(grace_s) is None:
            self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self) -> None:
        if self._process.stdout is None:
            return
        for line in self._process.stdout:
            text = line[:500].decode(errors="replace").rstrip()
            self._lines.append(text)
            log.info("%s: %s", self._what, text)


def _ending(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name
