"""The evaluation program as its three callers start it: a process, a job file, a result file."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from pipelines import bar_image, detector_task, save_map_model

from jetfleet_agent.pipeline.evaluate import read_image
from jetfleet_agent.pipeline.settings import ROUNDS, measure_settings
from jetfleet_agent.pipeline.tasks import load_task
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.evaluation import MAX_RESULT_BYTES, EvaluationJob, EvaluationResult
from jetfleet_contract.messages import decode, encode
from jetfleet_contract.tuning import LEAST_ROUNDS, Tuning, settings_to_measure

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def evaluated(folder: Path, job: EvaluationJob) -> EvaluationResult:
    (folder / "job").write_bytes(encode(job))
    done = subprocess.run([sys.executable, "-m", "jetfleet_agent.pipeline.evaluate", str(folder / "job"), str(folder / "result")],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return decode((folder / "result").read_bytes(), EvaluationResult, limit=MAX_RESULT_BYTES)


def images(folder: Path, count: int) -> tuple[str, ...]:
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), bar_image(index))
    return tuple(str(folder / f"{index}.png") for index in range(count))


def test_predictions_latency_and_raw_output(tmp_path: Path) -> None:
    model = save_map_model(tmp_path / "m.onnx")
    job = EvaluationJob(str(model), detector_task(), "onnxruntime", threads=1, images=images(tmp_path, 3), warmup=1, latency_runs=7,
                        raw_output=str(tmp_path / "raw.npz"))
    result = evaluated(tmp_path, job)
    assert (result.error, result.detail) == ("", "")
    assert result.provider == "CPUExecutionProvider"
    assert result.precision == "fp32"
    assert len(result.latency_ms) == result.latency.count == 7
    assert result.peak_rss_mb > 1
    for index, prediction in enumerate(result.predictions):
        (found,) = prediction
        assert found.box is not None
        assert (found.box[0] + found.box[2]) / 2 == pytest.approx(4 + index * 3 + 8, abs=1.5)
    raw = np.load(tmp_path / "raw.npz")["output_0"]
    assert raw.shape == (3, 1, 1, 48, 64)
    assert raw.max() > 0.9


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    model = save_map_model(tmp_path / "m.onnx")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    result = evaluated(tmp_path, EvaluationJob(str(model), detector_task(), "onnxruntime", images=(str(tmp_path / "broken.png"),)))
    assert result.error == "image.unreadable"
    assert "broken.png" in result.detail
    assert result.predictions == ()


@pytest.mark.parametrize(("backend", "precision", "content", "code"), [
    ("onnxruntime", "fp32", b"no onnx", "backend.load"),
    ("onnxruntime", "bf16", None, "backend.precision"),
    ("openvino", "fp32", b"no onnx", "backend.load"),
])
def test_a_candidate_that_cannot_run_is_an_answer(tmp_path: Path, backend: str, precision: str, content: bytes | None, code: str) -> None:
    pytest.importorskip(backend)
    model = tmp_path / "m.onnx"
    if content is None:
        save_map_model(model)
    else:
        model.write_bytes(content)
    result = evaluated(tmp_path, EvaluationJob(str(model), detector_task(), backend, precision))  # type: ignore[arg-type]
    assert result.error == code
    assert result.detail


def test_a_job_that_cannot_be_read_has_an_exit_code_and_leaves_no_result(tmp_path: Path) -> None:
    (tmp_path / "job").write_bytes(b"{}")
    done = subprocess.run([sys.executable, "-m", "jetfleet_agent.pipeline.evaluate", str(tmp_path / "job"), str(tmp_path / "result")],
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "message.bad" in done.stderr
    assert not (tmp_path / "result").exists()


def test_a_fall_back_says_what_ran_instead(tmp_path: Path) -> None:
    if platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("x86 has no fp16 kernels in ONNX Runtime; others may")
    model = tmp_path / "m.onnx"
    model.write_bytes(importlib.import_module("tiny_models").classifier().SerializeToString())
    result = evaluated(tmp_path, EvaluationJob(str(model), TaskSpec("classify", InputSpec("x", 16, 16)), "onnxruntime", "fp16", threads=1))
    assert (result.error, result.precision, result.provider) == ("backend.fallback", "fp32", "CPUExecutionProvider")
    assert result.layers["fp32"] >= 2
    assert "asked for fp16" in result.detail


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_settings_are_measured_in_turns_and_compared_with_the_defaults(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    settings = (*settings_to_measure(backend, threads=0, cores=2), Tuning(provider="NoSuchProvider"))
    job = EvaluationJob(str(save_map_model(tmp_path / "m.onnx")), detector_task(), backend, images=images(tmp_path, 1),  # type: ignore[arg-type]
                        warmup=0, latency_runs=0, settings=settings, settings_s=0.2)
    result = evaluated(tmp_path, job)
    assert result.error == ""
    assert [one.tuning for one in result.tuned] == list(settings)
    *good, bad = result.tuned
    for one in good:
        assert one.error == ""
        assert LEAST_ROUNDS <= len(one.period_ms) == len(one.cpu_ms) == len(good[0].period_ms) <= ROUNDS
        assert min(one.period_ms) > 0
    assert bad.error
    assert bad.period_ms == ()


def test_a_model_too_slow_for_its_time_is_measured_in_fewer_rounds(tmp_path: Path) -> None:
    job = EvaluationJob(str(save_map_model(tmp_path / "m.onnx", work=2)), detector_task(), "onnxruntime", threads=1,
                        images=images(tmp_path, 1), settings=(Tuning(), Tuning(flush=True)), settings_s=1e-6)
    plain, flush = measure_settings(job, load_task(job.task), read_image(Path(job.images[0])))
    assert len(plain.period_ms) == len(flush.period_ms) == LEAST_ROUNDS


def test_a_setting_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    """The bundle's normalisation is not what folding would have to be equal to: a spec is changed between the two."""
    pytest.importorskip("openvino")
    job = EvaluationJob(str(save_map_model(tmp_path / "m.onnx")), detector_task(), "openvino", threads=1, images=images(tmp_path, 1),
                        settings=(Tuning(), Tuning(folded=True)), settings_s=0.1)
    task = load_task(job.task)
    task.spec = msgspec.structs.replace(task.spec, input=msgspec.structs.replace(task.spec.input, mean=(0.3, 0.3, 0.3)))
    plain, folded = measure_settings(job, task, read_image(Path(job.images[0])))
    assert plain.error == ""
    assert "[tuning.answers]" in folded.error
    assert folded.period_ms == ()
