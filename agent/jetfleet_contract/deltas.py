"""The index of the deltas that lead to one published bundle, and how a board picks from it.

A delta is a blob like any other: signed, cut into chunks, fetched and verified in the same ways. The index is a small JSON blob whose hash
stands in the signed target ``delta/NAME/VERSION``. For each blob of the bundle it lists from which base blobs it can be made::

    {"manifest": hex, "targets": {hex: [{"base": hex, "delta": hex, "size": n, "chunk_size": n, "table": hex, "method": "tensor"}, ...]}}

What is inside a delta is told in `delta_format`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from .chunks import CHUNK_BYTES, BlobInfo, top_page
from .errors import MalformedError
from .messages import Message, decode
from .topics import check_blob
from .trust import MAX_BLOBS_A_TARGET, BundleTarget

MAX_INDEX_BYTES = 256 * 1024
MAX_SOURCES_A_BLOB = 16
WORTH = 0.9
"""A delta is kept when it has at most this share of what it replaces: applying it costs time, heat and scratch space."""

Method = Literal["tensor", "patch", "chunks"]


class DeltaSource(Message, frozen=True):
    """One way to a blob: with `base` complete in the store, fetching `delta` (`size` bytes) is enough."""

    base: str
    delta: str
    size: int
    method: Method
    chunk_size: int = CHUNK_BYTES
    table: str = ""

    @property
    def info(self) -> BlobInfo:
        return BlobInfo(self.size, self.chunk_size, self.table)


class DeltaIndex(Message, frozen=True):
    """All ways to the blobs of the bundle `manifest`."""

    manifest: str
    targets: dict[str, tuple[DeltaSource, ...]]


class Route(msgspec.Struct, frozen=True):
    """How one blob is had: `source` None means in full."""

    blob: str
    source: DeltaSource | None


def decode_index(data: bytes, bundle: BundleTarget) -> DeltaIndex:
    """Decode the (verified) index of `bundle`, every count, name and size within bounds.

    Raises:
        MalformedError: `message.*`, `delta.index` (it is of another bundle, names strange blobs, or a delta that saves nothing),
            `blob.*`, `table.bad`.
    """
    index = decode(data, DeltaIndex, limit=MAX_INDEX_BYTES)
    if index.manifest != bundle.manifest:
        raise MalformedError("delta.index", f"the index of deltas for {bundle.name}:{bundle.version} belongs to another bundle")
    every = bundle.every()
    if len(index.targets) > MAX_BLOBS_A_TARGET:
        raise MalformedError("delta.index", f"{len(index.targets)} blobs are over the limit of {MAX_BLOBS_A_TARGET}")
    for blob, sources in index.targets.items():
        if blob not in every:
            raise MalformedError("delta.index", f"blob {blob[:64]!r} is not in {bundle.name}:{bundle.version}")
        if len(sources) > MAX_SOURCES_A_BLOB:
            raise MalformedError("delta.index", f"{len(sources)} deltas for one blob are over the limit of {MAX_SOURCES_A_BLOB}")
        for source in sources:
            _check_source(blob, source, every[blob].size)
    return index


def _check_source(blob: str, source: DeltaSource, full: int) -> None:
    check_blob(source.base)
    check_blob(source.delta)
    if source.table:
        check_blob(source.table)
    top_page(source.info)
    if blob in (source.base, source.delta) or not 0 < source.size < full:
        raise MalformedError("delta.index", f"a delta of {source.size} bytes to a blob of {full} is none")


def route(index: DeltaIndex | None, blob: str, have: Callable[[str], bool]) -> Route:
    """The cheapest way to `blob` for a board that has the blobs for which `have` is true; in full when no delta fits."""
    ways = [source for source in (index.targets.get(blob, ()) if index else ()) if have(source.base)]
    return Route(blob, min(ways, key=lambda source: (source.size, source.delta), default=None))
