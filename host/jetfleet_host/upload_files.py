"""What boards gave us: ``uploads/<device>/<hex>``, unfinished ones beside as ``<hex>.part``. Names are checked before they become paths.

A name without ``.part`` is a promise: every chunk fitted the offer's table, the file was fsynced, read again, hashed, renamed and its
folder fsynced. What a part really holds is found again by hashing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path

from jetfleet_contract.chunks import Bitmap, ChunkTable
from jetfleet_contract.errors import StorageError, UntrustedError
from jetfleet_contract.topics import check_blob, check_name
from jetfleet_host.durable import sync_folder

RESERVE_BYTES = 64 << 20
_READ_BYTES = 1 << 20


class UploadFiles:
    """The ``uploads/`` folder of a project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, device: str, blob: str) -> Path:
        """Where a finished upload lies, or will."""
        return self.folder / check_name("device", device) / check_blob(blob)

    def has(self, device: str, blob: str) -> bool:
        return self.path(device, blob).is_file()

    def room(self, size: int) -> bool:
        """True when `size` bytes fit and a reserve of 64 MiB stays free. StorageError `store.write`."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = os.statvfs(self.folder)
        except OSError as error:
            raise _storage_error(error, self.folder) from None
        return status.f_bavail * status.f_frsize >= size + RESERVE_BYTES

    def open(self, device: str, blob: str, table: ChunkTable) -> UploadPart:
        """The unfinished file, new or resumed. StorageError `store.full`, `store.write`."""
        path = self.path(device, blob)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return UploadPart(path, blob, table)
        except OSError as error:
            raise _storage_error(error, path) from None

    def drop_part(self, device: str, blob: str) -> None:
        with contextlib.suppress(OSError):
            _part(self.path(device, blob)).unlink(missing_ok=True)


class UploadPart:
    """One unfinished upload: chunks go to their place in any order."""

    def __init__(self, path: Path, blob: str, table: ChunkTable) -> None:
        self._path = path
        self._blob = blob
        self._table = table
        self._resumed = _part(path).exists()
        self._fd = os.open(_part(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.ftruncate(self._fd, table.size)

    def missing(self) -> Bitmap:
        """What is not there yet, by hashing what is on disk (a new file is not read)."""
        table = self._table
        if not self._resumed:
            return Bitmap.full(table.count)
        return Bitmap.of(table.count, (index for index in range(table.count) if not self._holds(index)))

    def _holds(self, index: int) -> bool:
        try:
            return self._table.matches(index, os.pread(self._fd, self._table.length(index), self._table.offset(index)))
        except OSError:
            return False

    def write(self, index: int, data: bytes | memoryview) -> bool:
        """Put chunk `index` in its place; False, and nothing written, when `data` is not that chunk.

        Raises:
            StorageError: `store.full`, `store.write`; what was written before stays.
        """
        if not self._table.matches(index, data):
            return False
        view, offset = memoryview(data), self._table.offset(index)
        try:
            while view:
                done = os.pwrite(self._fd, view, offset)
                view, offset = view[done:], offset + done
        except OSError as error:
            raise _storage_error(error, self._path) from None
        return True

    def finish(self) -> None:
        """fsync, read all of it again, compare the digest, rename, fsync the folder.

        Raises:
            UntrustedError: `blob.digest` when what the disk gives back is another blob. StorageError: `store.full`, `store.write`.
        """
        try:
            os.fsync(self._fd)
            if self._digest() != self._blob:
                self._resumed = True
                raise UntrustedError("blob.digest", f"upload {self._blob} read back from disk has another digest", where=str(self._path))
            _part(self._path).rename(self._path)
            sync_folder(self._path.parent)
            sync_folder(self._path.parent.parent)
        except OSError as error:
            raise _storage_error(error, self._path) from None
        self.close()

    def _digest(self) -> str:
        whole, at = hashlib.sha256(), 0
        while data := os.pread(self._fd, _READ_BYTES, at):
            whole.update(data)
            at += len(data)
        return whole.hexdigest()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class MemoryPart:
    """A page of a chunk table on its way up: one chunk, its digest is its name."""

    def __init__(self, table: ChunkTable) -> None:
        self._table = table
        self.data = b""

    def missing(self) -> Bitmap:
        return Bitmap.full(self._table.count)

    def write(self, index: int, data: bytes | memoryview) -> bool:
        """Keep the chunk; False when it is not the page."""
        if not self._table.matches(index, data):
            return False
        self.data = bytes(data)
        return True

    def finish(self) -> None: ...

    def close(self) -> None: ...


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _storage_error(error: OSError, path: Path) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError("store.full", "no space left for an upload", where=str(path.parent), remedy="free space, or move the project")
    return StorageError("store.write", f"cannot use {path.name}: {error.strerror}", where=str(path),
                        remedy="check space and permissions of the project's uploads folder")
