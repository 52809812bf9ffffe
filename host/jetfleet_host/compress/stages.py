"""The float half of a build: from the user's file to one clean fp32 model, pass by pass, each checked and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.errors import InputError

from .calibration import ScaleTable
from .checkpoints import Checkpoints
from .equality import check_equal, outputs_of
from .folding import FoldAffine, FuseHardSwish
from .handles import ModelHandle, serialized
from .learned_scales import take_scales
from .loading import load_checked
from .preparing import FixShapes, Pass, Simplify, UpgradeOpset, check_accepts
from .recipe import Shape

Tensor = NDArray[np.float32]


def passes_for(shape: Shape) -> tuple[Pass, ...]:
    """The passes in their order. Simplify comes twice: folding frees constants, and patterns appear."""
    return UpgradeOpset(), FixShapes(shape), Simplify(), FuseHardSwish(), FoldAffine(), Simplify()


@dataclass(frozen=True)
class Imported:
    """The user's float model as the first checkpoint (external data inside), the name of its image input, and the scales that training
    learned, when it came with Q/DQ pairs."""

    model: ModelHandle
    input: str
    learned: ScaleTable | None


def import_model(path: Path, shape: Shape, checkpoints: Checkpoints) -> Imported:
    """The user's model, checked. Raises as `load_checked`, `check_accepts`, `take_scales`."""
    model = load_checked(path)
    value = check_accepts(model, shape)
    floats, table = take_scales(model)
    handle = checkpoints.keep_model(checkpoints.key("import", str(path.resolve())), serialized(floats))
    return Imported(handle, str(value.name), table if table.ranges else None)


def prepare(model: ModelHandle, shape: Shape, samples: Sequence[Tensor], checkpoints: Checkpoints,
            step: Callable[[str, int, int], None]) -> ModelHandle:
    """Run every pass; each one's output must equal the original's on the samples (1, C, H, W).

    Raises:
        InputError: `build.opset`, `build.shape`, `build.run`. RuntimeFailure: `build.not-equal`.
    """
    original = outputs_of(model.load(), samples)
    if not all(np.isfinite(output).all() for image in original for output in image):
        raise InputError("build.not-finite", "the model's output holds NaN or infinity on the data",
                         remedy="check the model and its pre-processing (--mean, --std, --scale)")
    passes = passes_for(shape)
    for index, stage in enumerate(passes):
        key = checkpoints.key("prepare", index, stage, model.digest)
        done = checkpoints.model(key)
        if done is None:
            proto = stage.apply(model.load())
            check_equal(stage.name, original, outputs_of(proto, samples))
            done = checkpoints.keep_model(key, serialized(proto))
        model = done
        step(stage.name, index + 1, len(passes))
    return model
