"""Training with quantization: places as the twins have them, and a file that answers as the trained model did."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from float_worlds import BareParameters, Branching, DigitNet, accuracy, seeded, workshop
from torch import nn

from jetfleet_contract.errors import InputError
from jetfleet_host.compress import models
from jetfleet_host.compress.calibration import ScaleTable, calibrate
from jetfleet_host.compress.floating.fake_quantization import HeldQuantization, LearnedQuantization, working_copy
from jetfleet_host.compress.floating.quantized_places import insert, traced
from jetfleet_host.compress.floating.registry import stage_for
from jetfleet_host.compress.graphs import GraphView
from jetfleet_host.compress.handles import serialized, write_model
from jetfleet_host.compress.learned_scales import take_scales
from jetfleet_host.compress.placement import place, quantizable
from jetfleet_host.compress.qdq import write_qdq
from jetfleet_host.compress.recipe_file import Qat, Tune


def exported(model: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(model, (torch.zeros(shape),), dynamo=True, opset_version=18, external_data=False, verbose=False)
    return onnx.load_model_from_string(program.model_proto.SerializeToString())


def answers(model: onnx.ModelProto, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {session.get_inputs()[0].name: image[None]})[0] for image in images])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    config = Tune(epochs=4)
    return stage_for(config)(seeded(DigitNet), config, workshop(tmp_path_factory.mktemp("trained")))


@pytest.mark.parametrize("observer", ["lsq", "ema"])
def test_the_int8_file_answers_as_the_trained_model_did(trained: nn.Module, tmp_path: Path, observer: str) -> None:
    shop = workshop(tmp_path)
    config = msgspec.convert({"epochs": 1, "observer": observer, "kind": "qat"}, Qat)
    model = stage_for(config)(trained, config, shop)
    assert accuracy(model, shop.validation).mean() > 0.98 * accuracy(trained, shop.validation).mean()
    clean, learned = take_scales(exported(model, shop.shape))
    assert not any("Quantize" in node.op_type for node in clean.graph.node)
    handle = write_model(tmp_path / "clean.onnx", serialized(clean))
    images = np.stack([shop.validation[index][0] for index in range(40)])
    seen = calibrate(handle, [image[None] for image in images])
    table = msgspec.structs.replace(seen, ranges={**seen.ranges, **learned.ranges}, weights=learned.weights)
    view = GraphView(clean)
    written = write_qdq(clean, place(view, {node.output[0] for node in quantizable(view)}, "qdq-int8"), table)
    with torch.no_grad():
        expected = model(torch.as_tensor(images)).numpy()
    np.testing.assert_allclose(answers(written, images), expected, atol=0.05 * np.abs(expected).max())
    assert (answers(written, images).argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize(("factory", "shape"), [
    (DigitNet, (1, 1, 8, 8)), (models.resnet20, (1, 3, 32, 32)), (models.mobilenet_v2, (1, 3, 32, 32)),
    (models.small_detector, (1, 3, 32, 32)),
])
def test_places_in_the_network_are_those_in_the_exported_file(factory: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    graph = traced(seeded(factory))
    for name in insert(graph, shape, lambda: LearnedQuantization("lsq")):
        setattr(graph, name, HeldQuantization(0.1))
    clean, learned = take_scales(exported(graph, shape))
    view = GraphView(clean)
    placement = place(view, {node.output[0] for node in quantizable(view)}, "qdq-int8")
    wanted = {view.producer[edge.node].input[edge.index] for edge in placement.edges}
    assert set(learned.ranges) == {placement.same_scale.get(tensor, tensor) for tensor in wanted}
    assert set(learned.weights) == set(placement.nodes)


def test_a_learned_scale_moves_and_one_that_follows_stays_at_the_greatest_magnitude() -> None:
    torch.manual_seed(0)
    values = torch.randn(256, requires_grad=True)
    for observer, moves in (("lsq", True), ("ema", False)):
        quantization = LearnedQuantization(observer)  # type: ignore[arg-type]
        quantization(values)
        quantization.observing = False
        quantization(values).square().sum().backward()
        assert (quantization.scale.grad is not None) is moves
        assert float(quantization.scale) == pytest.approx(float(values.detach().abs().max()) / 127, rel=1e-5)


def test_the_gradient_of_a_scale_is_that_of_learned_step_sizes() -> None:
    quantization = LearnedQuantization("lsq")
    quantization(torch.tensor([1.27]))
    quantization.observing = False  # the scale is 0.01
    values = torch.tensor([0.004, 0.006, 5.0, -5.0, 0.013])
    quantization(values).sum().backward()
    expected = (0 - 0.4) + (1 - 0.6) + 127 - 127 + (1 - 1.3)
    assert float(quantization.scale.grad) * (5 * 127) ** 0.5 == pytest.approx(expected, rel=1e-3)


def test_a_later_stage_takes_held_quantization_out(trained: nn.Module, tmp_path: Path) -> None:
    config = Qat(epochs=0)
    model = stage_for(config)(trained, config, workshop(tmp_path))
    bare = working_copy(model)
    assert any(isinstance(module, HeldQuantization) for module in model.modules())
    assert not any(isinstance(module, HeldQuantization) for module in bare.modules())
    assert bare(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    buffer = io.BytesIO()
    torch.save(model, buffer)  # a checkpoint of a graph that a stage made
    again = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert torch.equal(again(torch.ones(1, 1, 8, 8)), model(torch.ones(1, 1, 8, 8)))


def test_a_forward_that_depends_on_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        stage_for(Qat())(Branching(), Qat(), workshop(tmp_path))
    assert caught.value.code == "build.trace"


def test_a_model_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        stage_for(Qat())(BareParameters(), Qat(), workshop(tmp_path))
    assert caught.value.code == "build.qat"


def test_a_float_file_has_no_scales_and_an_unsigned_one_is_refused(trained: nn.Module) -> None:
    plain = exported(trained, (1, 1, 8, 8))
    assert take_scales(plain) == (plain, ScaleTable({}, 0, 100.0))
    view = GraphView(plain)
    table = msgspec.convert({"ranges": {}, "images": 1, "percentile": 100.0}, ScaleTable)
    stem = next(node.output[0] for node in quantizable(view))
    placement = place(view, {stem}, "qdq-uint8")
    ranges = {name: {"low": -1.0, "high": 1.0, "magnitude": 1.0} for name in (*view.inputs, *view.producer)}
    table = msgspec.convert({"ranges": ranges, "images": 1, "percentile": 100.0}, ScaleTable)
    with pytest.raises(InputError) as caught:
        take_scales(write_qdq(plain, placement, table))
    assert caught.value.code == "build.scales"
