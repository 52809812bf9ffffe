"""Stage checkpoints: what a killed build had finished, it does not do again.

A checkpoint's name is the digest of everything that its content depends on: the stage, its configuration, the digests of
its inputs and the versions of the libraries that made it. So nothing is ever invalidated; it is just not found.
"""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import msgspec

from jetfleet_contract.errors import StorageError

from .handles import ModelHandle, write_model

T = TypeVar("T")

# Raise when a pass changes what it writes for the same input.
GENERATION = 4
_LIBRARIES = ("onnx", "onnxruntime", "onnxslim", "numpy", "openvino")


def library_versions() -> dict[str, str]:
    """The installed versions of the libraries whose output ends in a bundle."""
    return {name: found for name in _LIBRARIES if (found := _version(name))}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


class Checkpoints:
    """A folder of finished stages. Files appear whole or not at all; a damaged one is made again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError("build.cache", f"cannot make the cache folder {folder}: {error.strerror}", where=str(folder),
                               remedy="give a writable folder with --cache") from None

    def key(self, stage: str, *parts: object) -> str:
        """64 hex digits over the stage's name and all that its result depends on."""
        material = msgspec.json.encode([GENERATION, library_versions(), stage, [_plain(part) for part in parts]], order="sorted")
        return hashlib.sha256(material).hexdigest()

    def model(self, key: str) -> ModelHandle | None:
        """The model kept under `key`, if it is whole: the digest of its bytes is kept beside it."""
        path, mark = self._paths(key)
        try:
            data, digest = path.read_bytes(), mark.read_text("ascii")
        except (OSError, UnicodeDecodeError):
            return None
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            return None
        return ModelHandle(path, digest, len(data))

    def keep_model(self, key: str, data: bytes) -> ModelHandle:
        """Keep a model under `key`. The mark is written last, so a kill between the two leaves nothing that counts."""
        path, mark = self._paths(key)
        try:
            handle = write_model(path, data)
            self._write(mark, handle.digest.encode())
        except OSError as error:
            raise _full(path, error) from None
        return handle

    def value(self, key: str, kind: type[T]) -> T | None:
        """The value kept under `key`, or None when there is none or it does not decode."""
        try:
            return msgspec.json.decode((self.folder / f"{key}.json").read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError, ValueError):
            return None

    def keep_value(self, key: str, value: object) -> None:
        path = self.folder / f"{key}.json"
        try:
            self._write(path, msgspec.json.encode(value, order="sorted"))
        except OSError as error:
            raise _full(path, error) from None

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.onnx", self.folder / f"{key}.sha256"

    def _write(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(path)


def _plain(part: object) -> object:
    return [type(part).__name__, msgspec.to_builtins(part)] if isinstance(part, msgspec.Struct) else part


def _full(path: Path, error: OSError) -> StorageError:
    return StorageError("build.cache", f"cannot write the checkpoint {path.name}: {error.strerror or error}", where=str(path.parent),
                        remedy="free some space, or give another folder with --cache; finished stages are kept")
