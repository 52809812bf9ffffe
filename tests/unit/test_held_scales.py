"""A fine-tune quantized with the scales of an earlier bundle: the same scales, few other weights, and the guard has the last word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import tiny_models
from bundle_maker import make_bundle, parts
from onnx import numpy_helper

from jetfleet_contract.bundle import Variant
from jetfleet_contract.errors import InputError
from jetfleet_host.bundles import digest_file, write_bundle
from jetfleet_host.compress.calibration import ScaleTable, calibrate
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.holding import held_scales
from jetfleet_host.compress.placement import place, quantizable
from jetfleet_host.compress.qdq import quantize_weight, write_qdq


def quantized(model: Any, table: ScaleTable) -> Any:
    view = GraphView(model)
    return write_qdq(model, place(view, {node.output[0] for node in quantizable(view)}, "qdq-int8"), table)


def calibrated(model: Any, folder: Path, spread: float) -> ScaleTable:
    rng = np.random.default_rng(3)
    inputs = [(spread * rng.normal(size=(1, 3, 16, 16))).astype(np.float32) for _ in range(3)]
    return calibrate(write_model(folder / "m.onnx", serialized(model)), inputs)


def constants(model: Any) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def bundle_of(model: Any, folder: Path) -> Path:
    made: dict[str, Any] = parts(folder / "weights", version="1")
    path = folder / "weights" / "int8.onnx"
    onnx.save(model, str(path))
    variant = Variant("fp32", digest_file(path), path.stat().st_size, "int8", "qdq-int8")
    made["spec"] = msgspec.structs.replace(made["spec"], variants=(variant,))
    write_bundle(folder / "bundle", **{**made, "weights": [(variant, path)]})
    return folder / "bundle"


def test_every_scale_of_the_earlier_file_is_kept_exactly(tmp_path: Path) -> None:
    old = tiny_models.residual()
    first = constants(quantized(old, calibrated(old, tmp_path, 1.0)))
    held = held_scales(bundle_of(quantized(old, calibrated(old, tmp_path, 1.0)), tmp_path))
    assert held.origin == "toy:1"
    new = tiny_models.residual()
    for tensor in new.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.ndim == 4:
            tensor.CopyFrom(numpy_helper.from_array((value * np.float32(1.01)).astype(np.float32), tensor.name))
    fresh = calibrated(new, tmp_path, 1.3)
    kept, anew = constants(quantized(new, held.over(fresh))), constants(quantized(new, fresh))
    scales = [name for name in first if name.endswith(".scale")]
    assert len(scales) > 5
    assert all(np.array_equal(kept[name], first[name]) for name in scales)
    assert any(not np.array_equal(anew[name], first[name]) for name in scales)


def test_what_has_no_counterpart_is_calibrated(tmp_path: Path) -> None:
    old = tiny_models.residual()
    table = calibrated(old, tmp_path, 1.0)
    held = held_scales(bundle_of(quantized(old, table), tmp_path))
    some = msgspec.structs.replace(held, tensors={"a stranger": 1.0}, weights={"a stranger": (1.0,)})
    made, plain = constants(quantized(old, some.over(table))), constants(quantized(old, table))
    assert made.keys() == plain.keys()
    assert all(np.array_equal(made[name], plain[name]) for name in plain)


def test_held_weight_scales_clip_what_outgrew_them() -> None:
    weight = np.array([[0.5, -1.0], [2.0, 4.0]], np.float32)
    steps, scales = quantize_weight(weight, 0, (0.005, 0.01))
    assert scales.tolist() == [np.float32(0.005), np.float32(0.01)]
    assert steps.tolist() == [[100, -127], [127, 127]]
    assert np.array_equal(quantize_weight(weight, 0, (1.0,))[1], quantize_weight(weight, 0)[1]), "scales of another shape do not count"


def test_a_bundle_without_int8_is_refused_by_name(tmp_path: Path) -> None:
    make_bundle(tmp_path / "plain")
    with pytest.raises(InputError) as caught:
        held_scales(tmp_path / "plain")
    assert caught.value.code == "build.hold"
