"""Cubins on this board: those that the host has signed, else those that came in the wheel; the one that serves a GPU, or why none does.

Layout and order of the two folders: `jetfleet_contract.kernel_sets`. Nothing is compiled here. Every file is checked again when it is
read: a disk may have changed it since.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from jetfleet_contract.bundle import digest_of
from jetfleet_contract.cubins import MAX_CUBIN_BYTES, check_cubin
from jetfleet_contract.errors import IncompatibleError, JetfleetError, UntrustedError
from jetfleet_contract.kernel_sets import RECEIVED_FOLDER, WHEEL_FOLDER, check_interface
from jetfleet_contract.kernels import MANIFEST, MAX_MANIFEST_BYTES, NAMES, CubinFile, KernelSet, read_kernel_set

IN_WHEEL = Path(__file__).resolve().parent / WHEEL_FOLDER
_BUILD = "build the wheel with its cubins: jetfleet kernels wheel --out DIR; or sign a set for the boards: jetfleet kernels publish DIR"


class Found(msgspec.Struct, frozen=True):
    """A cubin that this GPU can load, read and checked. `origin` is ``signed`` or ``wheel``; `passed` says why what comes before it in the
    order does not serve."""

    cubin: CubinFile
    data: bytes
    origin: str
    source: str
    passed: str = ""


def places(state: Path | None) -> tuple[tuple[str, Path], ...]:
    """Where cubins may lie on this board, the first that serves wins. `state`: the agent's state folder, None without one."""
    received = (("signed", state / RECEIVED_FOLDER),) if state is not None else ()
    return (*received, ("wheel", IN_WHEEL))


def find_cubin(sm: int, cuda: int, where: Iterable[tuple[str, Path]], kernels: frozenset[str] = NAMES) -> Found:
    """The cubin for a GPU of compute capability `sm` / 10 whose driver knows CUDA `cuda`.

    Args:
        where: from `places`. kernels: what the cubin must hold.

    Raises:
        IncompatibleError: `kernels.none` with the reason of every place: nothing there, another interface, no such SM, a driver that is too
            old, a file that is not what was built.
    """
    reasons = []
    for origin, folder in where:
        try:
            manifest = read_manifest(folder)
            if manifest is None:
                reasons.append(f"{origin}: {'this wheel was built without cubins' if origin == 'wheel' else 'the host has signed none'}")
                continue
            check_interface(manifest)
            chosen = manifest.choose(sm, cuda)
            return Found(chosen, read_checked(folder, chosen, kernels), origin, manifest.source, "; ".join(reasons))
        except JetfleetError as error:
            reasons.append(f"{origin}: {error.what} [{error.code}]")
    raise IncompatibleError("kernels.none", f"no cubin serves sm_{sm} under CUDA {cuda}: {'; '.join(reasons)}", remedy=_BUILD)


def read_manifest(folder: Path) -> KernelSet | None:
    """What a folder says of itself, None when there is no manifest. MalformedError as `read_kernel_set`."""
    data = _read(folder / MANIFEST, MAX_MANIFEST_BYTES)
    return None if data is None else read_kernel_set(data)


def read_checked(folder: Path, cubin: CubinFile, kernels: frozenset[str] = NAMES) -> bytes:
    """A file of a set, as it was built: digest, SM, kernels.

    Raises:
        UntrustedError: `kernels.missing`, `kernels.digest`. MalformedError, IncompatibleError: as `check_cubin`.
    """
    data = _read(folder / cubin.file, MAX_CUBIN_BYTES)
    if data is None:
        raise UntrustedError("kernels.missing", f"{cubin.file} is not in the folder of its manifest", where=str(folder))
    check_bytes(data, cubin, kernels)
    return data


def check_bytes(data: bytes, cubin: CubinFile, kernels: frozenset[str] = NAMES) -> None:
    """Raises as `read_checked`."""
    if len(data) != cubin.size or digest_of(data) != cubin.digest:
        raise UntrustedError("kernels.digest", f"{cubin.file} is not the cubin that was built: {len(data)} bytes of {cubin.size}, "
                                               "or other ones")
    check_cubin(data, cubin.sm, kernels)


def _read(path: Path, limit: int) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return stream.read(limit + 1)
    except OSError:
        return None
