"""Reads a bundle folder (OCI image layout) on the device, for `bench` and `explain --bundle`: every byte checked, nothing written.

The update path never comes here: it gets blobs by their signed digests. This is for an engineer with a bundle on a stick.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TypeVar

import msgspec

from jetfleet_contract.bundle import (
    EVALUATION,
    MAX_SPEC_BYTES,
    MODEL_ARTIFACT,
    OCI_MANIFEST,
    PROBE_INDEX,
    SPEC,
    Descriptor,
    Evaluation,
    Manifest,
    ModelSpec,
    ProbeSet,
    check_contents,
    check_descriptor,
    decode_manifest,
)
from jetfleet_contract.errors import InputError, MalformedError, UntrustedError
from jetfleet_contract.messages import decode

T = TypeVar("T")
_READ_BYTES = 1 << 20
_REMEDY = "copy the bundle again from where it was whole"


class BundleFolder(msgspec.Struct, frozen=True):
    """A checked bundle: its parts, weight files by variant name, and the probe set's images in its order."""

    spec: ModelSpec
    evaluation: Evaluation
    probe: ProbeSet
    paths: dict[str, Path]
    images: tuple[Path, ...]


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: tuple[Descriptor, ...]


def read_bundle(folder: Path) -> BundleFolder:
    """Open and check a bundle folder.

    Raises:
        InputError: `bundle.not-found`.
        MalformedError: `bundle.index`, `bundle.missing`, `bundle.truncated` and those of the contract's checks.
        UntrustedError: `bundle.flipped` when a byte differs from its digest.
    """
    index_file = folder / "index.json"
    if not index_file.is_file():
        raise InputError("bundle.not-found", f"{folder} is no bundle folder: it has no index.json", where=str(folder),
                         remedy="give the folder that `jetfleet build --out` wrote")
    index = decode(index_file.read_bytes(), _Index, limit=MAX_SPEC_BYTES)
    manifest = _model_manifest(folder, index)
    spec, evaluation = _part(folder, manifest, SPEC, ModelSpec), _part(folder, manifest, EVALUATION, Evaluation)
    probe = _part(folder, manifest, PROBE_INDEX, ProbeSet)
    check_contents(manifest, spec, evaluation, probe)
    paths = {variant.name: _checked(folder, manifest.layer(variant.digest)) for variant in spec.variants}
    images = tuple(_checked(folder, manifest.layer(item.image)) for item in probe.items)
    return BundleFolder(spec, evaluation, probe, paths, images)


def _model_manifest(folder: Path, index: _Index) -> Manifest:
    """The one model manifest; referrers, which have a subject, may stand beside it."""
    entries = [e for e in index.manifests if e.media_type == OCI_MANIFEST and e.artifact_type in ("", MODEL_ARTIFACT)]
    manifests = [decode_manifest(_small(folder, entry)) for entry in entries]
    models = [manifest for manifest in manifests if manifest.subject is None]
    if len(models) != 1:
        raise MalformedError("bundle.index", f"the index names {len(models)} model manifests, a bundle has 1", where=str(folder))
    return models[0]


def _part(folder: Path, manifest: Manifest, media_type: str, kind: type[T]) -> T:
    return decode(_small(folder, manifest.only(media_type)), kind, limit=MAX_SPEC_BYTES)


def _small(folder: Path, descriptor: Descriptor) -> bytes:
    if descriptor.size > MAX_SPEC_BYTES:
        raise MalformedError("bundle.large", f"{descriptor.media_type} of {descriptor.size} bytes is over the limit of {MAX_SPEC_BYTES}")
    return _checked(folder, descriptor).read_bytes()


def _checked(folder: Path, descriptor: Descriptor) -> Path:
    """The blob's path, after its size and digest were checked."""
    check_descriptor(descriptor)
    path = folder / "blobs" / "sha256" / descriptor.blob
    if not path.is_file() or path.is_symlink():
        raise MalformedError("bundle.missing", f"the bundle lacks blob {descriptor.blob}", where=str(path), remedy=_REMEDY)
    size = path.stat().st_size
    if size < descriptor.size:
        raise MalformedError("bundle.truncated", f"blob {descriptor.blob[:12]} has {size} of {descriptor.size} bytes", where=str(path),
                             remedy=_REMEDY)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    if digest.hexdigest() != descriptor.blob:
        raise UntrustedError("bundle.flipped", f"blob {descriptor.blob[:12]} differs from its digest", where=str(path), remedy=_REMEDY)
    return path
