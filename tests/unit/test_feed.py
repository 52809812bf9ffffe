"""Crops between two apps: what is packed comes out, nonsense is refused before memory is taken, a missing receiver costs crops only."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetfleet_agent.pipeline import feed
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.tasks.crops import Crop
from jetfleet_contract.errors import MalformedError, StorageError

PIXELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3)
FRAME = Frame("front", 7, 3, np.zeros((48, 64, 3), np.uint8), 12.5, 1700000000.0)
CROP = Crop(PIXELS, (10.0, 20.0, 16.0, 24.0))


def split(packed: bytes) -> tuple[bytes, bytes]:
    header, pixels = feed._LENGTHS.unpack(packed[:8])
    assert len(packed) == 8 + header + pixels
    return packed[8:8 + header], packed[8 + header:]


def test_a_crop_comes_out_as_it_went_in() -> None:
    frame = feed.unpack(*split(feed.pack(FRAME, CROP)))
    assert (frame.source, frame.number, frame.position, frame.captured, frame.box) == ("front", 7, 3, 12.5, CROP.box)
    np.testing.assert_array_equal(frame.image, PIXELS)


@given(st.binary(max_size=200), st.binary(max_size=100))
def test_any_bytes_are_a_frame_or_malformed(header: bytes, pixels: bytes) -> None:
    with pytest.raises(MalformedError):
        feed.unpack(header, pixels)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_lengths_are_bounded_before_memory_is_taken(header: int, pixels: int) -> None:
    if header <= feed.MAX_HEADER_BYTES and pixels <= feed.MAX_PIXEL_BYTES:
        feed.check_lengths(header, pixels)
        return
    with pytest.raises(MalformedError):
        feed.check_lengths(header, pixels)


class Received:
    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._changed = threading.Condition()

    def take(self, frame: Frame) -> None:
        with self._changed:
            self.frames.append(frame)
            self._changed.notify_all()

    def until(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.frames) >= count, 20)


def test_sender_and_receiver_in_any_order_and_the_missing_one_is_counted(tmp_path: Path) -> None:
    path = feed.socket_path(tmp_path, "reader")
    sender = feed.FeedSender(path)
    for _ in range(feed.MAX_WAITING * 2):
        sender.send(FRAME, [CROP])
    received = Received()
    receiver = feed.FeedReceiver(path, received.take)
    try:
        received.until(1)
        assert sender.take_dropped() >= feed.MAX_WAITING
        np.testing.assert_array_equal(received.frames[0].image, PIXELS)
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        sender.stop()
        receiver.stop()
    assert not path.exists()


def test_a_sender_of_nonsense_is_cut_off_and_the_next_one_served(tmp_path: Path) -> None:
    path = feed.socket_path(tmp_path, "reader")
    received = Received()
    receiver = feed.FeedReceiver(path, received.take)
    try:
        with socket.socket(socket.AF_UNIX) as bad:
            bad.connect(str(path))
            bad.sendall(b"\xff" * 64)
            bad.settimeout(10)
            with contextlib.suppress(ConnectionResetError):  # our unread bytes may make it a reset: cut off just the same
                assert bad.recv(1) == b""
        with socket.socket(socket.AF_UNIX) as good:
            good.connect(str(path))
            good.sendall(feed.pack(FRAME, CROP))
            received.until(1)
    finally:
        receiver.stop()


def test_a_deep_folder_is_no_obstacle(tmp_path: Path) -> None:
    """A Unix socket's name has room for 107 bytes; state folders may be longer."""
    path = feed.socket_path(tmp_path / ("d" * 100) / ("e" * 100), "reader")
    received = Received()
    receiver = feed.FeedReceiver(path, received.take)
    sender = feed.FeedSender(path)
    try:
        sender.send(FRAME, [CROP])
        received.until(1)
    finally:
        sender.stop()
        receiver.stop()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError) as caught:
        feed.FeedReceiver(tmp_path / "file" / "reader.sock", Received().take)
    assert caught.value.code == "feed.listen"


def test_an_app_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(MalformedError):
        feed.socket_path(tmp_path, "../../etc/x")
