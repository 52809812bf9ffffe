"""Reads a fetched bundle out of the store: its manifest first, then its parts, then all of it as one checked value."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from jetfleet_contract.bundle import (
    EVALUATION,
    MAX_SPEC_BYTES,
    PROBE_IMAGE,
    PROBE_INDEX,
    SPEC,
    WEIGHT,
    Evaluation,
    Manifest,
    ModelSpec,
    ProbeSet,
    check_contents,
    decode_manifest,
)
from jetfleet_contract.messages import decode


class Blobs(Protocol):
    """What is used of a BlobStore."""

    def has(self, blob: str) -> bool: ...
    def path(self, blob: str) -> Path: ...
    def verified(self, blob: str) -> Path: ...
    def sound(self, blob: str) -> bool: ...
    def doubt(self, blob: str) -> None: ...
    def read(self, blob: str, limit: int) -> bytes: ...
    def needed(self, blob: str, size: int) -> int: ...
    def remove_except(self, keep: set[str]) -> tuple[str, ...]: ...
    def check_space(self, bytes_needed: int) -> None: ...


class Contents(msgspec.Struct, frozen=True):
    """A bundle without its weights. `images` are the probe set's, in its order."""

    spec: ModelSpec
    evaluation: Evaluation
    probe: ProbeSet
    images: tuple[Path, ...]


def blob_of_digest(digest: str) -> str:
    """``sha256:HEX`` -> ``HEX``."""
    return digest.partition(":")[2]


class BundleReader:
    """See the module. Everything raises MalformedError, UntrustedError or StorageError and changes nothing."""

    def __init__(self, store: Blobs) -> None:
        self._store = store

    def manifest(self, bundle: str) -> Manifest:
        return decode_manifest(self._store.read(bundle, MAX_SPEC_BYTES))

    def parts(self, bundle: str) -> tuple[str, ...]:
        """The blobs that tell what the weights are good for: spec, evaluation, probe set and its images."""
        manifest = self.manifest(bundle)
        named = [manifest.only(kind) for kind in (SPEC, EVALUATION, PROBE_INDEX)]
        return tuple(layer.blob for layer in (*named, *(one for one in manifest.layers if one.media_type == PROBE_IMAGE)))

    def weights(self, bundle: str) -> tuple[str, ...]:
        """The weight files of all variants."""
        return tuple(layer.blob for layer in self.manifest(bundle).layers if layer.media_type == WEIGHT)

    def spec(self, bundle: str) -> ModelSpec:
        """What it takes to run the model, besides its weights: a damaged probe set must not keep a committed model from starting."""
        return decode(self._store.read(self.manifest(bundle).only(SPEC).blob, MAX_SPEC_BYTES), ModelSpec, limit=MAX_SPEC_BYTES)

    def contents(self, bundle: str) -> Contents:
        """All parts, and that they belong together."""
        manifest = self.manifest(bundle)
        spec = self.spec(bundle)
        evaluation = decode(self._store.read(manifest.only(EVALUATION).blob, MAX_SPEC_BYTES), Evaluation, limit=MAX_SPEC_BYTES)
        probe = decode(self._store.read(manifest.only(PROBE_INDEX).blob, MAX_SPEC_BYTES), ProbeSet, limit=MAX_SPEC_BYTES)
        check_contents(manifest, spec, evaluation, probe)
        images = tuple(self._store.verified(blob_of_digest(item.image)) for item in probe.items)
        return Contents(spec, evaluation, probe, images)
