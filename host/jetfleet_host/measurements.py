"""Measurements as an OCI referrer: timings beside a bundle, never inside it.

A bundle is immutable and the same for the same inputs; a timing is neither. So it is a manifest of its own in the same
image layout, whose `subject` is the bundle's manifest (OCI image-spec 1.1, "referrers"), and a registry carries it along.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from jetfleet_contract.bundle import OCI_MANIFEST, Descriptor, Manifest, digest_of
from jetfleet_contract.errors import MalformedError
from jetfleet_contract.messages import Message, decode, encode

from .bundles import OpenBundle
from .durable import write_file

MEASUREMENTS = "application/vnd.jetfleet.measurements.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
MAX_BYTES = 1 << 20
M = TypeVar("M", bound=Message)


class MeasuredRow(Message, frozen=True):
    """Timing of one candidate: session ms, batch 1; `ran_in` is the precision that the runtime reported."""

    variant: str
    backend: str
    precision: str
    p50_ms: float
    p99_ms: float
    runs: int
    ran_in: str = ""
    peak_rss_mb: float = 0.0
    activate_ms: float = 0.0
    error: str = ""


class Measurements(Message, frozen=True):
    """All timings of one run on one machine. `taken` is wall-clock seconds since 1970 (UTC); `threads` 0 means the runtime's own."""

    machine: str
    taken: float
    threads: int
    rows: tuple[MeasuredRow, ...]
    software: dict[str, str] = {}

    def row(self, variant: str, backend: str, precision: str) -> MeasuredRow | None:
        """The row of that candidate, if it was measured."""
        return next((r for r in self.rows if (r.variant, r.backend, r.precision) == (variant, backend, precision)), None)


class _Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    schema_version: int
    manifests: tuple[Descriptor, ...]
    media_type: str = "application/vnd.oci.image.index.v1+json"


def attach_measurements(bundle: OpenBundle, measurements: Measurements) -> str:
    """Add them to the bundle's layout as a referrer; earlier ones stay. Returns the referrer's manifest digest."""
    return attach_message(bundle, MEASUREMENTS, measurements)


def attach_message(bundle: OpenBundle, kind: str, message: Message) -> str:
    """Add a message as a referrer of that media type; returns its manifest's digest."""
    body, empty = encode(message), b"{}"
    manifest = encode(Manifest(
        2, OCI_MANIFEST, kind, Descriptor(EMPTY, digest_of(empty), len(empty)),
        (Descriptor(kind, digest_of(body), len(body)),),
        subject=subject_of(bundle)))
    for data in (body, empty, manifest):
        write_file(bundle.blob_path(digest_of(data)), data)
    entry = Descriptor(OCI_MANIFEST, digest_of(manifest), len(manifest), artifact_type=kind)
    enter_referrer(bundle, entry)
    return entry.digest


def subject_of(bundle: OpenBundle) -> Descriptor:
    """The bundle's own manifest, as a referrer names it."""
    own = next(entry for entry in _read_index(bundle.path).manifests if entry.digest == bundle.manifest_digest)
    return Descriptor(own.media_type, own.digest, own.size)


def enter_referrer(bundle: OpenBundle, entry: Descriptor) -> None:
    """Name a referrer's manifest, whose blobs are there, in the layout's index; again is fine."""
    others = tuple(known for known in _read_index(bundle.path).manifests if known.digest != entry.digest)
    write_file(bundle.path / "index.json", encode(_Index(2, (*others, entry))))


def measurements_of(bundle: OpenBundle) -> Measurements | None:
    """The newest measurements attached to the bundle, or None.

    Raises:
        MalformedError: `bundle.missing`, `bundle.referrer` or `message.*` when a referrer is damaged.
    """
    return max(messages_of(bundle, MEASUREMENTS, Measurements), key=lambda m: m.taken, default=None)


def messages_of(bundle: OpenBundle, kind: str, form: type[M]) -> list[M]:
    """The messages of that media type that are attached to the bundle, in the order in which they came; raises as `measurements_of`."""
    found = [_read_referrer(bundle, entry, kind, form) for entry in _read_index(bundle.path).manifests if entry.artifact_type == kind]
    return [message for message in found if message is not None]


def _read_referrer(bundle: OpenBundle, entry: Descriptor, kind: str, form: type[M]) -> M | None:
    manifest = decode(_blob(bundle, entry), Manifest)
    if manifest.subject is None or manifest.subject.digest != bundle.manifest_digest:
        return None
    return decode(_blob(bundle, manifest.only(kind)), form, limit=MAX_BYTES)


def _blob(bundle: OpenBundle, descriptor: Descriptor) -> bytes:
    path = bundle.blob_path(descriptor.digest)
    try:
        if descriptor.size > MAX_BYTES or path.stat().st_size != descriptor.size:
            raise MalformedError("bundle.referrer", "what stands beside the bundle has another size than announced", where=str(path))
        data = path.read_bytes()
    except OSError:
        raise MalformedError("bundle.missing", "what stands beside the bundle is missing", where=str(path),
                             remedy="copy the bundle again, or build again") from None
    if digest_of(data) != descriptor.digest:
        raise MalformedError("bundle.referrer", "what stands beside the bundle was changed", where=str(path), remedy="build again")
    return data


def _read_index(path: Path) -> _Index:
    return decode((path / "index.json").read_bytes(), _Index, limit=MAX_BYTES)
