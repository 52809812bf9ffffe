"""What left this board that was made of pixels, and when the rules for it changed: JSON lines that only ever grow, within bounds.

    <state>/audit/privacy.jsonl      the newest; privacy.1.jsonl .. privacy.3.jsonl are older, the oldest goes

A line is written before what it tells of leaves: what cannot be written down does not leave.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import Message, encode

FILE = "privacy.jsonl"
MAX_FILE_BYTES = 1 << 20
OLDER = 3


class Departure(Message, frozen=True):
    """One line. `what`: a crop was `sent` (handed to the broker's link), or the rules are others from now on (`policy`; then `purpose`
    lists what is allowed). `bytes` are those of the message, `sha256` is the picture's, `receiver` the key that it was sealed to."""

    at: float
    what: Literal["sent", "policy"]
    app: str
    purpose: str = ""
    id: int = 0
    bytes: int = 0
    sha256: str = ""
    receiver: str = ""


class AuditLog:
    """See the module. Written by one thread."""

    def __init__(self, folder: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def add(self, line: Departure) -> None:
        """Append a line. StorageError `audit.write`."""
        path = self._folder / FILE
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size >= self._max_bytes:
                self._turn(path)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as stream:
                stream.write(encode(line) + b"\n")
        except OSError as error:
            raise StorageError("audit.write", f"the audit log cannot be written: {error.strerror}", where=str(path),
                               remedy="free space on the board; until then nothing leaves it") from None

    def _turn(self, path: Path) -> None:
        for number in range(OLDER, 0, -1):
            newer = path if number == 1 else _older(self._folder, number - 1)
            if newer.exists():
                newer.replace(_older(self._folder, number))


def read_audit(folder: Path) -> Iterator[Departure]:
    """Every line that is kept, oldest first; a line that a power cut tore is left out. StorageError `audit.read`."""
    for path in (*(_older(folder, number) for number in range(OLDER, 0, -1)), folder / FILE):
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError("audit.read", f"the audit log cannot be read: {error.strerror}", where=str(path)) from None
        yield from (found for found in map(_line, lines) if found is not None)


def _line(line: bytes) -> Departure | None:
    try:
        return msgspec.json.decode(line, type=Departure)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _older(folder: Path, number: int) -> Path:
    return folder / f"privacy.{number}.jsonl"
