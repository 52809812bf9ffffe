"""A detector of YOLO's shape through the real build, then in the real pipeline process."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipelines import HEIGHT, WIDTH, PipelineProcess, bar_image, model_of, save_video

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from task_models import save_task_model

from jetfleet_agent.ipc import Failed, Run, SourceEvent
from jetfleet_contract.messages import AppConfig, Source
from jetfleet_host.bundles import open_bundle
from jetfleet_host.compress.building import build
from jetfleet_host.compress.loading import load_checked
from jetfleet_host.compress.preparing import declared_shape
from jetfleet_host.compress.recipe import Job, Recipe, make_task


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_yolo_is_built_and_the_pipeline_runs_it(tmp_path: Path) -> None:
    import cv2

    data = tmp_path / "data"
    data.mkdir()
    for index in range(8):
        assert cv2.imwrite(str(data / f"{index}.png"), bar_image(4 + 4 * index))
    file = save_task_model(tmp_path / "model.onnx", "v8", width=WIDTH, height=HEIGHT)
    spec, shape = make_task("", "yolov8", shape=None, labels=("dark", "bright"), options={"threshold": 0.6}, overrides={},
                            declared=declared_shape(load_checked(file)))
    assert shape == (1, 3, HEIGHT, WIDTH)
    recipe = Recipe("things", "1.0.0", ("cpu-x86",), spec, shape, max_drop=5.0, threads=1, latency_rounds=0)
    made = build(Job(file, data, tmp_path / "bundle", tmp_path / "cache"), recipe, lambda *_: None)
    bundle = open_bundle(made.bundle)
    rows = {(row.variant, row.backend): row for row in bundle.evaluation.rows if row.precision != "bf16"}
    assert rows["fp32", "onnxruntime"].metric == "agreement"
    assert all(row.drop <= recipe.max_drop for row in rows.values() if row.verdict == "accepted")
    pipeline = PipelineProcess(tmp_path / "run")
    try:
        model = model_of(bundle.blob_path(bundle.spec.variant("fp32").digest), bundle.spec.task)
        pipeline.send(Run(model, AppConfig(), (Source("front", str(save_video(tmp_path / "v.avi", 20))),)))
        pipeline.until(lambda: any(e.code == "source.ended" for e in pipeline.of(SourceEvent)) and len(pipeline.results) >= 20)
        assert not pipeline.of(Failed)
        assert all(any(d.label == "dark" for d in result.detections) for result in pipeline.results)
        assert pipeline.stop() == 0
    finally:
        pipeline.close()
