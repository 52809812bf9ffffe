"""A real pipeline process over a real Unix socket: run, trial, swap, back, feeds, failures, and how it ends."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from pipelines import (
    PipelineProcess,
    bar_image,
    classifier_task,
    detector_task,
    model_of,
    save_brightness_model,
    save_map_model,
    save_video,
)

from jetfleet_agent.ipc import Back, Configure, Drop, Failed, Run, Running, SourceEvent, Switch, Switched, TrialResult, Try, Window
from jetfleet_contract.messages import AppConfig, Source, TrialPolicy
from jetfleet_contract.trials import judge_trial
from jetfleet_contract.tuning import Tuning

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CONFIG = AppConfig()
POLICY = TrialPolicy(frames=20, min_agreement=0.7, max_p99_ratio=1000.0)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return save_map_model(tmp_path / "good.onnx")


def test_the_whole_life_of_a_model(start: Callable[..., PipelineProcess], tmp_path: Path, good: Path) -> None:
    """Run -> results -> Try -> TrialResult -> Switch -> Switched -> Back -> Switched -> Stop, every frame answered exactly once."""
    pipeline = start()
    video = save_video(tmp_path / "v.avi", 60)
    one = model_of(good, detector_task())
    two = model_of(save_map_model(tmp_path / "two.onnx", work=1), detector_task(), digit="b", version="2")
    pipeline.send(Run(one, CONFIG, (Source("front", str(video), fps=80, loop=True),), window_s=0.5))
    running = pipeline.wait(Running)
    assert (running.bundle, running.provider) == (one.bundle, "CPUExecutionProvider")
    assert running.frames > 0

    pipeline.send(Try(two, POLICY))
    trial = pipeline.wait(TrialResult)
    assert (trial.bundle, trial.code) == (two.bundle, "")
    assert trial.numbers.live_frames == 20
    assert trial.numbers.live_agreement == 1.0
    assert trial.numbers.champion_p99_ms > 0
    assert trial.numbers.challenger_p99_ms > 0
    assert judge_trial(POLICY, trial.numbers)[0]

    pipeline.send(Switch(two.bundle, keep_s=60.0))
    switched = pipeline.wait(Switched)
    assert (switched.bundle, switched.frames_lost) == (two.bundle, 0)
    assert switched.gap_ms > 0
    assert switched.steady_p99_gap_ms > 0
    pipeline.until(lambda: any(r.version == "2" for r in pipeline.results))

    pipeline.send(Back())
    back = pipeline.wait(Switched)
    assert (back.bundle, back.frames_lost) == (one.bundle, 0)
    pipeline.until(lambda: pipeline.results[-1].version == "1")
    assert pipeline.stop() == 0

    pipeline.until(lambda: pipeline.totals()["done"] == len(pipeline.results))
    numbers = [result.frame for result in pipeline.results]
    assert numbers == list(range(len(numbers))), "every frame of a file is answered once, in order, across both swaps"
    assert [r.position for r in pipeline.results] == [n % 60 for n in numbers]
    versions = [result.version for result in pipeline.results]
    assert versions == sorted(versions[:versions.index("2")]) + ["2"] * versions.count("2") + ["1"] * (
        len(versions) - versions.index("2") - versions.count("2")), "the version changes twice and never flickers"
    for result in pipeline.results[:30]:
        (found,) = result.detections
        assert found.box is not None
        assert (found.box[0] + found.box[2]) / 2 == pytest.approx(4 + result.position * 3 % 40 + 8, abs=2.5)
    assert not pipeline.of(Failed)


def test_windows_count_every_frame_by_stage(start: Callable[..., PipelineProcess], tmp_path: Path, good: Path) -> None:
    pipeline = start()
    pipeline.send(Run(model_of(good, detector_task()), CONFIG, (Source("front", str(save_video(tmp_path / "v.avi", 50))),), window_s=0.2))
    pipeline.until(lambda: any(e.code == "source.ended" for e in pipeline.of(SourceEvent)))
    pipeline.until(lambda: pipeline.totals()["done"] == 50)
    assert pipeline.totals()["seen"] == 50
    series = next(s for w in pipeline.of(Window) for s in w.series if s.done)
    assert set(series.stages) == {"capture", "wait", "pre", "infer", "decode", "sink", "total", "age"}
    assert all(sketch.is_consistent() for sketch in series.stages.values())
    assert series.candidate == "v@onnxruntime:fp32"
    assert pipeline.stop() == 0


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(folded=True)], ids=lambda one: one.text)
def test_the_overhead_over_the_models_own_floor_is_told_in_every_window(
        start: Callable[..., PipelineProcess], tmp_path: Path, good: Path, tuning: Tuning) -> None:
    """With frames that are normalised before the session, and inside it."""
    pytest.importorskip("openvino")
    pipeline = start()
    model = msgspec.structs.replace(model_of(good, detector_task(), backend="openvino"), tuning=tuning)
    pipeline.send(Run(model, CONFIG, (Source("front", str(save_video(tmp_path / "v.avi", 40)), fps=60, loop=True),), window_s=0.4))
    running = pipeline.wait(Running)
    assert running.floor_ms > 0
    assert running.tuning == tuning.text
    pipeline.until(lambda: sum("overhead_ratio" in window.gauges for window in pipeline.of(Window)) >= 3)
    told = [window.gauges for window in pipeline.of(Window) if "overhead_ratio" in window.gauges]
    floors = [gauges["floor_ms"] for gauges in told]
    assert floors == sorted(floors, reverse=True)
    assert floors[0] <= running.floor_ms
    assert all(gauges["overhead_ratio"] >= gauges["session_ratio"] >= 1.0 for gauges in told)
    assert pipeline.stop() == 0
    for result in pipeline.results[:30]:
        (found,) = result.detections
        assert found.box is not None
        assert (found.box[0] + found.box[2]) / 2 == pytest.approx(4 + result.position * 3 % 40 + 8, abs=2.5)


def test_a_planted_wrong_model_is_seen_and_dropped(start: Callable[..., PipelineProcess], tmp_path: Path, good: Path) -> None:
    pipeline = start()
    wrong = model_of(save_map_model(tmp_path / "wrong.onnx", gain=0.2), detector_task(), digit="c", version="3")
    video = save_video(tmp_path / "v.avi", 40)
    pipeline.send(Run(model_of(good, detector_task()), CONFIG, (Source("front", str(video), fps=80, loop=True),)))
    pipeline.wait(Running)
    pipeline.send(Try(wrong, POLICY))
    trial = pipeline.wait(TrialResult)
    assert trial.code == ""
    assert trial.numbers.live_agreement == 0.0
    assert judge_trial(POLICY, trial.numbers)[:2] == (False, "trial.agreement")
    pipeline.send(Drop(wrong.bundle))
    pipeline.send(Switch(wrong.bundle))
    assert pipeline.wait(TrialResult).code == "trial.none", "what was dropped cannot be switched to"
    count = len(pipeline.results)
    pipeline.until(lambda: len(pipeline.results) > count + 10)
    assert {result.version for result in pipeline.results} == {"1"}
    assert pipeline.stop() == 0


@pytest.mark.parametrize(("content", "task", "code"), [
    (b"no model", detector_task(), "backend.load"),
    (None, classifier_task(), "task.output"),
    (None, detector_task(treshold=1.0), "task.option"),
])
def test_a_challenger_that_cannot_run_leaves_the_champion_alone(  # type: ignore[no-untyped-def]
        start: Callable[..., PipelineProcess], tmp_path: Path, good: Path, content: bytes | None, task, code: str) -> None:
    pipeline = start()
    path = tmp_path / "bad.onnx"
    path.write_bytes(content if content is not None else good.read_bytes())
    pipeline.send(Run(model_of(good, detector_task()), CONFIG, (Source("front", "synthetic:64x48?frames=100000", fps=50),)))
    pipeline.wait(Running)
    pipeline.send(Try(model_of(path, task, digit="d"), POLICY))
    assert pipeline.wait(TrialResult).code == code
    count = len(pipeline.results)
    pipeline.until(lambda: len(pipeline.results) > count + 10)
    assert pipeline.stop() == 0


def test_a_champion_that_cannot_load_is_one_failed_event_and_an_exit_code(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    pipeline.send(Run(model_of(tmp_path / "bad.onnx", detector_task()), CONFIG, ()))
    failed = pipeline.wait(Failed)
    assert (failed.bundle, failed.code) == ("a" * 64, "backend.load")
    assert pipeline.process.wait(20) == 10


def test_a_camera_failure_is_never_a_model_failure(start: Callable[..., PipelineProcess], tmp_path: Path, good: Path) -> None:
    pipeline = start()
    sources = (Source("gone", str(tmp_path / "gone.avi")), Source("wall", "rtsp://admin:hunter2@127.0.0.1:9/x"),
               Source("front", "synthetic:64x48?frames=100000", fps=50))
    pipeline.send(Run(model_of(good, detector_task()), CONFIG, sources))
    pipeline.until(lambda: {"source.missing", "source.refused"} <= {e.code for e in pipeline.of(SourceEvent)})
    count = len(pipeline.results)
    pipeline.until(lambda: len(pipeline.results) > count + 10)
    assert pipeline.process.poll() is None
    assert not pipeline.of(Failed)
    assert pipeline.stop() == 0
    assert "hunter2" not in pipeline.log.read_text() + repr(pipeline.events)


def test_live_frames_are_dropped_by_cause_and_counted(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    slow = save_map_model(tmp_path / "slow.onnx", width=640, height=480, work=12)
    pipeline.send(Run(model_of(slow, detector_task(640, 480)), CONFIG, (Source("front", "synthetic:64x48", fps=2000),), window_s=0.3))
    pipeline.wait(Running)
    pipeline.until(lambda: pipeline.totals().get("superseded", 0) > 20)
    assert pipeline.stop() == 0
    pipeline.until(lambda: pipeline.totals()["done"] == len(pipeline.results))
    totals = pipeline.totals()
    under_way = 2 * totals["seen"] - sum(totals.values())  # seen less done and every drop
    assert 0 <= under_way <= 3
    assert all(result.position == -1 for result in pipeline.results)
    numbers = [result.frame for result in pipeline.results]
    assert numbers == sorted(set(numbers))


def test_a_detector_feeds_a_classifier(start: Callable[..., PipelineProcess], tmp_path: Path, good: Path) -> None:
    detector, reader = start("detector"), start("reader")
    feeds = str(tmp_path / "feed")
    shade = model_of(save_brightness_model(tmp_path / "shade.onnx"), classifier_task(), digit="e")
    reader.send(Run(shade, CONFIG, (), input_from="detector", feed=feeds, window_s=0.3))
    reader.wait(Running)
    video = save_video(tmp_path / "v.avi", 30)
    detector.send(Run(model_of(good, detector_task(unclip_ratio=0.0)), CONFIG, (Source("front", str(video), fps=60, loop=True),),
                      feed_to=("reader",), feed=feeds))
    reader.until(lambda: len(reader.results) > 30)
    for result in reader.results[:20]:
        (found,) = result.detections
        assert found.label == "dark", "the crop is the black bar"
        assert result.source == "front"
        assert found.box is not None
        assert (found.box[0] + found.box[2]) / 2 == pytest.approx(4 + result.position * 3 % 40 + 8, abs=2.5)
        assert result.age_ms > 0
    reader.process.kill()
    reader.process.wait(10)
    count = len(detector.results)
    detector.until(lambda: len(detector.results) > count + 30)
    assert detector.stop() == 0


def test_configure_changes_thresholds_and_sources_without_a_restart(start: Callable[..., PipelineProcess], good: Path) -> None:
    pipeline = start()
    front, rear = Source("front", "synthetic:64x48?frames=1000000", fps=50), Source("rear", "synthetic:96x64?frames=1000000", fps=50)
    pipeline.send(Run(model_of(good, detector_task()), CONFIG, (front,)))
    pipeline.wait(Running)
    pipeline.send(Configure(AppConfig(2, {"threshold": 1.0}), (front, rear)))
    pipeline.until(lambda: any(r.source == "rear" for r in pipeline.results))
    pipeline.until(lambda: all(not r.detections for r in pipeline.results[-5:]))
    pipeline.send(Configure(AppConfig(3, {"no-such-option": 1.0}), (rear,)))
    pipeline.until(lambda: any(e.code == "task.option" for e in pipeline.of(SourceEvent)))
    pipeline.send(Configure(AppConfig(4, {}), (rear,)))
    pipeline.until(lambda: {r.source for r in pipeline.results[-10:]} == {"rear"})
    front_frames = [r.frame for r in pipeline.results if r.source == "front"]
    assert front_frames == list(range(len(front_frames))), "an unchanged source never noticed"
    assert pipeline.stop() == 0


def test_a_changed_threshold_reaches_the_challenger_too(start: Callable[..., PipelineProcess], good: Path) -> None:
    """Else the model after the switch would answer by settings that were changed during its trial."""
    pipeline = start()
    source = Source("front", "synthetic:64x48?frames=1000000", fps=50)
    two = model_of(good, detector_task(), digit="b", version="2")
    pipeline.send(Run(model_of(good, detector_task()), CONFIG, (source,)))
    pipeline.wait(Running)
    pipeline.send(Try(two, POLICY))
    pipeline.send(Configure(AppConfig(2, {"threshold": 1.0}), (source,)))
    pipeline.wait(TrialResult)
    pipeline.send(Switch(two.bundle))
    pipeline.until(lambda: sum(r.version == "2" for r in pipeline.results) > 10)
    assert not any(r.detections for r in pipeline.results if r.version == "2")
    assert pipeline.stop() == 0


def test_a_second_run_starts_from_nothing(start: Callable[..., PipelineProcess], tmp_path: Path, good: Path) -> None:
    pipeline = start()
    source = Source("front", "synthetic:64x48?frames=1000000", fps=50)
    pipeline.send(Run(model_of(good, detector_task()), CONFIG, (source,)))
    pipeline.wait(Running)
    shade = model_of(save_brightness_model(tmp_path / "shade.onnx"), classifier_task(), digit="e", version="9")
    pipeline.send(Run(shade, CONFIG, (source,)))
    assert pipeline.wait(Running).bundle == "e" * 64
    pipeline.until(lambda: Counter(r.version for r in pipeline.results)["9"] > 5)
    assert pipeline.stop() == 0


def test_back_without_a_previous_model_and_orders_before_run_do_no_harm(start: Callable[..., PipelineProcess], good: Path) -> None:
    pipeline = start()
    pipeline.send(Back())
    pipeline.link.sendall(b'{"type":"fly"}\nnot json\n')
    pipeline.send(Run(model_of(good, detector_task()), CONFIG, (Source("front", "synthetic:64x48?frames=1000000", fps=50),)))
    pipeline.wait(Running)
    pipeline.send(Back())
    assert pipeline.wait(TrialResult).code == "trial.none"
    assert pipeline.stop() == 0


def test_back_after_the_old_model_was_unloaded_loads_it_again(start: Callable[..., PipelineProcess], tmp_path: Path, good: Path) -> None:
    pipeline = start()
    one, two = model_of(good, detector_task()), model_of(good, detector_task(), digit="b", version="2")
    pipeline.send(Run(one, CONFIG, (Source("front", "synthetic:64x48?frames=1000000", fps=50),), window_s=0.2))
    pipeline.wait(Running)
    pipeline.send(Try(two, POLICY))
    pipeline.wait(TrialResult)
    pipeline.send(Switch(two.bundle, keep_s=0.0))
    pipeline.wait(Switched)
    windows = len(pipeline.of(Window))
    pipeline.until(lambda: len(pipeline.of(Window)) > windows + 4)  # several ticks: the old one is unloaded by now
    pipeline.send(Back())
    assert pipeline.wait(Switched).bundle == one.bundle
    assert pipeline.stop() == 0
    numbers = [result.frame for result in pipeline.results]
    assert numbers == list(range(len(numbers)))


def test_sigterm_ends_it_cleanly_and_so_does_a_supervisor_that_is_gone(start: Callable[..., PipelineProcess], good: Path) -> None:
    order = Run(model_of(good, detector_task()), CONFIG, (Source("front", "synthetic:64x48", fps=50),))
    told, left = start("told"), start("left")
    for pipeline in (told, left):
        pipeline.send(order)
        pipeline.wait(Running)
    told.process.send_signal(signal.SIGTERM)
    assert told.process.wait(20) == 0
    left.link.shutdown(2)
    assert left.process.wait(20) == 0


def test_no_supervisor_is_one_clear_error(tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "jetfleet_agent.pipeline", "--app", "a", "--socket", str(tmp_path / "none"),
                           "--jsonl", str(tmp_path / "out.jsonl")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 8
    assert "ipc.connect" in done.stderr
    assert "Traceback" not in done.stderr


def test_results_may_also_go_to_a_file(tmp_path: Path, good: Path) -> None:
    import socket
    import subprocess
    import sys

    from jetfleet_agent.ipc import to_line

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        process = subprocess.Popen([sys.executable, "-m", "jetfleet_agent.pipeline", "--app", "a", "--socket", str(tmp_path / "s"),
                                    "--jsonl", str(tmp_path / "out.jsonl")], stderr=subprocess.DEVNULL)
        link, _ = listener.accept()
        import cv2
        folder = tmp_path / "images"
        folder.mkdir()
        for index in range(3):
            cv2.imwrite(str(folder / f"{index}.png"), bar_image(index))
        with link, link.makefile("rb") as events:
            link.sendall(to_line(Run(model_of(good, detector_task()), AppConfig(publish_results=False), (Source("front", str(folder)),))))
            told = b""
            for line in events:
                told += line
                if b"source.ended" in line:
                    break
            link.shutdown(1)
            told += events.read()
        assert process.wait(20) == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["position"] for line in lines] == [0, 1, 2]
    assert b'"results"' not in told
