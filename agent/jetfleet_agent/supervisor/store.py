"""The board's durable, content-addressed store: ``<root>/blobs/<hex>``, unfinished ones beside as ``<hex>.part``.

A name without ``.part`` is a promise: the file was fsynced, read again from the beginning, hashed, renamed and its folder
fsynced. Chunks are checked against the table before they are written, so a part never holds a wrong byte except by a torn
write; what is really there is found again by hashing, so nothing is journalled per chunk. A blob that rotted on disk loses its name and
becomes a part again: its good chunks stay, only the damaged ones are fetched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path
from types import TracebackType

from jetfleet_agent.durable import make_folder, sync_folder
from jetfleet_contract import topics
from jetfleet_contract.chunks import Bitmap, ChunkTable
from jetfleet_contract.errors import MalformedError, StorageError, UntrustedError

RESERVE_BYTES = 16 << 20  # left free for journals and metadata, so that a full store never stops a rollback
_READ_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class BlobStore:
    """Blobs by SHA-256 below `root`. One writer a blob; any number of readers of finished blobs."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "blobs"
        try:
            make_folder(self.folder)
        except OSError as error:
            raise _storage_error(error, self.folder) from None
        self._proven: dict[str, _Mark] = {}

    def has(self, blob: str) -> bool:
        """True when the blob is complete and was verified."""
        return self._final(blob).is_file()

    def path(self, blob: str) -> Path:
        """Where a complete blob lies.

        Raises:
            StorageError: `store.missing`.
        """
        final = self._final(blob)
        if not final.is_file():
            raise StorageError("store.missing", f"blob {blob} is not in the store", where=str(self.folder))
        return final

    def read(self, blob: str, limit: int) -> bytes:
        """A complete small blob's bytes, checked once more against its name; `limit` bounds memory.

        Raises:
            StorageError: `store.missing`, `store.large`. UntrustedError: `store.rotten` (the blob has lost its name).
        """
        final = self.path(blob)
        if final.stat().st_size > limit:
            raise StorageError("store.large", f"blob {blob} is larger than {limit} bytes", where=str(final))
        try:
            data = final.read_bytes()
        except OSError:
            data = None  # an unreadable sector is as good as a wrong one
        if data is None or hashlib.sha256(data).hexdigest() != blob:
            raise self._rotten(blob)
        return data

    def verified(self, blob: str) -> Path:
        """Where a complete blob lies, after reading and hashing all of it, once a start and file; `doubt` has it read again.

        Raises:
            StorageError: `store.missing`. UntrustedError: `store.rotten` (the blob has lost its name; its good chunks are kept).
        """
        final = self.path(blob)
        try:
            mark = _mark_of(final)
            if self._proven.get(blob) == mark:
                return final
            good = _digest_of(final) == blob
        except OSError:
            good = False
        if not good:
            raise self._rotten(blob)
        self._proven[blob] = mark
        return final

    def sound(self, blob: str) -> bool:
        """Whether the blob is complete and, read again, still itself."""
        try:
            self.verified(blob)
        except (StorageError, UntrustedError):
            return False
        return True

    def doubt(self, blob: str) -> None:
        """Read this blob again before it is used next: a program that used it crashed."""
        self._proven.pop(blob, None)

    def _rotten(self, blob: str) -> UntrustedError:
        final = self._final(blob)
        self._proven.pop(blob, None)
        with contextlib.suppress(OSError):  # on a disk that takes no change it keeps its name and is found out again
            final.replace(self.part(blob))
            sync_folder(self.folder)
        return UntrustedError("store.rotten", f"blob {blob} changed on disk", where=str(final),
                              remedy="its damaged chunks are fetched again; replace the storage if this repeats")

    def open_partial(self, blob: str, table: ChunkTable) -> Partial:
        """The unfinished file of `blob`, new or resumed; its space is reserved now, so that ENOSPC comes before the download.

        Raises:
            StorageError: `store.full` and nothing was changed; `store.io`.
        """
        return Partial(self, blob, table)

    def put_bytes(self, blob: str, data: bytes) -> Path:
        """Store a small blob that is at hand.

        Raises:
            UntrustedError: `blob.digest` when `data` is not `blob`. StorageError: `store.full`, `store.io`.
        """
        if hashlib.sha256(data).hexdigest() != topics.check_blob(blob):
            raise UntrustedError("blob.digest", f"{len(data)} bytes given for blob {blob} have another digest")
        with self.open_partial(blob, ChunkTable(len(data), max(1, len(data)), bytes.fromhex(blob) if data else b"")) as partial:
            if data:
                partial.write(0, data)
            return partial.finish()

    def remove_except(self, keep: set[str]) -> tuple[str, ...]:
        """Drop every blob and part whose id is not in `keep`, as far as the disk lets us; the ids that went. Strange names stay.

        Raises:
            StorageError: `store.io` when the folder cannot be read.
        """
        gone = []
        try:
            entries = sorted(entry.name for entry in os.scandir(self.folder))
        except OSError as error:
            raise _storage_error(error, self.folder) from None
        for name in entries:
            blob = name.removesuffix(".part")
            if blob in keep or not _is_blob(blob):
                continue
            with contextlib.suppress(OSError):  # the rest may still go; this one is tried again the next time
                (self.folder / name).unlink()
                self._proven.pop(blob, None)
                gone.append(blob)
        if gone:
            with contextlib.suppress(OSError):  # should they come back after a power cut, they are garbage again
                sync_folder(self.folder)
        return tuple(gone)

    def needed(self, blob: str, size: int) -> int:
        """Bytes that `blob` of `size` bytes will still take: none when it is complete, less when a part has reserved them."""
        if self.has(blob):
            return 0
        try:
            held = self.part(blob).stat().st_blocks * 512
        except OSError:
            held = 0
        return max(size - held, 0)

    def check_space(self, bytes_needed: int) -> None:
        """Raises StorageError `store.full` when fewer than `bytes_needed` plus a reserve of 16 MiB are free."""
        free = self._free()
        if free < bytes_needed + RESERVE_BYTES:
            raise StorageError("store.full", f"{bytes_needed} bytes are needed and {max(0, free - RESERVE_BYTES)} are free",
                               where=str(self.folder), remedy="free space on the board, or roll out a smaller bundle")

    def part(self, blob: str) -> Path:
        return self.folder / f"{topics.check_blob(blob)}.part"

    def settle(self, blob: str) -> Path:
        """Give a verified part its final name, durably."""
        final = self._final(blob)
        self.part(blob).rename(final)
        sync_folder(self.folder)
        self._proven[blob] = _mark_of(final)
        return final

    def _final(self, blob: str) -> Path:
        return self.folder / topics.check_blob(blob)

    def _free(self) -> int:
        try:
            status = os.statvfs(self.folder)
        except OSError as error:
            raise _storage_error(error, self.folder) from None
        return status.f_bavail * status.f_frsize


