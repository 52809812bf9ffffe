"""Which files of the blob folder the signed metadata leads to: what `models gc` must keep."""

from __future__ import annotations

from jetfleet_contract.chunks import MAX_CHUNK_BYTES

from .assignments import blobs_of
from .project import Project
from .publish import published


def referenced_blobs(project: Project) -> frozenset[str]:
    """Every blob that a signed target leads to: bundles with their layers and the pages of their chunk tables."""
    kept: set[str] = set()
    for target in published(project):
        kept.update(blobs_of(target, lambda blob: project.blobs.read(blob, 0, MAX_CHUNK_BYTES)))
    return frozenset(kept)
