"""TensorRT for RTX on this machine: two wheels of PyPI in a folder of the user's cache, never in an environment.

`CACHE/VERSION-PYTHON` holds both, put there by pip with ``--target``. The two libraries' digests are pinned here: other bytes are refused,
whoever served them; `installed.json` keeps the binding's, so that a damaged cache is noticed.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from jetfleet_contract.errors import IncompatibleError, UntrustedError
from jetfleet_host.wheel_folder import Digests, PipError, WheelFolder, not_fetched, user_cache

VERSION = "1.7.1.116"
MEGABYTES = 91
REQUIREMENTS = (f"tensorrt-rtx-cu12-libs=={VERSION}", f"tensorrt-rtx-cu12-bindings=={VERSION}")
PINNED = {
    "tensorrt_rtx_libs/libtensorrt_onnxparser_rtx.so.1": "27be1f67ef28683b54390b6cbc7ec3efc75b39c8ebc4c683cb8603bcfd0b8896",
    "tensorrt_rtx_libs/libtensorrt_rtx.so.1": "fa73b07d275bd89caee07110122c44702d7ab54a8c915c005e7732a66a6b776e",
}
_BINDING = "tensorrt_rtx_bindings/tensorrt_rtx.so"


def default_cache() -> Path:
    """``jetfleet/tensorrt-rtx`` of the user's cache folder."""
    return user_cache("tensorrt-rtx")


def folder_of(cache: Path) -> Path:
    """Where this version for this Python lies."""
    return cache / f"{VERSION}-cp{sys.version_info.major}{sys.version_info.minor}"


def libraries(cache: Path, *, fetch: bool) -> Path:
    """The folder to import from, fetched when it is missing and `fetch` allows it.

    Raises:
        IncompatibleError: `engine.rtx_platform`, or `engine.rtx_missing` when nothing may be fetched.
        TransportError: `engine.rtx_fetch` with pip's last line.
        UntrustedError: `engine.rtx_damaged` when the files are not those that are pinned.
        StorageError: `store.write`.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise IncompatibleError("engine.rtx_platform", f"TensorRT for RTX {VERSION} is prepared on Linux x86_64, this is {sys.platform} "
                                f"{platform.machine()}", remedy="run it on an x86_64 Linux host, or build with --with local on the board")
    wheels = WheelFolder(folder_of(cache), REQUIREMENTS, (*PINNED, _BINDING), "--libraries")
    if not wheels.present:
        if not fetch:
            raise IncompatibleError("engine.rtx_missing", f"TensorRT for RTX {VERSION} is not on this machine", where=str(wheels.folder),
                                    remedy=f"run it once without --offline: it fetches {MEGABYTES} MB from PyPI into that folder")
        _fetch(wheels)
    elif wheels.found() != {**wheels.kept(), **PINNED}:
        raise _damaged(wheels.folder)
    return wheels.folder


def _fetch(wheels: WheelFolder) -> None:
    def published(found: Digests) -> None:
        if any(found[name] != digest for name, digest in PINNED.items()):
            raise _damaged(wheels.folder)

    try:
        wheels.fetch(published)
    except PipError as why:
        raise not_fetched("engine.rtx_fetch", f"TensorRT for RTX {VERSION}", why, "try again with a connection to PyPI, or copy the cache "
                          "folder of a machine that has it: --libraries") from None


def _damaged(folder: Path) -> UntrustedError:
    return UntrustedError("engine.rtx_damaged", f"these files are not TensorRT for RTX {VERSION} as it was published", where=str(folder),
                          remedy="delete that folder; the next build fetches it again")
