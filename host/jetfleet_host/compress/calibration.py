"""One calibration pass: the range of every float tensor over the data, and the one scale table that all int8 files share.

Symmetric: ``scale = amax / 127``. amax is by the calibrator's rule:

    minmax      the largest magnitude
    percentile  the magnitude under which that share of a tensor's values lies, per image by exact order statistics, then the
                largest over images, so that a few outliers do not take the whole range
    entropy     least divergence, mse least squared error, over all images together (histograms.py)

Large tensors are sampled at an even stride for all but minmax. Memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from jetfleet_contract.errors import InputError

from .graphs import GraphView
from .handles import ModelHandle
from .histograms import Histogram, entropy_magnitude, mse_magnitude

Calibrator = Literal["minmax", "percentile", "entropy", "mse"]
_RULES = {"entropy": entropy_magnitude, "mse": mse_magnitude}

# A tensor that is zero everywhere still needs a scale above 0; this one is exact for zero.
_SMALLEST = 1e-8
# The 99.99th percentile of 2**17 values is the 13th largest: enough, and a sort of megabytes a tensor is not.
_SAMPLED = 1 << 17


class Range(msgspec.Struct, frozen=True):
    """What calibration saw of one tensor: least and greatest value, and the clipped magnitude."""

    low: float
    high: float
    magnitude: float

    @property
    def scale(self) -> float:
        """Width of one int8 step: float32, so that it is the number that the file holds."""
        return float(np.float32(max(self.magnitude, _SMALLEST) / 127.0))


class ScaleTable(msgspec.Struct, frozen=True):
    """Ranges by tensor name over `images` images, and all else that the int8 files of one build share.

    `weights`: scales that a layer's weights must have, one a channel, by its output. `biases`: what is added to a layer's bias, one value
    a channel, by its output. `percentile` is what `calibrator` percentile clipped at; `origin` says where scales came from that were not
    calibrated.
    """

    ranges: dict[str, Range]
    images: int
    percentile: float
    weights: dict[str, tuple[float, ...]] = {}
    calibrator: str = "percentile"
    per_channel: bool = True
    biases: dict[str, tuple[float, ...]] = {}
    origin: str = ""

    def scale(self, tensor: str) -> float:
        return self.ranges[tensor].scale


def calibrate(model: ModelHandle, tensors: Iterable[NDArray[np.float32]], *, percentile: float = 100.0,
              calibrator: Calibrator = "percentile") -> ScaleTable:
    """Run the float model over pre-processed images (1, C, H, W) and record every float tensor's range.

    Raises:
        InputError: `build.not-finite` when a tensor holds NaN or infinity; `data.empty` without images.
    """
    session, watched = _watching_session(model)
    source = session.get_inputs()[0].name
    ranges: dict[str, Range] = {}
    histograms: dict[str, Histogram] = {}
    share = percentile if calibrator == "percentile" else 100.0
    count = 0
    for tensor in tensors:
        values = session.run(watched, {source: tensor})
        for name, value in ((source, tensor), *zip(watched, values, strict=True)):
            seen = _range_of(name, value, share)
            ranges[name] = _widened(ranges.get(name), seen)
            if calibrator in _RULES:
                histograms.setdefault(name, Histogram()).add(_sample(value), seen.magnitude)
        count += 1
    if not count:
        raise InputError("data.empty", "no image to calibrate with")
    if calibrator in _RULES:
        ranges = {name: msgspec.structs.replace(seen, magnitude=_RULES[calibrator](histograms[name])) for name, seen in ranges.items()}
    return ScaleTable(ranges, count, share, calibrator=calibrator)


def _watching_session(model: ModelHandle) -> tuple[Any, Sequence[str]]:
    import onnx
    import onnxruntime

    proto = model.load()
    view = GraphView(proto)
    watched = [name for node in view.nodes for name in node.output if view.is_float(name)]
    present = set(view.outputs)
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                              for name in watched if name not in present)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keep every tensor as written
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]), watched


def _range_of(name: str, value: NDArray[np.float32], percentile: float) -> Range:
    low, high = float(value.min()), float(value.max())
    if not np.isfinite(low) or not np.isfinite(high):
        raise InputError("build.not-finite", f"tensor {name!r} holds NaN or infinity on the data",
                         remedy="check the model and its pre-processing (--mean, --std, --scale)")
    magnitude = max(abs(low), abs(high))
    if percentile < 100.0 and value.size > 1000:
        magnitude = float(np.percentile(np.abs(_sample(value)), percentile, method="higher"))
    return Range(low, high, magnitude)


def _sample(value: NDArray[np.float32]) -> NDArray[np.float32]:
    return value.reshape(-1)[::value.size // _SAMPLED | 1]  # an odd stride does not stay in one column of a power of two


def _widened(before: Range | None, now: Range) -> Range:
    if before is None:
        return now
    return Range(min(before.low, now.low), max(before.high, now.high), max(before.magnitude, now.magnitude))
