"""The cascade's station in the pipeline: what it cuts, what it tells, and what an answer makes of a result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from brokers import until

from jetfleet_agent import ipc
from jetfleet_agent.crop_spool import CropSpool, spool_folder, take_crop
from jetfleet_agent.pipeline.answer_crops import GREY, CropModels, in_its_place
from jetfleet_agent.pipeline.cascade import CascadeStep, encode_within
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_contract.app_config import AppConfig, Cascade, Privacy, Tile
from jetfleet_contract.bundle import InputSpec, TaskSpec
from jetfleet_contract.crops import CropJob, jpeg_size
from jetfleet_contract.messages import Result
from jetfleet_contract.predictions import Detection

ON = AppConfig(privacy=Privacy(("cascade",)), cascade=Cascade(deadline_s=1e6))
MODEL: Any = SimpleNamespace(key=("ab" * 32, "1", "v"), task=SimpleNamespace(spec=TaskSpec("detect-db", InputSpec("x", 64, 48))))
UNSURE = Detection("text", 0.3, (20.0, 20.0, 40.0, 30.0))


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = spool_folder(folder, "reader")
        self.sent: list[ipc.CropReady] = []
        self.amended: list[Result] = []
        self.step = CascadeStep("reader", CropSpool(self.folder), self._send, self.amended.append)
        self.image = np.random.default_rng(3).integers(0, 255, (96, 128, 3), np.uint8)

    def _send(self, event: msgspec.Struct) -> None:
        assert isinstance(event, ipc.CropReady)
        self.sent.append(event)

    def take(self, *found: Detection, now: float = 1.0, number: int = 7) -> Frame:
        frame = Frame("front", number, 3, self.image, 0.5, 1e9)
        frame.detections = found
        self.step.take(frame, MODEL, now)
        return frame

    def asked(self, count: int = 1) -> ipc.CropReady:
        until(lambda: len(self.sent) >= count, "a crop")
        return self.sent[count - 1]

    def counts(self) -> dict[str, float]:
        return {name.removeprefix("cascade_"): value for name, value in self.step.take_counts().items() if value}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.step.close()


def at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr("jetfleet_agent.pipeline.cascade.time.monotonic", lambda: now)


@pytest.mark.parametrize("config", [AppConfig(), AppConfig(cascade=Cascade()), AppConfig(privacy=Privacy(("cascade", "harvest"))),
                                    AppConfig(privacy=Privacy(("snapshot", "preview")), cascade=Cascade())])
def test_it_is_off_without_settings_and_without_a_purpose(rig: Rig, config: AppConfig) -> None:
    rig.step.configure(config)
    rig.take(UNSURE)
    assert rig.step.take_counts() == {}
    assert not rig.folder.exists()


def test_a_crop_with_its_margin_is_put_down_and_told(rig: Rig) -> None:
    rig.step.configure(ON)
    rig.take(Detection("text", 0.9, (60.0, 60.0, 80.0, 70.0)), UNSURE)
    told = rig.asked()
    note = told.note
    assert (note.app, note.source, note.frame, note.bundle, note.canvas) == ("reader", "front", 7, "ab" * 32, (128, 96))
    assert note.window[0] <= 10
    assert note.window[2] >= 50
    assert note.edge[0] == UNSURE
    picture = take_crop(rig.folder, told.name)
    width, _ = jpeg_size(picture)  # no larger than what the model's input would show of it
    assert width <= round((note.window[2] - note.window[0]) / 2) + 1
    assert rig.counts() == {"asked": 1.0}


def test_an_answer_in_time_amends_the_frames_result(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.step.configure(ON)
    sure = Detection("text", 0.9, (90.0, 60.0, 110.0, 70.0))
    rig.take(sure, UNSURE)
    told = rig.asked()
    at_once(rig, monkeypatch, 2.0)
    better = Detection("sign", 0.95, (21.0, 20.0, 41.0, 30.0))
    rig.step.answered(ipc.Answered(told.name, (better,)))
    result = rig.amended[0]
    assert (result.frame, result.amended, result.detections, result.position) == (7, True, (sure, better), 3)
    assert result.age_ms == pytest.approx(1500.0)
    rig.step.answered(ipc.Answered(told.name, ()))  # again: it is closed
    assert len(rig.amended) == 1
    assert rig.counts() == {"asked": 1.0, "in_time": 1.0, "changed": 1.0}


def test_answers_to_several_crops_of_one_frame_add_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.step.configure(ON)
    other = Detection("text", 0.25, (80.0, 60.0, 100.0, 70.0))
    rig.take(UNSURE, other)
    first, second = rig.asked(1), rig.asked(2)
    at_once(rig, monkeypatch, 2.0)
    rig.step.answered(ipc.Answered(first.name, (msgspec.structs.replace(first.note.edge[0], score=0.9),)))
    rig.step.answered(ipc.Answered(second.name, ()))
    assert [len(result.detections) for result in rig.amended] == [2, 1]
    assert rig.amended[1].detections[0].score == 0.9


def test_a_late_answer_a_refusal_and_silence_change_nothing_and_are_counted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.step.configure(msgspec.structs.replace(ON, cascade=Cascade(deadline_s=2.0, repeat_s=0.0)))
    for number in range(3):
        rig.take(UNSURE, number=number)
        rig.asked(number + 1)
    at_once(rig, monkeypatch, 3.5)
    rig.step.answered(ipc.Answered(rig.sent[0].name, ()))
    rig.step.answered(ipc.Answered(rig.sent[1].name, code="crop.hour-budget"))
    at_once(rig, monkeypatch, 100.0)
    assert rig.counts() == {"asked": 3.0, "late": 1.0, "refused": 1.0, "never": 1.0}
    assert rig.amended == []


def test_a_still_thing_is_asked_about_once(rig: Rig) -> None:
    rig.step.configure(ON)
    for number in range(5):
        rig.take(UNSURE, number=number, now=1.0 + number)
    rig.asked()
    rig.image = 255 - rig.image
    rig.take(UNSURE, number=9, now=7.0)
    assert rig.asked(2).note.frame == 9
    assert len(rig.sent) == 2


def test_only_harvest_waits_for_no_answer(rig: Rig) -> None:
    rig.step.configure(msgspec.structs.replace(ON, privacy=Privacy(("harvest",))))
    rig.take(UNSURE)
    rig.step.answered(ipc.Answered(rig.asked().name, ()))
    assert rig.amended == []
    assert rig.counts() == {"asked": 1.0}


def test_a_tiled_frames_canvas_is_a_tile_and_answers_come_back_to_their_place(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.step.configure(msgspec.structs.replace(ON, tile=Tile(48)))
    found = Detection("text", 0.3, (100.0, 70.0, 110.0, 80.0))
    rig.take(found)
    told = rig.asked()
    assert told.note.canvas == (48, 48)
    edge = told.note.edge[0]
    assert edge.box is not None
    assert 0.0 <= edge.box[0] < 48.0
    at_once(rig, monkeypatch, 2.0)
    rig.step.answered(ipc.Answered(told.name, (msgspec.structs.replace(edge, score=0.9),)))
    assert rig.amended[0].detections == (msgspec.structs.replace(found, score=0.9),)


def test_a_whole_frame_label_shows_the_whole_frame(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.step.configure(ON)
    rig.take(Detection("cat", 0.3))
    told = rig.asked()
    assert told.note.window == (0, 0, 128, 96)
    at_once(rig, monkeypatch, 2.0)
    rig.step.answered(ipc.Answered(told.name, (Detection("dog", 0.9),)))
    assert rig.amended[0].detections == (Detection("dog", 0.9),)


@pytest.mark.parametrize("most", [500, 2_000, 20_000])
def test_pictures_fit_into_their_bytes(most: int) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (400, 600, 3), np.uint8)
    data = encode_within(noise, (600, 400), most)
    assert len(data) <= most or max(jpeg_size(data)) <= 16


# --- where the crop is answered ----------------------------------------------------------------------------------


def test_a_crop_is_put_where_it_was(rig: Rig) -> None:
    rig.step.configure(ON)
    rig.take(UNSURE)
    told = rig.asked()
    picture = take_crop(rig.folder, told.name)
    canvas = in_its_place(CropJob(1, "", MODEL.task.spec, told.note.canvas, ((told.note.window, picture),)))
    x0, y0, x1, y1 = told.note.window
    assert canvas.shape == (96, 128, 3)
    outside = np.ones((96, 128), bool)
    outside[y0:y1, x0:x1] = False
    assert (canvas[outside] == GREY).all()
    assert abs(canvas[y0:y1, x0:x1].astype(int).mean() - rig.image[y0:y1, x0:x1].mean()) < 10


def test_a_model_that_is_not_there_and_a_picture_that_is_none_are_answers(tmp_path: Path) -> None:
    models = CropModels()
    task = TaskSpec("detect-db", InputSpec("x", 64, 48), ("text",))
    job = CropJob(3, str(tmp_path / "no.onnx"), task, (64, 48), (((0, 0, 8, 8), b"no"),))
    assert models.answer(job).code
    assert models.answer(msgspec.structs.replace(job, task=TaskSpec("no-such-task", InputSpec("x", 64, 48)))).code == "task.unknown"
