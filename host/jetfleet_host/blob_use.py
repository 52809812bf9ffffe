"""Which files of the blob folder the signed metadata leads to: what `models gc` must keep."""

from __future__ import annotations

from jetfleet_contract.chunks import MAX_CHUNK_BYTES

from .assignments import with_pages
from .delegations import blobs_of_classes, engine_blobs
from .kernels.signed import kernel_blobs
from .project import Project
from .publish import served_blobs


def referenced_blobs(project: Project) -> frozenset[str]:
    """Every blob that signed metadata leads to: bundles with their layers and deltas, what builders vouch for, kernels, and the pages of
    their chunk tables."""
    def read(blob: str) -> bytes:
        return project.blobs.read(blob, 0, MAX_CHUNK_BYTES)

    classes = {one.blob: one.info for one in blobs_of_classes(project.repository.load().snapshot.signed)}
    kept = set(with_pages(classes, read))
    for every in (*served_blobs(project).values(), *engine_blobs(project).values(), kernel_blobs(project)):
        kept.update(with_pages(every, read))
    return frozenset(kept)
