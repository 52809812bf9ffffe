"""What all virtual devices of a run share."""

from __future__ import annotations

import asyncio

from .inference import ModelTraits
from .links import Connector
from .transfers import SharedBytes
from .trust import Packages


class World:
    """Loop, broker, verified packages, one copy of the bytes, and how each version behaves.

    Args:
        window_s: length of a telemetry window.
    """

    def __init__(self, connector: Connector, packages: Packages, window_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.connector = connector
        self.packages = packages
        self.window_s = window_s
        self.shared = SharedBytes()
        self._models: dict[str, ModelTraits] = {}

    def learn(self, bundle: str, traits: ModelTraits) -> None:
        """How the model of this bundle (manifest's hex digest) behaves on every board."""
        self._models[bundle] = traits

    def traits(self, bundle: str) -> ModelTraits:
        return self._models.get(bundle, ModelTraits())
