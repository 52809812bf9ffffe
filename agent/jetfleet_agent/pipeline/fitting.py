"""Settings that shape a model's session (batches) or its frames (tiles), and models that cannot have them.

They come with the app's signed settings, which know nothing of the model that runs on this board: one that cannot have them runs without,
and says so by name. Other sizes of batches, and the frugal setting or the cheaper candidate while the board is hot, need another session,
so the model is loaded a second time and takes its own place, between two frames, as a challenger would.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec

from jetfleet_agent.ipc import Model, Pace
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_contract.app_config import Batching
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import AppConfig

BATCH, TILE = "backend.batch", "tile.task"


class Refitted(msgspec.Struct, frozen=True):
    """`old` was loaded once more, for batches of another size or with other settings of its runtime; or was not: `error`."""

    old: LoadedModel
    model: LoadedModel | None
    error: JetfleetError | None = None


def load_fitting(load: Callable[[AppConfig], LoadedModel], config: AppConfig) -> tuple[LoadedModel, AppConfig, list[JetfleetError]]:
    """Load and activate a model with as much of `config` as it can have.

    Returns:
        the model, the settings it has, and what was refused.

    Raises:
        JetfleetError: see `LoadedModel`; never for tiles or batches.
    """
    try:
        model = load(config)
        model.activate()
    except JetfleetError as error:
        narrower = _without(config, error.code)
        if narrower == config:
            raise
        model, config, refused = load_fitting(load, narrower)
        return model, config, [error, *refused]
    return model, config, []


def _without(config: AppConfig, code: str) -> AppConfig:
    if code == TILE:
        return msgspec.structs.replace(config, tile=None)
    return msgspec.structs.replace(config, batching=Batching()) if code == BATCH else config


def frugality(model: Model, pace: Pace) -> tuple[bool, bool]:
    """(eco, lean): how the pace wants that model loaded, as far as it can be."""
    lean = model.lean if pace.lean else None
    return pace.eco and (lean or model).eco is not None, lean is not None


def refit(old: LoadedModel, config: AppConfig, tell: Callable[[Refitted], None], *, eco: bool = False, lean: bool = False) -> None:
    """Load the same model for batches of `config.batching.most`, frugal or not, in a thread of its own."""

    def work() -> None:
        try:
            model = LoadedModel(old.model, config, eco=eco, lean=lean)
            model.activate()
        except JetfleetError as error:
            tell(Refitted(old, None, error))
        else:
            tell(Refitted(old, model))

    threading.Thread(target=work, name="refit", daemon=True).start()
