"""Files that survive a power cut: temp file in the same folder, fsync, rename, fsync of the folder.

Rival: `Path.write_text`. It can leave a half-written key or state behind; so can a rename without fsync.
"""

from __future__ import annotations

import os
import secrets
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
            try:
                write_all(handle, data)
                os.fsync(handle)
            finally:
                os.close(handle)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError("store.write", f"cannot write {path}: {error.strerror or error}", where=str(path),
                           remedy="check free space and permissions of the folder") from None


def write_all(handle: int, data: bytes) -> None:
    """Write all of `data` at the file's position, however little the disk takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view):]


def make_folder(folder: Path, *, mode: int = 0o755) -> None:
    """Make a folder and what is missing above it, each entry durable: a file is only as durable as the folders that lead to it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)


def need_folder(folder: Path) -> None:
    """`make_folder` for a start that cannot go on without it.

    Raises:
        StorageError: `store.write`.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise StorageError("store.write", f"cannot make {folder}: {error.strerror or error}", where=str(folder),
                           remedy="check that the state folder is mounted and writable") from None


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
