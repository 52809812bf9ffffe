"""TensorRT for RTX on this machine: two wheels of PyPI in a folder of the user's cache, never in an environment.

`CACHE/VERSION-PYTHON` holds both, put there by pip with ``--target``. The two libraries' digests are pinned here: other bytes are refused,
whoever served them; `installed.json` keeps the binding's, so that a damaged cache is noticed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from jetfleet_contract.errors import IncompatibleError, StorageError, TransportError, UntrustedError
from jetfleet_host.durable import write_file

VERSION = "1.7.1.116"
MEGABYTES = 91
REQUIREMENTS = (f"tensorrt-rtx-cu12-libs=={VERSION}", f"tensorrt-rtx-cu12-bindings=={VERSION}")
PINNED = {
    "tensorrt_rtx_libs/libtensorrt_onnxparser_rtx.so.1": "27be1f67ef28683b54390b6cbc7ec3efc75b39c8ebc4c683cb8603bcfd0b8896",
    "tensorrt_rtx_libs/libtensorrt_rtx.so.1": "fa73b07d275bd89caee07110122c44702d7ab54a8c915c005e7732a66a6b776e",
}
_BINDING = "tensorrt_rtx_bindings/tensorrt_rtx.so"
_RECORD = "installed.json"
_PIP_S = 1800.0


def default_cache() -> Path:
    """``jetfleet/tensorrt-rtx`` of the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetfleet" / "tensorrt-rtx"


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
    folder = folder_of(cache)
    if not (folder / _RECORD).is_file():
        if not fetch:
            raise IncompatibleError("engine.rtx_missing", f"TensorRT for RTX {VERSION} is not on this machine", where=str(folder),
                                    remedy=f"run it once without --offline: it fetches {MEGABYTES} MB from PyPI into that folder")
        _install(folder)
    elif _digests(folder) != _kept(folder):
        raise _damaged(folder)
    return folder


def _install(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as work:
            tree = Path(work) / "tree"
            _pip(tree)
            found = _digests(tree)
            if any(found[name] != digest for name, digest in PINNED.items()):
                raise _damaged(tree)
            write_file(tree / _RECORD, msgspec.json.encode(found))
            if folder.exists():
                shutil.rmtree(folder)
            tree.rename(folder)
    except OSError as error:
        raise StorageError("store.write", f"cannot keep TensorRT for RTX: {error.strerror or error}", where=str(folder),
                           remedy="give another folder: --libraries") from None


def _pip(tree: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
               "--target", str(tree), *REQUIREMENTS]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PIP_S)
    except subprocess.TimeoutExpired:
        raise _not_fetched(f"pip did not end within {_PIP_S:.0f} s") from None
    if done.returncode:
        raise _not_fetched((done.stderr.strip().splitlines() or ["pip failed"])[-1])


def _not_fetched(why: str) -> TransportError:
    return TransportError("engine.rtx_fetch", f"cannot fetch TensorRT for RTX {VERSION}: {why[:300]}",
                          remedy="try again with a connection to PyPI, or copy the cache folder of a machine that has it: --libraries")


def _damaged(folder: Path) -> UntrustedError:
    return UntrustedError("engine.rtx_damaged", f"these files are not TensorRT for RTX {VERSION} as it was published", where=str(folder),
                          remedy="delete that folder; the next build fetches it again")


def _digests(folder: Path) -> dict[str, str]:
    return {name: _digest(folder / name) for name in (*PINNED, _BINDING)}


def _kept(folder: Path) -> dict[str, str]:
    try:
        kept = msgspec.json.decode((folder / _RECORD).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return {}
    return {**kept, **PINNED}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
