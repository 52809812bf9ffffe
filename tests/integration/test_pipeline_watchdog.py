"""Parts of a real pipeline that really hang: only what hangs is given up, and the supervisor is told which."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from pipelines import (
    PipelineProcess,
    bar_image,
    classifier_task,
    detector_task,
    model_of,
    save_brightness_model,
    save_graph,
    save_map_model,
)

from jetfleet_agent.ipc import Pace, Results, Run, Running, SourceEvent, Stuck, Way, Window
from jetfleet_contract.app_config import Tile
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.messages import AppConfig, Result, Source
from jetfleet_contract.policy import Candidate
from jetfleet_contract.tuning import Tuning

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ENDLESS = Source("front", "synthetic:64x48?frames=1000000", fps=50)


def test_a_source_that_hangs_is_opened_anew_and_the_others_never_notice(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    hung = save_hung_video(tmp_path)
    pipeline = start()
    model = model_of(save_map_model(tmp_path / "good.onnx"), detector_task())
    pipeline.send(Run(model, AppConfig(), (ENDLESS, Source("hung", str(hung))), window_s=0.5, stuck_s=0.5))
    pipeline.wait(Running)
    first, second = pipeline.wait(Stuck), pipeline.wait(Stuck)
    assert (first.code, first.part, first.fatal) == ("watchdog.source", "hung", False)
    assert first.seconds >= 0.5
    assert second.seconds >= 1.0, "one that hung before is given twice the time"
    count = len(pipeline.results)
    pipeline.until(lambda: len(pipeline.results) > count + 20)
    assert {r.source for r in pipeline.results} == {"front"}
    assert [r.frame for r in pipeline.results] == list(range(len(pipeline.results)))
    pipeline.until(lambda: any(s.fatal for s in pipeline.of(Stuck)))
    assert [s.fatal for s in pipeline.of(Stuck)] == [False, False, False, True], "threads that are left behind are bounded"


def test_a_source_that_comes_back_is_read_again(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), bar_image(index))
    pipeline = start()
    model = model_of(save_map_model(tmp_path / "good.onnx"), detector_task())
    pipeline.send(Run(model, AppConfig(), (Source("images", str(folder), fps=0.5, loop=True),), window_s=0.5, stuck_s=1.0))
    pipeline.until(lambda: len(pipeline.results) == 1)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe").rename(folder / "2.png")  # listed already; reading it blocks
    pipeline.wait(Stuck)
    before = len(pipeline.results)
    pipeline.until(lambda: len(pipeline.results) >= before + 3)
    assert len(pipeline.of(Stuck)) == 1
    assert [e.up for e in pipeline.of(SourceEvent)] == [True, True]


def test_a_model_that_hangs_is_named(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    model = model_of(save_endless_model(tmp_path / "endless.onnx"), classifier_task())
    pipeline.send(Run(model, AppConfig(), (ENDLESS,), window_s=0.5, stuck_s=1.0))
    stuck = pipeline.wait(Stuck)
    assert (stuck.code, stuck.part, stuck.fatal) == ("watchdog.infer", "infer", True)


def test_a_task_that_hangs_is_named_and_not_what_waits_for_it(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    package = tmp_path / "plugins"
    (package / "sleepy-1.dist-info").mkdir(parents=True)
    (package / "sleepy-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepy\nVersion: 1\n")
    (package / "sleepy-1.dist-info" / "entry_points.txt").write_text("[jetfleet.tasks]\nsleepy = sleepy:Sleepy\n")
    (package / "sleepy.py").write_text(
        "import threading, time\nfrom jetfleet_agent.pipeline.tasks import Task\n\n"
        "class Sleepy(Task):\n    def decode(self, outputs, geometry):\n"
        "        time.sleep(0 if threading.current_thread() is threading.main_thread() else 3600)\n        return ()\n")
    pipeline = start(PYTHONPATH=os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]))
    task = TaskSpec("sleepy", InputSpec("x", 64, 48))
    model = model_of(save_brightness_model(tmp_path / "m.onnx"), task)
    pipeline.send(Run(model, AppConfig(), (ENDLESS,), window_s=0.5, stuck_s=1.0))
    stuck = pipeline.wait(Stuck)
    assert (stuck.code, stuck.part, stuck.fatal) == ("watchdog.decode", "decode", True)


def test_a_pace_is_obeyed_at_once_and_lifted_again(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    model = model_of(save_map_model(tmp_path / "good.onnx"), detector_task())
    sources = (Source("front", "synthetic:64x48?frames=1000000", fps=100), Source("back", "synthetic:64x48?frames=1000000", fps=100))
    pipeline.send(Run(model, AppConfig(), sources, window_s=0.5))
    running = pipeline.wait(Running)
    assert running.frames > 0
    pipeline.send(Pace({"front": 2.0, "": 20.0}, hot=True, reason="governor.heat"))
    since = time.monotonic()
    pipeline.until(lambda: sum(r.source == "back" for r in results_since(pipeline, since + 0.5)) > 30)
    counts = {name: sum(r.source == name for r in results_since(pipeline, since + 0.5)) for name in ("front", "back")}
    assert counts["front"] * 4 < counts["back"], counts
    pipeline.send(Pace())
    front = sum(r.source == "front" for r in pipeline.results)
    since = time.monotonic()
    pipeline.until(lambda: sum(r.source == "front" for r in pipeline.results) > front + 40)
    numbers = [r.frame for r in pipeline.results if r.source == "front"]
    assert numbers == list(range(len(numbers))), "a cap on a file's rate loses none of its frames"
    assert pipeline.stop() == 0


def save_hung_video(folder: Path) -> Path:
    """A playlist whose one piece is a pipe that nobody writes to: FFmpeg's call blocks for ever in open(2), as in a wedged driver."""
    os.mkfifo(folder / "piece.ts")
    path = folder / "hung.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\npiece.ts\n#EXT-X-ENDLIST\n")
    return path


