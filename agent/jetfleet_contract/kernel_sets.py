"""A set of kernels in a folder, in the device's wheel and on its way to boards: names, paths, and which file serves a GPU. Pure.

A folder of cubins, wherever it lies, is ``kernels.json`` (a `KernelSet`) and the files that it names. On a board there may be two:

    jetfleet_agent/cubins/   in the wheel: made with it, all SMs
    STATE/kernels/           signed by the host and received: the cubins of this board's SM alone, and the whole manifest

The signed one serves where it is sound and of this agent's interface; else the wheel's. The host signs a set as the target
``kernels/INTERFACE``: its hash is the manifest's, its custom field names the cubins as a bundle's names its layers. One set an interface,
so that boards whose agents are of two ages each find what they can launch.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .chunks import BlobInfo
from .errors import IncompatibleError, MalformedError
from .kernels import CubinFile, KernelSet, named
from .topics import check_blob
from .trust import TargetField, blobs_of_field, read_field

INTERFACE = 1
"""What a launch is given. It grows when an argument changes its layout or meaning, not when kernels are added."""

WHEEL_FOLDER = "cubins"
RECEIVED_FOLDER = "kernels"
MAX_CUBINS = 256


class KernelsTarget(msgspec.Struct, frozen=True):
    """A set of kernels that the targets role vouches for. `manifest` is the blob of its ``kernels.json``, `blobs` are its cubins."""

    interface: int
    manifest: str
    info: BlobInfo
    blobs: dict[str, BlobInfo]

    def every(self) -> dict[str, BlobInfo]:
        """Manifest and cubins."""
        return {self.manifest: self.info, **self.blobs}


def kernels_path(interface: int = INTERFACE) -> str:
    """The target's name."""
    return f"kernels/{interface}"


def read_kernels_target(path: str, manifest: str, custom: object) -> KernelsTarget:
    """Turn a verified target below ``kernels/`` into a KernelsTarget.

    Raises:
        MalformedError: `trust.target`, `blob.*`, `table.bad`.
    """
    kind, _, number = path.partition("/")
    if kind != "kernels" or not (number.isascii() and number.isdigit() and len(number) <= 6) or str(int(number)) != number:
        raise MalformedError("trust.target", f"target {path[:120]!r} is no set of kernels")
    field = read_field(custom, TargetField, f"target {path}")
    if not 0 < len(field.blobs) <= MAX_CUBINS:
        raise MalformedError("trust.target", f"target {path} names {len(field.blobs)} cubins, not 1..{MAX_CUBINS}")
    info, blobs = blobs_of_field(field)
    return KernelsTarget(int(number), check_blob(manifest), info, blobs)


def cubins_for(found: KernelSet, sm: int) -> tuple[CubinFile, ...]:
    """What a board of that SM keeps of a set: its cubins for every CUDA, so that a system upgrade finds its own.

    Raises:
        IncompatibleError: `kernels.interface`, `kernels.sm`.
    """
    check_interface(found)
    fit = tuple(cubin for cubin in found.cubins if cubin.sm == sm)
    if not fit:
        raise IncompatibleError("kernels.sm", f"there is no cubin for sm_{sm}, only for {sms_of(found.cubins)}",
                                remedy=f"jetfleet kernels build --sm {sm}")
    return fit


def check_interface(found: KernelSet) -> None:
    """IncompatibleError `kernels.interface` unless this agent can launch the set's kernels."""
    if found.interface != INTERFACE:
        raise IncompatibleError("kernels.interface", f"the kernels are of interface {found.interface}, this version launches {INTERFACE}",
                                remedy="build them with the version that the boards run: jetfleet kernels build")


def sms_of(cubins: Iterable[CubinFile]) -> str:
    """``sm_72, sm_87`` of cubins."""
    return named(cubin.sm for cubin in cubins)
