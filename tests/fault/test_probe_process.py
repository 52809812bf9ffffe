"""The throw-away process that probes a challenger, and what a vendor's code does to it: an answer with a name, and the end of that process.

The process is the real one, the faults are real too: a read at address 0, an abort, more memory than its limit lets it have, a kill as the
kernel's when memory runs out.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from brokers import until
from faulty_tasks import faulty, hungry_model, install
from pipelines import bar_image, detector_task, save_map_model

from jetfleet_agent.supervisor.evaluation_process import FIRST_TO_GO, EvaluationProcess
from jetfleet_contract.bundle import TaskSpec
from jetfleet_contract.evaluation import EvaluationJob, EvaluationResult

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluationProcess:
    monkeypatch.setenv("PYTHONPATH", install(tmp_path / "site"))
    return EvaluationProcess(tmp_path / "jobs", 120.0)


def probe(process: EvaluationProcess, folder: Path, task: TaskSpec, model: Path | None = None, limit_mb: float = 0.0) -> EvaluationResult:
    import cv2

    images = []
    for index in range(3):
        images.append(str(folder / f"{index}.png"))
        cv2.imwrite(images[-1], bar_image(index))
    model = model or save_map_model(folder / "m.onnx")
    return process.run(EvaluationJob(str(model), task, "onnxruntime", threads=1, images=tuple(images), warmup=1, latency_runs=3), limit_mb)


@pytest.mark.parametrize(("fault", "code", "says"), [
    ("segv", "evaluate.crash", "SIGSEGV"), ("abort", "evaluate.crash", "SIGABRT"), ("raise", "task.crash", "a bug in the plug-in"),
    ("memory", "backend.memory", "does not fit into memory"),
])
@pytest.mark.parametrize("after", [0, 2])
def test_what_breaks_in_the_probe_is_named(process: EvaluationProcess, tmp_path: Path, fault: str, code: str, says: str,
                                           after: int) -> None:
    result = probe(process, tmp_path, faulty(detector_task(), fault, after=after))
    assert result.error == code
    assert says in result.detail
    assert probe(process, tmp_path, detector_task()).error == "", "the next one is not touched by it"


def test_a_model_that_needs_more_than_the_board_can_give_is_told_by_the_runtime(process: EvaluationProcess, tmp_path: Path) -> None:
    model = hungry_model(tmp_path / "hungry.onnx", side=24_000)  # twice 2.3 GB
    result = probe(process, tmp_path, detector_task(), model, limit_mb=1000.0)
    assert result.error == "backend.memory"
    assert "hungry.onnx does not fit into memory" in result.detail
    small = hungry_model(tmp_path / "small.onnx", side=2000)
    assert probe(process, tmp_path, detector_task(), small, limit_mb=1000.0).error == "", "the limit lets an honest model through"


def test_memory_of_a_probe_is_measured_with_and_without_the_model(process: EvaluationProcess, tmp_path: Path) -> None:
    result = probe(process, tmp_path, detector_task(), hungry_model(tmp_path / "h.onnx", side=6000))  # 144 MB a tensor
    assert 20 < result.empty_rss_mb < result.peak_rss_mb
    assert result.peak_rss_mb - result.empty_rss_mb > 140


def test_the_kernel_would_kill_the_probe_first_and_that_is_its_own_name(tmp_path: Path) -> None:
    """No memory is really exhausted here: the test sends what the kernel's out-of-memory killer sends."""
    seen: dict[str, str] = {}
    process = EvaluationProcess(tmp_path / "jobs", 120.0, (sys.executable, "-c", "import time; time.sleep(600)"))

    def kill() -> None:
        until(lambda: process._running is not None, "the process")
        running = process._running
        assert running is not None
        path = Path(f"/proc/{running.pid}/oom_score_adj")
        until(lambda: path.read_text().strip() == FIRST_TO_GO, "its mark")
        seen["mark"] = path.read_text().strip()
        os.kill(running.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = process.run(EvaluationJob("m.onnx", detector_task(), "onnxruntime"))
    killer.join()
    assert seen == {"mark": "1000"}
    assert result.error == "backend.memory"
    assert "SIGKILL" in result.detail
