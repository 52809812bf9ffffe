"""Finds the part of a pipeline that hangs and asks for as little as cures it.

A source that hangs in its driver is opened anew by another thread, and the hung one is left behind; model, other sources and sinks never
notice. A thread that hangs in the model, the task or a sink holds what the next frame needs: only a new process frees it, so the
supervisor is asked for one. The same is asked when a source has left too many threads behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from jetfleet_agent.ipc import Stuck
from jetfleet_agent.pipeline.pulse import Pulses
from jetfleet_contract.messages import Source

MAX_LEFT_BEHIND = 3


class Hanging(Protocol):
    """What is used of a Capture."""

    source: Source

    def stuck_s(self, now: float) -> float: ...
    def abandon(self) -> None: ...
    @property
    def is_alive(self) -> bool: ...


class Watchdog:
    """Used by the controller's thread only. `send` hands a `Stuck` to the supervisor."""

    def __init__(self, send: Callable[[msgspec.Struct], None]) -> None:
        self._send = send
        self._left: list[Hanging] = []
        self._asked = False

    def look(self, pulses: Pulses, limit_s: float, now: float) -> None:
        """Ask for a new process, once, when a stage has been in one call for over `limit_s`."""
        part, seconds = pulses.worst(now)
        if seconds > limit_s:
            self._ask(Stuck(f"watchdog.{part}", part, seconds, fatal=True))

    def hung(self, captures: Mapping[str, Hanging], limit_s: float, now: float) -> list[Source]:
        """The sources to open anew: each hung one's thread is left behind. A source that hung before is given twice the time with each
        thread that still hangs, so that a dead camera costs a restart of its app only after `limit_s` x (1 + 2 + 4 + 8)."""
        self._left = [capture for capture in self._left if capture.is_alive]
        again = []
        for name, capture in captures.items():
            before = sum(left.source.name == name for left in self._left)
            seconds = capture.stuck_s(now)
            if seconds <= limit_s * 2**before:
                continue
            if before >= MAX_LEFT_BEHIND:
                self._ask(Stuck("watchdog.source", name, seconds, fatal=True))
                continue
            capture.abandon()
            self._left.append(capture)
            self._send(Stuck("watchdog.source", name, seconds, fatal=False))
            again.append(capture.source)
        return again

    def _ask(self, stuck: Stuck) -> None:
        if not self._asked:
            self._asked = True
            self._send(stuck)
