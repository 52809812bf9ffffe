"""Small model specs, evaluations and capabilities for tests of the choice."""

from __future__ import annotations

from jetfleet_contract.bundle import Evaluation, EvaluationRow, InputSpec, ModelSpec, TaskSpec, Variant, digest_of
from jetfleet_contract.messages import BackendInfo, Capability
from jetfleet_contract.policy import candidates

PRECISION_OF = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "uint8": "uint8"}


def spec_of(*variants: str) -> ModelSpec:
    """A classifier with these variants, named as their precision."""
    return ModelSpec("toy", "1", TaskSpec("classify", InputSpec("x", 8, 8), ("cat", "dog")),
                     tuple(Variant(name, digest_of(name.encode()), 100, PRECISION_OF[name]) for name in variants),  # type: ignore[arg-type]
                     ("cpu-x86",))


def evaluation_of(spec: ModelSpec, *, arch: str = "x86_64", ms: dict[str, float] | None = None,
                  refused: dict[str, str] | None = None, leave_out: tuple[str, ...] = ()) -> Evaluation:
    """A row for each candidate but TensorRT's; `ms` and `refused` by candidate name."""
    rows = []
    for candidate in candidates(spec):
        if candidate.backend.startswith("tensorrt") or candidate.name in leave_out:
            continue
        reason = (refused or {}).get(candidate.name, "")
        rows.append(EvaluationRow(candidate.variant, candidate.backend, candidate.precision, "top1", 0.9, 0.1, 0.99, 10,
                                  (ms or {}).get(candidate.name, 10.0), 12.0, 100, "refused" if reason else "accepted", reason))
    return Evaluation("top1", "fp32/onnxruntime/fp32", 0.5, "a test", tuple(rows), {"arch": arch})


def capability_of(*backends: BackendInfo, arch: str = "x86_64") -> Capability:
    """A board with these backends; both CPU runtimes by default."""
    return Capability("cpu-x86", "cpu-x86", arch, "a CPU", ("avx2",), 2, 4096, backends or (
        BackendInfo("openvino", "1", precisions=("fp32", "bf16", "fp16", "int8")),
        BackendInfo("onnxruntime", "1", precisions=("fp32", "fp16", "int8"))))
