"""Bundles on disk: an OCI image layout, written once and whole, opened only after every byte was checked.

    oci-layout               the layout's version
    index.json               one manifest (plus referrers, later)
    blobs/sha256/<hex>       manifest, ModelPack config, model spec, evaluation, probe set, weights

Layout: OCI image-spec 1.1 `image-layout.md`; config: CNCF ModelPack `config-schema.json`. Same inputs, same bytes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from jetfleet_contract.bundle import (
    EVALUATION,
    FILEPATH,
    LICENCE,
    MAX_SPEC_BYTES,
    MODEL_ARTIFACT,
    MODEL_CONFIG,
    OCI_MANIFEST,
    PROBE_IMAGE,
    PROBE_INDEX,
    SPEC,
    WEIGHT,
    Descriptor,
    Evaluation,
    Manifest,
    ModelSpec,
    ProbeSet,
    Variant,
    check_contents,
    check_descriptor,
    decode_manifest,
    digest_of,
)
from jetfleet_contract.errors import InputError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.messages import decode, encode
from jetfleet_host.durable import sync_folder, write_file

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
MAX_INDEX_BYTES = 64 * 1024
_COPY_BYTES = 1 << 20
T = TypeVar("T")

_REMEDY = "build the bundle again, or copy it again from where it was whole"


class _Index(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An OCI image index. Unknown fields are ignored, as the OCI specification asks."""

    schema_version: int
    manifests: tuple[Descriptor, ...]
    media_type: str = "application/vnd.oci.image.index.v1+json"


