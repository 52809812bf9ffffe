"""Each task with a model of its kind, both CPU runtimes, real frames and the real pipeline process; chains and tracks on top."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pipelines import HEIGHT, WIDTH, PipelineProcess, bar_image, classifier_task, model_of, save_brightness_model, save_video

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from faulty_tasks import faulty, install
from task_models import POINTS, save_task_model

from jetfleet_agent.ipc import Configure, Failed, Model, Raised, Run, Running, SourceEvent, Switch, Switched, TrialResult, Try
from jetfleet_agent.pipeline.backends import open_backend
from jetfleet_agent.pipeline.tasks import load_task
from jetfleet_contract.app_config import Tracking
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.messages import AppConfig, Result, Source, TrialPolicy
from jetfleet_contract.predictions import Detection
from jetfleet_contract.similarity import outline_area

KINDS = {"v5": "detect-yolo", "v8": "detect-yolo", "v8-rows": "detect-yolo", "end2end": "detect-yolo", "nms": "detect-yolo",
         "onnx-nms": "detect-yolo",
         "seg": "segment", "pose": "keypoints", "regions": "segment", "raw": "raw"}
LABELS = ("dark", "bright")
CONFIG = AppConfig()


def model(folder: Path, made: str, *, digit: str = "a", version: str = "1", runtime: str = "onnxruntime",
          **options: float | str | bool) -> Model:
    kind = KINDS[made]
    given: dict[str, float | str | bool] = {} if kind == "raw" else {"threshold": 0.6}
    if made in ("v8-rows", "end2end"):
        given["layout"] = made  # with two labels, rows of 6 numbers could be either
    if made == "pose":
        given["points"] = POINTS
    if made == "regions":
        given["background"] = 0
    labels = () if kind == "raw" else LABELS[::-1] if made == "regions" else LABELS
    path = save_task_model(folder / f"{made}-{digit}.onnx", made, width=WIDTH, height=HEIGHT)
    return model_of(path, TaskSpec(kind, InputSpec("x", WIDTH, HEIGHT), labels, {**given, **options}), digit=digit, version=version,
                    backend=runtime)


def bar(result: Result) -> tuple[float, float]:
    """Where the video's bar begins and ends at that frame."""
    left = 4 + result.position * 3 % (WIDTH - 24)
    return float(left), float(left + 16)


def over_the_bar(result: Result, detection: Detection) -> bool:
    assert detection.box is not None
    left, right = bar(result)
    return left - 12 <= (detection.box[0] + detection.box[2]) / 2 <= right + 12


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("layout", sorted(KINDS))
def test_a_task_sees_the_bar_in_every_frame(start: Callable[..., PipelineProcess], tmp_path: Path, layout: str, runtime: str) -> None:
    pytest.importorskip(runtime)
    pipeline = start()
    pipeline.send(Run(model(tmp_path, layout, runtime=runtime), CONFIG, (Source("front", str(save_video(tmp_path / "v.avi", 20))),)))
    pipeline.until(lambda: any(e.code == "source.ended" for e in pipeline.of(SourceEvent)) and len(pipeline.results) >= 20)
    assert not pipeline.of(Failed)
    for result in pipeline.results:
        assert result.detections
        for detection in result.detections:
            if layout == "raw":
                assert detection.values[0] == pytest.approx(256 / (WIDTH * HEIGHT), abs=0.02)
                continue
            assert detection.label == "dark"
            assert 0.5 < detection.score <= 1.0
            assert over_the_bar(result, detection)
            if layout == "pose":
                assert len(detection.points) == 3 * POINTS
                assert detection.points[2::3] == (0.75,) * POINTS
            if layout in ("seg", "regions"):
                assert outline_area(detection.outline) > 30
    assert pipeline.stop() == 0


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_output_has_as_many_rows_as_the_frame_has_things(tmp_path: Path, runtime: str) -> None:
    """ONNX's NonMaxSuppression: the first frame, blank, must fix nothing; the outputs of a full one must not spill into the next."""
    pytest.importorskip(runtime)
    path = save_task_model(tmp_path / "nms.onnx", "onnx-nms", width=WIDTH, height=HEIGHT)
    task = load_task(TaskSpec("detect-yolo", InputSpec("x", WIDTH, HEIGHT), ("dark",), {"threshold": 0.6}))
    two_bars = np.minimum(bar_image(4), bar_image(40))
    told = []
    with open_backend(runtime, path, precision="fp32", threads=1, input_shape=(1, 3, HEIGHT, WIDTH)) as backend:
        lane = backend.lanes[0]
        for image in (np.full((HEIGHT, WIDTH, 3), 255, np.uint8), bar_image(4), two_bars, bar_image(4), np.full_like(two_bars, 255)):
            geometry = task.prepare(image, lane.tensor)
            told.append(len(task.decode(backend.infer(lane), geometry)))
    assert told[0] == told[4] == 0
    assert 0 < told[1] == told[3] < told[2]


