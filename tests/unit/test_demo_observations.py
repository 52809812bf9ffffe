"""The demo's numbers follow from what came over the broker, and from nothing else."""

from __future__ import annotations

import msgspec
import pytest

from jetfleet_contract import topics
from jetfleet_contract.messages import AppState, Birth, Capability, Envelope, Report, Result, Series, Telemetry, encode
from jetfleet_contract.predictions import Detection
from jetfleet_contract.sketch import sketch_of
from jetfleet_host.demo.observations import Observations, Variant
from jetfleet_host.demo.scene import Truth, TruthBox

BOX, OTHER = (10.0, 10.0, 110.0, 40.0), (200.0, 200.0, 300.0, 230.0)
TRUTH = Truth(640, 480, 25, ((TruthBox("EXIT", BOX, 0), TruthBox("OPEN", OTHER, 180)),))
CANDIDATE = "fp32@openvino:fp32"


@pytest.fixture
def seen() -> Observations:
    return Observations(TRUTH)


def result(*detections: Detection, app: str = "text", position: int = 0) -> bytes:
    return encode(Result(app, "front", 5, 1.0, 2.0, "1.0.0", CANDIDATE, detections, position))


def signed(kind: str, message: msgspec.Struct) -> bytes:
    return encode(Envelope(kind, msgspec.Raw(encode(message)), ()))


def test_text_is_scored_by_frame_against_the_truth(seen: Observations) -> None:
    seen.message(topics.result("a"), result(Detection("text", 0.9, BOX)), 1.0)
    seen.message(topics.result("b"), result(Detection("text", 0.9, BOX), Detection("text", 0.9, OTHER)), 1.0)
    (count,) = seen.scores.values()
    assert (count.matched, count.missed, count.extra) == (3, 1, 0)
    assert seen.results == {"a": 1, "b": 1}


def test_a_position_outside_the_video_is_not_scored(seen: Observations) -> None:
    seen.message(topics.result("a"), result(Detection("text", 0.9, BOX), position=1), 1.0)
    seen.message(topics.result("a"), result(Detection("text", 0.9, BOX), position=-1), 1.0)
    assert not seen.scores
    assert seen.results == {"a": 2}


def test_orientation_counts_only_crops_that_lie_on_a_label(seen: Observations) -> None:
    seen.message(topics.result("a"), result(Detection("0", 0.9, BOX), app="orient"), 1.0)
    seen.message(topics.result("a"), result(Detection("0", 0.9, OTHER), app="orient"), 1.0)
    seen.message(topics.result("a"), result(Detection("0", 0.9, (400.0, 1.0, 450.0, 20.0)), app="orient"), 1.0)
    assert seen.turns == {Variant("orient", "1.0.0", CANDIDATE): (1, 2)}


def test_a_report_sent_twice_is_one_update(seen: Observations) -> None:
    report = Report("a", 7, 2, "text", 1.0, "keeping", "", "2.0.0", "1.0.0", "committed", metrics={"gap_ms": 12.5, "frames_lost": 0.0})
    for _ in range(2):
        seen.message(topics.report("a"), signed("report", report), 30.0)
    (update,) = seen.updates
    assert (update.from_version, update.to_version, update.gap_ms, update.frames_lost) == ("1.0.0", "2.0.0", 12.5, 0)
    assert seen.outcomes("text", "2.0.0") == {"a": "committed"}
    assert seen.marks()[0].text == "v2 committed"


def test_a_commit_tells_what_its_trial_found(seen: Observations) -> None:
    kept = Report("a", 8, 2, "text", 1.0, "keeping", "b1", "2.0.0", "1.0.0", detail="agreement 0.93 over 20 frames")
    end = Report("a", 9, 2, "text", 2.0, "keeping", "b1", "2.0.0", "1.0.0", "committed", detail="kept without a crash")
    for report in (kept, end):
        seen.message(topics.report("a"), signed("report", report), 3.0)
    assert seen.updates[0].reason == "agreement 0.93 over 20 frames"


def test_a_model_that_ran_already_is_no_update(seen: Observations) -> None:
    again = Report("a", 9, 3, "text", 1.0, "idle", "", "2.0.0", "2.0.0", "committed", detail="this model already runs")
    seen.message(topics.report("a"), signed("report", again), 3.0)
    assert not seen.updates


def test_progress_is_no_update(seen: Observations) -> None:
    seen.message(topics.report("a"), signed("report", Report("a", 1, 2, "text", 1.0, "trial")), 3.0)
    assert not seen.updates
    assert seen.progress[("a", "text")].phase == "trial"


def test_windows_merge_once_each(seen: Observations) -> None:
    series = Series("text", "0" * 64, "1.0.0", CANDIDATE, "front", 10, 8, {"superseded": 2}, {"infer": sketch_of([5.0, 7.0])})
    for window in (1, 2, 2):
        seen.message(topics.telemetry("a"), signed("telemetry", Telemetry("a", 1, window, 0.0, 2.0, (series,))), 4.0 * window)
    frames = seen.frames()["a"]
    assert (frames.seen, frames.done, frames.dropped) == (20, 16, {"superseded": 4})
    assert seen.latency()["a"]["infer"].count == 4
    assert [point.at for point in seen.points()] == [3.0, 7.0]
    assert not seen.points("orient")


def test_a_birth_says_what_runs(seen: Observations) -> None:
    birth = Birth("a", 1, "0.1", 1, "f" * 64, Capability("cpu-x86", "cpu-x86", "x86_64"), (AppState("text", version="2.0.0"),))
    seen.message(topics.birth("a"), signed("birth", birth), 1.0)
    assert seen.running("text")["a"].version == "2.0.0"


def test_rubbish_is_counted_and_stops_nothing(seen: Observations) -> None:
    for payload in (b"", b"\xff", b"{}", b"[" * 100):
        seen.message(topics.result("a"), payload, 1.0)
    seen.message("jf/1/nonsense", b"", 1.0)
    seen.message(topics.result("a"), result(Detection("text", 0.9, BOX)), 1.0)
    assert seen.malformed == 5
    assert len(seen.scores) == 1


def test_the_frame_to_show_is_the_one_that_found_most(seen: Observations) -> None:
    assert seen.best_frame("1.0.0") is None
    seen.message(topics.result("a"), result(Detection("text", 0.9, BOX), Detection("text", 0.8, OTHER)), 1.0)
    best = seen.best_frame("1.0.0")
    assert best is not None
    assert len(best.detections) == 2


def test_shown_boxes_carry_what_the_orientation_app_said(seen: Observations) -> None:
    seen.message(topics.result("a"), result(Detection("180", 0.9, (200.0, 200.0, 300.0, 230.0)), app="orient"), 1.0)
    seen.message(topics.result("a"), result(Detection("text", 0.9, BOX), Detection("text", 0.8, OTHER)), 1.0)
    best = seen.best_frame("1.0.0")
    assert best is not None
    assert [found.label for found in seen.with_turns(best)] == ["", "turned"]
