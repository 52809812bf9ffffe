"""Small, real bundles for tests: a model spec, an evaluation, a probe image and made-up weights of a wished size."""

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

PNG = b"\x89PNG\r\n\x1a\nnot a picture, but bytes"


def parts(folder: Path, *, name: str = "toy", version: str = "1", weight_bytes: int = 200_000, seed: int = 0) -> dict[str, object]:
    """Keyword arguments of `write_bundle`; the weight file's bytes follow from `seed`."""
    folder.mkdir(parents=True, exist_ok=True)
    weight = random.Random(f"{name}:{seed}").randbytes(weight_bytes)
    path = folder / f"{name}-{version}-{seed}.onnx"
    path.write_bytes(weight)
    variant = Variant("fp32", digest_of(weight), len(weight), "fp32")
    task = TaskSpec("classify", InputSpec("x", 8, 8), ("cat", "dog"))
    spec = ModelSpec(name, version, task, (variant,), ("cpu-x86",))
    row = EvaluationRow("fp32", "onnxruntime", "fp32", "top1", 1.0, 0.0, 1.0, 1, 1.0, 1.0, len(weight), "accepted", "")
    evaluation = Evaluation("top1", "fp32/onnxruntime/fp32", 0.5, "a test", (row,))
    probe = ProbeSet((ProbeItem(digest_of(PNG), (Detection("cat", 0.9),)),))
    return {"spec": spec, "evaluation": evaluation, "probe": probe, "files": {digest_of(PNG): PNG}, "weights": [(variant, path)]}


def make_bundle(out: Path, *, name: str = "toy", version: str = "1", weight_bytes: int = 200_000, seed: int = 0) -> str:
    """Write a bundle folder and give its manifest's digest."""
    made = parts(out.parent / "weights", name=name, version=version, weight_bytes=weight_bytes, seed=seed)
    return write_bundle(out, **made)  # type: ignore[arg-type]
