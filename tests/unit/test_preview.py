"""The preview: pictures only while somebody looks, one for all who look; whoever may not see sees nothing; rubbish ends one connection."""

from __future__ import annotations

import contextlib
import http.client
import logging
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from brokers import LOOPBACK, until
from hypothesis import given, settings
from hypothesis import strategies as st

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.sinks import drawing, preview
from jetfleet_agent.pipeline.sinks.drawing import PALETTE, colour_of, draw, plain, shrunk
from jetfleet_agent.pipeline.sinks.preview import Preview
from jetfleet_contract.app_config import PreviewSink
from jetfleet_contract.errors import InputError, StorageError
from jetfleet_contract.messages import Result
from jetfleet_contract.predictions import Detection

TOKEN = "a-token-of-enough-letters"


def frame(number: int = 0, source: str = "front", detections: tuple[Detection, ...] = ()) -> Frame:
    made = Frame(source, number, 0, np.full((240, 320, 3), 90, np.uint8), 1.0, 2.0)
    made.detections = detections
    return made


class Running:
    """A preview whose frames come from a thread, until it is closed."""

    def __init__(self, token: str = "", *, fps: float = 60.0, sources: tuple[str, ...] = ("front",), address: str = LOOPBACK) -> None:
        self.preview = Preview("shop", PreviewSink(fps=fps, width=160, token=token), ("preview",), address)
        self.port = self.preview.port
        self.sources = sources
        self.number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()
        until(lambda: self.number > 0, "a frame")

    def _feed(self) -> None:
        while not self._stop.wait(0.005):
            for source in self.sources:
                made = frame(self.number, source)
                self.preview.take(made, Result("shop", source, self.number, 2.0, 1.0, "1.2", "v"), self.number * 0.005)
            self.number += 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)
        self.preview.close()

    def get(self, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
        link = http.client.HTTPConnection(LOOPBACK, self.port, timeout=30)
        with contextlib.closing(link):
            link.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            answer = link.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())

    def watch(self, path: str = "/front.mjpg") -> socket.socket:
        link = socket.create_connection((LOOPBACK, self.port), timeout=30)
        link.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return link

    @property
    def counts(self) -> dict[str, int]:
        return self.preview.counts()


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def starter(*args: Any, **named: Any) -> Running:
        started.append(Running(*args, **named))
        return started[-1]

    yield starter
    for one in started:
        one.close()


def pictures(link: socket.socket, count: int) -> bytes:
    seen = b""
    while seen.count(b"Content-Type: image/jpeg") <= count:
        more = link.recv(65536)
        assert more, "the stream ended"
        seen += more
    return seen


def test_nobody_watches_and_nothing_is_made(start: Callable[..., Running]) -> None:
    running = start()
    until(lambda: running.number > 100, "a hundred frames")
    assert running.counts == {"viewers": 0, "encoded": 0, "superseded": 0, "slow": 0, "refused": 0}
    status, page, headers = running.get("/")
    assert (status, b"front.mjpg" in page, headers["Cache-Control"]) == (200, True, "no-store")
    assert running.counts["encoded"] == 0, "the page itself makes no picture"


def test_many_viewers_share_one_picture(start: Callable[..., Running]) -> None:
    running = start()
    links = [running.watch() for _ in range(6)]
    for link in links:
        pictures(link, 3)
    with running.preview._views._changed:
        before = running.preview._views.encoded, running.preview._views._views["front"].number
    assert before[0] == before[1], "six viewers, one encoding"
    for link in links:
        link.close()
    until(lambda: running.counts["viewers"] == 0, "all have left")
    encoded, number = running.counts["encoded"], running.number
    until(lambda: running.number > number + 50, "more frames")
    assert running.counts["encoded"] <= encoded + 1
    assert running.preview._views._views["front"].encoded == b"", "no picture is kept for nobody"


def test_only_the_watched_source_is_drawn(start: Callable[..., Running]) -> None:
    running = start(sources=("front", "back"))
    link = running.watch("/back.mjpg")
    pictures(link, 2)
    views = running.preview._views._views
    assert views["back"].number > 0
    assert views["front"].number == 0
    link.close()
    assert running.get("/side.mjpg")[0] == 404
    status, data, _ = running.get("/front.jpg")
    assert (status, data[:3]) == (200, b"\xff\xd8\xff")


