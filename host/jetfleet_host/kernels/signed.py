"""Sets of kernels for boards, signed by the targets role: one an interface, for the whole fleet, whatever models it runs.

Rival: a referrer of each bundle, as engines are. Kernels belong to no model: they would be attached, signed and fetched once a version.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jetfleet_contract.bundle import digest_of
from jetfleet_contract.chunks import BlobInfo
from jetfleet_contract.errors import IncompatibleError, InputError
from jetfleet_contract.kernel_sets import KernelsTarget, check_interface, kernels_path, read_kernels_target
from jetfleet_contract.kernels import MANIFEST, CubinFile, KernelSet, read_kernel_set
from jetfleet_contract.trust import target_field
from jetfleet_host.durable import locked, sweep_partials, sync_folder
from jetfleet_host.kernels.building import read_folder, source_digest
from jetfleet_host.publish import read_small, take_over

if TYPE_CHECKING:
    from tuf.api.metadata import Targets

    from jetfleet_host.project import Project


class SignedSet(msgspec.Struct, frozen=True):
    """What `sign_kernels` did. `new` is False when these were signed before; `waits`: signed here, published where snapshot and timestamp
    are signed. `size` is in bytes."""

    interface: int
    manifest: str
    source: str
    cubins: tuple[CubinFile, ...]
    size: int
    new: bool
    waits: bool


def current_folder(folder: Path) -> KernelSet:
    """A folder that `kernels build` made, of the source and interface that this version has.

    Raises:
        IncompatibleError: `kernels.source`, `kernels.interface`; and as `read_folder`.
    """
    found = read_folder(folder)
    check_interface(found)
    if found.source != source_digest():
        raise IncompatibleError("kernels.source", f"the cubins are of source {found.source[7:19]}, not of {source_digest()[7:19]}, "
                                "which this version has", where=str(folder), remedy=f"jetfleet kernels build --out {folder}")
    return found


def sign_kernels(project: Project, folder: Path) -> SignedSet:
    """Take a folder's cubins over and sign them as the fleet's kernels: boards fetch those of their SM, and load them at a pipeline's next
    start. What was signed before for this interface is replaced.

    Raises:
        InputError: `kernels.folder`, `keys.*`, `publish.meta-full`. UntrustedError, IncompatibleError, MalformedError: as `current_folder`.
        StorageError: `store.write`.
    """
    found = current_folder(folder)
    cut = project.settings.delivery.chunk_kb * 1024
    data = (folder / MANIFEST).read_bytes()
    blob = digest_of(data).removeprefix("sha256:")
    if read_kernel_set(data) != found:
        raise InputError("kernels.folder", "the folder changed while it was read", where=str(folder), remedy="sign it again")
    with locked(project.blobs.folder):
        sweep_partials(project.blobs.folder)
        info = take_over(project.blobs, folder / MANIFEST, blob, cut)
        infos = {cubin.digest[7:]: take_over(project.blobs, folder / cubin.file, cubin.digest[7:], cut) for cubin in found.cubins}
        sync_folder(project.blobs.folder)
    fresh = KernelsTarget(found.interface, blob, info, infos)
    with project.repository.locked():
        new = fresh not in kernels_of(project.repository.newest_targets().signed)
        if new:
            project.repository.edit_targets(lambda targets: _enter(targets, fresh))
    size = sum(one.size for one in fresh.every().values())
    waits = not project.repository.can_publish(project.repository.load().root)
    return SignedSet(found.interface, blob, found.source, found.cubins, size, new, waits)


def withdraw_kernels(project: Project, interface: int) -> None:
    """Boards go back to the kernels of their own wheel. InputError `kernels.unsigned` when none are signed for that interface."""
    path = kernels_path(interface)
    with project.repository.locked():
        if path not in project.repository.newest_targets().signed.targets:
            raise InputError("kernels.unsigned", f"no kernels of interface {interface} are signed", where=str(project.dir),
                             remedy="jetfleet kernels publish DIR")
        project.repository.edit_targets(lambda targets: _remove(targets, path))


def signed_kernels(project: Project) -> tuple[KernelsTarget, ...]:
    """Every set that boards may fetch now."""
    return kernels_of(project.repository.load().targets.signed)


def kernels_of(targets: Targets) -> tuple[KernelsTarget, ...]:
    """Every set of these targets, by interface."""
    return tuple(read_kernels_target(path, file.hashes["sha256"], file.custom) for path, file in sorted(targets.targets.items())
                 if path.startswith("kernels/"))


def kernel_blobs(project: Project) -> dict[str, BlobInfo]:
    """Every blob of every signed set."""
    return {blob: info for target in signed_kernels(project) for blob, info in target.every().items()}


def read_signed(project: Project, target: KernelsTarget) -> KernelSet:
    """A signed set's manifest, read from the blobs."""
    return read_kernel_set(read_small(project.blobs, target.manifest))


def _enter(targets: Targets, fresh: KernelsTarget) -> None:
    from tuf.api.metadata import TargetFile

    path = kernels_path(fresh.interface)
    targets.targets[path] = TargetFile(fresh.info.size, {"sha256": fresh.manifest}, path,
                                       {"custom": target_field(fresh.info, fresh.blobs)})


def _remove(targets: Targets, path: str) -> None:
    targets.targets.pop(path, None)
