"""The chunk port: where a virtual device's chunks arrive, and where they are lost, doubled, delayed and damaged.

Only chunks are touched: everything else goes over MQTT's own acknowledgements. Whatever arrives is accounted for:
``arrived = lost + passed - doubled`` once nothing is held back.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from .faults import ChunkFaults

HOLD_S = 0.15


class PortCounts(msgspec.Struct):
    """Chunk messages of one device, and their bytes, in every life of it."""

    arrived: int = 0
    arrived_bytes: int = 0
    lost: int = 0
    lost_bytes: int = 0
    doubled: int = 0
    delayed: int = 0
    corrupted: int = 0
    passed: int = 0
    forgotten: int = 0


class ChunkPort:
    """See the module.

    Args:
        deliver: takes what passes. later: calls a function after some seconds, while the device's life lasts.
    """

    def __init__(self, faults: ChunkFaults, draws: random.Random, counts: PortCounts, deliver: Callable[[str, bytes], None],
                 later: Callable[[float, Callable[[], None]], None]) -> None:
        self._faults = faults
        self._draws = draws
        self._counts = counts
        self._deliver = deliver
        self._later = later
        self._held: tuple[str, bytes] | None = None
        self.calm = False

    def take(self, topic: str, payload: bytes) -> None:
        """One chunk message from the socket."""
        counts, draws, faults = self._counts, self._draws, self._faults
        counts.arrived += 1
        counts.arrived_bytes += len(payload)
        lost, corrupt, reorder, double = draws.random(), draws.random(), draws.random(), draws.random()
        if self.calm:
            self._pass(topic, payload)
            return
        if lost < faults.loss:
            counts.lost += 1
            counts.lost_bytes += len(payload)
            return
        if corrupt < faults.corrupt:
            counts.corrupted += 1
            payload = flipped(payload, draws)
        if reorder < faults.reorder and self._held is None:
            counts.delayed += 1
            self._held = (topic, payload)
            self._later(HOLD_S, self.release)
            return
        self._pass(topic, payload)
        if double < faults.duplicate:
            counts.doubled += 1
            self._pass(topic, payload)
        self.release()

    def release(self) -> None:
        """What was held back comes now."""
        held, self._held = self._held, None
        if held is not None:
            self._pass(*held)

    def close(self) -> None:
        """The device is gone, and what was held back with it."""
        if self._held is not None:
            self._held = None
            self._counts.forgotten += 1

    def _pass(self, topic: str, payload: bytes) -> None:
        self._counts.passed += 1
        self._deliver(topic, payload)


def flipped(payload: bytes, draws: random.Random) -> bytes:
    """The chunk message with one bit of its data flipped; its 8 bytes of round and index stay."""
    at = draws.randrange(8, len(payload)) if len(payload) > 8 else 0
    damaged = bytearray(payload)
    damaged[at] ^= 1 << draws.randrange(8)
    return bytes(damaged)
