"""Files become published blobs: copied, hashed and cut into chunks in one pass, a chunk in memory at a time, never half of one in place."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.chunks import Tabled, table_of
from jetfleet_contract.errors import StorageError
from jetfleet_host.durable import sync_folder, write_file

if TYPE_CHECKING:
    from jetfleet_host.project import BlobFolder


def copy_over(blobs: BlobFolder, source: Path, blob: str, cut: int) -> Tabled:
    """Copy `source` among the blobs, with its table of chunks of `cut` bytes. What it gives names what `source` really is: when that is not
    `blob`, nothing was stored.

    Raises:
        StorageError: `store.write`.
    """
    target = blobs.path(blob)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        if target.exists():
            tabled = cut_file(target, cut)
            if tabled.blob == blob:
                return _with_pages(blobs, tabled)
        tabled = table_of(_copied(source, partial, cut), cut)
        if tabled.blob == blob:
            partial.replace(target)
            sync_folder(target.parent)
            _with_pages(blobs, tabled)
    except OSError as error:
        raise StorageError("store.write", f"cannot store blob {blob[:16]}: {error.strerror or error}", where=str(blobs.folder),
                           remedy="check free space and permissions of the folder") from None
    finally:
        partial.unlink(missing_ok=True)
    return tabled


def cut_file(path: Path, cut: int) -> Tabled:
    """What the file is as a blob in chunks of `cut` bytes. OSError when it cannot be read."""
    return table_of(_chunks(path, cut), cut)


def _with_pages(blobs: BlobFolder, tabled: Tabled) -> Tabled:
    for page, data in tabled.pages:
        if blobs.size(page) != len(data):
            write_file(blobs.path(page), data)
    return tabled


def _chunks(path: Path, cut: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while data := stream.read(cut):
            yield data


def _copied(source: Path, partial: Path, cut: int) -> Iterator[bytes]:
    """The chunks of `source`, each written to `partial` before it is handed on; fsynced at the end."""
    with partial.open("wb") as stream:
        for data in _chunks(source, cut):
            stream.write(data)
            yield data
        stream.flush()
        os.fsync(stream.fileno())
