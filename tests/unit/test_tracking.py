"""Tracks over frames: crossing things keep their numbers, a swap does not end them, another scene does; without the library it says so."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jetfleet_agent.ipc import Raised
from jetfleet_agent.pipeline import tracking
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.tracking import TrackStep
from jetfleet_contract.app_config import Tracking
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.predictions import Detection

MODEL: Any = SimpleNamespace(key=("bundle", "1", "v"))
OTHER: Any = SimpleNamespace(key=("bundle", "2", "v"))
ON = AppConfig(tracking=Tracking())
IMAGE = np.zeros((480, 640, 3), np.uint8)


def thing(x: float, y: float = 100.0, *, label: str = "car", score: float = 0.9, side: float = 40.0) -> Detection:
    return Detection(label, score, (x, y, x + side, y + side))


class Rig:
    """A step, and frames at 25 a second."""

    def __init__(self, config: AppConfig = ON) -> None:
        self.events: list[Raised] = []
        self.step = TrackStep(self.events.append)
        self.step.configure(config)

    def see(self, number: int, *things: Detection, source: str = "front", at: float | None = None, position: int = -1,
            image: np.ndarray = IMAGE, model: Any = MODEL) -> tuple[Detection, ...]:
        frame = Frame(source, number, position, image, 100.0 + number / 25 if at is None else at, 0.0)
        frame.detections = things
        self.step.take(frame, model, frame.captured)
        return frame.detections

    def tracks(self, number: int, *things: Detection, **how: Any) -> list[int]:
        return [d.track for d in self.see(number, *things, **how)]


def test_a_thing_has_a_number_from_its_second_sight_on() -> None:
    rig = Rig()
    assert [rig.tracks(n, thing(10 + 4 * n)) for n in range(4)] == [[0], [1], [1], [1]]
    before = thing(50.0)
    after = rig.see(4, before)[0]
    assert (after.label, after.score, after.box) == (before.label, before.score, before.box)


def test_things_that_cross_keep_their_numbers() -> None:
    """Two of one label run through each other, hidden behind one another for some frames; order in the answer changes too."""
    rig = Rig()
    for n in range(60):
        left, right = thing(50 + 8 * n, 100), thing(530 - 8 * n, 112)
        hidden = 28 <= n <= 31
        seen = (left,) if hidden else (left, right) if n % 2 else (right, left)
        told = {d.box: d.track for d in rig.see(n, *seen)}
        if n == 5:
            first = told[left.box], told[right.box]
        if n > 5:
            assert told[left.box] == first[0]
            assert hidden or told[right.box] == first[1]
    assert sorted(first) == [1, 2]


def test_labels_do_not_mix() -> None:
    rig = Rig()
    for n in range(5):
        tracks = rig.tracks(n, thing(100), thing(100, label="person"))
    assert sorted(tracks) == [1, 2]


def test_a_swap_of_models_does_not_end_a_track() -> None:
    rig = Rig()
    tracks = [rig.tracks(n, thing(10 + 4 * n, score=0.9 if n < 10 else 0.5), model=MODEL if n < 10 else OTHER)[0] for n in range(20)]
    assert tracks[1:] == [1] * 19


def test_each_source_has_its_own_numbers() -> None:
    rig = Rig()
    for n in range(3):
        assert rig.tracks(n, thing(10), source="front") == rig.tracks(n, thing(300), thing(100), source="back")[:1]
    assert sorted(rig.tracks(3, thing(300), thing(100), source="back")) == [1, 2]


def test_frames_that_nobody_answered_pass_for_the_filter() -> None:
    """A thing that moves its own width in the gap is still where it is expected."""
    rig = Rig()
    for n in range(20):
        rig.tracks(n, thing(10 + 6 * n))
    assert rig.tracks(27, thing(10 + 6 * 27)) == [1]


def test_a_track_outlives_a_miss_for_as_long_as_it_may() -> None:
    rig = Rig(AppConfig(tracking=Tracking(keep_s=0.5)))
    for n in range(10):
        rig.tracks(n, thing(100), thing(300, 300))
    for n in range(10, 20):
        rig.tracks(n, thing(300, 300))
    assert rig.tracks(20, thing(100), thing(300, 300)) == [1, 2]
    for n in range(21, 40):
        rig.tracks(n, thing(300, 300))
    rig.tracks(40, thing(100), thing(300, 300))
    assert rig.tracks(41, thing(100), thing(300, 300)) == [3, 2], "after 0.5 s it is another thing"


@pytest.mark.parametrize("change", [{"number": 500}, {"at": 400.0}, {"image": np.zeros((240, 320, 3), np.uint8)}, {"position": 0},
                                    {"number": 2}])
def test_another_scene_begins_anew(change: dict[str, Any]) -> None:
    rig = Rig()
    for n in range(10):
        rig.tracks(n, thing(100), position=n)
    how = {"number": 10, "position": 10, **change}
    assert rig.tracks(how.pop("number"), thing(100), **how) == [0]


def test_a_faint_thing_goes_on_but_does_not_begin() -> None:
    rig = Rig(AppConfig(tracking=Tracking(least_score=0.5)))
    assert [rig.tracks(n, thing(100, score=0.4))[0] for n in range(3)] == [0, 0, 0]
    assert rig.tracks(3, thing(100, score=0.6)) == [1]
    assert rig.tracks(4, thing(100, score=0.4)) == [1]


def test_what_has_no_place_and_what_is_a_crop_is_left_alone() -> None:
    rig = Rig()
    whole = Detection("cat", 0.9)
    for n in range(3):
        told = rig.see(n, whole, thing(10), Detection("odd", 0.5, (5, 5, 5, 9)))
    assert [d.track for d in told] == [0, 1, 0]
    frame = Frame("front", 9, -1, IMAGE, 100.5, 0.0, box=(0, 0, 5, 5))
    frame.detections = (thing(10),)
    rig.step.take(frame, MODEL, 100.5)
    assert frame.detections[0].track == 0


def test_a_crowd_is_bounded() -> None:
    rig = Rig()
    crowd = [thing(40.0 * (i % 40), 40.0 * (i // 40), score=0.3 + i / 1000, side=30.0) for i in range(400)]
    for n in range(3):
        tracks = rig.tracks(n, *crowd)
    assert sum(track > 0 for track in tracks) == tracking.MAX_TRACKED
    assert all(tracks[-tracking.MAX_TRACKED:]), "the best scores"
    for n in range(200):
        rig.see(n, thing(5), source=f"camera-{n}")
    assert len(rig.step._sources) <= tracking.MAX_SOURCES


def test_settings_change_while_it_runs() -> None:
    rig = Rig(AppConfig())
    assert [rig.tracks(n, thing(100))[0] for n in range(3)] == [0, 0, 0]
    rig.step.configure(ON)
    assert [rig.tracks(n, thing(100))[0] for n in range(3, 6)] == [0, 1, 1]
    rig.step.configure(AppConfig(tracking=Tracking(keep_s=2.0)))
    assert rig.tracks(6, thing(100)) == [1]
    rig.step.configure(AppConfig())
    assert rig.tracks(7, thing(100)) == [0]
    rig.step.close()


def test_without_the_library_it_says_so_and_answers_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tracking._library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "norfair", None)
        rig = Rig()
        assert [rig.tracks(n, thing(100))[0] for n in range(3)] == [0, 0, 0]
        assert [(e.source, e.up, e.code) for e in rig.events] == [("tracking", True, "tracking.missing")]
        assert "norfair" in rig.events[0].detail
    rig.step.configure(ON)
    assert [(e.up, e.code) for e in rig.events[1:]] == [(False, "tracking.missing")]
