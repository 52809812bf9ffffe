"""Whether a thread has been inside one call for too long: what the watchdog looks at.

A pulse is set around each call into a driver, a vendor's library or a plug-in, and only around those: a thread that waits for work is not
stuck. Setting it costs one clock reading and allocates nothing but that number.
"""

from __future__ import annotations

import time

import msgspec


class Pulse:
    """Written by one thread, read by any. Use as ``with pulse: call()``."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._since = 0.0

    def stuck_s(self, now: float) -> float:
        """Seconds that the call in hand has taken at `now` (monotonic seconds); 0 between calls."""
        since = self._since
        return max(now - since, 0.0) if since else 0.0


class Pulses(msgspec.Struct, frozen=True):
    """Those of one app's stages: `infer` around pre-processing and session, `decode` around the task, `sink` around all behind it."""

    infer: Pulse = msgspec.field(default_factory=Pulse)
    decode: Pulse = msgspec.field(default_factory=Pulse)
    sink: Pulse = msgspec.field(default_factory=Pulse)

    def worst(self, now: float) -> tuple[str, float]:
        """The part that has been in one call for longest, and for how many seconds: others that wait for it began to wait later."""
        ages = (("infer", self.infer.stuck_s(now)), ("decode", self.decode.stuck_s(now)), ("sink", self.sink.stuck_s(now)))
        return max(ages, key=lambda part: part[1])
