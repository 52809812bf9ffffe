"""What a recipe's quantize stage does to the model and its scales before a layer becomes int8; each result is a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from .bias_correction import correct_bias
from .calibration import Calibrator, ScaleTable, calibrate
from .checkpoints import Checkpoints
from .equality import check_equal, outputs_of
from .equalization import equalize
from .handles import ModelHandle, serialized

Tensor = NDArray[np.float32]
# Equalization is exact up to float rounding, so a few images tell whether it went wrong.
_CHECKED = 2


class ScaleSettings(msgspec.Struct, frozen=True):
    """How ranges become scales."""

    calibrator: Calibrator
    percentile: float
    per_channel: bool


def scales_of(model: ModelHandle, tensors: Iterable[Tensor], settings: ScaleSettings) -> ScaleTable:
    """The scale table of a float model. Raises as `calibrate`."""
    table = calibrate(model, tensors, percentile=settings.percentile, calibrator=settings.calibrator)
    return msgspec.structs.replace(table, per_channel=settings.per_channel)


def equalized(model: ModelHandle, tensors: Sequence[Tensor], checkpoints: Checkpoints) -> ModelHandle:
    """The same function with weight ranges evened out between layers. RuntimeFailure `build.not-equal` when it is another function."""
    key = checkpoints.key("equalize", model.digest, len(tensors))
    kept = checkpoints.model(key)
    if kept is not None:
        return kept
    before = model.load()
    after, _ = equalize(before, tensors)
    check_equal("equalize", outputs_of(before, tensors[:_CHECKED]), outputs_of(after, tensors[:_CHECKED]))
    return checkpoints.keep_model(key, serialized(after))


def corrected(model: ModelHandle, layers: tuple[str, ...], table: ScaleTable, tensors: Sequence[Tensor],
              checkpoints: Checkpoints) -> ScaleTable:
    """The table with corrected biases for these layers, where that is better on images kept back."""
    key = checkpoints.key("bias", model.digest, layers, table, len(tensors))
    kept = checkpoints.value(key, ScaleTable)
    if kept is not None:
        return kept
    made, _ = correct_bias(model, layers, table, tensors)
    checkpoints.keep_value(key, made)
    return made
