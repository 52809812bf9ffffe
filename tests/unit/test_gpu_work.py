"""Where a frame's work is done, from the folder of signed kernels to what `bench`, `explain` and the log say of it: over a fake GPU."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from choices import capability_of, evaluation_of, spec_of
from decode_heads import head_of
from fake_cuda import FakeCuda
from fake_models import frame_of, until
from fake_tensorrt import Board, installed
from pipelines import model_of
from small_cubins import fill

from jetfleet_agent.pipeline.decoded import is_decoded
from jetfleet_agent.pipeline.evaluate import evaluate
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.inference import Work, runs
from jetfleet_agent.pipeline.loaded import AHEAD, INLINE, LoadedModel, picked
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_agent.pipeline.preprocess import Preprocessor
from jetfleet_agent.pipeline.stages import Stages
from jetfleet_agent.tables import choice_text
from jetfleet_contract.app_config import Batching, Tile
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.decode_arguments import head_rules
from jetfleet_contract.evaluation import EvaluationJob
from jetfleet_contract.messages import AppConfig, Source
from jetfleet_contract.policy import Measurement, choose

TASK = TaskSpec("detect-yolo", InputSpec("x", 48, 32, resize="letterbox", pad=0), ("cat", "dog", "owl"), {"layout": "v8"})
KERNEL = "jf_preprocess_bgr_nchw_f32 of jetfleet.sm_87.cu12.cubin"
SIGNED = f"frames: GPU, {KERNEL} (signed); answers: GPU, a v8 head"


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Board:
    board = Board()
    rules = head_rules("v8", "f32", (4, 7, 300), classes=3)
    board.input, board.answer = (-1, 3, 32, 48), (-1, 7, 300)
    board.head = head_of(np.random.default_rng(5), rules, "scene")
    board.head[:, :4] /= 15  # its scene is of 640 pixels
    board.profiles = [((1, 3, 32, 48), (1, 3, 32, 48), (4, 3, 32, 48))]
    board.cuda.users = 2  # a session for one picture, and one for batches
    fill(tmp_path / "state" / "kernels", ((87, 12),))
    (tmp_path / "m.plan").write_bytes(b"plan")
    return installed(board, monkeypatch, tmp_path / "wheel")


def loaded(folder: Path, config: AppConfig) -> LoadedModel:
    model = model_of(folder / "m.plan", TASK, backend="tensorrt")
    return LoadedModel(msgspec.structs.replace(model, kernels=str(folder / "state")), config)


def _by_cpu(image: Any) -> tuple[Any, Any]:
    out = np.empty((1, 3, 32, 48), np.float32)
    geometry = Preprocessor(TASK.input).run(image, out)
    return out, geometry


def test_cameras_and_tiles_of_a_pipeline_are_prepared_and_decoded_on_the_gpu(board: Board, tmp_path: Path) -> None:
    model = loaded(tmp_path, AppConfig(batching=Batching(4), tile=Tile(40)))
    model.activate()
    assert model.backend.gpu_work == SIGNED
    image = np.random.default_rng(2).integers(0, 256, (70, 100, 3), np.uint8)
    frame, batches = Frame("a", 0, -1, image, 0.0, 0.0), 0
    for run in runs(model, [Work(frame, model)]):
        batches += len(run.pictures) == 4
        for index, picture in enumerate(run.pictures):
            outputs = picked(run.outputs, index)
            assert is_decoded(outputs[0])
            assert picture.geometry is not None
            found = model.task.decode(outputs, picture.geometry)
            assert found == model.task.decode((board.head[index:index + 1],), picture.geometry)
            assert found
            own, tensor = _by_cpu(picture.image), board.seen[index]
            assert picture.geometry == own[1]
            np.testing.assert_allclose(tensor, own[0][0], atol=1.01 / 255)
        model.release(run.lane)
    assert batches
    model.deactivate()
    assert board.cuda.leaks == (0, 0, 0, 0)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("integrated", [True, False])
def test_every_frame_of_a_running_pipeline_is_answered_from_its_own_pixels(board: Board, tmp_path: Path, integrated: bool,
                                                                          overlap: bool) -> None:
    """Frames are prepared ahead without being read, so their memory must stay theirs until they were run; then it goes back to the pool."""
    board.cuda, board.head, board.answer = FakeCuda(integrated=integrated), None, (-1, 1, 32, 48)
    raw = TaskSpec("raw", TASK.input, (), {"form": "summary", "samples": 0})
    model = LoadedModel(model_of(tmp_path / "m.plan", raw, backend="tensorrt"), AppConfig())
    model.activate()
    assert model.backend.gpu_work.startswith("frames: GPU")
    found: dict[int, float] = {}
    stages = Stages(model, Meter("app"), lambda frame, _: found.update({frame.number: frame.detections[0].values[2]}), lambda note: None,
                    overlap)
    stages.set_sources((Source("cam", "synthetic:60x40"),))
    stages.start()
    for number in range(200):
        image = stages.pool.take(40, 60)
        image[...] = number
        stages.every(Frame("cam", number, number, image, time.monotonic(), time.time()), threading.Event())
        del image
    until(lambda: len(found) == 200, "all answers")
    stages.stop()
    assert found == {number: pytest.approx(1 - number / 255, abs=1e-5) for number in range(200)}
    assert stages.pool.held <= AHEAD + INLINE + 6
    model.deactivate()
    assert board.cuda.leaks == (0, 0, 0, 0)


def test_other_settings_of_an_app_reach_the_decode(board: Board, tmp_path: Path) -> None:
    board.cuda.users = 1
    model = loaded(tmp_path, AppConfig())
    model.activate()
    counts, every = [], list[dict[str, float | str | bool]]([{}, {"threshold": 0.95}, {"max_detections": 2}])
    for options in every:
        model.reconfigure(AppConfig(options=options))
        (run,) = runs(model, [Work(frame_of("a", 0), model)])
        geometry = run.pictures[0].geometry
        assert geometry is not None
        counts.append(int(run.outputs[0]["kept"][0]))
        assert len(model.task.decode(run.outputs, geometry)) == len(model.task.decode((board.head[:1],), geometry))
        model.release(run.lane)
    assert counts[1] < counts[0]
    assert counts[2] == 2
    model.deactivate()


def test_a_measurement_says_where_the_work_was_done(board: Board, tmp_path: Path) -> None:
    board.cuda.users = 1
    image = tmp_path / "a.png"
    cv2.imwrite(str(image), np.random.default_rng(1).integers(0, 256, (40, 64, 3), np.uint8))
    job = EvaluationJob(str(tmp_path / "m.plan"), TASK, "tensorrt", images=(str(image),), warmup=1, latency_runs=3,
                        kernels=str(tmp_path / "state"))
    result = evaluate(job)
    assert (result.error, result.gpu_work, len(result.latency_ms)) == ("", SIGNED, 3)
    board.cuda.closed = 0
    raw = evaluate(msgspec.structs.replace(job, raw_output=str(tmp_path / "raw.npz"), kernels=""))
    assert raw.predictions == result.predictions
    assert raw.gpu_work == f"frames: GPU, {KERNEL} (wheel); answers: CPU"
    np.testing.assert_array_equal(np.load(tmp_path / "raw.npz")["output_0"][0], board.head[:1])


@pytest.mark.parametrize("work", [SIGNED, ""])
def test_explain_shows_it_beside_the_choice(work: str) -> None:
    spec = spec_of("fp32")
    measured: dict[str, Any] = {"fp32@onnxruntime:fp32": Measurement(5.0, 6.0, 100.0, gpu_work=work),
                                "fp32@openvino:fp32": Measurement(9.0, 9.0, 100.0)}
    choice = choose(spec, evaluation_of(spec), capability_of(), measured)
    assert choice.rows[0].gpu_work == work
    lines = [line for line in choice_text("toy", choice).splitlines() if "GPU" in line]
    assert len(lines) == (2 if work else 0)
    assert not work or lines[1] == f"fp32@onnxruntime:fp32  {work}"
