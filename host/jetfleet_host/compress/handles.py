"""A model on disk, named by its digest: what passes take and give."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class ModelHandle:
    """One ONNX file that will not change. `digest` is ``sha256:`` and 64 hex digits of its bytes."""

    path: Path
    digest: str
    size: int

    def load(self) -> ModelProto:
        """Parse the file. It was written or checked by us, so this does not fail on content."""
        import onnx

        return onnx.load_model_from_string(self.path.read_bytes())


def serialized(model: ModelProto) -> bytes:
    """The model's bytes, the same for the same model: map fields sorted, producer stamped by us."""
    model.producer_name = "jetfleet"
    model.producer_version = ""
    return bytes(model.SerializeToString(deterministic=True))


def write_model(path: Path, data: bytes) -> ModelHandle:
    """Write atomically (temporary file, fsync, rename), so that a killed build leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return ModelHandle(path, "sha256:" + hashlib.sha256(data).hexdigest(), len(data))
