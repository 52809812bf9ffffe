"""Remembers when and why pipelines ended unexpectedly, over restarts of the agent: what `doctor` counts.

A small file that holds each app's last `KEPT` ends. Losing the newest of them in a power cut costs nothing that anybody decides by, and a
pipeline that ends again and again must not wear the flash: within `QUIET_S` of a write nothing is written.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from jetfleet_agent.durable import write_file
from jetfleet_contract.errors import MalformedError, StorageError
from jetfleet_contract.messages import MAX_APPS, Message, decode, encode

CRASHES = "crashes.json"  # below the state folder
KEPT = 64
QUIET_S = 60.0
MAX_BYTES = 1 << 20
MAX_DETAIL = 200


class Crash(Message, frozen=True):
    """One unexpected end: wall clock in seconds since 1970, stable code, and the process's last words."""

    at: float
    code: str
    detail: str = ""


class _Record(Message, frozen=True):
    apps: dict[str, tuple[Crash, ...]] = {}


def read_crashes(path: Path) -> dict[str, tuple[Crash, ...]]:
    """The kept ends by app, oldest first; empty when there are none, or when the file cannot be understood."""
    try:
        return decode(path.read_bytes()[:MAX_BYTES], _Record, limit=MAX_BYTES).apps
    except (OSError, MalformedError):
        return {}


class CrashLog:
    """Used by the control thread only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._apps = read_crashes(path)
        self._written = -QUIET_S

    def note(self, app: str, code: str, detail: str, wall: float, mono: float) -> None:
        """An app's process ended without being told to."""
        kept = (*self._apps.get(app, ()), Crash(wall, code, detail[-MAX_DETAIL:]))[-KEPT:]
        self._apps = {**self._apps, app: kept}
        if mono - self._written >= QUIET_S:
            self._written = mono
            self._write()

    def close(self) -> None:
        """Write what is not written yet."""
        if self._apps != read_crashes(self._path):
            self._write()

    def _write(self) -> None:
        newest = sorted(self._apps.items(), key=lambda item: item[1][-1].at, reverse=True)[:MAX_APPS]
        with contextlib.suppress(OSError, StorageError):  # a full disk has a check of its own
            write_file(self._path, encode(_Record(dict(newest))), mode=0o600)
