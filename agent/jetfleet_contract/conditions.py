"""What a board's speed depends on besides its hardware, and when a change of it is worth a new choice. Pure.

A measurement holds for the power mode, clocks and processors that it was taken under. When they are others, and stay so, every app's
model is chosen anew; what was measured under the old ones is kept, so the way back costs nothing.
"""

from __future__ import annotations

import msgspec

from .messages import Message

SETTLE_S = 60.0
MAX_SETTLE_S = 3600.0


class Conditions(Message, frozen=True):
    """`system` is the L4T release: an upgrade brings another driver under the same runtime. `mode` is nvpmodel's mode, by name or number;
    `cpu_mhz` and `gpu_mhz` are the fastest that the kernel lets them run now, by the mode or because a cooling device holds them back;
    `online` the processors that are switched on. Empty or 0: the board does not tell."""

    system: str = ""
    mode: str = ""
    cpu_mhz: int = 0
    gpu_mhz: int = 0
    online: str = ""

    @property
    def text(self) -> str:
        """In words; empty where the board tells nothing."""
        parts = ((self.system, f"L4T {self.system}"), (self.mode, f"power mode {self.mode}"),
                 (self.cpu_mhz, f"CPU up to {self.cpu_mhz} MHz"), (self.gpu_mhz, f"GPU up to {self.gpu_mhz} MHz"),
                 (self.online, f"processors {self.online}"))
        return ", ".join(sentence for value, sentence in parts if value)


class Settling(msgspec.Struct, frozen=True):
    """`stands` is what holds; `seen` was read last, for the first time at `since`. `wait_s` is how long another reading must stand before
    it holds: twice as long each time that it changes soon after. Times are monotonic seconds. Not persisted."""

    stands: Conditions
    seen: Conditions
    since: float
    held: float
    wait_s: float = SETTLE_S


def settling(reading: Conditions, now: float, settle_s: float = SETTLE_S) -> Settling:
    """At the start what is read holds."""
    return Settling(reading, reading, now, now, settle_s)


def settle(state: Settling, reading: Conditions, now: float, settle_s: float = SETTLE_S) -> Settling:
    """Take a reading. What stands changes only after the other has been read for `wait_s` without a break, so a board that a fan or a cloud
    swings about chooses a few times, then ever more seldom."""
    if reading != state.seen:
        return msgspec.structs.replace(state, seen=reading, since=now)
    if reading == state.stands or now - state.since < state.wait_s:
        return state
    soon = now - state.held < 4 * state.wait_s
    wait_s = min(2 * state.wait_s, MAX_SETTLE_S) if soon else settle_s
    return Settling(reading, reading, state.since, now, wait_s)
