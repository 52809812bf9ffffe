"""What this board still has to give to the host: copies of the files, their chunk tables, and a record of each offer.

    <root>/uploads/<hex>         the bytes of a blob, or of a page of its chunk table
    <root>/uploads/<id>.json     the record: it is written last, so what it names is there

Bounded in count and bytes. A file that no record names is swept at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from jetfleet_agent.durable import make_folder, sync_folder, write_file
from jetfleet_contract.chunks import CHUNK_BYTES, BlobInfo, Tabled, table_of
from jetfleet_contract.errors import JetfleetError, StorageError
from jetfleet_contract.messages import decode, encode
from jetfleet_contract.topics import check_blob, check_name
from jetfleet_contract.uploads import MAX_OFFER_ID, Kind, Offer, check_offer

RESERVE_BYTES = 16 << 20
MAX_RECORD_BYTES = 64 * 1024


class Pending(msgspec.Struct, frozen=True):
    """An offer that the host has not judged yet, and the pages of its chunk table (hex digests)."""

    offer: Offer
    pages: tuple[str, ...] = ()


class UploadStore:
    """See the module. `add` may run in several threads, the rest belongs to one.

    Args:
        maximum: offers at a time. maximum_bytes: bytes of all of them.
    """

    def __init__(self, root: Path, device: str, maximum: int, maximum_bytes: int) -> None:
        self.folder = root / "uploads"
        self._device = device
        self._maximum = maximum
        self._maximum_bytes = maximum_bytes
        self._pending: dict[int, Pending] = {}
        self._coming: list[int] = []  # sizes of what is being copied
        self._lock = threading.Lock()
        try:
            make_folder(self.folder, mode=0o700)
        except OSError as error:
            raise _storage_error(error, self.folder) from None
        self._load()

    @property
    def pending(self) -> dict[int, Pending]:
        """A copy: offers by id."""
        return dict(self._pending)

    @property
    def size(self) -> int:
        """Bytes of all blobs that wait, each counted once."""
        return sum({kept.offer.blob: kept.offer.info.size for kept in self.pending.values()}.values())

    def add(self, source: Path | bytes, kind: Kind, name: str, expires: float, command: int = 0, *,
            chunk_size: int = CHUNK_BYTES) -> Pending:
        """Copy a file or bytes here, durably, and make its offer. The source is not needed afterwards.

        Raises:
            StorageError: `upload.full` (too many wait, or too large), `upload.unreadable`, `store.full`, `store.io`, `store.write`.
            MalformedError: `name.bad`.
        """
        check_name("upload", name)
        size = len(source) if isinstance(source, bytes) else _size(source)
        partial = self.folder / f".{secrets.token_hex(8)}.partial"
        with self._lock:
            self._check_room(size)
            self._coming.append(size)
        try:
            tabled = _copy(source, partial, size, chunk_size)
            with self._lock:  # a blob that is dropped now must not take away the file that this offer is about to name
                return self._settle(partial, tabled, kind, name, expires, command)
        except OSError as error:
            raise _storage_error(error, self.folder) from None
        finally:
            self._coming.remove(size)
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _settle(self, partial: Path, tabled: Tabled, kind: Kind, name: str, expires: float, command: int) -> Pending:
        partial.rename(self.folder / tabled.blob)
        sync_folder(self.folder)
        for page, data in tabled.pages:
            write_file(self.folder / page, data, mode=0o600)
        offer = Offer(self._device, secrets.randbelow(MAX_OFFER_ID - 1) + 1, tabled.blob, kind, name, tabled.info, expires, command)
        kept = Pending(offer, tuple(page for page, _ in tabled.pages))
        write_file(self._record(offer.id), encode(kept), mode=0o600)
        self._pending[offer.id] = kept
        return kept

    def info(self, blob: str) -> BlobInfo | None:
        """Of a blob, or of a page of a table, that is offered; None for anything else."""
        for kept in self.pending.values():
            if kept.offer.blob == blob:
                return kept.offer.info
            if blob in kept.pages:
                return BlobInfo(size=(self.folder / check_blob(blob)).stat().st_size)
        return None

    def read(self, blob: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes. StorageError `upload.unreadable`."""
        path = self.folder / check_blob(blob)
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                return stream.read(length)
        except OSError as error:
            raise StorageError("upload.unreadable", f"{blob} cannot be read: {error.strerror}", where=str(path)) from None

    def drop(self, offer: int) -> None:
        """Forget an offer and the files that no other offer needs. An unwritable disk leaves them for the next start's sweep."""
        with self._lock, contextlib.suppress(OSError):
            kept = self._pending.pop(offer, None)
            if kept is None:
                return
            self._record(offer).unlink(missing_ok=True)
            for name in {kept.offer.blob, *kept.pages} - self._needed():
                (self.folder / name).unlink(missing_ok=True)

    def _check_room(self, size: int) -> None:
        count, held = len(self._pending) + len(self._coming), self.size + sum(self._coming)
        if count >= self._maximum or held + size > self._maximum_bytes:
            raise StorageError("upload.full", f"{count} uploads of {held} bytes wait, {size} more bytes do not fit", where=str(self.folder),
                               remedy="connect the board to its host, or raise [upload] pending_mb")
        try:
            status = os.statvfs(self.folder)
        except OSError as error:
            raise _storage_error(error, self.folder) from None
        if status.f_bavail * status.f_frsize < size + RESERVE_BYTES:
            raise StorageError("store.full", f"no space left for an upload of {size} bytes", where=str(self.folder))

    def _record(self, offer: int) -> Path:
        return self.folder / f"{offer}.json"

    def _needed(self) -> set[str]:
        return {name for kept in self._pending.values() for name in (kept.offer.blob, *kept.pages)}

    def _load(self) -> None:
        """Records that are whole and whose files are there; everything else goes."""
        try:
            for path in sorted(self.folder.glob("*.json")):
                kept = self._loaded(path)
                if kept is not None:
                    self._pending[kept.offer.id] = kept
            keep = self._needed() | {self._record(offer).name for offer in self._pending}
            for path in self.folder.iterdir():
                if path.name not in keep:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise _storage_error(error, self.folder) from None

    def _loaded(self, path: Path) -> Pending | None:
        try:
            kept = decode(path.read_bytes(), Pending, limit=MAX_RECORD_BYTES)
            check_offer(kept.offer, self._device)
            whole = (self.folder / kept.offer.blob).stat().st_size == kept.offer.info.size
            pages = all((self.folder / check_blob(page)).is_file() for page in kept.pages)
        except (OSError, JetfleetError):
            return None
        return kept if whole and pages and path == self._record(kept.offer.id) else None


def _copy(source: Path | bytes, target: Path, size: int, chunk_size: int) -> Tabled:
    with target.open("xb") as out:
        tabled = table_of(_copied(source, out, size, chunk_size), chunk_size)
        out.flush()
        os.fsync(out.fileno())
    return tabled


def _copied(source: Path | bytes, out: BinaryIO, size: int, chunk_size: int) -> Iterator[bytes]:
    """The source in chunks, each written to `out`; a file that grows meanwhile is cut at `size`."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        for at in range(0, size, chunk_size):
            data = stream.read(min(chunk_size, size - at))
            if not data:
                return
            out.write(data)
            yield data


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise StorageError("upload.unreadable", f"{path.name} cannot be read: {error.strerror}", where=str(path)) from None


def _storage_error(error: OSError, path: Path) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError("store.full", "no space left for an upload", where=str(path), remedy="free space on the board")
    return StorageError("store.io", f"the uploads' folder cannot be used: {error.strerror}", where=str(path),
                        remedy="check that the storage is mounted, writable and healthy")
