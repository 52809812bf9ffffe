"""The options that say how a model sees an image, for commands that take several models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jetfleet_contract.bundle import TaskSpec
    from jetfleet_host.compress.recipe import Shape


def task_reader(task: str, preset: str, *, shape: str, mean: str, std: str, scale: float) -> Callable[[str], tuple[TaskSpec, Shape]]:
    """What gives a model's task and input shape.

    Raises:
        InputError: `build.preset`, `build.task`, `build.shape`, `build.input` for options that fit no model.
    """
    from jetfleet_host.compress.intake.models import declared_by
    from jetfleet_host.compress.recipe import make_task, parse_shape, parse_triple

    overrides: dict[str, Any] = {}
    if mean:
        overrides["mean"] = parse_triple(mean, "--mean")
    if std:
        overrides["std"] = parse_triple(std, "--std")
    if scale:
        overrides["scale"] = scale
    wanted = parse_shape(shape) if shape else None
    make_task(task, preset, shape=wanted, labels=(), options={}, overrides=overrides)

    def read(model: str) -> tuple[TaskSpec, Shape]:
        declared = None if wanted else declared_by(model)
        return make_task(task, preset, shape=wanted, labels=(), options={}, overrides=overrides, declared=declared)

    return read
