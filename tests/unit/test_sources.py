"""Sources alone, and the capture thread around them: typed causes, every frame, reconnects, nothing secret told."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import cv2
import pytest
from captures import Taken, captures, taken
from pipelines import bar_image, save_video

from jetfleet_agent.pipeline.capture import GOOD_FRAMES, Capture, Pace
from jetfleet_agent.pipeline.sources import FrameSource, Shot, network, open_source, redact
from jetfleet_contract.errors import InputError, SourceError
from jetfleet_contract.messages import Source

__all__ = ["captures", "taken"]  # fixtures


def run(source: Source, taken: Taken, captures: list[Capture]) -> Capture:
    capture = Capture(source, taken, taken.told)
    captures.append(capture)
    capture.start()
    return capture


def test_a_video_gives_every_frame_in_order_then_ends(tmp_path: Path, taken: Taken, captures: list[Capture]) -> None:
    run(Source("front", str(save_video(tmp_path / "v.avi", 37))), taken, captures)
    taken.until_code("source.ended")
    assert [frame.position for frame in taken.frames] == list(range(37))
    assert [frame.number for frame in taken.frames] == list(range(37))
    assert [event.up for event in taken.events] == [True, False]
    dark = [int((frame.image[24] < 60).all(axis=1).argmax()) for frame in taken.frames]
    assert dark[:10] == pytest.approx([4 + 3 * i for i in range(10)], abs=2)


def test_a_looped_video_counts_frames_on_while_positions_start_again(tmp_path: Path, taken: Taken, captures: list[Capture]) -> None:
    run(Source("front", "file:" + str(save_video(tmp_path / "v.avi", 5)), loop=True), taken, captures)
    taken.until_frames(13)
    assert [frame.position for frame in taken.frames[:13]] == [0, 1, 2, 3, 4] * 2 + [0, 1, 2]
    assert [frame.number for frame in taken.frames[:13]] == list(range(13))
    assert taken.codes() == []


def test_pace_keeps_the_rate_and_never_hurries_after_a_late_frame() -> None:
    pace = Pace(10.0, now=100.0)
    assert pace.wait_s(100.0) == 0.0
    pace.taken(100.01)
    assert pace.wait_s(100.01) == pytest.approx(0.09)
    pace.taken(100.10)
    assert pace.wait_s(100.15) == pytest.approx(0.05)
    pace.taken(105.0)
    assert pace.wait_s(105.0) == 0.0
    pace.taken(105.0)
    assert pace.wait_s(105.0) == pytest.approx(0.1), "four seconds were missed and are not made up for"


def test_a_cap_drops_what_comes_over_it_and_no_more() -> None:
    """A camera at 30 fps capped at 10: one of three frames is taken."""
    pace, kept = Pace(10.0, now=0.0), []
    for index in range(90):
        now = index / 30.0
        if not pace.is_early(now):
            pace.taken(now)
            kept.append(index)
    assert len(kept) == pytest.approx(30, abs=1)


def test_no_rate_means_no_waiting() -> None:
    pace = Pace(0.0, now=5.0)
    pace.taken(6.0)
    assert pace.wait_s(6.0) == 0.0
    assert not pace.is_early(6.0)


def test_a_missing_file_is_told_once_and_found_when_it_appears(tmp_path: Path, taken: Taken, captures: list[Capture],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetfleet_agent.pipeline.capture.decorrelated", lambda previous, unit, cap_s: 0.02)
    run(Source("front", str(tmp_path / "late.avi")), taken, captures)
    taken.until_code("source.missing")
    assert "late.avi" in taken.events[0].detail
    save_video(tmp_path / "part.avi", 4).rename(tmp_path / "late.avi")
    taken.until_code("source.ended")
    assert taken.codes() == ["source.missing", "source.ended"]
    assert len(taken.frames) == 4


def test_a_truncated_video_is_told_with_how_far_it_went(tmp_path: Path, taken: Taken, captures: list[Capture]) -> None:
    whole = save_video(tmp_path / "v.avi", 60, width=320, height=240)
    data = whole.read_bytes()
    # The header still says 60 frames; the index at the end and half of the pictures are gone.
    (tmp_path / "half.avi").write_bytes(data[:len(data) // 2])
    run(Source("front", str(tmp_path / "half.avi")), taken, captures)
    taken.until_code("source.truncated")
    assert 5 < len(taken.frames) < 55
    assert f"after {len(taken.frames)} of" in taken.events[-1].detail


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(SourceError) as caught:
        open_source(Source("front", str(tmp_path / "v.mp4"))).open()
    assert caught.value.code == "source.open"
    assert caught.value.remedy


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SourceError) as caught:
        open_source(Source("front", str(tmp_path))).open()
    assert caught.value.code == "source.empty"


def test_a_folder_goes_on_behind_an_unreadable_image(tmp_path: Path, taken: Taken, captures: list[Capture]) -> None:
    for index in (0, 1, 3):
        cv2.imwrite(str(tmp_path / f"{index}.png"), bar_image(index))
    (tmp_path / "2.png").write_bytes(b"\x89PNG no more")
    run(Source("front", str(tmp_path)), taken, captures)
    taken.until_code("source.ended")
    assert [frame.position for frame in taken.frames] == [0, 1, 3]
    assert taken.skips == ["unreadable"]
    assert "2.png" in next(event.detail for event in taken.events if event.code == "source.image")


class Dying(FrameSource):
    """A camera that gives some frames at each opening, or refuses (None)."""

    live = True
    keeps_time = True

    def __init__(self, *lives: int | None) -> None:
        super().__init__()
        self._lives = list(lives)
        self._left = 0

    def open(self) -> None:
        life = self._lives.pop(0) if self._lives else 0
        if life is None:
            raise SourceError("source.refused", "the camera refuses")
        self._left = life

    def read(self, buffers):  # type: ignore[no-untyped-def]
        if not self._left:
            raise SourceError("source.gone", "the camera stopped")
        self._left -= 1
        return Shot(bar_image(0), time.monotonic())

    def close(self) -> None:
        pass


def test_a_dying_camera_is_reconnected_with_growing_pauses(taken: Taken, captures: list[Capture], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def pause(previous: float, unit: float, cap_s: float) -> float:
        assert 0.75 <= cap_s <= 30.0
        asked.append(previous)
        assert 0 <= unit <= 1
        return previous + 0.001

    reader = Dying(GOOD_FRAMES, None, None, GOOD_FRAMES - 1, GOOD_FRAMES)
    monkeypatch.setattr("jetfleet_agent.pipeline.capture.open_source", lambda source: reader)
    monkeypatch.setattr("jetfleet_agent.pipeline.capture.decorrelated", pause)
    run(Source("front", "rtsp://camera/1"), taken, captures)
    taken.until(lambda: len(asked) >= 6)
    assert asked[:3] == pytest.approx([0, 0.001, 0.002])
    assert asked[3] == pytest.approx(0.003), "a camera that dies again after a few frames is not well"
    assert asked[4:6] == pytest.approx([0, 0.001]), "and after some more it is"
    assert taken.codes()[:2] == ["source.gone", "source.refused"]
    assert [event.up for event in taken.events[:4]] == [True, False, False, True]


@pytest.mark.parametrize("uri", ["rtsp://user:secret@127.0.0.1:{port}/live?token=secret", "http://127.0.0.1:{port}/video"])
def test_a_camera_on_a_closed_port_is_refused_in_bounded_time(uri: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        open_source(Source("front", uri.format(port=port))).open()
    assert caught.value.code == "source.refused"
    assert "secret" not in str(caught.value)
    assert time.monotonic() - began < network.OPEN_TIMEOUT_S + 1


def test_a_camera_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "OPEN_TIMEOUT_S", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4)
        began = time.monotonic()
        with pytest.raises(SourceError) as caught:
            open_source(Source("front", f"rtsp://u:secret@127.0.0.1:{listener.getsockname()[1]}/x")).open()
    assert caught.value.code == "source.timeout"
    assert "secret" not in str(caught.value)
    assert time.monotonic() - began < 20


def test_a_host_name_that_does_not_exist() -> None:
    with pytest.raises(SourceError) as caught:
        open_source(Source("front", "rtsp://no-such-camera.invalid/live")).open()
    assert caught.value.code in {"source.dns", "source.unreachable"}


@pytest.mark.parametrize(("uri", "shown"), [
    ("rtsp://user:pass@10.0.0.7:8554/live?token=x", "rtsp://10.0.0.7:8554/live"),
    ("rtsp://10.0.0.7/live", "rtsp://10.0.0.7/live"),
    ("/data/video.mp4", "/data/video.mp4"),
    ("rtsp://user:pa:ss@[::1", "rtsp://(unreadable)"),
    ("rtsps://user:pass@10.0.0.7/live#ca=/etc/ca.pem", "rtsps://10.0.0.7/live"),
    ("gst:rtspsrc location=rtsp://user:pass@10.0.0.7/live ! decodebin", "gst:(pipeline)"),
])
def test_redact(uri: str, shown: str) -> None:
    assert redact(uri) == shown


@pytest.mark.parametrize("uri", ["local:front", "ftp://x/y", "synthetic:huge", "synthetic:2x2", "v4l2:/etc/passwd", "v4l2://../x", "gst:",
                                 "gst:videotestsrc ! appsink", "csi://front", "csi://0?width=1", "csi://0?exec=x",
                                 "rtsp://user:pa:ss@[::1"])
def test_a_uri_of_no_known_kind(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        open_source(Source("front", uri))
    assert caught.value.code == "source.uri"


def test_synthetic_frames_repeat_exactly(taken: Taken, captures: list[Capture]) -> None:
    run(Source("front", "synthetic:160x120?frames=9"), taken, captures)
    taken.until_code("source.ended")
    again = Taken()
    run(Source("front", "synthetic:160x120?frames=9"), again, captures)
    again.until_code("source.ended")
    assert len(taken.frames) == len(again.frames) == 9
    assert all((a.image == b.image).all() for a, b in zip(taken.frames, again.frames, strict=True))
    assert not (taken.frames[0].image == taken.frames[8].image).all()
