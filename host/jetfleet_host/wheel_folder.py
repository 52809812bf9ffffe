"""Wheels in a folder of the user's cache, never in an environment: put there by pip with ``--target``, whole or not at all.

`installed.json` beside them keeps the digests of the files that count, so that a damaged cache is noticed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from jetfleet_contract.errors import StorageError, TransportError
from jetfleet_host.durable import write_file

_RECORD = "installed.json"
_PIP_S = 1800.0
Digests = dict[str, str]


class PipError(Exception):
    """Pip's last line, or why there is none. Whoever asked says it in its own words."""


@dataclass(frozen=True)
class WheelFolder:
    """One set of pinned wheels. `files` are relative to `folder`; `option` is how the user names another place."""

    folder: Path
    requirements: tuple[str, ...]
    files: tuple[str, ...]
    option: str

    @property
    def present(self) -> bool:
        """True when a record of just these files lies there; one of another release does not count."""
        return self.kept().keys() == set(self.files)

    def kept(self) -> Digests:
        """SHA-256 by file as it was when it was installed; nothing when the record cannot be read."""
        try:
            return msgspec.json.decode((self.folder / _RECORD).read_bytes(), type=Digests)
        except (OSError, msgspec.MsgspecError):
            return {}

    def found(self) -> Digests:
        """SHA-256 by file as it is now; "" for one that is not there."""
        return _digests(self.folder, self.files)

    def fetch(self, accept: Callable[[Digests], None]) -> None:
        """Run pip in a folder beside, let `accept` raise on what it brought, then take its place.

        Raises:
            PipError: when pip failed. StorageError: `store.write`. Whatever `accept` raises.
        """
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder.parent, prefix=".fetch-") as work:
                tree = Path(work) / "tree"
                _pip(tree, self.requirements)
                digests = _digests(tree, self.files)
                accept(digests)
                write_file(tree / _RECORD, msgspec.json.encode(digests))
                if self.folder.exists():
                    shutil.rmtree(self.folder)
                tree.rename(self.folder)
        except OSError as error:
            raise StorageError("store.write", f"cannot keep {' '.join(self.requirements)}: {error.strerror or error}",
                               where=str(self.folder.parent), remedy=f"give another folder: {self.option}") from None


def user_cache(name: str) -> Path:
    """``jetfleet/NAME`` of the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jetfleet" / name


def not_fetched(code: str, what: str, why: PipError, remedy: str) -> TransportError:
    return TransportError(code, f"cannot fetch {what}: {str(why)[:300]}", remedy=remedy)


def _pip(tree: Path, requirements: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
               "--target", str(tree), *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PIP_S)
    except subprocess.TimeoutExpired:
        raise PipError(f"pip did not end within {_PIP_S:.0f} s") from None
    if done.returncode:
        raise PipError((done.stderr.strip().splitlines() or ["pip failed"])[-1])


def _digests(folder: Path, files: tuple[str, ...]) -> Digests:
    return {name: _digest(folder / name) for name in files}


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""