def test_a_viewer_that_reads_nothing_is_dropped_and_the_others_see_on(start: Callable[..., Running],
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "SLOW_S", 0.5)
    noise = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)  # large pictures fill the socket soon
    monkeypatch.setattr("jetfleet_agent.pipeline.sinks.views.shrunk", lambda image, width: noise.copy())
    running = start()
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect((LOOPBACK, running.port))
    deaf.sendall(b"GET /front.mjpg HTTP/1.1\r\nHost: localhost\r\n\r\n")
    good = running.watch()
    until(lambda: pictures(good, 5) and running.counts["slow"] == 1, "the deaf one is dropped", 60)
    pictures(good, 2)
    deaf.close()
    good.close()


def test_a_token_is_wanted_everywhere_and_told_nowhere(start: Callable[..., Running], caplog: pytest.LogCaptureFixture,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    running = start(TOKEN)
    for path in ("/", "/front.jpg", "/front.mjpg", "/?token=wrong", f"/?token={TOKEN}x", "/?token=", "/%00", "/../etc"):
        status, body, _ = running.get(path)
        assert (status, body) == (401, b"this preview wants its token\n")
    assert running.get("/", Authorization="Basic " + TOKEN)[0] == 401
    assert running.get("/", Authorization="Bearer " + TOKEN)[0] == 200
    status, page, headers = running.get(f"/?token={TOKEN}")
    assert (status, headers["Referrer-Policy"]) == (200, "no-referrer")
    assert TOKEN.encode() not in page
    assert running.get(f"/front.jpg?token={TOKEN}", Host="cam.example.org")[0] == 200
    assert running.counts["encoded"] > 0
    assert TOKEN not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize(("host", "status"), [("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:8090", 200), ("evil.example.org", 421),
                                              ("localhost.evil.org", 421), ("", 421)])
def test_a_web_page_cannot_look_through_a_name_of_its_own(start: Callable[..., Running], host: str, status: int) -> None:
    assert start().get("/", Host=host)[0] == status


@pytest.mark.parametrize(("token", "purposes", "address", "code"), [
    ("short", (), LOOPBACK, "preview.token"), ("secret:open", (), LOOPBACK, "preview.token"), ("x" * 81, (), LOOPBACK, "preview.token"),
    (TOKEN, (), "192.0.2.1", "preview.privacy"), (TOKEN, ("cascade", "harvest"), "192.0.2.1", "preview.privacy")])
def test_what_may_not_be_shown_does_not_listen(token: str, purposes: tuple[str, ...], address: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        Preview("shop", PreviewSink(token=token), purposes, address)
    assert caught.value.code == code
    assert token not in str(caught.value)


def test_without_a_token_it_is_the_loopbacks_whatever_the_board_gives() -> None:
    shown = Preview("shop", PreviewSink(), ("preview",), "192.0.2.1")
    assert shown._server.server_address[0] == LOOPBACK
    with pytest.raises(StorageError) as caught:
        Preview("shop", PreviewSink(port=shown.port), (), LOOPBACK)
    assert caught.value.code == "preview.listen"
    shown.close()
    Preview("shop", PreviewSink(port=shown.port), (), LOOPBACK).close()


def test_too_many_connections_are_refused_and_a_trickled_head_is_cut(start: Callable[..., Running],
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "REQUEST_S", 3.0)
    running = start()
    idle = [socket.create_connection((LOOPBACK, running.port), timeout=30) for _ in range(preview.MAX_CONNECTIONS + 4)]
    until(lambda: running.counts["refused"] >= 4, "the refusals")
    for link in idle:
        with contextlib.suppress(OSError):
            link.sendall(b"GET / HT")
    for link in idle:
        with contextlib.suppress(OSError):
            while link.recv(4096):
                pass
        link.close()

    def served() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return running.get("/")[0] == 200
        return False

    until(served, "room again")


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    running = Running()
    yield running
    running.close()


WORDS = (b"GET", b"POST", b"/", b"/front.mjpg", b"/front.jpg", b"HTTP/1.1", b"HTTP/9", b"\r\n", b"\n", b" ", b"Host: localhost",
         b"Content-Length: 99999999999", b"Transfer-Encoding: chunked", b"?token=", b"%", b"%zz", b"\x00", b"\xff\xfe",
         b"A" * 5000, b":", b"#")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=20)), max_size=12))
