"""TensorRT for RTX for tests: from the user's cache, or from PyPI; without either a test is skipped by name, in CI it fails."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from jetfleet_contract.errors import IncompatibleError, TransportError
from jetfleet_host.engines import rtx_wheels
from jetfleet_host.engines.rtx_aot import RtxBuilder
from jetfleet_host.engines.sources import Weights, weights_of


@cache
def _place() -> Path | str:
    try:
        return rtx_wheels.libraries(rtx_wheels.default_cache(), fetch=True)
    except (IncompatibleError, TransportError) as error:
        return f"{error.what} [{error.code}]"


def rtx_libraries() -> Path:
    """The folder of the wheels."""
    place = _place()
    if isinstance(place, str):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(place)
    return place


def rtx_builder() -> RtxBuilder:
    """A builder with the limits that users have."""
    return RtxBuilder(rtx_libraries())


def saved(model: object, path: Path) -> Weights:
    """The ONNX model as a file, its outputs' shapes filled in, as a build takes it."""
    import onnx

    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))
    return weights_of(path, ())[0]