def test_a_plug_in_that_crashes_ends_the_process_with_a_typed_failure(tmp_path: Path) -> None:
    task = faulty(TaskSpec("classify", InputSpec("x", WIDTH, HEIGHT), LABELS), "raise", after=3)
    pipeline = PipelineProcess(tmp_path / "run", environment={"PYTHONPATH": install(tmp_path / "site")})
    try:
        pipeline.send(Run(model_of(save_brightness_model(tmp_path / "b.onnx"), task), CONFIG,
                          (Source("front", str(save_video(tmp_path / "v.avi", 20))),)))
        assert pipeline.wait(Failed).code == "task.crash"
        assert pipeline.process.wait(30) != 0
    finally:
        pipeline.close()


def test_an_output_of_another_layout_is_a_typed_failure(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    pipeline.send(Run(model(tmp_path, "v8", layout="end2end"), CONFIG, ()))
    failed = pipeline.wait(Failed)
    assert failed.code == "task.output"
    assert pipeline.process.wait(30) != 0


def test_a_chain_of_yolo_and_classifier(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    """The detector's crops are the classifier's frames; its answers lie where the crops were cut."""
    feed = str(tmp_path / "feed")
    reader, detector = start("reader"), start("detector")
    reader.send(Run(model_of(save_brightness_model(tmp_path / "b.onnx", width=16, height=16), classifier_task(16, 16), digit="b"), CONFIG,
                    (), feed=feed, input_from="detector"))
    video = save_video(tmp_path / "v.avi", 40)
    detector.send(Run(model(tmp_path, "v8", threshold=0.95, crop_labels="dark", crop_most=4), CONFIG,
                      (Source("front", str(video), fps=40, loop=True),), feed=feed, feed_to=("reader",)))
    reader.until(lambda: len(reader.results) >= 10)
    for result in reader.results[:10]:
        (answer,) = result.detections
        assert answer.label == "dark"
        assert answer.box is not None
    told = {(r.frame, r.detections[0].box) for r in reader.results}
    detector.until(lambda: any(r.frame >= max(frame for frame, _ in told) for r in detector.results))
    seen = {(r.frame, d.box) for r in detector.results for d in r.detections}
    assert told <= {(frame, tuple(float(round(v)) for v in box or ())) for frame, box in seen}
    assert detector.stop() == 0
    assert reader.stop() == 0


def test_a_track_outlives_a_swap(start: Callable[..., PipelineProcess], tmp_path: Path) -> None:
    pytest.importorskip("norfair")
    pipeline = start()
    config = AppConfig(tracking=Tracking(keep_s=5.0, min_iou=0.05))
    one = model(tmp_path, "v8", iou=0.01)
    two = model(tmp_path, "end2end", digit="b", version="2", max_detections=1)
    image = tmp_path / "images"
    image.mkdir()
    _stills(image, 30)
    pipeline.send(Run(one, config, (Source("front", str(image), fps=30, loop=True),)))
    pipeline.wait(Running)
    pipeline.until(lambda: any(d.track for r in pipeline.results for d in r.detections))
    pipeline.send(Try(two, TrialPolicy(frames=10, min_agreement=0.0, max_p99_ratio=1000.0)))
    assert pipeline.wait(TrialResult).code == ""
    pipeline.send(Switch(two.bundle, keep_s=60.0))
    pipeline.wait(Switched)
    pipeline.until(lambda: sum(r.version == "2" for r in pipeline.results) >= 10)
    before = {d.track for r in pipeline.results if r.version == "1" for d in r.detections} - {0}
    after = {d.track for r in pipeline.results if r.version == "2" and r.position > 2 for d in r.detections} - {0}
    assert after
    assert after & before
    pipeline.send(Configure(AppConfig(), (Source("front", str(image), fps=30, loop=True),)))
    count = len(pipeline.results)
    pipeline.until(lambda: len(pipeline.results) > count + 40)
    assert not any(d.track for d in pipeline.results[-1].detections)
    assert not pipeline.of(Raised)
    assert pipeline.stop() == 0


def _stills(folder: Path, count: int) -> None:
    """The same bar in every picture, so that every frame of every model sees the same thing."""
    import cv2

    for index in range(count):
        assert cv2.imwrite(str(folder / f"{index:03}.png"), bar_image(4))
