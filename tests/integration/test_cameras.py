"""Network cameras, replayed with a real RTSP server: every fault has its typed cause, and pictures come again once it is over."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest
from cameras import RtspCamera, camera, certificate
from captures import Taken, captures, taken

from jetfleet_agent.pipeline.capture import Capture
from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.sources import FreshBuffers, Shot, network, open_source
from jetfleet_agent.pipeline.sources.network import NetworkCamera
from jetfleet_contract.errors import SourceError
from jetfleet_contract.messages import Source

Cameras = Callable[..., RtspCamera]
T = TypeVar("T")
__all__ = ["camera", "captures", "taken"]  # fixtures


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time-outs and pauses short enough for a test; a crowded machine must still open a camera within them."""
    monkeypatch.setattr(network, "READ_TIMEOUT_S", 1.5)
    monkeypatch.setattr("jetfleet_agent.pipeline.capture.decorrelated", lambda previous, unit, cap_s: 0.1)


def run(uri: str, taken: Taken, captures: list[Capture], fps: float = 0.0) -> Capture:
    capture = Capture(Source("front", uri, fps), taken, taken.told)
    captures.append(capture)
    capture.start()
    return capture


def patiently(action: Callable[[], T]) -> T:
    """An encoder that has just started on a crowded machine may be silent past the time-out; a board opens the camera anew then, and so do
    we, twice at most."""
    for _ in range(2):
        try:
            return action()
        except SourceError as error:
            if error.code != "source.no-frames":
                raise
    return action()


def shots(uri: str, count: int) -> list[Shot]:
    return patiently(lambda: opened(uri, count))


def opened(uri: str, count: int) -> list[Shot]:
    reader = open_source(Source("front", uri))
    try:
        reader.open()
        given = [reader.read(FreshBuffers()) for _ in range(count)]
    finally:
        reader.close()
    return [shot for shot in given if shot is not None]


def cause(uri: str) -> str:
    """The code with which a camera cannot be opened; the error helps, and holds no password."""
    with pytest.raises(SourceError) as caught:
        opened(uri, 1)
    error = caught.value
    assert error.remedy
    assert "s3cret" not in error.diagnostics()
    assert error.__cause__ is None
    assert error.__context__ is None, "a traceback would quote the address"
    return error.code


def colour(image: Image) -> tuple[int, ...]:
    return tuple(round(float(value)) for value in image[40:-40, 40:-40].mean(axis=(0, 1)))


@pytest.mark.parametrize("options", [
    {}, {"format": "Y42B"}, {"format": "I420_10LE"}, {"format": "Y444"}, {"codec": "mjpeg"}, {"audio": True}, {"width": 322, "height": 242},
], ids=["4:2:0", "4:2:2", "10 bit", "4:4:4", "JPEG full range", "audio beside it", "padded rows"])
def test_colours_are_right_whatever_the_camera_sends(camera: Cameras, options: dict[str, object]) -> None:
    given = shots(camera(pattern="red", gop=10, **options).uri(), 5)
    assert {shot.image.shape for shot in given} == {(options.get("height", 240), options.get("width", 320), 3)}
    blue, green, red = colour(given[-1].image)
    assert blue < 16
    assert green < 16
    assert red > 236
    assert given[-1].clock == "rtp"
    assert given[-1].captured >= given[0].captured


def test_a_stream_that_starts_inside_a_group_of_pictures_gives_whole_pictures_only(camera: Cameras) -> None:
    white = camera(pattern="white", gop=45)
    for _ in range(2):
        assert min(shot.image.min() for shot in shots(white.uri(), 3)) > 225


def test_sound_alone_is_no_camera(camera: Cameras) -> None:
    assert cause(camera(audio=True, video=False).uri()) == "source.no-video"


@pytest.mark.parametrize("method", ["basic", "digest"])
def test_users_and_passwords(camera: Cameras, method: str) -> None:
    guarded = camera(user="viewer", password="s3cret", auth=method, gop=10)
    assert len(shots(guarded.uri("viewer:s3cret"), 2)) == 2
    assert cause(guarded.uri("viewer:wr0ng-s3cret")) == "source.auth"
    assert cause(guarded.uri()) == "source.auth"