class _ModelDescriptor(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    version: str = ""


class _ModelConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    format: str = ""
    precision: str = ""


class _ModelFs(msgspec.Struct, frozen=True, rename="camel"):
    type: str
    diff_ids: tuple[str, ...]


class _PackConfig(msgspec.Struct, frozen=True):
    """The part of a ModelPack config that we write; `diffIds` are the layers' digests, for raw layers are not compressed."""

    descriptor: _ModelDescriptor
    config: _ModelConfig
    modelfs: _ModelFs


@dataclass(frozen=True)
class OpenBundle:
    """A bundle whose parts fit together and, unless opened with ``verify=False``, whose every byte was hashed."""

    path: Path
    manifest: Manifest
    manifest_digest: str
    spec: ModelSpec
    evaluation: Evaluation
    probe: ProbeSet

    def blob_path(self, digest: str) -> Path:
        """Where the blob ``sha256:<hex>`` lies. MalformedError `bundle.descriptor` for anything else."""
        return _blob_path(self.path, digest)

    def digests(self) -> tuple[str, ...]:
        """Every blob of the bundle: manifest, config, layers."""
        return (self.manifest_digest, self.manifest.config.digest, *(layer.digest for layer in self.manifest.layers))


def write_bundle(out: Path, *, spec: ModelSpec, evaluation: Evaluation, probe: ProbeSet, files: Mapping[str, bytes | Path],
                 weights: Sequence[tuple[Variant, Path]], annotations: Mapping[str, str] | None = None) -> str:
    """Write a bundle to the folder `out`, whole or not at all.

    Args:
        files: content of further layers by digest (``sha256:<hex>``): the probe's images, and documents such as licences.
        weights: each variant of `spec` with its ONNX file.
        annotations: of the manifest; no times in them, or the bytes differ from build to build.

    Returns:
        The manifest's digest. Writing the same bundle to the same place again changes nothing.

    Raises:
        InputError: `bundle.exists` when `out` holds something else, `bundle.weights`, `bundle.digest`.
        MalformedError: as `check_contents`. StorageError: `store.write`.
    """
    _check_weights(spec, weights)
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        blobs = partial / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        digest = _fill(partial, spec, evaluation, probe, files, weights, dict(annotations or {}))
        for folder in (blobs, blobs.parent, partial):
            sync_folder(folder)
        _put_in_place(partial, out, digest)
    except OSError as error:
        raise StorageError("store.write", f"cannot write the bundle {out}: {error.strerror or error}", where=str(error.filename or out),
                           remedy="check free space and permissions of the folder") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digest


def open_bundle(path: Path, *, verify: bool = True) -> OpenBundle:
    """Open a bundle folder and check it.

    Args:
        verify: False skips hashing of weights and images (their presence and size are still checked).

    Raises:
        InputError: `bundle.not-found`. MalformedError: `bundle.layout`, `bundle.index`, `bundle.config`, `bundle.missing`,
        `bundle.truncated`, `bundle.oversize`, `bundle.link`, `bundle.large`, and those of `decode_manifest` and
        `check_contents`. UntrustedError: `bundle.flipped`.
    """
    if not path.is_dir():
        raise InputError("bundle.not-found", f"there is no bundle folder at {path}", where=str(path),
                         remedy="give the folder that `jetfleet build --out` wrote")
    try:
        return _open(path, verify)
    except MalformedError as error:
        raise MalformedError(error.code, error.what, where=error.where or str(path), remedy=error.remedy or _REMEDY) from None


# --- writing -----------------------------------------------------------------------------------------------


def _check_weights(spec: ModelSpec, weights: Sequence[tuple[Variant, Path]]) -> None:
    if sorted(v.name for v, _ in weights) != sorted(v.name for v in spec.variants) or any(v not in spec.variants for v, _ in weights):
        raise InputError("bundle.weights", "the weight files given are not those of the model spec's variants",
                         where=f"{spec.name}:{spec.version}", remedy="give one file for each variant of the spec")


def _fill(folder: Path, spec: ModelSpec, evaluation: Evaluation, probe: ProbeSet, files: Mapping[str, bytes | Path],
          weights: Sequence[tuple[Variant, Path]], annotations: dict[str, str]) -> str:
    images = {item.image for item in probe.items}
    layers = [add_blob(folder, SPEC, encode(spec), "model-spec.json"), add_blob(folder, EVALUATION, encode(evaluation), "evaluation.json"),
              add_blob(folder, PROBE_INDEX, encode(probe), "probe.json")]
    for digest in sorted(files):
        media_type, name = (PROBE_IMAGE, f"probe/{digest[7:]}.png") if digest in images else (LICENCE, f"doc/{digest[7:]}")
        layers.append(add_blob(folder, media_type, files[digest], name, expected=digest))
    for variant, source in sorted(weights, key=lambda pair: pair[0].name):
        layers.append(add_blob(folder, WEIGHT, source, f"weights/{variant.name}.onnx", expected=variant.digest, size=variant.size))
    unique = tuple({layer.digest: layer for layer in reversed(layers)}.values())[::-1]
    config = _PackConfig(_ModelDescriptor(spec.name, spec.version), _ModelConfig("onnx", _precision(spec)),
                         _ModelFs("layers", tuple(layer.digest for layer in unique)))
    config_layer = add_blob(folder, MODEL_CONFIG, encode(config), "")
    manifest = Manifest(2, OCI_MANIFEST, MODEL_ARTIFACT, config_layer, unique, annotations)
    check_contents(manifest, spec, evaluation, probe)
    data = encode(manifest)
    decode_manifest(data)
    entry = add_blob(folder, OCI_MANIFEST, data, "")
    write_file(folder / "oci-layout", LAYOUT)
    write_file(folder / "index.json", encode(_Index(2, (msgspec.structs.replace(entry, artifact_type=MODEL_ARTIFACT),))))
    return entry.digest


def _precision(spec: ModelSpec) -> str:
    kinds = {variant.precision for variant in spec.variants}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def add_blob(folder: Path, media_type: str, content: bytes | Path, name: str, *, expected: str = "", size: int = -1) -> Descriptor:
    """Copy one blob into the layout while hashing it; a digest other than the expected one is the caller's mistake."""
    partial = folder / "blobs" / "sha256" / ".incoming"
    digest, length = _copy(content, partial)
    if expected not in ("", digest) or size not in (-1, length):
        partial.unlink()
        raise InputError("bundle.digest", f"{name} has digest {digest} and {length} bytes, it was announced as {expected}",
                         where=str(content) if isinstance(content, Path) else name,
                         remedy="the file changed while the bundle was built: build again")
    partial.replace(folder / "blobs" / "sha256" / digest[7:])
    return Descriptor(media_type, digest, length, {FILEPATH: name} if name else {})


def _copy(content: bytes | Path, target: Path) -> tuple[str, int]:
    hasher, length = hashlib.sha256(), 0
    with target.open("wb") as stream:
        for part in _parts(content):
            hasher.update(part)
            length += len(part)
            stream.write(part)
        stream.flush()
        os.fsync(stream.fileno())
    return "sha256:" + hasher.hexdigest(), length


def _parts(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while part := stream.read(_COPY_BYTES):
            yield part


def _put_in_place(partial: Path, out: Path, digest: str) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if out.is_dir() and _holds(out, digest):
            return
        raise InputError("bundle.exists", f"{out} already holds something else, and a bundle never changes", where=str(out),
                         remedy="give another --out, or remove the old one first")
    partial.rename(out)
    sync_folder(out.parent)


def _holds(path: Path, digest: str) -> bool:
    try:
        return open_bundle(path).manifest_digest == digest
    except (InputError, MalformedError, UntrustedError):
        return False


def _sweep(out: Path) -> None:
    """Remove what a killed build of the same bundle left behind."""
    for leftover in out.parent.glob(f".{out.name}.????????.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


# --- opening -----------------------------------------------------------------------------------------------


def _open(path: Path, verify: bool) -> OpenBundle:
    layout = _read(path / "oci-layout", MAX_INDEX_BYTES, "bundle.layout")
    if _plain(layout, dict[str, str], "bundle.layout").get("imageLayoutVersion") != "1.0.0":
        raise MalformedError("bundle.layout", "oci-layout does not say version 1.0.0", where=str(path / "oci-layout"))
    index = _plain(_read(path / "index.json", MAX_INDEX_BYTES, "bundle.index"), _Index, "bundle.index")
    entry, manifest = _the_manifest(path, index)
    config = _plain(_blob(path, manifest.config), _PackConfig, "bundle.config")
    if manifest.config.media_type != MODEL_CONFIG or config.modelfs.type != "layers" or config.modelfs.diff_ids != tuple(
            layer.digest for layer in manifest.layers):
        raise MalformedError("bundle.config", "the ModelPack config does not list the manifest's layers", where=str(path))
    spec = decode(_blob(path, manifest.only(SPEC)), ModelSpec, limit=MAX_SPEC_BYTES)
    evaluation = decode(_blob(path, manifest.only(EVALUATION)), Evaluation, limit=MAX_SPEC_BYTES)
    probe = decode(_blob(path, manifest.only(PROBE_INDEX)), ProbeSet, limit=MAX_SPEC_BYTES)
    check_contents(manifest, spec, evaluation, probe)
    if config.descriptor.name != spec.name:
        raise MalformedError("bundle.config", "the ModelPack config names another model than the model spec", where=str(path))
    for layer in manifest.layers:
        _check_blob(path, layer, hashed=verify)
    if verify:
        _check_others(path, {entry.digest, manifest.config.digest, *(layer.digest for layer in manifest.layers)})
    return OpenBundle(path, manifest, entry.digest, spec, evaluation, probe)


def _the_manifest(path: Path, index: _Index) -> tuple[Descriptor, Manifest]:
    """The one model manifest of the index; referrers, which have a subject, may stand beside it."""
    found = []
    for entry in index.manifests:
        if entry.media_type != OCI_MANIFEST or entry.artifact_type not in ("", MODEL_ARTIFACT):
            continue
        manifest = decode_manifest(_blob(path, entry))
        if manifest.subject is None:
            found.append((entry, manifest))
    if len(found) != 1:
        raise MalformedError("bundle.index", f"index.json names {len(found)} model manifests, a bundle has 1",
                             where=str(path / "index.json"))
    return found[0]


def _blob(path: Path, descriptor: Descriptor) -> bytes:
    """A small, checked blob in memory."""
    if descriptor.size > MAX_SPEC_BYTES:
        raise MalformedError("bundle.large", f"{descriptor.media_type} of {descriptor.size} bytes is over the limit of {MAX_SPEC_BYTES}")
    _check_blob(path, descriptor, hashed=False)
    file = _blob_path(path, descriptor.digest)
    data = _read(file, MAX_SPEC_BYTES, "bundle.large")
    if digest_of(data) != descriptor.digest:
        raise _flipped(file)
    return data


def _check_blob(path: Path, descriptor: Descriptor, *, hashed: bool) -> None:
    file = _blob_path(path, descriptor.digest)
    try:
        info = file.lstat()
    except OSError:
        raise MalformedError("bundle.missing", f"{_title(descriptor)} is missing from the bundle", where=str(file)) from None
    if not stat.S_ISREG(info.st_mode):
        raise MalformedError("bundle.link", f"{_title(descriptor)} is no plain file", where=str(file),
                             remedy="a bundle holds plain files only: copy it with links followed")
    if info.st_size < descriptor.size:
        raise MalformedError("bundle.truncated", f"{_title(descriptor)} has {info.st_size} of {descriptor.size} bytes", where=str(file))
    if info.st_size > descriptor.size:
        raise MalformedError("bundle.oversize", f"{_title(descriptor)} has {info.st_size} bytes, more than its {descriptor.size}",
                             where=str(file))
    if hashed and digest_file(file) != descriptor.digest:
        raise _flipped(file)


def _check_others(path: Path, checked: set[str]) -> None:
    """Blobs that the bundle itself does not name, such as measurements attached later, are what their names say too."""
    for file in sorted((path / "blobs" / "sha256").iterdir()):
        digest = f"sha256:{file.name}"
        if file.name.startswith(".") or digest in checked:
            continue
        if file.is_symlink() or not file.is_file():
            raise MalformedError("bundle.link", f"{file.name[:64]} is no plain file", where=str(file),
                                 remedy="a bundle holds plain files only: copy it with links followed")
        if digest_file(file) != digest:
            raise _flipped(file)


def digest_file(file: Path) -> str:
    """``sha256:<hex>`` of a file's content."""
    with file.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _title(descriptor: Descriptor) -> str:
    return descriptor.annotations.get(FILEPATH, "") or descriptor.media_type


def _flipped(file: Path) -> UntrustedError:
    return UntrustedError("bundle.flipped", f"the content of {file.name[:16]}... is not what its digest says", where=str(file),
                          remedy=_REMEDY)


def _blob_path(path: Path, digest: str) -> Path:
    check_descriptor(Descriptor("", digest, 0))
    return path / "blobs" / "sha256" / digest[7:]


def _read(file: Path, limit: int, code: str) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise MalformedError(code, f"cannot read {file.name}: {error.strerror}", where=str(file)) from None
    if len(data) > limit:
        raise MalformedError(code, f"{file.name} is over the limit of {limit} bytes", where=str(file))
    return data


def _plain(data: bytes, kind: type[T], code: str) -> T:
    """Decode JSON that is not one of the contract's own messages."""
    try:
        return decode(data, kind, limit=MAX_SPEC_BYTES)
    except MalformedError as error:
        raise MalformedError(code, error.what) from None
