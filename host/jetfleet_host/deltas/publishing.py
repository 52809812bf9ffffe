"""Deltas at publication: from which versions they are made, where they are kept, and the signed index that boards read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jetfleet_contract.bundle import ModelSpec, Variant
from jetfleet_contract.chunks import BlobInfo, table_of
from jetfleet_contract.deltas import MAX_INDEX_BYTES, MAX_SOURCES_A_BLOB, DeltaIndex, DeltaSource, decode_index
from jetfleet_contract.messages import encode
from jetfleet_contract.trust import BundleTarget, DeltaTarget
from jetfleet_host.durable import locked, sync_folder, write_file

from .making import Made, make_delta, shared_share

if TYPE_CHECKING:
    from jetfleet_host.project import BlobFolder, Project

KEPT = 3
"""Published versions of the same model that a new one gets deltas from."""
LEAST_BYTES = 16 * 1024
_ALIKE = 0.5

Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Version:
    """A version that boards may come from, or the one that is published."""

    target: BundleTarget
    spec: ModelSpec

    @property
    def label(self) -> str:
        return f"{self.spec.name}:{self.spec.version}"


@dataclass(frozen=True)
class DeltaRow:
    """One line of the table: how `variant` comes to a board that has `base_variant` of the version `base`."""

    variant: str
    base: str
    base_variant: str
    made: Made


@dataclass(frozen=True)
class _Pair:
    variant: Variant
    version: Version
    base: Variant


def make_deltas(project: Project, new: Version, bases: Sequence[Version], cut: int, step: Step) -> tuple[DeltaIndex, tuple[DeltaRow, ...]]:
    """Make every delta to the weight files of `new` that is worth it, and keep them beside the published blobs.

    Args:
        bases: newest first. cut: bytes of a chunk. step: told ``(what, done, of)``.

    Raises:
        RuntimeFailure: `delta.check`. StorageError: `store.write`.
    """
    pairs = list(_pairs(project.blobs, new, bases))
    ways: dict[str, list[DeltaSource]] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix=".deltas-", dir=project.dir) as folder:
        for number, pair in enumerate(pairs):
            step(f"{pair.variant.name} from {pair.version.label}", number, len(pairs))
            out = Path(folder) / str(number)
            base, target = _blob(pair.base), _blob(pair.variant)
            made = make_delta(project.blobs.path(base), project.blobs.path(target), out)
            rows.append(DeltaRow(pair.variant.name, pair.version.label, pair.base.name, made))
            if made.chosen is not None:
                blob, info = store_file(project.blobs, out, cut)
                ways.setdefault(target, []).append(DeltaSource(base, blob, info.size, made.chosen, info.chunk_size, info.table))
    step("deltas", len(pairs), len(pairs))
    targets = {blob: tuple(sorted(found, key=lambda s: s.size)[:MAX_SOURCES_A_BLOB]) for blob, found in sorted(ways.items())}
    return DeltaIndex(new.target.manifest, targets), tuple(rows)


def _pairs(blobs: BlobFolder, new: Version, bases: Sequence[Version]) -> Iterator[_Pair]:
    """Each weight file with what a board may have of it: the variant of that name, else another with the same tensors."""
    seen: set[tuple[str, str]] = set()
    for variant in new.spec.variants:
        for version in bases:
            base = _counterpart(blobs, variant, version)
            if base is None or variant.size < LEAST_BYTES or base.digest == variant.digest or (base.digest, variant.digest) in seen:
                continue
            seen.add((base.digest, variant.digest))
            yield _Pair(variant, version, base)


def _counterpart(blobs: BlobFolder, variant: Variant, version: Version) -> Variant | None:
    for candidate in version.spec.variants:
        if candidate.name == variant.name:
            return candidate
    path = blobs.path(_blob(variant))
    alike = [(shared_share(blobs.path(_blob(other)), path), other.name) for other in version.spec.variants]
    share, name = max(alike, default=(0.0, ""))
    return version.spec.variant(name) if share >= _ALIKE else None


def _blob(variant: Variant) -> str:
    return variant.digest.partition(":")[2]


# --- keeping them ----------------------------------------------------------------------------------------------


def store_file(blobs: BlobFolder, path: Path, cut: int) -> tuple[str, BlobInfo]:
    """Move a finished file into the blob folder, with its table of chunks of `cut` bytes."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    tabled = table_of(_chunks(path, cut), cut)
    with locked(blobs.folder):
        path.replace(blobs.path(tabled.blob))
        sync_folder(blobs.folder)
        _write_pages(blobs, tabled.pages)
    return tabled.blob, tabled.info


def store_index(blobs: BlobFolder, index: DeltaIndex, cut: int) -> tuple[str, BlobInfo]:
    """Keep an index as a blob."""
    data = encode(index)
    tabled = table_of((data[at:at + cut] for at in range(0, len(data), cut)), cut)
    with locked(blobs.folder):
        write_file(blobs.path(tabled.blob), data)
        _write_pages(blobs, tabled.pages)
    return tabled.blob, tabled.info


def recut(blobs: BlobFolder, index: DeltaIndex, cut: int) -> DeltaIndex:
    """The same deltas, in chunks of `cut` bytes."""
    return DeltaIndex(index.manifest, {blob: tuple(_recut(blobs, source, cut) for source in sources)
                                       for blob, sources in index.targets.items()})


def _recut(blobs: BlobFolder, source: DeltaSource, cut: int) -> DeltaSource:
    tabled = table_of(_chunks(blobs.path(source.delta), cut), cut)
    with locked(blobs.folder):
        _write_pages(blobs, tabled.pages)
    return DeltaSource(source.base, source.delta, source.size, source.method, tabled.info.chunk_size, tabled.info.table)


def _write_pages(blobs: BlobFolder, pages: tuple[tuple[str, bytes], ...]) -> None:
    for page, data in pages:
        if blobs.size(page) != len(data):
            write_file(blobs.path(page), data)


def _chunks(path: Path, cut: int) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while data := stream.read(cut):
            yield data


# --- reading them ----------------------------------------------------------------------------------------------


def read_published(blobs: BlobFolder, bundle: BundleTarget, target: DeltaTarget) -> DeltaIndex:
    """The index that a signed target names. StorageError `blob.unreadable`; MalformedError as `decode_index`."""
    return decode_index(blobs.read(target.index, 0, MAX_INDEX_BYTES + 1), bundle)


def delta_infos(blobs: BlobFolder, bundle: BundleTarget, target: DeltaTarget) -> dict[str, BlobInfo]:
    """The index and every delta of it: what a board to which the bundle was named may ask for, too."""
    index = read_published(blobs, bundle, target)
    deltas = {source.delta: source.info for sources in index.targets.values() for source in sources}
    return {target.index: target.info, **deltas}
