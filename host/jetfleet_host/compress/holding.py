"""Scales that stay: a fine-tune quantized with the scales of an earlier bundle differs from it in few int8 weights, so its delta is small.

Scales are matched by the names of tensors, which an exporter keeps from one training to the next. What has no counterpart is calibrated as
ever, and the accuracy guard judges the result: when it refuses, the builder takes its own scales.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from jetfleet_contract.errors import InputError
from jetfleet_host.bundles import OpenBundle, open_bundle

from .calibration import ScaleTable

_WEIGHT, _SCALE = ".weight8.scale", ".scale"


class Held(msgspec.Struct, frozen=True):
    """The scales of an earlier int8 file: of activations by tensor, of weights by the layer's output. `origin`: NAME:VERSION."""

    origin: str
    tensors: dict[str, float]
    weights: dict[str, tuple[float, ...]]

    def over(self, table: ScaleTable) -> ScaleTable:
        """The table with these scales wherever it knows the tensor."""
        ranges = {name: msgspec.structs.replace(seen, magnitude=self.tensors[name] * 127.0) if name in self.tensors else seen
                  for name, seen in table.ranges.items()}
        return msgspec.structs.replace(table, ranges=ranges, weights=self.weights)


def learned_scales(table: ScaleTable) -> Held:
    """The scales that training with quantization learned, as `take_scales` gives them."""
    return Held("training", {name: seen.magnitude / 127.0 for name, seen in table.ranges.items()}, table.weights)


def held_scales(path: Path) -> Held:
    """The scales of a bundle's symmetric int8 variant.

    Raises:
        InputError: `build.hold` when the bundle has none. MalformedError, UntrustedError: as `open_bundle`.
    """
    bundle = open_bundle(path)
    variant = next((variant for variant in bundle.spec.variants if variant.layout == "qdq-int8"), None)
    if variant is None:
        raise InputError("build.hold", f"{bundle.spec.name}:{bundle.spec.version} has no int8 variant to hold scales from", where=str(path),
                         remedy="leave out --hold-scales-from, or name a bundle that was built with one")
    return _read(bundle, variant.digest)


def _read(bundle: OpenBundle, digest: str) -> Held:
    import onnx
    from onnx import numpy_helper

    tensors: dict[str, float] = {}
    weights: dict[str, tuple[float, ...]] = {}
    for initializer in onnx.load(str(bundle.blob_path(digest))).graph.initializer:
        if not initializer.name.endswith(_SCALE):
            continue
        value = numpy_helper.to_array(initializer).astype(np.float64)
        if not (np.isfinite(value).all() and (value > 0).all()):
            continue
        if initializer.name.endswith(_WEIGHT):
            weights[initializer.name.removesuffix(_WEIGHT)] = tuple(value.reshape(-1).tolist())
        elif value.size == 1:
            tensors[initializer.name.removesuffix(_SCALE)] = float(value.reshape(()))
    return Held(f"{bundle.spec.name}:{bundle.spec.version}", tensors, weights)
