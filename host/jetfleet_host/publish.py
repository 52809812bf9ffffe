"""Publishing: a verified bundle becomes blobs, chunk tables and one signed target.

Blobs go first and harm nobody when the process dies; the signed metadata is one atomic step at the end. A version
never changes its content: a board that holds ``detector 2`` and one that gets it tomorrow hold the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jetfleet_contract.broker_limits import check_chunks
from jetfleet_contract.bundle import MAX_SPEC_BYTES, SPEC, ModelSpec, decode_manifest
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.errors import InputError, UntrustedError
from jetfleet_contract.messages import decode
from jetfleet_contract.trust import BundleTarget, DeltaTarget, delta_path, read_delta_target, read_target, target_field, target_path
from jetfleet_host.blob_files import copy_over
from jetfleet_host.bundles import OpenBundle, open_bundle
from jetfleet_host.deltas.publishing import KEPT, DeltaRow, Step, Version, delta_infos, make_deltas, read_published, recut, store_index
from jetfleet_host.durable import locked, sweep_partials, sync_folder

if TYPE_CHECKING:
    from tuf.api.metadata import Targets

    from jetfleet_host.project import BlobFolder, Project


@dataclass(frozen=True)
class Published:
    """What `publish` did. `new` is False when the same bundle was published before, `recut` is True when it was cut into chunks of another
    size then; `size` is the sum of all blobs in bytes. `waits`: signed here, to be published where snapshot and timestamp are signed."""

    name: str
    version: str
    manifest: str
    blobs: int
    size: int
    new: bool
    recut: bool = False
    waits: bool = False
    deltas: tuple[DeltaRow, ...] = ()


@dataclass(frozen=True)
class Model:
    """One published version."""

    name: str
    version: str
    manifest: str
    size: int
    task: str
    variants: tuple[str, ...]
    targets: tuple[str, ...]


def publish(project: Project, bundle_path: Path, *, deltas: int = KEPT, deltas_from: Sequence[str] = (),
            step: Step = lambda _what, _done, _of: None) -> Published:
    """Verify a bundle folder, take its blobs over, make deltas to it, and sign both. A bundle that was published before is only cut anew,
    when ``[delivery] chunk_kb`` has changed since.

    Args:
        deltas: from so many of the last versions of this model. deltas_from: further bases, ``NAME:VERSION``. step: told of each delta.

    Raises:
        InputError: `publish.version-taken` (the version was published with other bytes), `publish.meta-full`, `keys.*`,
            `broker.packet-size` (the project's broker does not take chunks of this size), `models.unknown` for a base.
        RuntimeFailure: `delta.check`.
        MalformedError, UntrustedError: as `open_bundle`. StorageError: `store.write`.
    """
    cut = project.settings.delivery.chunk_kb * 1024
    check_chunks(project.settings.broker.limits, [cut], str(project.dir / "jetfleet.toml"))
    bundle = open_bundle(bundle_path)
    known = _find(project, bundle)
    with locked(project.blobs.folder):
        sweep_partials(project.blobs.folder)
        infos = {digest[7:]: take_over(project.blobs, bundle.blob_path(digest), digest[7:], cut) for digest in bundle.digests()}
        sync_folder(project.blobs.folder)
    manifest = bundle.manifest_digest[7:]
    waits = not project.repository.can_publish(project.repository.load().root)
    size = sum(info.size for info in infos.values())
    done = Published(bundle.spec.name, bundle.spec.version, manifest, len(infos), size, not known, waits=waits)
    if known:
        return replace(done, recut=_cut_again(project, manifest, infos, cut))
    index, rows = _deltas(project, bundle, infos, _bases(project, bundle.spec.name, deltas, deltas_from), cut, step)
    with project.repository.locked():
        if not _find(project, bundle):  # somebody else may have published while the blobs were copied
            project.repository.edit_targets(lambda targets: _add_target(targets, bundle, infos, index))
    return replace(done, deltas=rows)


def published_deltas(project: Project) -> dict[str, DeltaTarget]:
    """The signed indexes of deltas, by the manifest of the bundle that they lead to."""
    return indexes_of(project.repository.load().targets.signed)


def indexes_of(targets: Targets) -> dict[str, DeltaTarget]:
    """As `published_deltas`, of these targets."""
    manifests = {(target.name, target.version): target.manifest for target in bundles_of(targets)}
    found = [read_delta_target(path, file.hashes["sha256"], file.custom) for path, file in sorted(targets.targets.items())
             if path.startswith("delta/")]
    return {manifests[target.name, target.version]: target for target in found}


def served_blobs(project: Project) -> dict[str, dict[str, BlobInfo]]:
    """Every blob that boards may ask for, by the manifest of the bundle that it belongs to: the bundle's own, and its deltas'."""
    indexes = published_deltas(project)
    return {target.manifest: {**target.every(), **_delta_infos(project, target, indexes.get(target.manifest))}
            for target in published(project)}


def _delta_infos(project: Project, target: BundleTarget, index: DeltaTarget | None) -> dict[str, BlobInfo]:
    return delta_infos(project.blobs, target, index) if index is not None else {}


def withdraw(project: Project, name: str, version: str) -> None:
    """Take a version out of the signed targets: no board accepts it from then on. Its blobs stay. InputError `models.unknown`."""
    path = target_path(name, version)
    with project.repository.locked():
        if path not in project.repository.newest_targets().signed.targets:
            raise InputError("models.unknown", f"{name}:{version} is not published", where=str(project.dir), remedy="see `jetfleet models`")
        project.repository.edit_targets(lambda targets: _remove_targets(targets, path, delta_path(name, version)))


def published(project: Project) -> tuple[BundleTarget, ...]:
    """Every signed bundle, by name and version."""
    return bundles_of(project.repository.load().targets.signed)


def find_bundle(project: Project, name: str, version: str) -> BundleTarget:
    """The signed bundle of that name and version. InputError `models.unknown` with what there is."""
    every = published(project)
    for target in every:
        if (target.name, target.version) == (name, version):
            return target
    have = ", ".join(f"{t.name}:{t.version}" for t in every[-8:]) or "nothing"
    raise InputError("models.unknown", f"{name}:{version} is not published", where=str(project.dir),
                     remedy=f"published is {have}; publish with: jetfleet publish BUNDLE --dir {project.dir}")


def models(project: Project) -> tuple[Model, ...]:
    """Every published version with its task, variants and device classes."""
    return tuple(_model(project, target) for target in published(project))


def _model(project: Project, target: BundleTarget) -> Model:
    spec = read_spec(project, target)
    size = sum(info.size for info in target.every().values())
    return Model(target.name, target.version, target.manifest, size, spec.task.kind, tuple(v.name for v in spec.variants), spec.targets)


def read_spec(project: Project, target: BundleTarget) -> ModelSpec:
    """The model spec of a published bundle, read from the blobs."""
    manifest = decode_manifest(read_small(project.blobs, target.manifest))
    return decode(read_small(project.blobs, manifest.only(SPEC).blob), ModelSpec, limit=MAX_SPEC_BYTES)


def read_small(blobs: BlobFolder, blob: str) -> bytes:
    """A published document's bytes, checked against its name. UntrustedError `bundle.flipped`; StorageError `blob.unreadable`."""
    data = blobs.read(blob, 0, MAX_SPEC_BYTES + 1)
    if hashlib.sha256(data).hexdigest() != blob:
        raise UntrustedError("bundle.flipped", f"the published blob {blob[:16]} is damaged", where=str(blobs.folder),
                             remedy="publish the bundle again")
    return data


def _find(project: Project, bundle: OpenBundle) -> bool:
    """True when exactly this bundle is published; InputError when its version is, with other bytes."""
    spec = bundle.spec
    target = project.repository.newest_targets().signed.targets.get(target_path(spec.name, spec.version))
    if target is None:
        return False
    if target.hashes.get("sha256") == bundle.manifest_digest[7:]:
        return True
    raise InputError("publish.version-taken", f"{spec.name}:{spec.version} was published with other content", where=str(bundle.path),
                     remedy="build it under the next --version: a published version never changes")


def _add_target(targets: Targets, bundle: OpenBundle, infos: dict[str, BlobInfo], index: tuple[str, BlobInfo] | None) -> None:
    from tuf.api.metadata import TargetFile

    _set_cuts(targets, infos)
    manifest = bundle.manifest_digest[7:]
    others = {blob: info for blob, info in infos.items() if blob != manifest}
    path = target_path(bundle.spec.name, bundle.spec.version)
    custom: dict[str, Any] = {"custom": target_field(infos[manifest], others, _next_release(targets, bundle.spec.name))}
    targets.targets[path] = TargetFile(infos[manifest].size, {"sha256": manifest}, path, custom)
    if index is not None:
        _set_index(targets, bundle.spec.name, bundle.spec.version, index)


def _cut_again(project: Project, manifest: str, infos: dict[str, BlobInfo], cut: int) -> bool:
    """Sign the new cut of a bundle's blobs in every target that has them, and of the deltas to it; False when nothing differs."""
    with project.repository.locked():
        signed = project.repository.newest_targets().signed
        if all(infos.get(blob, info) == info for target in bundles_of(signed) for blob, info in target.every().items()):
            return False
        project.repository.edit_targets(lambda targets: _set_cuts(targets, infos))
        _recut_deltas(project, manifest, cut)
    return True


def _set_cuts(targets: Targets, infos: dict[str, BlobInfo]) -> None:
    """A blob has one cut, whichever bundles it is part of: its chunks travel on one topic."""
    for target in bundles_of(targets):
        every = {blob: infos.get(blob, info) for blob, info in target.every().items()}
        manifest = every.pop(target.manifest)
        file = targets.targets[target_path(target.name, target.version)]
        file.unrecognized_fields["custom"] = target_field(manifest, every, target.release)


def bundles_of(targets: Targets) -> tuple[BundleTarget, ...]:
    """Every bundle of these targets, by name and version."""
    return tuple(read_target(path, file.hashes["sha256"], file.custom) for path, file in sorted(targets.targets.items())
                 if path.startswith("bundle/"))


def _next_release(targets: Targets, name: str) -> int:
    """One more than the newest published release of this model."""
    return 1 + max((target.release for target in bundles_of(targets) if target.name == name), default=0)


def _remove_targets(targets: Targets, *paths: str) -> None:
    for path in paths:
        targets.targets.pop(path, None)


# --- deltas ------------------------------------------------------------------------------------------------


def _bases(project: Project, name: str, count: int, further: Sequence[str]) -> tuple[Version, ...]:
    """The versions to make deltas from, the newest of this model first."""
    known = bundles_of(project.repository.newest_targets().signed)
    own = sorted((target for target in known if target.name == name), key=lambda target: -target.release)[:count]
    named = [find_bundle(project, text.partition(":")[0], text.partition(":")[2]) for text in further]
    every = {target.manifest: target for target in (*own, *named)}
    return tuple(Version(target, read_spec(project, target)) for target in every.values())


def _deltas(project: Project, bundle: OpenBundle, infos: dict[str, BlobInfo], bases: Sequence[Version], cut: int,
            step: Step) -> tuple[tuple[str, BlobInfo] | None, tuple[DeltaRow, ...]]:
    """The index as a stored blob, None when no delta is worth it; and the table of what was tried."""
    manifest = bundle.manifest_digest[7:]
    target = BundleTarget(bundle.spec.name, bundle.spec.version, manifest, infos[manifest], infos)
    index, rows = make_deltas(project, Version(target, bundle.spec), bases, cut, step)
    return (store_index(project.blobs, index, cut) if index.targets else None), rows


def _recut_deltas(project: Project, manifest: str, cut: int) -> None:
    """The deltas to a bundle that was cut anew are cut anew too."""
    signed = project.repository.newest_targets().signed
    target, known = next(t for t in bundles_of(signed) if t.manifest == manifest), indexes_of(signed).get(manifest)
    if known is None:
        return
    index = store_index(project.blobs, recut(project.blobs, read_published(project.blobs, target, known), cut), cut)
    project.repository.edit_targets(lambda targets: _set_index(targets, target.name, target.version, index))


def _set_index(targets: Targets, name: str, version: str, index: tuple[str, BlobInfo]) -> None:
    from tuf.api.metadata import TargetFile

    path, (blob, info) = delta_path(name, version), index
    targets.targets[path] = TargetFile(info.size, {"sha256": blob}, path, {"custom": target_field(info, {})})


# --- blobs -------------------------------------------------------------------------------------------------


def take_over(blobs: BlobFolder, source: Path, blob: str, cut: int) -> BlobInfo:
    """Copy one file, its table of chunks of `cut` bytes computed on the way; one that is not `blob` (SHA-256 in hex) is refused.

    Call with the blob folder locked.

    Raises:
        UntrustedError: `bundle.flipped`. StorageError: `store.write`.
    """
    tabled = copy_over(blobs, source, blob, cut)
    if tabled.blob != blob:
        raise UntrustedError("bundle.flipped", "the file changed while it was published", where=str(source), remedy="publish it again")
    return tabled.info
