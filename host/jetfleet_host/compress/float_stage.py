"""What a float stage is: a function from a torch model to a torch model, told by one configuration, in one workshop.

A stage never decides whether its result is good enough: the guard does, on `Workshop.validation`, after each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .recipe_file import FloatStageConfig, Training

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

C_contra = TypeVar("C_contra", bound=FloatStageConfig, contravariant=True)


class Split(Protocol):
    """Samples in a fixed order. An image is (C, H, W) float32 as `InputSpec` describes; a target is an array of numbers of any shape, which
    may differ from sample to sample; int64 () where the task is to classify. `digest` names content and order."""

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[Any]]: ...


class Loss(Protocol):
    def __call__(self, outputs: Any, targets: Any, /) -> Tensor:
        """Mean loss over a batch, a float tensor without axes.

        Args:
            outputs: what the model gives for the batch. targets: what `Workshop.collate` made of the samples' targets.
        """
        ...


@dataclass(frozen=True)
class Workshop:
    """What a float stage works with.

    Args:
        shape: of one input batch, (1, C, H, W).
        score: values of the metric for each sample of a split, 0..1 each, float64 (N,); its mean is the metric.
        teacher: the model as it came into the build, made anew at each call, in evaluation mode.
        folder: for the stage's own intermediate state; what is there when it starts is of a run that was killed.
        progress: what is being done, how much of it is done, of how much.
        collate: the targets of a batch, one tensor a sample, as what the loss takes; None: stacked, so they have one shape.
        distance: how far outputs are from the teacher's, a float tensor without axes; None: KL of their soft answers.
        task: digest of the code behind loss, score, collate and distance, where `training` does not name it whole.
    """

    shape: tuple[int, int, int, int]
    train: Split
    validation: Split
    loss: Loss
    score: Callable[[Module, Split], NDArray[np.float64]]
    teacher: Callable[[], Module]
    training: Training
    seed: int
    folder: Path
    progress: Callable[[str, int, int], None]
    collate: Callable[[Sequence[Tensor]], Any] | None = None
    distance: Callable[[Any, Any], Tensor] | None = None
    task: str = ""


class FloatStage(Protocol[C_contra]):
    """Same model, configuration, workshop and seed: same weights on the same machine.

    Raises:
        InputError: `build.trace`, `build.prune` (names the operation) when the model cannot be worked on.
        RuntimeFailure: `build.diverged` when training ends in NaN.
    """

    def __call__(self, model: Module, config: C_contra, workshop: Workshop) -> Module: ...
