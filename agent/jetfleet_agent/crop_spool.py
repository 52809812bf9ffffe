"""Crops from a pipeline to its supervisor: frames never cross their socket, so a crop is a file, and the socket carries its name.

    <run>/crops/<app>/<24 hex digits>.jpg     mode 0600 in a folder of mode 0700, bounded in count and bytes, the oldest go

The supervisor takes a file and removes it; what it is not asked to take is swept when a policy is withdrawn, and at each start.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from jetfleet_contract.crops import MAX_JPEG_BYTES
from jetfleet_contract.errors import MalformedError, StorageError
from jetfleet_contract.topics import check_name

MAX_FILES = 64
MAX_BYTES = 1 << 20
_NAME = re.compile(r"[0-9a-f]{24}\.jpg")


def spool_folder(run: Path, app: str) -> Path:
    """Where an app's crops lie; `run` is the folder of the supervisor's socket. MalformedError `name.bad`."""
    return run / "crops" / check_name("app", app)


class CropSpool:
    """The pipeline's end. Used by one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._tag = secrets.token_hex(4)

    def write(self, jpeg: bytes) -> str:
        """Put a crop there and give its name. StorageError `crop.spool`."""
        self._count += 1
        name = f"{self._tag}{self._count:016x}.jpg"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_room(len(jpeg))
            with os.fdopen(os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(jpeg)
        except OSError as error:
            raise StorageError("crop.spool", f"a crop cannot be put down: {error.strerror}", where=str(self._folder)) from None
        return name

    def _make_room(self, size: int) -> None:
        found = sorted((entry.stat().st_mtime_ns, entry.name, entry.stat().st_size) for entry in os.scandir(self._folder))
        total = sum(each for *_, each in found) + size
        while found and (len(found) >= MAX_FILES or total > MAX_BYTES):
            _, name, each = found.pop(0)
            (self._folder / name).unlink(missing_ok=True)
            total -= each


def take_crop(folder: Path, name: str) -> bytes:
    """The supervisor's end: the crop of that name, which is gone from the folder then.

    Raises:
        MalformedError: `crop.name`, `crop.large`. StorageError: `crop.gone`.
    """
    if not _NAME.fullmatch(name):
        raise MalformedError("crop.name", f"{name[:80]!r} is no name of a crop")
    path = folder / name
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as stream:
            data = stream.read(MAX_JPEG_BYTES + 1)
        path.unlink()
    except OSError as error:
        raise StorageError("crop.gone", f"crop {name} cannot be taken: {error.strerror}", where=str(folder)) from None
    if len(data) > MAX_JPEG_BYTES:
        raise MalformedError("crop.large", f"crop {name} is over the limit of {MAX_JPEG_BYTES} bytes")
    return data


def clear_spool(folder: Path) -> None:
    """Remove every crop in an app's folder."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            Path(entry.path).unlink(missing_ok=True)