def results_since(pipeline: PipelineProcess, since: float) -> list[Result]:
    told = [event for event, at in zip(list(pipeline.events), list(pipeline.times), strict=False) if at >= since]
    return [result for event in told if isinstance(event, Results) for result in event.results]


def save_endless_model(path: Path) -> Path:
    """A classifier that answers a gray frame and computes for ever on one with anything brighter: ``Loop``, 1e18 times per brightness."""
    from onnx import TensorProto, helper, numpy_helper

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["sum", "one"], ["more"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(np.float32(1.0), "one")])
    nodes = [helper.make_node("ReduceMax", ["x"], ["peak"], keepdims=0), helper.make_node("Sub", ["peak", "gray"], ["over"]),
             helper.make_node("Relu", ["over"], ["bright"]), helper.make_node("Mul", ["bright", "many"], ["times"]),
             helper.make_node("Cast", ["times"], ["trips"], to=TensorProto.INT64),
             helper.make_node("Loop", ["trips", "yes", "start"], ["y"], body=body)]
    weights = [numpy_helper.from_array(np.float32(1e18), "many"), numpy_helper.from_array(np.float32(0.6), "gray"),
               numpy_helper.from_array(np.array(True), "yes"),
               numpy_helper.from_array(np.zeros((1, 2), np.float32), "start")]
    return save_graph(path, helper.make_graph(nodes, "endless", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 48, 64])],
                                         [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])], weights))


def _runs(pipeline: PipelineProcess, eco: float, lean: float, tiles: float) -> bool:
    windows = pipeline.of(Window)
    return bool(windows) and tuple(windows[-1].gauges[name] for name in ("eco", "lean", "tiles")) == (eco, lean, tiles)


def _has_answered(pipeline: PipelineProcess, count: int) -> bool:
    return len(pipeline.results) > count


def test_a_hot_board_runs_the_frugal_setting_or_the_cheaper_candidate_without_tiles_and_goes_back_and_loses_no_frame(
        start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    spec = detector_task()
    path = save_map_model(tmp_path / "good.onnx")
    lean = Way(Candidate("small", "onnxruntime", "fp32"), str(save_map_model(tmp_path / "small.onnx")))
    model = msgspec.structs.replace(model_of(path, spec), eco=Tuning(sleeping=True, threads=1), lean=lean)
    pipeline = start()
    pipeline.send(Run(model, AppConfig(tile=Tile(32, 0.0)), (Source("front", "synthetic:64x48?frames=1000000", fps=40),), window_s=0.5))
    pipeline.wait(Running)
    pid = pipeline.process.pid
    hot = Pace(hot=True, eco=True, whole=True, reason="governor.heat")
    leaner = msgspec.structs.replace(hot, eco=False, lean=True)
    for order, gauges, answers in ((hot, (1.0, 0.0, 0.0), model.candidate), (leaner, (0.0, 1.0, 0.0), lean.candidate),
                                   (Pace(), (0.0, 0.0, 1.0), model.candidate)):
        pipeline.send(order)
        pipeline.until(partial(_runs, pipeline, *gauges))
        count = len(pipeline.results)
        pipeline.until(partial(_has_answered, pipeline, count + 10))
        assert {result.candidate for result in pipeline.results[count + 5:]} == {answers.name}
    assert [r.frame for r in pipeline.results] == list(range(len(pipeline.results)))
    assert pipeline.process.poll() is None
    assert pipeline.process.pid == pid
    assert not pipeline.of(SourceEvent) or all(event.up for event in pipeline.of(SourceEvent))


def test_a_hook_that_hangs_is_named_as_what_stands_behind_the_model(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    """It opens a FIFO that nobody writes to, at its third frame, as a driver of a broken device would."""
    package, fifo = tmp_path / "package", tmp_path / "fifo"
    (package / "hung_hook-1.0.dist-info").mkdir(parents=True)
    (package / "hung_hook-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: hung-hook\nVersion: 1.0\n")
    (package / "hung_hook-1.0.dist-info/entry_points.txt").write_text("[jetfleet.kpis]\nhung = hung_hook:Hung\n")
    (package / "hung_hook.py").write_text(
        "class Hung:\n"
        "    def __init__(self, options):\n        self.fifo, self.left = options['fifo'], 3\n"
        "    def __call__(self, *arguments):\n        self.left -= 1\n        if self.left <= 0:\n            open(self.fifo).read()\n"
        "        return {}\n")
    os.mkfifo(fifo)
    pipeline = start(PYTHONPATH=os.pathsep.join((str(package), os.environ.get("PYTHONPATH", ""))))
    model = model_of(save_map_model(tmp_path / "good.onnx"), detector_task())
    config = AppConfig(kpis="hung", kpi_options={"fifo": str(fifo)})
    pipeline.send(Run(model, config, (ENDLESS,), window_s=0.5, stuck_s=0.5))
    stuck = pipeline.wait(Stuck)
    assert (stuck.code, stuck.fatal) == ("watchdog.sink", True)
    assert stuck.seconds >= 0.5
    assert [r.frame for r in pipeline.results] == [0, 1], "what came before it is out"
