"""How much noise each layer adds at the model's output when it alone is quantized, and which layers to leave in float.

Quantization noises of different layers are nearly independent, so their powers add. The search therefore orders layers by
noise power per unit of work saved, and leaves out the dearest until the rest's noise is under a share of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from .calibration import ScaleTable
from .equality import outputs_of, relative_error
from .graphs import GraphView
from .handles import ModelHandle
from .placement import place, quantizable
from .qdq import write_qdq

# Remaining noise power as a share of the all-layers noise, gentler and gentler. The guard takes the first that passes. All layers first:
# where they lose nothing, a quarter of the noise leaves bytes and speed behind (ResNet-50's shape pruned by 30 %: 26 MB and 43 ms at a
# quarter). A quarter itself costs little on the text detector (39 of 64 layers: 22.0 ms CPU time on OpenVINO, all 64: 21.8).
LADDER = (1.0, 0.25, 0.1, 0.04, 0.015)
# Reading or writing one value costs about as much as this many multiply-accumulates on CPU and GPU alike.
_MACS_PER_ELEMENT = 8


class LayerNoise(msgspec.Struct, frozen=True):
    """One layer (named by its first output): relative output error when it alone is int8, and the work that int8 saves."""

    node: str
    error: float
    work: int

    @property
    def price(self) -> float:
        """Noise power per unit of work saved."""
        return self.error**2 / max(self.work, 1)


def measure_noise(model: ModelHandle, table: ScaleTable, tensors: Sequence[NDArray[np.float32]],
                  step: Callable[[int, int], None]) -> tuple[LayerNoise, ...]:
    """Quantize each layer alone and compare the outputs over a few images.

    Args:
        step: called with (layers done, layers in all).
    """
    proto = model.load()
    view = GraphView(proto)
    reference = outputs_of(proto, tensors)
    layers = quantizable(view)
    found = []
    for index, node in enumerate(layers):
        name = node.output[0]
        outputs = outputs_of(write_qdq(proto, place(view, [name], "qdq-int8"), table), tensors)
        error = float(np.mean([relative_error(r, f) for image, other in zip(reference, outputs, strict=True)
                               for r, f in zip(image, other, strict=True)]))
        work = view.macs(node) + _MACS_PER_ELEMENT * (view.elements(node.input[0]) + view.elements(name))
        found.append(LayerNoise(name, round(error, 9), work))
        step(index + 1, len(layers))
    return tuple(found)


def kept_layers(noise: Sequence[LayerNoise], share: float) -> tuple[str, ...]:
    """The layers to quantize when the rest's noise power may be `share` (0..1) of that of all layers; graph order."""
    total = sum(layer.error**2 for layer in noise)
    left = total
    dropped: set[str] = set()
    for layer in sorted(noise, key=lambda item: (-item.price, item.node)):
        if left <= share * total:
            break
        dropped.add(layer.node)
        left -= layer.error**2
    return tuple(layer.node for layer in noise if layer.node not in dropped)
