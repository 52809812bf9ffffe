"""Which function is behind which kind of stage. Importing this costs nothing; torch comes in when a stage is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.float_stage import FloatStage
from jetfleet_host.compress.recipe_file import Distil, FloatStageConfig, Prune, Qat, Separate, Sparsify, Tune

_STAGES: dict[type, str] = {Tune: "tune", Prune: "prune", Sparsify: "sparsify", Distil: "distil", Separate: "separate", Qat: "qat"}


def stage_for(config: FloatStageConfig) -> FloatStage[Any]:
    """The stage that takes this configuration: a function of the same name as its module.

    Raises:
        InputError: `build.torch` when torch or what the trainer stands on is not installed.
    """
    name = _STAGES[type(config)]
    try:
        module = import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        raise InputError("build.torch", f"a {name} stage needs {error.name}, which is not installed",
                         remedy="install it: pip install 'jetfleet[compress]'") from None
    return cast("FloatStage[Any]", getattr(module, name))