def test_any_bytes_end_one_connection_and_nothing_else(shared: Running, parts: list[bytes]) -> None:
    link = socket.create_connection((LOOPBACK, shared.port), timeout=30)
    with contextlib.closing(link), contextlib.suppress(OSError):
        link.sendall(b"".join(parts))
        link.shutdown(socket.SHUT_WR)
        got = 0
        while got < 1 << 20 and (more := link.recv(65536)):
            got += len(more)
        assert got < 1 << 20
    assert shared.preview._thread.is_alive()


def test_after_all_that_it_still_shows(shared: Running) -> None:
    chance = random.Random(3)
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, shared.port), timeout=30) as link:
            link.sendall(chance.randbytes(chance.randint(0, 3000)))
    until(lambda: shared.counts["viewers"] == 0, "nobody counts as a viewer")
    assert shared.get("/front.jpg")[0] == 200


# --- drawing -------------------------------------------------------------------------------------------------------


def test_pictures_shrink_in_proportion_and_are_copies() -> None:
    image = np.zeros((1080, 1920, 3), np.uint8)
    assert shrunk(image, 960).shape == (540, 960, 3)
    small = np.zeros((10, 20, 3), np.uint8)
    copied = shrunk(small, 960)
    copied[:] = 255
    assert small.max() == 0, "the frame belongs to the pipeline"


def test_colours_are_kept_and_can_be_told_apart() -> None:
    assert colour_of("person") == colour_of("person")
    assert len({colour_of(f"label {n}") for n in range(100)}) == len(PALETTE)
    lab = cv2.cvtColor(np.array([PALETTE], np.float32) / 255, cv2.COLOR_BGR2LAB)[0]
    distances = [float(np.linalg.norm(lab[i] - lab[j])) for i in range(len(PALETTE)) for j in range(i)]
    assert min(distances) > 20, "CIE 1976 colour difference; 2.3 is just noticeable"


def test_boxes_masks_points_and_labels_are_where_they_belong() -> None:
    image = np.full((200, 400, 3), 128, np.uint8)
    found = Detection("person", 0.9, (200.0, 100.0, 400.0, 300.0))
    draw(image, (found,), 0.5, (0.0, 0.0), "")
    b, g, r = colour_of("person")
    assert tuple(image[100, 100]) == (b, g, r), "the left edge"
    assert tuple(image[100, 150]) == (128, 128, 128), "the inside is left alone"
    assert np.any(np.all(image[30:50, 100:160] == (b, g, r), axis=-1)), "the label stands above"
    moved = np.full((200, 400, 3), 128, np.uint8)
    draw(moved, (found,), 0.5, (200.0, 100.0), "")
    assert tuple(moved[50, 0]) == (b, g, r), "a fed crop is drawn in its own place"
    masked = np.full((200, 400, 3), 128, np.uint8)
    mask = Detection("person", 0.9, (200.0, 100.0, 400.0, 300.0), (), (200.0, 100.0, 400.0, 100.0, 400.0, 300.0, 200.0, 300.0))
    draw(masked, (mask,), 0.5, (0.0, 0.0), "")
    assert 128 != masked[100, 150, 2] != r, "a mask lets the thing be seen"


NUMBER = st.one_of(st.floats(), st.integers(-10**9, 10**9).map(float))


@settings(deadline=None)
@given(st.lists(st.builds(Detection, st.text(max_size=60), NUMBER, st.none() | st.tuples(NUMBER, NUMBER, NUMBER, NUMBER),
                          st.just(()) | st.tuples(*[NUMBER] * 8), st.lists(NUMBER, max_size=12).map(tuple),
                          st.lists(NUMBER, max_size=9).map(tuple)), max_size=4), st.text(max_size=80))
def test_whatever_a_model_answers_can_be_drawn(found: list[Detection], footer: str) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    draw(image, found, 0.3, (5.0, -5.0), footer)
    assert drawing.jpeg(image)[:2] == b"\xff\xd8"


@given(st.text(max_size=200))
def test_labels_are_plain(text: str) -> None:
    assert len(plain(text)) <= 4 * drawing.MAX_TEXT
    assert all(" " <= c <= "~" for c in plain(text))
