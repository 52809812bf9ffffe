"""Whose frames a second model sees, and what the watch over a new champion tells. No model runs here: turns and answers are handed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipelines import detector_task, model_of

from jetfleet_agent.ipc import Try
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.keep_watch import KeepWatch
from jetfleet_agent.pipeline.process_memory import is_out_of_memory, resident_mb
from jetfleet_agent.pipeline.shadow import blame, quantile
from jetfleet_agent.pipeline.trial import NO_FRAMES_S, Trial
from jetfleet_contract.errors import RuntimeFailure
from jetfleet_contract.messages import AppConfig, TrialPolicy
from jetfleet_contract.predictions import Detection
from jetfleet_contract.trials import WATCH_FRAMES, WatchNumbers

A = (Detection("text", 0.9, (0.0, 0.0, 10.0, 10.0)),)
MOVED = (Detection("text", 0.6, (0.0, 0.0, 10.0, 5.0)),)


class Loaded:
    """A loaded model that nobody runs."""

    def __init__(self, bundle: str = "b") -> None:
        self.model = model_of(Path("m.onnx"), detector_task(), digit=bundle)


def frame(captured: float = 100.0, *, live: bool = False) -> Frame:
    made = Frame("cam", 0, -1 if live else 0, np.zeros((2, 2, 3), np.uint8), captured, 0.0)
    made.ordinal = -1 if live else 0
    return made


def trial(**policy: Any) -> tuple[Trial, list[Trial]]:
    ended: list[Trial] = []
    made = Trial(Try(Loaded().model, TrialPolicy(**policy)), AppConfig(), ended.append)
    made.model = Loaded()  # type: ignore[assignment]
    return made, ended


def test_a_challenger_sees_frames_within_its_share_of_the_time() -> None:
    shadow, _ = trial(frames=1000, share=0.25)
    now, runs = 100.0, 0
    for _ in range(400):
        now += 0.01
        if shadow.take_turn(frame(now), now) is not None:
            now += 0.01
            shadow.spend(now, 0.01)
            runs += 1
    assert 0.2 <= runs / (400 + runs) <= 0.252
    numbers = shadow.numbers
    assert numbers.skipped == {"share": 400 - runs}


@pytest.mark.parametrize(("live", "age_s", "limit_ms", "reason"), [
    (True, 0.6, 500.0, "age"), (True, 0.4, 500.0, ""), (False, 9.0, 500.0, ""), (True, 9.0, 0.0, ""),
])
def test_a_live_frame_that_is_late_already_is_not_made_later(live: bool, age_s: float, limit_ms: float, reason: str) -> None:
    shadow, _ = trial(max_age_ms=limit_ms)
    model = shadow.take_turn(frame(100.0, live=live), 100.0 + age_s)
    assert (model is None) == bool(reason)
    assert shadow.numbers.skipped == ({reason: 1} if reason else {})


def test_nothing_is_shadowed_on_a_board_that_is_slowed_down_and_that_holds_up_no_model() -> None:
    shadow, ended = trial()
    shadow.throttled = True
    for second in range(60):
        assert shadow.take_turn(frame(live=True), 100.0 + second) is None
        shadow.tick(100.0 + second)
    assert shadow.numbers.skipped == {"heat": 60}
    assert ended == [], "frames come: only their turn does not"
    shadow.throttled = False
    assert shadow.take_turn(frame(160.0, live=True), 160.0) is not None
    shadow.tick(161.0 + NO_FRAMES_S)
    assert ended == [shadow], "now none comes any more"


def test_a_trial_ends_with_its_last_frame_and_tells_how_alike_the_answers_were() -> None:
    shadow, ended = trial(frames=2, share=1.0)
    for at in (100.0, 101.0, 102.0):
        shadow.take_turn(frame(at), at)
    shadow.compare(A, A, 20.0, 22.0)
    shadow.compare(A, MOVED, 20.0, 22.0)
    assert ended == [shadow]
    assert shadow.take_turn(frame(103.0), 103.0) is None
    numbers = shadow.numbers
    assert (numbers.live_frames, numbers.live_agreement, numbers.mean_iou) == (2, 1.0, 0.75)
    assert numbers.score_distance == pytest.approx(0.15)
    assert numbers.champion_p99_ms == pytest.approx(20.0, rel=0.05)
    assert numbers.challenger_p99_ms == pytest.approx(22.0, rel=0.05)


@pytest.mark.parametrize(("error", "code"), [
    (RuntimeFailure("backend.run", "std::bad_alloc"), "backend.memory"), (MemoryError(), "backend.memory"),
    (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"), "backend.memory"), (RuntimeFailure("backend.run", "no such operator"), "backend.run"),
    (KeyError("bug"), "backend.crash"), (RuntimeFailure("task.crash", "decode: MemoryError: "), "backend.memory"),
])
def test_whatever_a_challenger_raises_has_a_name_and_ends_only_its_trial(error: Exception, code: str) -> None:
    shadow, ended = trial()
    blame(shadow, error)
    assert ended == [shadow]
    assert shadow.code == code


def test_words_of_runtimes_for_no_memory() -> None:
    assert is_out_of_memory(RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation"))
    assert not is_out_of_memory(RuntimeError("the memory of a happy day"))
    assert resident_mb() > 1


@pytest.mark.parametrize(("values", "q", "expected"), [((), 0.99, 0.0), ((3.0,), 0.5, 3.0), (tuple(map(float, range(100))), 0.99, 99.0)])
def test_quantile(values: tuple[float, ...], q: float, expected: float) -> None:
    assert quantile(values, q) == expected


# --- the watch --------------------------------------------------------------------------------------------------


class Watched:
    def __init__(self, old: Any = None, old_p99_ms: float = 10.0, **policy: Any) -> None:
        self.told: list[WatchNumbers] = []
        self.new = Loaded("b")
        self.watch = KeepWatch("b" * 64, TrialPolicy(**policy), old, old_p99_ms, lambda _bundle, numbers: self.told.append(numbers))

    def answers(self, *work_ms: float) -> None:
        for value in work_ms:
            self.watch.answered(self.new, value)  # type: ignore[arg-type]


def test_the_watch_tells_every_few_frames_of_the_new_model_only() -> None:
    watched = Watched()
    watched.watch.answered(Loaded("a"), 99.0)  # type: ignore[arg-type]
    watched.answers(*[5.0] * (WATCH_FRAMES - 1))
    assert watched.told == []
    watched.answers(7.0)
    (numbers,) = watched.told
    assert (numbers.frames, numbers.p50_ms, numbers.p99_ms, numbers.old_p99_ms, numbers.compared) == (WATCH_FRAMES, 5.0, 7.0, 10.0, 0)
    assert numbers.memory_mb > 1, "the whole process is the new model's"


def test_a_model_that_gets_slow_shows_in_the_median_within_so_many_frames() -> None:
    watched = Watched()
    watched.answers(*[5.0] * 200)
    watched.answers(*[50.0] * WATCH_FRAMES)
    assert watched.told[-1].p50_ms == 50.0


def test_the_old_model_shadows_the_new_one_and_what_slows_both_down_convicts_nobody() -> None:
    old = Loaded("a")
    watched = Watched(old, watch_share=1.0)
    for at in range(WATCH_FRAMES):
        taken: Any = watched.watch.take_turn(frame(100.0 + at), 100.0 + at)
        assert taken is old
        watched.watch.compare(MOVED, A, 30.0, 40.0)
    watched.answers(*[30.0] * WATCH_FRAMES)
    (numbers,) = watched.told
    assert (numbers.compared, numbers.agreement, numbers.mean_iou) == (WATCH_FRAMES, 1.0, 0.5)
    assert numbers.old_p99_ms == 40.0, "slower than it was before the switch"
    assert numbers.memory_mb == 0.0, "two models in one process"


def test_answers_that_drift_apart_show_within_so_many_compared_frames() -> None:
    watched = Watched(Loaded("a"))
    for _ in range(50):
        watched.watch.compare(A, A, 5.0, 5.0)
    for _ in range(WATCH_FRAMES):
        watched.watch.compare((), A, 5.0, 5.0)
    watched.answers(*[5.0] * WATCH_FRAMES)
    assert watched.told[-1].agreement == 0.0


def test_the_old_model_does_not_run_on_frames_that_it_answered_itself_nor_after_the_end_nor_after_it_broke() -> None:
    old = Loaded("a")
    watched = Watched(old, watch_share=1.0)
    own = frame()
    own.model = old  # type: ignore[assignment]
    assert watched.watch.take_turn(own, 100.0) is None
    blame(watched.watch, RuntimeError("a vendor's surprise"))
    assert watched.watch.take_turn(frame(), 100.0) is None
    ended = Watched(old, watch_share=1.0)
    ended.watch.end()
    assert ended.watch.take_turn(frame(), 100.0) is None
    ended.answers(*[5.0] * WATCH_FRAMES)
    assert ended.told, "its own time is still watched"
