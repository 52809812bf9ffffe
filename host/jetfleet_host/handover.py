"""From the builder to the control machine: models that were signed where the targets key is, published where the timestamp key is.

The builder's folder comes as a copy, on a disk or over the network. Nothing of it is believed: blobs are hashed on the way, the targets
metadata needs the signature of this project's targets key and a version that grows.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.errors import InputError, JetfleetError, StorageError, UntrustedError
from jetfleet_contract.topics import check_blob
from jetfleet_host.deltas.publishing import delta_infos
from jetfleet_host.durable import locked, sweep_partials, sync_folder
from jetfleet_host.keys import KeyFolder
from jetfleet_host.publish import bundles_of, indexes_of
from jetfleet_host.repository import HANDOVER, Repository

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Targets

    from jetfleet_host.project import Project

_PIECE = 1 << 20


@dataclass(frozen=True)
class Accepted:
    """What `accept` did. `new` is False when this publication was accepted before; `blobs` and `size` (bytes) count what was copied."""

    version: int
    blobs: int
    size: int
    new: bool


def accept(project: Project, builder: Path) -> Accepted:
    """Take over what a builder has signed, and publish it.

    Raises:
        InputError: `handover.none` (nothing waits there), `handover.incomplete` (a blob is missing), `keys.*`, `publish.meta-full`.
        UntrustedError: `bundle.flipped` (a blob is not what its name says), `trust.*` as `Repository.accept_targets`.
        StorageError: `store.write`, `repo.unreadable`.
    """
    offered = Repository(builder / "repo", KeyFolder(builder / "keys")).handover()
    if offered is None:
        raise InputError("handover.none", "nothing waits there to be taken over", where=str(builder / "repo" / HANDOVER),
                         remedy="publish at the builder first, and give its project folder")
    with locked(project.blobs.folder):
        sweep_partials(project.blobs.folder)
        sizes = [_take(path, project.blobs.folder) for path in _blobs_of(builder / "blobs") if project.blobs.size(path.name) is None]
        sync_folder(project.blobs.folder)
    _check_complete(project, offered)
    with project.repository.locked():
        new = project.repository.accept_targets(offered)
    return Accepted(offered.signed.version, len(sizes), sum(sizes), new)


def _blobs_of(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if _is_blob(path.name)]
    except OSError as error:
        raise InputError("handover.none", f"the builder's blobs cannot be read: {error.strerror}", where=str(folder),
                         remedy="give the builder's project folder") from None


def _is_blob(name: str) -> bool:
    try:
        return bool(check_blob(name))
    except JetfleetError:
        return False


def _take(source: Path, folder: Path) -> int:
    """Copy one blob, hashed on the way; its size."""
    partial = folder / f".{source.name}.handover.partial"
    digest, size = hashlib.sha256(), 0
    try:
        with source.open("rb") as reader, partial.open("wb") as writer:
            while piece := reader.read(_PIECE):
                digest.update(piece)
                writer.write(piece)
                size += len(piece)
            if digest.hexdigest() != source.name:
                raise UntrustedError("bundle.flipped", f"the builder's blob {source.name[:16]} is not what its name says",
                                     where=str(source), remedy="copy it again, or publish again at the builder")
            writer.flush()
            os.fsync(writer.fileno())
        partial.replace(folder / source.name)
    except OSError as error:
        raise StorageError("store.write", f"cannot take over blob {source.name[:16]}: {error.strerror or error}", where=str(folder),
                           remedy="check free space and permissions of the folder") from None
    finally:
        partial.unlink(missing_ok=True)
    return size


def _check_complete(project: Project, offered: Metadata[Targets]) -> None:
    for target in bundles_of(offered.signed):
        for blob, info in target.every().items():
            if project.blobs.size(blob) != info.size:
                raise _incomplete(project, f"blob {blob[:16]} of {target.name}:{target.version}")
    _check_deltas(project, offered)


def _check_deltas(project: Project, offered: Metadata[Targets]) -> None:
    indexes = indexes_of(offered.signed)
    for target in bundles_of(offered.signed):
        index = indexes.get(target.manifest)
        if index is None:
            continue
        if project.blobs.size(index.index) != index.info.size:
            raise _incomplete(project, f"the index of deltas to {target.name}:{target.version}")
        for blob, info in delta_infos(project.blobs, target, index).items():
            if project.blobs.size(blob) != info.size:
                raise _incomplete(project, f"delta {blob[:16]} to {target.name}:{target.version}")


def _incomplete(project: Project, what: str) -> InputError:
    return InputError("handover.incomplete", f"{what} is missing", where=str(project.blobs.folder),
                      remedy="copy the builder's folder again, whole")
