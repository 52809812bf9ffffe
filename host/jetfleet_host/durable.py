"""Files that survive a power cut: temp file in the same folder, fsync, rename, fsync of the folder.

Rival: `Path.write_text`. It can leave a half-written key or metadata file behind; so can a rename without fsync.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jetfleet_contract.errors import StorageError


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data`, whole or not at all. The mode holds from the first byte on.

    Raises:
        StorageError: `store.write`.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError("store.write", f"cannot write {path}: {error.strerror or error}", where=str(path),
                           remedy="check free space and permissions of the folder") from None


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable (a rename is only durable after this)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep_partials(folder: Path) -> None:
    """Remove what an interrupted `write_file` left behind."""
    for leftover in folder.glob(".*.partial"):
        leftover.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` against other processes that ask the same way; the lock of a dead process is free. Not re-entrant."""
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