def test_a_path_that_is_not_there(camera: Cameras) -> None:
    assert cause(camera(gop=10).uri("u:s3cret", path="/other")) == "source.path"


def test_tls_hides_and_authenticates_where_it_is_told_whom_to_trust(camera: Cameras, tmp_path: Path) -> None:
    paths = certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    secure = camera(certificate=paths[0], key=paths[1], user="viewer", password="s3cret", gop=10)
    uri = secure.uri("viewer:s3cret", "rtsps")
    assert len(shots(uri, 2)) == 2
    assert len(shots(f"{uri}#ca={paths[0]}", 2)) == 2
    assert cause(f"{uri}#ca={certificate(other)[0]}") == "source.tls"
    assert cause(f"{uri}#ca={tmp_path}/nothing") == "source.tls"
    assert cause(secure.uri("viewer:s3cret-not", "rtsps")) == "source.auth"
    assert cause(camera(gop=10).uri("viewer:s3cret", "rtsps")) == "source.tls"


def test_a_camera_without_key_frames_says_so_and_comes_up_with_one(camera: Cameras, taken: Taken, captures: list[Capture], quick: None,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "KEY_TIMEOUT_S", 1.0)
    endless = camera(gop=100_000)
    run(endless.uri(), taken, captures)
    taken.until_code("source.no-keyframe")
    assert not taken.frames
    monkeypatch.setattr(network, "KEY_TIMEOUT_S", 30.0)
    for _ in range(60):
        endless.do("key")
        if taken.wait_for(lambda: bool(taken.frames), 1.0):
            return
    pytest.fail(f"no frame came: {taken.codes()}")


def test_a_pause_is_told_once_and_the_stream_goes_on(camera: Cameras, taken: Taken, captures: list[Capture], quick: None) -> None:
    paused = camera(gop=10)
    run(paused.uri(), taken, captures)
    taken.until_frames(5)
    paused.do("pause")
    taken.until_code("source.no-frames")
    before = len(taken.frames)
    paused.do("resume")
    taken.until_frames(before + 5)
    assert [event.up for event in taken.events][-1] is True
    assert taken.codes().count("source.no-frames") == 1


def test_a_camera_whose_power_goes_is_back_when_it_is(camera: Cameras, taken: Taken, captures: list[Capture], quick: None) -> None:
    lost = camera(gop=10)
    run(lost.uri(), taken, captures)
    taken.until_frames(5)
    lost.kill()
    taken.until_code("source.refused")
    assert taken.codes()[0] == "source.gone"
    before = len(taken.frames)
    lost.start()
    taken.until_frames(before + 5)
    # The queue between us and the camera died with it: nothing old is given.
    assert taken.frames[before].arrived - taken.frames[before].captured < network.BEHIND_S


def test_another_resolution_in_mid_stream(camera: Cameras, taken: Taken, captures: list[Capture]) -> None:
    changing = camera(gop=10)
    run(changing.uri(), taken, captures)
    taken.until_frames(5)
    changing.do("size", width=640, height=360)
    taken.until(lambda: any(frame.image.shape == (360, 640, 3) for frame in taken.frames))
    assert {frame.image.shape for frame in taken.frames} == {(240, 320, 3), (360, 640, 3)}
    assert taken.codes() == []


def test_a_damaged_group_of_pictures_is_counted_and_never_shown(camera: Cameras, taken: Taken, captures: list[Capture]) -> None:
    """Every picture is white; what a decoder makes of the damage is not."""
    white = camera(pattern="white", gop=10)
    run(white.uri(), taken, captures)
    taken.until_frames(5)
    white.do("damage", every=7)
    taken.until(lambda: taken.skips.count("damaged") >= 5)
    white.do("damage", every=0)
    before = len(taken.frames)
    taken.until_frames(before + 5)
    assert min(int(frame.image.min()) for frame in taken.frames) > 200
    assert taken.codes() == []


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http"])
def test_stop_does_not_wait_for_a_camera_that_accepts_and_never_answers(scheme: str, taken: Taken, captures: list[Capture],
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "OPEN_TIMEOUT_S", 1.0)
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(16)
        capture = run(f"{scheme}://viewer:s3cret@127.0.0.1:{hole.getsockname()[1]}/x", taken, captures)
        taken.until_code("source.timeout")
        capture.stop(0.0)
        taken.until(lambda: not capture.is_alive)
    assert not any("s3cret" in event.detail for event in taken.events)


