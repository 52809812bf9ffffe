"""The planted bad model: of the same shape as the sound one, and wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from jetfleet_contract.errors import InputError
from jetfleet_host.demo.spoiled import FACTOR, spoil


def three_convolutions(path: Path, *, constant_nodes: bool) -> Path:
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(4, 3, 1, 1)), "w2": rng.normal(size=(4, 4, 1, 1)), "w3": rng.normal(size=(2, 4, 1, 1))}
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    chain = [("x", "w1", "h"), ("h", "w2", "i"), ("i", "w3", "y")]
    nodes = [helper.make_node("Conv", [before, weight], [after]) for before, weight, after in chain]
    if constant_nodes:
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] + nodes
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 8, 8])], [] if constant_nodes else tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("constant_nodes", [False, True])
def test_it_loads_runs_and_answers_otherwise(tmp_path: Path, constant_nodes: bool) -> None:
    import onnxruntime

    sound = three_convolutions(tmp_path / "sound.onnx", constant_nodes=constant_nodes)
    bad = spoil(sound, tmp_path / "sub" / "bad.onnx")
    onnx.checker.check_model(str(bad))
    frame = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    answers = [onnxruntime.InferenceSession(str(path)).run(None, {"x": frame})[0] for path in (sound, bad)]
    assert answers[0].shape == answers[1].shape
    assert not np.allclose(answers[0], answers[1])
    assert np.allclose(answers[0] * FACTOR, answers[1], atol=1e-5)


def test_a_model_without_convolutions_is_named(tmp_path: Path) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    with pytest.raises(InputError) as caught:
        spoil(tmp_path / "m.onnx", tmp_path / "bad.onnx")
    assert caught.value.code == "demo.model"
