"""Does a rewritten model still compute the same? Both run on ONNX Runtime, on the same inputs, unoptimised against the original."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.errors import IncompatibleError, InputError, RuntimeFailure

if TYPE_CHECKING:
    from onnx import ModelProto

# Relative to the output's own norm. Folding in float64 keeps rounding near 1e-6; 1e-4 tells rounding from a mistake.
TOLERANCE = 1e-4
FLOOR = 1e-2
Tensor = NDArray[np.float32]


def outputs_of(model: ModelProto, tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Every output for every input tensor (1, C, H, W).

    Raises:
        IncompatibleError: `model.operator` when the runtime has no kernel for a node.
        InputError: `build.run` when the model loads but does not run with this shape.
    """
    session = open_session(model)
    source = session.get_inputs()[0].name
    try:
        return [session.run(None, {source: tensor}) for tensor in tensors]
    except Exception as error:  # noqa: BLE001  the runtime raises types of its own
        shape = "x".join(map(str, tensors[0].shape))
        raise InputError("build.run", f"the model does not run on an input of shape {shape}: {_short(error)}",
                         remedy="give the model's own shape with --shape") from None


def open_session(model: ModelProto) -> Any:
    """A session for the model.

    Raises:
        IncompatibleError: `model.operator` when the runtime has no kernel for a node.
        InputError: `model.invalid` when it refuses the model for another reason.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Many short-lived sessions: threads that spin between runs would cost as much CPU time as the work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  the runtime raises types of its own
        text = _short(error)
        if "NOT_IMPLEMENTED" in text or "Could not find an implementation" in text or "is not a registered function/op" in text:
            raise IncompatibleError("model.operator", f"ONNX Runtime has no kernel for a node: {text}",
                                    remedy="export the model with other operators") from None
        raise InputError("model.invalid", f"ONNX Runtime refuses the model: {text}", remedy="export it again") from None


def check_equal(stage: str, reference: Sequence[Sequence[Tensor]], found: Sequence[Sequence[Tensor]],
                tolerance: float = TOLERANCE) -> float:
    """The largest relative difference, over images and outputs.

    Raises:
        RuntimeFailure: `build.not-equal` when it is over the tolerance: the pass broke the model, and the build stops.
    """
    worst = max(relative_error(r, f) for image, other in zip(reference, found, strict=True) for r, f in zip(image, other, strict=True))
    if not worst <= tolerance:
        raise RuntimeFailure("build.not-equal", f"pass {stage} changed the model's output by {worst:.2e}, {tolerance:.0e} is allowed",
                             where=stage, remedy="report this model; the original was not changed")
    return worst


def relative_error(reference: Tensor, found: Tensor) -> float:
    """Norm of the difference over the norm of the reference; infinite when the shapes differ.

    The reference counts as `FLOOR` a value at least: a detector's map of a picture with nothing in it is zero but for rounding.
    """
    if reference.shape != found.shape:
        return float("inf")
    norm = float(np.linalg.norm(reference.astype(np.float64)))
    return float(np.linalg.norm(reference.astype(np.float64) - found)) / max(norm, FLOOR * math.sqrt(reference.size), 1e-12)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
