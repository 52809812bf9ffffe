"""Frames in a real pipeline process: memory in steady state, age and its alarm, batches, tiles, and settings it cannot have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pipelines import (
    PipelineProcess,
    classifier_task,
    detector_task,
    model_of,
    save_brightness_model,
    save_map_model,
    save_video,
)

from jetfleet_agent.ipc import Configure, Raised, Run, Running, SourceEvent, Window
from jetfleet_contract.app_config import Batching, Tile
from jetfleet_contract.messages import AppConfig, Source

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def busy_windows(pipeline: PipelineProcess) -> list[Window]:
    return [window for window in pipeline.of(Window) if sum(series.done for series in window.series) > 5]


def flat(pipeline: PipelineProcess, windows: int = 3) -> bool:
    """The last windows answered frames, and none of them needed memory."""
    last = busy_windows(pipeline)[-windows:]
    return len(last) == windows and all(w.gauges["frame_allocs"] == w.gauges["frame_strays"] == 0 for w in last)


def test_no_frame_needs_memory_in_steady_state(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    small = Source("front", str(save_video(tmp_path / "small.avi", 40)), loop=True, fps=200)
    camera = Source("yard", "synthetic:96x64", fps=100)
    large = Source("front", str(save_video(tmp_path / "large.avi", 40, width=160, height=120)), loop=True, fps=200)
    pipeline.send(Run(model_of(save_map_model(tmp_path / "m.onnx"), detector_task()), AppConfig(), (small, camera), window_s=0.3))
    pipeline.until(lambda: flat(pipeline))
    first = busy_windows(pipeline)[0].gauges
    assert first["frame_allocs"] > 0
    grown = pipeline.of(Window)[-1].gauges["pool_frames"]
    assert 0 < grown < 20
    seen = len(pipeline.of(Window))
    pipeline.send(Configure(AppConfig(2), (large, camera)))
    pipeline.until(lambda: any(w.gauges["frame_allocs"] > 0 for w in pipeline.of(Window)[seen:]))
    pipeline.until(lambda: flat(pipeline))
    assert pipeline.of(Window)[-1].gauges["overlap_decided"] == 1.0
    assert pipeline.stop() == 0


def test_results_that_stay_too_old_raise_an_alarm_that_ends(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    slow = model_of(save_map_model(tmp_path / "slow.onnx", width=640, height=480, work=12), detector_task(640, 480))
    pipeline.send(Run(slow, AppConfig(), (Source("front", "synthetic:64x48", fps=50, max_age_ms=1.0),), window_s=0.5))
    raised = pipeline.wait(Raised)
    assert (raised.source, raised.up, raised.code) == ("front", True, "age.high")
    pipeline.until(lambda: any(w.gauges["age_high"] == 1.0 for w in pipeline.of(Window)))
    pipeline.send(Configure(AppConfig(), (Source("front", "synthetic:64x48", fps=50, max_age_ms=60_000.0),)))
    over = pipeline.wait(Raised)
    assert (over.source, over.up, over.code) == ("front", False, "age.high")
    assert pipeline.stop() == 0


def test_frames_that_are_too_old_are_counted_and_files_never_are(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    sources = (Source("live", "synthetic:64x48", fps=50, max_age_ms=0.001),
               Source("file", str(save_video(tmp_path / "v.avi", 40)), max_age_ms=0.001))
    pipeline.send(Run(model_of(save_map_model(tmp_path / "m.onnx"), detector_task()), AppConfig(), sources, window_s=0.2))
    pipeline.until(lambda: pipeline.totals().get("too-old", 0) > 10)
    pipeline.until(lambda: sum(r.source == "file" for r in pipeline.results) == 40)
    assert pipeline.stop() == 0
    pipeline.until(lambda: pipeline.totals()["done"] == len(pipeline.results))
    assert not any(r.source == "live" for r in pipeline.results)


def refusals(pipeline: PipelineProcess) -> list[str]:
    return [event.code for event in pipeline.of(SourceEvent) if event.source == "config"]


def test_batches_come_and_go_without_a_restart_and_lose_no_frame(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    model = model_of(save_brightness_model(tmp_path / "free.onnx", batch="n"), classifier_task())
    sources = tuple(Source(name, "synthetic:64x48?frames=1000000", fps=60) for name in ("a", "b", "c"))
    pipeline.send(Run(model, AppConfig(), sources, window_s=0.2))
    pipeline.wait(Running)
    for most in (3, 1, 2):
        pipeline.send(Configure(AppConfig(batching=Batching(most, 20.0)), sources))
        count = len(pipeline.results)
        pipeline.until(lambda count=count: len(pipeline.results) > count + 60)  # type: ignore[misc]
    assert pipeline.stop() == 0
    assert refusals(pipeline) == []
    for source in ("a", "b", "c"):
        numbers = [r.frame for r in pipeline.results if r.source == source]
        assert numbers == list(range(len(numbers)))
    assert {r.detections[0].label for r in pipeline.results} == {"bright"}


def test_settings_that_a_model_cannot_have_are_refused_and_it_runs_on(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    model = model_of(save_brightness_model(tmp_path / "fixed.onnx"), classifier_task())
    source = Source("front", "synthetic:64x48?frames=1000000", fps=60)
    pipeline.send(Run(model, AppConfig(tile=Tile(64)), (source,), window_s=0.2))
    pipeline.wait(Running)
    assert refusals(pipeline) == ["tile.task"]
    pipeline.send(Configure(AppConfig(batching=Batching(4)), (source,)))
    pipeline.until(lambda: refusals(pipeline) == ["tile.task", "backend.batch"])
    pipeline.send(Configure(AppConfig(tile=Tile(64)), (source,)))
    pipeline.until(lambda: refusals(pipeline) == ["tile.task", "backend.batch", "tile.task"])
    count = len(pipeline.results)
    pipeline.until(lambda: len(pipeline.results) > count + 20)
    assert pipeline.stop() == 0


def test_tiles_are_a_setting(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    """A bar of 16x40 pixels in 640x480, for a model of 64x48: too small whole, found in tiles, at its place, once."""
    pipeline = start()
    model = model_of(save_map_model(tmp_path / "m.onnx"), detector_task(unclip_ratio=0.0, box_threshold=0.8))
    source = Source("front", str(save_video(tmp_path / "v.avi", 40, width=640, height=480)), fps=40, loop=True)
    pipeline.send(Run(model, AppConfig(), (source,)))
    pipeline.wait(Running)
    assert not any(r.detections for r in pipeline.results)
    pipeline.send(Configure(AppConfig(tile=Tile(240, 0.3)), (source,)))
    pipeline.until(lambda: sum(bool(r.detections) for r in pipeline.results) > 30)
    for result in [r for r in pipeline.results if r.detections][:30]:
        (found,) = result.detections
        assert found.box is not None
        assert (found.box[0] + found.box[2]) / 2 == pytest.approx(4 + result.position * 3 % 616 + 8, abs=6)
    assert pipeline.stop() == 0
    numbers = [r.frame for r in pipeline.results]
    assert numbers == list(range(len(numbers))), "one result a frame"
