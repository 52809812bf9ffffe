"""A real pipeline process with an engine: it loads one that is whole, and compiles past one that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from pipelines import PipelineProcess, detector_task, model_of, save_map_model, save_video

from jetfleet_agent.ipc import Raised, Run, Running
from jetfleet_agent.pipeline.evaluate import evaluate
from jetfleet_contract.engines import EngineFile
from jetfleet_contract.evaluation import EvaluationJob
from jetfleet_contract.messages import AppConfig, Source
from jetfleet_contract.policy import Candidate

pytest.importorskip("onnx")
pytest.importorskip("openvino")


def running(pipeline: PipelineProcess, tmp_path: Path, engine: EngineFile, model: Path) -> Running:
    run = msgspec.structs.replace(model_of(model, detector_task()), candidate=Candidate("fp32", "openvino", "fp32"), engine=engine)
    video = save_video(tmp_path / "v.avi", 30)
    pipeline.send(Run(run, AppConfig(), (Source("front", str(video), fps=30, loop=True),), window_s=0.5))
    return pipeline.wait(Running)


@pytest.mark.parametrize("flipped", [False, True])
def test_an_engine_is_loaded_or_compiled_past(start: Callable[..., PipelineProcess], tmp_path: Path, *, flipped: bool) -> None:
    model = save_map_model(tmp_path / "good.onnx")
    engine = evaluate(EvaluationJob(str(model), detector_task(), "openvino", warmup=0, latency_runs=0, export=str(tmp_path / "e"))).engine
    assert engine is not None
    if flipped:
        data = bytearray((tmp_path / "e").read_bytes())
        data[-100] ^= 1
        (tmp_path / "e").write_bytes(data)
    pipeline = start()
    runs = running(pipeline, tmp_path, engine, model)
    assert (runs.candidate, runs.provider) == ("fp32@openvino:fp32", "CPU")
    assert runs.frames > 0
    raised = [event.code for event in pipeline.events if isinstance(event, Raised)]
    assert raised == (["engine.digest"] if flipped else [])
