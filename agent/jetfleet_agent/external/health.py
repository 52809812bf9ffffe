"""What the program says of itself: one JSON object a datagram, to the Unix socket ``health.sock`` in the app's folder.

    {"ok": true, "bundle": "0123456789abcdef", "frames": 25, "latency_ms": [8.1, 8.3]}

Datagrams, because a program in any language sends one in a line or two, nothing is left open when it dies, and each is bounded.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from jetfleet_contract.errors import MalformedError, StorageError

MAX_DATAGRAM = 8192
_LONGEST_PATH = 107  # sun_path, unix(7)


class Health(msgspec.Struct, frozen=True):
    """`ok` false is a failure in the program's own words. `frames` and `latency_ms` (milliseconds) are since the last message; `bundle` is
    JETFLEET_BUNDLE or its first 16 digits, by which an old process is told from the new one. Unknown keys are ignored."""

    ok: bool
    bundle: Annotated[str, Meta(max_length=64)] = ""
    frames: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    latency_ms: Annotated[tuple[Annotated[float, Meta(ge=0, le=3.6e6)], ...], Meta(max_length=500)] = ()
    detail: Annotated[str, Meta(max_length=300)] = ""


_DECODER = msgspec.json.Decoder(Health)


def health_from(data: bytes) -> Health:
    """Decode a datagram, or MalformedError `external.health`."""
    if len(data) > MAX_DATAGRAM:
        raise MalformedError("external.health", f"a health message is over {MAX_DATAGRAM} bytes")
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError("external.health", f"not a health message: {error}") from None


class HealthSocket:
    """Listens in a thread of its own. `heard` gets each message, or the error of one that is none."""

    def __init__(self, path: Path, heard: Callable[[Health | MalformedError], None]) -> None:
        self._path = path
        self._heard = heard
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise StorageError("external.socket", f"the path of the health socket is over {_LONGEST_PATH} bytes", where=str(path),
                               remedy="give [external.APP] a shorter folder")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            path.chmod(0o660)
        except OSError as error:
            self._socket.close()
            raise StorageError("external.socket", f"the health socket cannot be made: {error.strerror or error}", where=str(path)) from None
        self._thread = threading.Thread(target=self._listen, name="health", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                data = self._socket.recv(MAX_DATAGRAM + 1)
            except OSError:
                return
            if not data:  # our own farewell
                return
            try:
                self._heard(health_from(data))
            except MalformedError as error:
                self._heard(error)

    def close(self) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as farewell:
            farewell.sendto(b"", str(self._path))
        self._thread.join(1.0)
        self._socket.close()
        self._path.unlink(missing_ok=True)
