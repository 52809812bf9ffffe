"""Small ONNX files whose weights moved a little, as a fine-tune moves them, and deltas between any two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from bundle_maker import parts
from onnx import TensorProto, helper, numpy_helper

from jetfleet_contract.bundle import Variant
from jetfleet_host.bundles import digest_file, write_bundle
from jetfleet_host.deltas.making import Made, make_delta

LAYERS = {"a.w": (64, 32, 3, 3), "b.w": (32, 64, 3, 3), "fc.w": (200, 128), "fc.b": (200,)}


def weights(seed: int = 0) -> dict[str, Any]:
    """float32 arrays by name, spread 0.02."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.02, shape).astype(np.float32) for name, shape in LAYERS.items()}


def moved(arrays: dict[str, Any], by: float, *, gain: float = 0.0, seed: int = 1) -> dict[str, Any]:
    """Every weight moved by normal steps of `by`, every channel multiplied by about 1 +- `gain`."""
    rng = np.random.default_rng(seed)
    changed = {}
    for name, array in arrays.items():
        gains = 1 + rng.normal(0, gain, (array.shape[0],) + (1,) * (array.ndim - 1)) if gain else 1.0
        changed[name] = (array * gains + rng.normal(0, by, array.shape)).astype(np.float32)
    return changed


def as_type(arrays: dict[str, Any], kind: str) -> dict[str, Any]:
    """The arrays as float32, float16, bfloat16 or int8 (symmetric, one scale a channel of the first axis)."""
    if kind == "float32":
        return arrays
    if kind == "int8":
        made = {}
        for name, array in arrays.items():
            scales = np.abs(array.reshape(array.shape[0], -1)).max(1) / 127
            made[name] = np.rint(array / scales.reshape((-1,) + (1,) * (array.ndim - 1))).astype(np.int8)
            made[f"{name}.scale"] = scales.astype(np.float32)
        return made
    import ml_dtypes

    return {name: array.astype(np.float16 if kind == "float16" else ml_dtypes.bfloat16) for name, array in arrays.items()}


def write_onnx(path: Path, arrays: dict[str, Any], *, producer: str = "a", reverse: bool = False) -> Path:
    """A file with these initialisers and one node; named by its blob id, beside `path`."""
    node = helper.make_node("Identity", ["x"], ["y"])
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    names = sorted(arrays, reverse=reverse)
    graph = helper.make_graph([node], "g", info[:1], info[1:], [numpy_helper.from_array(arrays[name], name) for name in names])
    model = helper.make_model(graph, producer_name=producer, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())
    return named(path)


def named(path: Path) -> Path:
    """The file under its blob id, as a store has it."""
    return path.rename(path.with_name(digest_file(path)[7:]))


def delta(base: Path, target: Path, **options: Any) -> tuple[Made, Path]:
    """A delta beside the target; `made.chosen` is None when there is none."""
    out = target.with_name(f"{target.name[:16]}.delta")
    return make_delta(base, target, out, **options), out


def weighed_bundle(out: Path, version: str, arrays: dict[str, Any], *, name: str = "toy") -> str:
    """A bundle whose one variant is a model with these weights; its manifest's digest."""
    made: dict[str, Any] = parts(out.parent / "weights", name=name, version=version)
    path = write_onnx(out.parent / "weights" / f"{name}-{version}", arrays)
    variant = Variant("fp32", f"sha256:{path.name}", path.stat().st_size, "fp32")
    made["spec"] = msgspec.structs.replace(made["spec"], variants=(variant,))
    return write_bundle(out, **{**made, "weights": [(variant, path)]})
