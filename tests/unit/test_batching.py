"""Frames of different cameras in one run: fair, never waited for longer than asked, answered as if each had been alone."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_models import Gate, frame_of, gate, gated_model, until  # noqa: F401  gate is a fixture
from pipelines import classifier_task, model_of, save_brightness_model

from jetfleet_agent.pipeline.fitting import load_fitting
from jetfleet_agent.pipeline.frames import Frame, FrameQueue
from jetfleet_agent.pipeline.inference import Work, runs
from jetfleet_agent.pipeline.loaded import LoadedModel, picked
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_agent.pipeline.stages import Stages
from jetfleet_contract.app_config import Batching, Tile
from jetfleet_contract.errors import IncompatibleError
from jetfleet_contract.messages import AppConfig, Source


def names(frames: list[Frame]) -> list[tuple[str, int]]:
    return [(frame.source, frame.number) for frame in frames]


def test_a_batch_is_of_different_sources_and_everybody_gets_a_turn() -> None:
    queue = FrameQueue(depth=4)
    for number in range(3):
        queue.put(frame_of("a", number))
    queue.put(frame_of("b", 0))
    queue.put(frame_of("c", 0))
    assert names(queue.take(0.0, 2)) == [("a", 0), ("b", 0)]
    assert names(queue.take(0.0, 2)) == [("a", 1), ("c", 0)]
    assert names(queue.take(0.0, 2)) == [("a", 2)]
    assert queue.take(0.0, 2) == []


def test_the_first_waits_for_the_others_and_no_longer_than_it_should() -> None:
    queue = FrameQueue()
    queue.offer(frame_of("a", 0))
    began = time.monotonic()
    assert names(queue.take(5.0, 3, 0.05)) == [("a", 0)]
    assert time.monotonic() - began >= 0.04, "it did wait"
    queue.offer(frame_of("a", 1))
    threading.Timer(0.02, lambda: queue.offer(frame_of("b", 1))).start()
    assert names(queue.take(5.0, 2, 30.0)) == [("a", 1), ("b", 1)], "and went as soon as the batch was full"


def test_a_frame_that_has_waited_already_waits_no_more() -> None:
    queue = FrameQueue()
    late = frame_of("a", 0)
    queue.offer(late)
    late.queued -= 60.0
    queue.offer(frame_of("b", 0))
    assert names(queue.take(5.0, 3, 30.0)) == [("a", 0), ("b", 0)]


def test_closing_ends_the_wait_for_others() -> None:
    queue = FrameQueue()
    queue.offer(frame_of("a", 0))
    threading.Timer(0.05, queue.close).start()
    assert names(queue.take(5.0, 3, 600.0)) == [("a", 0)]


def test_both_sessions_look_for_signed_kernels_where_the_order_says(tmp_path: Path) -> None:
    order = msgspec.structs.replace(model_of(tmp_path / "free.onnx", classifier_task(), backend="onnxruntime"), kernels=str(tmp_path))
    model = LoadedModel(order, AppConfig(batching=Batching(4)))
    assert model._wide is not None
    assert (model.backend.kernels, model._wide.kernels) == (tmp_path, tmp_path)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_batch_answers_as_each_frame_alone(tmp_path: Path, backend: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(backend)
    path = save_brightness_model(tmp_path / "free.onnx", batch="n")
    order = model_of(path, classifier_task(), backend=backend)
    batched, alone = (LoadedModel(order, AppConfig(batching=Batching(most))) for most in (4, 1))
    batched.activate()
    alone.activate()
    frames = [frame_of(f"cam{index}", 0, shade=60 + 40 * index) for index in range(4)]
    (run,) = runs(batched, [Work(frame, batched) for frame in frames])
    assert len(run.lane.tensor) == 4
    for index, frame in enumerate(frames):
        (single,) = runs(alone, [Work(frame, alone)])
        np.testing.assert_allclose(picked(run.outputs, index)[0], single.outputs[0], rtol=1e-4, atol=1e-5)
        geometry = run.pictures[index].geometry
        assert geometry is not None
        together, lonely = (model.task.decode(outputs, geometry) for model, outputs in
                            ((batched, picked(run.outputs, index)), (alone, single.outputs)))
        assert together[0].label == lonely[0].label
        assert together[0].score == pytest.approx(lonely[0].score, abs=1e-4)
        alone.release(single.lane)
    batched.deactivate()
    alone.deactivate()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_model_without_a_batch_axis_is_refused_by_name_and_runs_without(tmp_path: Path, backend: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(backend)
    order = model_of(save_brightness_model(tmp_path / "fixed.onnx"), classifier_task(), backend=backend)
    config = AppConfig(batching=Batching(4), tile=Tile(64))
    batched = LoadedModel(order, AppConfig(batching=Batching(4)))
    with pytest.raises(IncompatibleError) as caught:
        batched.activate()
    assert caught.value.code == "backend.batch"
    assert caught.value.remedy
    model, had, refused = load_fitting(lambda config: LoadedModel(order, config), config)
    assert [error.code for error in refused] == ["tile.task", "backend.batch"]
    assert had == AppConfig()
    (run,) = runs(model, [Work(frame_of("a", 0), model)])
    assert len(run.lane.tensor) == 1
    model.deactivate()


def test_cameras_share_runs_and_each_gets_its_own_answer(tmp_path: Path, gate: Gate) -> None:  # noqa: F811
    answers: dict[tuple[str, int], str] = {}
    model = gated_model(tmp_path, AppConfig(batching=Batching(3, 60_000.0)))
    stages = Stages(model, Meter("app"), lambda frame, _: answers.update({(frame.source, frame.number): frame.detections[0].label}),
                    lambda note: None)
    stages.set_sources(tuple(Source(name, "synthetic:16x16") for name in "abc"))
    stages.start()
    for number in range(5):
        for source in "abc":
            stages.newest(frame_of(source, number, shade=10 if source == "b" else 250))
        until(lambda number=number: len(answers) == 3 * (number + 1), "a whole batch")  # type: ignore[misc]
    stages.stop()
    assert {label for (source, _), label in answers.items() if source == "b"} == {"dark"}
    assert {label for (source, _), label in answers.items() if source != "b"} == {"bright"}
    wide = model._wide
    assert wide is not None
    assert wide.batches[-5:] == [3] * 5  # type: ignore[attr-defined]
