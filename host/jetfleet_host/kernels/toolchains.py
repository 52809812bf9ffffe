"""NVRTC wheels on this machine: found, checked, installed when missing.

Each lies in a folder of its own, ``CACHE/PACKAGE-VERSION``, put there by pip with ``--target``; an environment that has exactly the pinned
version serves as well. ``installed.json`` beside it keeps the digests of the two libraries, so that a damaged cache is noticed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from jetfleet_contract.errors import IncompatibleError, StorageError, TransportError
from jetfleet_host.durable import write_file
from jetfleet_host.kernels.targets import Toolchain

_RECORD = "installed.json"
_PIP_S = 1800.0


class Libraries(msgspec.Struct, frozen=True):
    """Where a toolchain's two libraries are."""

    library: Path
    builtins: Path


def default_cache() -> Path:
    """``jetfleet/nvrtc`` of the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetfleet" / "nvrtc"


def find(toolchain: Toolchain, cache: Path) -> Libraries | None:
    """The toolchain in the cache or in this environment; None when it is in neither.

    Raises:
        StorageError: `kernels.toolchain_damaged` when the cache's files are not what was installed.
    """
    folder = cache / f"{toolchain.package}-{toolchain.version}"
    if (folder / _RECORD).is_file():
        libraries = _inside(toolchain, folder)
        if _record(libraries) != _kept(folder / _RECORD):
            raise StorageError("kernels.toolchain_damaged", f"{toolchain.requirement} is not what was installed", where=str(folder),
                               remedy="delete that folder; the next build fetches it again")
        return libraries
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
    folder = cache / f"{toolchain.package}-{toolchain.version}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as work:
            tree = Path(work) / "tree"
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                       "--only-binary", ":all:", "--target", str(tree), toolchain.requirement]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PIP_S)
            except subprocess.TimeoutExpired:
                raise _not_fetched(toolchain, f"pip did not end within {_PIP_S:.0f} s") from None
            if done.returncode:
                raise _not_fetched(toolchain, (done.stderr.strip().splitlines() or ["pip failed"])[-1])
            libraries = _inside(toolchain, tree)
            if not (libraries.library.is_file() and libraries.builtins.is_file()):
                raise _not_fetched(toolchain, "the wheel lacks its libraries")
            write_file(tree / _RECORD, msgspec.json.encode(_record(libraries)))
            if folder.exists():
                shutil.rmtree(folder)
            tree.rename(folder)
    except OSError as error:
        raise StorageError("store.write", f"cannot keep {toolchain.requirement}: {error.strerror or error}", where=str(cache),
                           remedy="give another folder: --toolchains") from None
    return _inside(toolchain, folder)


def _not_fetched(toolchain: Toolchain, why: str) -> TransportError:
    return TransportError("kernels.fetch", f"cannot fetch {toolchain.requirement}: {why[:300]}",
                          remedy=f"install it by hand: pip install {toolchain.requirement}")


def _inside(toolchain: Toolchain, root: Path) -> Libraries:
    folder = root / toolchain.folder
    return Libraries(folder / toolchain.library, folder / toolchain.builtins)


def _record(libraries: Libraries) -> dict[str, str]:
    return {path.name: _digest(path) for path in (libraries.builtins, libraries.library)}


def _kept(path: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return {}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
