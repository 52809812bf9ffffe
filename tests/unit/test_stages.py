"""The stages' own promises: memory in steady state, one after the other without overlap, what is too old, frames cut and put together."""

from __future__ import annotations

import gc
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
from fake_models import Gate, frame_of, gate, gated_model, until  # noqa: F401  gate is a fixture
from pipelines import detector_task, model_of, save_map_model

from jetfleet_agent.pipeline.decoding import Decoder
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.inference import Work, runs
from jetfleet_agent.pipeline.loaded import AHEAD, INLINE, LoadedModel
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_agent.pipeline.pulse import Pulses
from jetfleet_agent.pipeline.stages import Stages
from jetfleet_contract.app_config import Batching, Tile
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import AppConfig, Source

MOST_BUFFERS = AHEAD + INLINE + 6  # one a lane, those in the queue, and those in the threads' own hands
SOURCES = (Source("cam", "synthetic:16x16"),)


def started(model: LoadedModel, meter: Meter, deliver: object, overlap: bool | None = None) -> Stages:
    stages = Stages(model, meter, deliver, lambda note: None, overlap)  # type: ignore[arg-type]
    stages.set_sources(SOURCES)
    stages.start()
    return stages


@pytest.mark.parametrize("overlap", [True, False])
def test_steady_state_keeps_nothing(tmp_path: Path, gate: Gate, overlap: bool) -> None:  # noqa: F811
    """Neither blocks of the interpreter nor memory of numpy grow with the number of frames, and no frame needs a new buffer."""
    meter = Meter("app")
    stages = started(gated_model(tmp_path), meter, lambda frame, model: None, overlap)
    stopped = threading.Event()

    def play(count: int) -> None:
        before = stages.answered
        for _ in range(count):
            image = stages.pool.take(16, 16)
            image.fill(200)
            frame = frame_of("cam", stages.number("cam"))
            frame.image = image
            del image
            stages.every(frame, stopped)
            del frame
        until(lambda: stages.answered == before + count, "all answers")
        meter.take()
        gc.collect()

    play(700)
    at_once = [stages.pool.take(16, 16) for _ in range(MOST_BUFFERS)]  # a busy machine may need all of them at some moment
    del at_once
    stages.pool.counts()
    tracemalloc.start()
    play(700)
    blocks, (traced, _) = sys.getallocatedblocks(), tracemalloc.get_traced_memory()
    play(1500)
    more_blocks, (more_traced, _) = sys.getallocatedblocks() - blocks, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stages.pool.counts() == (0, 0)
    assert stages.pool.held <= MOST_BUFFERS + 3
    assert more_blocks < 300, "less than one block in five frames"
    assert more_traced - traced < 16 * 16 * 3 * 20
    stages.stop()


def test_without_overlap_a_file_is_read_on_when_its_frame_was_answered(tmp_path: Path, gate: Gate) -> None:  # noqa: F811
    stages = started(gated_model(tmp_path), Meter("app"), lambda frame, model: None, False)
    gate.set_open(False)
    returned = threading.Event()

    def read() -> None:
        stages.every(frame_of("cam", 0, position=0), threading.Event())
        returned.set()

    threading.Thread(target=read, daemon=True).start()
    assert not returned.wait(0.3), "its answer is not there yet"
    gate.set_open(True)
    assert returned.wait(30)
    assert stages.answered == 1
    stages.stop()


def test_what_is_too_old_when_its_turn_comes_is_dropped_by_that_name(tmp_path: Path, gate: Gate) -> None:  # noqa: F811
    meter, answered = Meter("app"), []
    stages = started(gated_model(tmp_path), meter, lambda frame, model: answered.append(frame.number))
    stages.rhythms["cam"].max_age_ms = 1000.0
    gate.set_open(False)
    stages.newest(frame_of("cam", 0))
    until(lambda: len(stages.frames) == 0, "the session to be busy")
    stages.newest(frame_of("cam", 1, age_s=5.0))
    gate.set_open(True)
    until(lambda: len(stages.frames) == 0, "its turn")
    stages.newest(frame_of("cam", 2))
    until(lambda: 2 in answered, "the next one")
    stages.stop()
    (series,) = meter.take()
    assert answered == [0, 2]
    assert series.dropped == {"too-old": 1}
    assert (series.seen, series.done) == (3, 2)


