"""A virtual device's flash: what survives a killed agent, and what survives the power going.

Records (journal, reports) are written as the agent writes them: file, fsync, rename, fsync of the folder; `put` returns when that is
done. Parts of blobs lie in the page cache until `sync`. A power cut loses or tears what was not synced. Each durable write is also a
place where a planned kill can strike: just before it, or just after.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

Blow = Literal["", "before", "after"]


class Cut(BaseException):
    """The device stops here, in the middle of what it did. No code of the device catches it, as none runs on after a SIGKILL."""


class Disk:
    """See the module. `blobs` are whole and verified; `parts` maps a blob to its chunks by number."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self._records: dict[str, bytes] = {}
        self._synced: dict[str, set[int]] = {}
        self.blow: Blow = ""
        self.writes = 0

    # --- records ----------------------------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> None:
        """Store a record durably, whole or not at all."""
        self._durable(lambda: self._records.__setitem__(name, data))

    def get(self, name: str) -> bytes | None:
        return self._records.get(name)

    def drop(self, name: str) -> None:
        self._records.pop(name, None)

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self._records if name.startswith(prefix))

    # --- blobs ------------------------------------------------------------------------------------------------

    def write_chunk(self, blob: str, index: int, data: bytes) -> None:
        """Into the page cache only."""
        self.parts.setdefault(blob, {})[index] = data

    def sync(self, blob: str) -> None:
        """What is there of this blob survives a power cut from now on."""
        self._synced[blob] = set(self.parts.get(blob, ()))

    def finish(self, blob: str, data: bytes) -> None:
        """The whole, verified blob, fsynced and renamed into its place; its part is gone."""
        self._durable(lambda: self._finished(blob, data))

    def _finished(self, blob: str, data: bytes) -> None:
        self.blobs[blob] = data
        self.discard(blob)

    def discard(self, blob: str) -> None:
        self.parts.pop(blob, None)
        self._synced.pop(blob, None)

    # --- faults -----------------------------------------------------------------------------------------------

    def lose_power(self, draws: random.Random) -> int:
        """What was not synced is lost, torn or there, by lot. Returns how many chunks suffered."""
        suffered = 0
        for blob, chunks in self.parts.items():
            safe = self._synced.get(blob, set())
            for index in [one for one in chunks if one not in safe]:
                fate = draws.random()
                if fate < 0.5:
                    del chunks[index]
                elif fate < 0.75:
                    data = chunks[index]
                    chunks[index] = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
                suffered += fate < 0.75
        return suffered

    def _durable(self, write: Callable[[], None]) -> None:
        self.writes += 1
        blow, self.blow = self.blow, ""
        if blow == "before":
            raise Cut
        write()
        if blow == "after":
            raise Cut
