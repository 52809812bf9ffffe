"""A convolution and its activation as an ONNX file, for tests of what builds engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

SHAPE = (1, 3, 64, 96)


def tiny(path: Path) -> Path:
    """A convolution and its activation, with a free batch axis."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.random.default_rng(5).normal(size=(8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])], "tiny",
        [helper.make_tensor_value_info("x", kind, ["n", *SHAPE[1:]])], [helper.make_tensor_value_info("y", kind, ["n", 8, *SHAPE[2:]])],
        [onnx.numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path