class Stalling(FreshBuffers):
    """Memory that is not given while `held`."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()

    def take(self, height: int, width: int) -> Image:
        assert self.free.wait(60)
        return super().take(height, width)


def test_frames_that_wait_before_us_show_their_age_and_are_passed_over(camera: Cameras, taken: Taken, captures: list[Capture]) -> None:
    """Latency creep made visible: our reader stands still for three seconds while the camera goes on."""
    steady = camera(gop=10)
    memory = Stalling()
    capture = Capture(Source("front", steady.uri()), taken, taken.told, memory)
    captures.append(capture)
    capture.start()
    taken.until_frames(30)
    calm = [frame.arrived - frame.captured for frame in taken.frames]
    assert sorted(calm)[len(calm) // 2] < 0.5
    memory.free.clear()
    threading.Event().wait(3.0)  # not readiness: this is the stall itself
    memory.free.set()
    before = len(taken.frames)
    taken.until_frames(before + 60)
    ages = [frame.arrived - frame.captured for frame in taken.frames[before:]]
    assert max(ages) > 2.0, "the frame that was held while the reader stood still is as old as that"
    assert taken.skips.count("behind") > 10
    assert ages[-1] < network.BEHIND_S


def test_a_cap_passes_frames_over_and_can_change_at_any_time(camera: Cameras, taken: Taken, captures: list[Capture]) -> None:
    capture = run(camera(gop=10, codec="mjpeg").uri(), taken, captures)
    taken.until_frames(10)
    assert "fps-cap" not in taken.skips
    capture.set_cap(2.0)
    taken.until(lambda: taken.skips.count("fps-cap") >= 60)
    capped, before = taken.skips.count("fps-cap"), len(taken.frames)
    assert before - 10 < capped / 3
    capture.set_cap(0.0)
    taken.until_frames(before + 30)


def test_fifty_openings_leave_nothing_behind(camera: Cameras) -> None:
    many = camera(codec="mjpeg")
    process = psutil.Process()

    def once() -> None:
        reader = NetworkCamera(many.uri())
        try:
            reader.open()
            assert reader.read(FreshBuffers()) is not None
        finally:
            reader.close()

    for _ in range(10):
        patiently(once)
    gc.collect()
    files, threads, memory = process.num_fds(), process.num_threads(), process.memory_info().rss
    for _ in range(50):
        patiently(once)
    gc.collect()
    assert process.num_fds() <= files + 1
    assert process.num_threads() <= threads + 1
    assert process.memory_info().rss - memory < 16 << 20


def test_a_stream_that_is_a_file_behind_http(tmp_path: Path) -> None:
    """Mono, with two resolutions in one stream, ended by its server: an MJPEG camera behind HTTP."""
    import cv2

    pictures = [np.full((48, 64), 200, np.uint8)] * 3 + [np.full((96, 128), 60, np.uint8)] * 3
    body = b"".join(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data)
                    for data in (cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(4)

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=frame\r\n\r\n" + body)

        threading.Thread(target=serve, daemon=True).start()
        reader = open_source(Source("front", f"http://127.0.0.1:{server.getsockname()[1]}/video"))
        reader.open()
        read = [reader.read(FreshBuffers()) for _ in range(6)]
        with pytest.raises(SourceError) as caught:
            reader.read(FreshBuffers())
        reader.close()
    assert caught.value.code == "source.gone"
    given = [shot for shot in read if shot is not None]
    assert [shot.image.shape[:2] for shot in given] == [(48, 64)] * 3 + [(96, 128)] * 3
    assert abs(int(given[0].image.mean()) - 200) < 4
    assert abs(int(given[-1].image.mean()) - 60) < 4
    assert {shot.clock for shot in given} == {"arrival"}
