"""The bundles of a rehearsal: real, signed and verified like any other, with made-up weights of a wished size."""

from __future__ import annotations

import random
from pathlib import Path

from jetfleet_contract.bundle import (
    Evaluation,
    EvaluationRow,
    InputSpec,
    ModelSpec,
    ProbeItem,
    ProbeSet,
    TaskSpec,
    Variant,
    digest_of,
)
from jetfleet_contract.predictions import Detection
from jetfleet_host.bundles import write_bundle

from .inference import CLASSES

MODEL = "rehearsal"
_IMAGE = b"\x89PNG\r\n\x1a\nno picture: virtual devices have no eyes"


def make_bundle(folder: Path, version: str, size: int, seed: int) -> Path:
    """A bundle whose every variant has `size` bytes of weights: one that only boards with an accelerator can run, one for the others."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = [_variant(folder, name, version, size, seed) for name in ("fp16", "uint8")]
    variants = tuple(variant for variant, _ in weights)
    task = TaskSpec("classify", InputSpec("x", 224, 224), ("no", "yes"))
    spec = ModelSpec(MODEL, version, task, variants, tuple(one.name for one in CLASSES))
    rows = (_row(variants[0], "tensorrt", "fp16"), _row(variants[1], "onnxruntime", "int8"))
    evaluation = Evaluation("top1", "fp16/tensorrt/fp16", 0.5, "a rehearsal", rows)
    probe = ProbeSet((ProbeItem(digest_of(_IMAGE), (Detection("yes", 0.9),)),))
    out = folder / f"{MODEL}-{version}.bundle"
    write_bundle(out, spec=spec, evaluation=evaluation, probe=probe, files={digest_of(_IMAGE): _IMAGE}, weights=weights)
    return out


def _variant(folder: Path, name: str, version: str, size: int, seed: int) -> tuple[Variant, Path]:
    data = random.Random(f"{seed}/{name}/{version}").randbytes(size)  # noqa: S311 - no secret
    path = folder / f"{name}-{version}.onnx"
    path.write_bytes(data)
    if name == "uint8":
        return Variant(name, digest_of(data), size, "uint8", "qdq-uint8"), path
    return Variant(name, digest_of(data), size, "fp16"), path


def _row(variant: Variant, backend: str, precision: str) -> EvaluationRow:
    return EvaluationRow(variant.name, backend, precision, "top1", 1.0, 0.0, 1.0, 1, 0.0, 0.0, variant.size, "accepted", "",
                         "simulated")
