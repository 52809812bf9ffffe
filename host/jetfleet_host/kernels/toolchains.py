"""NVRTC wheels on this machine: found, checked, installed when missing.

Each lies in a folder of its own, ``CACHE/PACKAGE-VERSION``, put there by pip with ``--target``; an environment that has exactly the pinned
version serves as well. ``installed.json`` beside it keeps the digests of the two libraries, so that a damaged cache is noticed.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import msgspec

from jetfleet_contract.errors import IncompatibleError, StorageError
from jetfleet_host.kernels.targets import Toolchain
from jetfleet_host.wheel_folder import Digests, PipError, WheelFolder, not_fetched, user_cache


class Libraries(msgspec.Struct, frozen=True):
    """Where a toolchain's two libraries are."""

    library: Path
    builtins: Path


def default_cache() -> Path:
    """``jetfleet/nvrtc`` of the user's cache folder."""
    return user_cache("nvrtc")


def find(toolchain: Toolchain, cache: Path) -> Libraries | None:
    """The toolchain in the cache or in this environment; None when it is in neither.

    Raises:
        StorageError: `kernels.toolchain_damaged` when the cache's files are not what was installed.
    """
    wheels = _wheels(toolchain, cache)
    if wheels.present:
        if wheels.found() != wheels.kept():
            raise StorageError("kernels.toolchain_damaged", f"{toolchain.requirement} is not what was installed", where=str(wheels.folder),
                               remedy="delete that folder; the next build fetches it again")
        return _inside(toolchain, wheels.folder)
    try:
        found = importlib.metadata.distribution(toolchain.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    if found.version != toolchain.version:
        return None
    libraries = _inside(toolchain, Path(str(found.locate_file(""))))
    return libraries if libraries.library.is_file() and libraries.builtins.is_file() else None


def missing(toolchain: Toolchain, cache: Path) -> IncompatibleError:
    """The error that says what to install."""
    return IncompatibleError("kernels.toolchain", f"NVRTC {toolchain.version} is not on this machine", where=str(cache),
                             remedy=f"run it without --offline, which fetches {toolchain.megabytes} MB from PyPI, or: "
                                    f"pip install {toolchain.requirement}")


def install(toolchain: Toolchain, cache: Path) -> Libraries:
    """Fetch the wheel with pip into the cache, whole or not at all.

    Raises:
        TransportError: `kernels.fetch`, with pip's last line.
        StorageError: `store.write`.
    """
    wheels = _wheels(toolchain, cache)

    def whole(found: Digests) -> None:
        if not all(found.values()):
            raise PipError("the wheel lacks its libraries")

    try:
        wheels.fetch(whole)
    except PipError as why:
        raise not_fetched("kernels.fetch", toolchain.requirement, why, f"install it by hand: pip install {toolchain.requirement}") from None
    return _inside(toolchain, wheels.folder)


def _wheels(toolchain: Toolchain, cache: Path) -> WheelFolder:
    files = (f"{toolchain.folder}/{toolchain.library}", f"{toolchain.folder}/{toolchain.builtins}")
    return WheelFolder(cache / f"{toolchain.package}-{toolchain.version}", (toolchain.requirement,), files, "--toolchains")


def _inside(toolchain: Toolchain, root: Path) -> Libraries:
    folder = root / toolchain.folder
    return Libraries(folder / toolchain.library, folder / toolchain.builtins)