class Partial:
    """One unfinished blob: chunks go to their place in any order, `finish` makes it count."""

    def __init__(self, store: BlobStore, blob: str, table: ChunkTable) -> None:
        self._store = store
        self._blob = blob
        self._table = table
        self._path = store.part(blob)
        self._resumed = self._path.exists()
        self._hash = hashlib.sha256()
        self._hashed = 0
        if not self._resumed:
            store.check_space(table.size)
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise _storage_error(error, self._path) from None
        try:
            self._reserve()
        except OSError as error:
            self.close()
            if not self._resumed:
                with contextlib.suppress(OSError):
                    self._path.unlink(missing_ok=True)
            raise _storage_error(error, self._path) from None

    def _reserve(self) -> None:
        if os.fstat(self._fd).st_size > self._table.size:
            os.ftruncate(self._fd, self._table.size)
        if not self._table.size:
            return
        try:
            os.posix_fallocate(self._fd, 0, self._table.size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(self._fd, self._table.size)

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
            return False  # an unreadable sector is a missing chunk

    def write(self, index: int, data: bytes | memoryview) -> bool:
        """Put chunk `index` in its place; False, and nothing written, when `data` is not that chunk.

        Raises:
            StorageError: `store.full`, `store.io`; what was written before stays.
        """
        if not self._table.matches(index, data):
            return False
        offset = self._table.offset(index)
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._fd, view, offset)
                view = view[done:]
                offset += done
        except OSError as error:
            raise _storage_error(error, self._path) from None
        return True

    def settle(self, upto: int) -> None:
        """Bring the first `upto` bytes, which must be complete, to the disk and read them again for the whole digest, so that little is
        left for `finish`. Raises StorageError `store.full`, `store.io`."""
        try:
            os.fdatasync(self._fd)
            self._hash_to(upto)
        except OSError as error:
            raise _storage_error(error, self._path) from None

    def finish(self) -> Path:
        """fsync, read again what was not settled, compare the whole digest, rename, fsync the folder.

        Raises:
            UntrustedError: `blob.digest` when what the disk gives back is not the blob; ask `missing()` what to fetch again.
            StorageError: `store.full`, `store.io`.
        """
        try:
            os.fsync(self._fd)
            self._hash_to(self._table.size)
            if self._hash.hexdigest() != self._blob:
                self._resumed, self._hash, self._hashed = True, hashlib.sha256(), 0
                raise UntrustedError("blob.digest", f"blob {self._blob} read back from disk has another digest", where=str(self._path))
            path = self._store.settle(self._blob)
        except OSError as error:
            raise _storage_error(error, self._path) from None
        self.close()
        return path

    def _hash_to(self, upto: int) -> None:
        view = memoryview(bytearray(min(_READ_BYTES, max(1, upto - self._hashed))))
        while (left := upto - self._hashed) > 0:
            got = os.preadv(self._fd, [view[:left]], self._hashed)
            if not got:
                return  # shorter than it should be: the digest will say so
            self._hash.update(view[:got])
            self._hashed += got

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _is_blob(name: str) -> bool:
    try:
        topics.check_blob(name)
    except MalformedError:
        return False
    return True


_Mark = tuple[int, int, int]


def _mark_of(path: Path) -> _Mark:
    """What changes when somebody writes to a file or puts another in its place; rot on the medium does not show in it."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _digest_of(path: Path) -> str:
    digest, view = hashlib.sha256(), memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(view):
            digest.update(view[:got])
    return digest.hexdigest()


def _storage_error(error: OSError, path: Path) -> StorageError:
    if error.errno in _FULL:
        return StorageError("store.full", f"no space left for {path.name}", where=str(path.parent),
                            remedy="free space on the board, or roll out a smaller bundle")
    return StorageError("store.io", f"cannot use {path.name}: {error.strerror}", where=str(path),
                        remedy="check that the storage is mounted, writable and healthy")
