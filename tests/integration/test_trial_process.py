"""A challenger in a real pipeline process: within its share, not on a hot board, out of memory; and the watch that the old model keeps."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_tasks import faulty, hungry_model, install
from pipelines import PipelineProcess, detector_task, model_of, save_map_model, save_video

from jetfleet_agent.ipc import Back, Heat, Run, Running, Switch, Switched, TrialResult, Try, Watch, Watched
from jetfleet_agent.supervisor.footing import resident_mb
from jetfleet_contract.messages import AppConfig, Source, TrialPolicy
from jetfleet_contract.trials import WATCH_FRAMES, judge_watch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOM_MB = 300.0


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], PipelineProcess]]:
    """A pipeline that answers a looping file with a sound model."""
    monkeypatch.setenv("PYTHONPATH", install(tmp_path / "site"))
    running: list[PipelineProcess] = []

    def starter() -> PipelineProcess:
        running.append(PipelineProcess(tmp_path / "run"))
        video = save_video(tmp_path / "v.avi", 60)
        model = model_of(save_map_model(tmp_path / "one.onnx"), detector_task())
        running[-1].send(Run(model, AppConfig(), (Source("front", str(video), fps=100, loop=True),), window_s=0.5))
        running[-1].wait(Running)
        return running[-1]

    yield starter
    for process in running:
        process.close()


def policy(**changes: object) -> TrialPolicy:
    return TrialPolicy(**{"frames": 20, "max_p99_ratio": 1000.0, **changes})  # type: ignore[arg-type]


def goes_on(pipeline: PipelineProcess) -> None:
    count = len(pipeline.results)
    pipeline.until(lambda: len(pipeline.results) > count + 20)
    numbers = [result.frame for result in pipeline.results]
    assert numbers == list(range(len(numbers))), "no frame of the champion was lost"


def test_a_trial_keeps_within_its_share_and_says_what_it_left_out(start: Callable[[], PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    heavy = save_map_model(tmp_path / "two.onnx", work=8)
    pipeline.send(Try(model_of(heavy, detector_task(), digit="b"), policy(share=0.02)))
    numbers = pipeline.wait(TrialResult, 120.0).numbers
    assert numbers.live_frames == 20
    assert numbers.skipped["share"] > 0
    assert 0 < numbers.spent_share <= 0.03, "the share, and one run more"
    assert (numbers.live_agreement, numbers.mean_iou) == (1.0, 1.0)
    goes_on(pipeline)


def test_nothing_is_shadowed_while_the_board_is_slowed_down(start: Callable[[], PipelineProcess], tmp_path: Path) -> None:
    pipeline = start()
    pipeline.send(Heat(throttled=True))
    pipeline.send(Try(model_of(save_map_model(tmp_path / "two.onnx"), detector_task(), digit="b"), policy(share=1.0)))
    count = len(pipeline.results)
    pipeline.until(lambda: len(pipeline.results) > count + 200)
    assert not pipeline.of(TrialResult)
    pipeline.send(Heat(throttled=False))
    numbers = pipeline.wait(TrialResult).numbers
    assert numbers.skipped["heat"] > 0
    assert numbers.live_frames == 20


def test_a_challenger_that_does_not_fit_into_memory_is_told_by_name_and_the_champion_goes_on(start: Callable[[], PipelineProcess],
                                                                                            tmp_path: Path) -> None:
    """The process may take so much more than it has; the challenger's tensors would take some ten times that."""
    pipeline = start()
    pid = pipeline.process.pid
    limit = int((_written_mb(pid) + ROOM_MB) * 1e6)
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
    pipeline.send(Try(model_of(hungry_model(tmp_path / "hungry.onnx", side=20_000), detector_task(), digit="b"), policy()))
    result = pipeline.wait(TrialResult)
    assert result.code == "backend.memory", result
    goes_on(pipeline)
    assert pipeline.process.poll() is None
    pipeline.send(Try(model_of(save_map_model(tmp_path / "two.onnx"), detector_task(), digit="c"), policy(share=1.0)))
    assert pipeline.wait(TrialResult).code == "", "an honest one still fits"


def _written_mb(pid: int) -> float:
    """Private memory that counts against RLIMIT_DATA."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in text.splitlines() if line.startswith("VmData:"))


def test_the_old_model_watches_the_new_one_which_goes_back_when_its_answers_drift(start: Callable[[], PipelineProcess],
                                                                                 tmp_path: Path) -> None:
    """This test plays the supervisor: it judges what it is told and orders the way back."""
    pipeline, now = start(), tmp_path / "now"
    two = model_of(save_map_model(tmp_path / "two.onnx"), faulty(detector_task(), "blind", when=str(now)), digit="b", version="2")
    rule = policy(share=1.0, watch_share=1.0)
    pipeline.send(Try(two, rule))
    pipeline.wait(TrialResult)
    pipeline.send(Switch(two.bundle, keep_s=600.0))
    assert pipeline.wait(Switched).frames_lost == 0
    pipeline.until(lambda: any(told.numbers.compared == WATCH_FRAMES for told in pipeline.of(Watched)))
    assert all(judge_watch(rule, told.numbers)[0] for told in pipeline.of(Watched) if told.numbers.compared)
    now.touch()
    pipeline.until(lambda: not judge_watch(rule, pipeline.of(Watched)[-1].numbers)[0])
    assert judge_watch(rule, pipeline.of(Watched)[-1].numbers)[1] == "trial.keep-agreement"
    blind = sum(result.version == "2" and not result.detections for result in pipeline.results)
    assert blind <= 4 * WATCH_FRAMES, "told within a bounded number of frames"
    pipeline.send(Back())
    assert pipeline.wait(Switched).bundle == "a" * 64
    goes_on(pipeline)
    assert pipeline.results[-1].version == "1"


def test_a_model_that_was_started_in_place_of_another_tells_how_it_does(start: Callable[[], PipelineProcess]) -> None:
    pipeline = start()
    pipeline.send(Watch("a" * 64, policy(), old_p99_ms=7.0))
    told = pipeline.wait(Watched)
    assert (told.bundle, told.numbers.frames, told.numbers.old_p99_ms) == ("a" * 64, WATCH_FRAMES, 7.0)
    assert told.numbers.memory_mb == pytest.approx(resident_mb(pipeline.process.pid), rel=0.5)
    pipeline.send(Watch("f" * 64, policy(), old_p99_ms=1.0))
    count = len(pipeline.of(Watched))
    pipeline.until(lambda: len(pipeline.of(Watched)) > count + 2)
    assert {one.bundle for one in pipeline.of(Watched)} == {"a" * 64}, "that model does not run here"