def test_a_frame_that_a_step_keeps_is_not_written_over(tmp_path: Path, gate: Gate) -> None:  # noqa: F811
    kept: list[Frame] = []
    stages = started(gated_model(tmp_path), Meter("app"), lambda frame, model: kept.append(frame) if frame.number == 3 else None)
    for number in range(60):
        image = stages.pool.take(16, 16)
        image.fill(number)
        frame = frame_of("cam", number, position=number)
        frame.image = image
        stages.every(frame, threading.Event())
    until(lambda: stages.answered == 60, "all answers")
    assert kept[0].image.min() == kept[0].image.max() == 3
    stages.stop()


# --- tiles, with a real model ---------------------------------------------------------------------------------


def answer(model: LoadedModel, frame: Frame) -> Frame:
    decoder = Decoder(Meter("app"), lambda frame, model: None, lambda note: None, Pulses())
    finished = [done for run in runs(model, [Work(frame, model)]) for done in decoder.take(run)]
    assert finished == [frame], "one frame, however many tiles"
    return frame


@pytest.fixture
def small(tmp_path: Path) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return save_map_model(tmp_path / "small.onnx")


def scene(*dark: tuple[int, int, int, int]) -> Frame:
    """640x480, white, with dark boxes."""
    import numpy as np

    image = np.full((480, 640, 3), 255, np.uint8)
    for x0, y0, x1, y1 in dark:
        image[y0:y1, x0:x1] = 0
    frame = frame_of("cam", 0)
    frame.image = image
    return frame


@pytest.mark.parametrize("most", [1, 3])
def test_tiling_finds_what_a_resized_frame_loses(small: Path, tmp_path: Path, most: int) -> None:
    """A thing of 12x12 pixels is 1.2 pixels for a model of 64x48; in tiles of 96 it is 8x6. The model of batches is the same net."""
    path = save_map_model(tmp_path / "batches.onnx", batch="n") if most > 1 else small
    thing = (302, 200, 314, 212)
    task = detector_task(unclip_ratio=0.0)
    whole, tiled = (LoadedModel(model_of(path, task), config) for config in
                    (AppConfig(), AppConfig(tile=Tile(96, 0.25), batching=Batching(most))))
    whole.activate()
    tiled.activate()
    assert answer(whole, scene(thing)).detections == ()
    (found,) = answer(tiled, scene(thing)).detections
    assert found.box == pytest.approx(thing, abs=3)
    assert answer(tiled, scene()).detections == ()
    whole.deactivate()
    tiled.deactivate()


def test_a_thing_on_a_seam_is_one_thing(small: Path) -> None:
    model = LoadedModel(model_of(small, detector_task(unclip_ratio=0.0)), AppConfig(tile=Tile(96, 0.25)))
    model.activate()
    on_seam, on_corner, alone = (60, 20, 110, 40), (130, 130, 152, 152), (500, 400, 530, 430)
    found = answer(model, scene(on_seam, on_corner, alone)).detections
    boxes = sorted(d.box for d in found if d.box)
    assert len(boxes) == 3
    for box, truth in zip(boxes, sorted((on_seam, on_corner, alone)), strict=True):
        assert box == pytest.approx(truth, abs=4)
    model.deactivate()


def test_a_whole_frame_task_has_no_tiles(tmp_path: Path, gate: Gate) -> None:  # noqa: F811
    with pytest.raises(InputError) as caught:
        gated_model(tmp_path, AppConfig(tile=Tile(64)))
    assert caught.value.code == "tile.task"
    model = gated_model(tmp_path)
    with pytest.raises(InputError, match="whole frame"):
        model.reconfigure(AppConfig(tile=Tile(64)))
    assert model.tile is None
