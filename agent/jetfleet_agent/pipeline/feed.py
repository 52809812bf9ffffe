"""Chained apps: one pipeline's crops are another one's frames, over a Unix socket between the two processes.

The app with `input_from` listens on ``<feed>/APP.sock`` (mode 0600); the app that it names connects and sends each crop as two lengths,
a small JSON header and raw BGR bytes. Neither waits for the other: the sender's queue is short, full means the oldest crop
is dropped and counted, a receiver that is not there means the same. Times are CLOCK_MONOTONIC, one clock for all processes of
a machine, so a crop's age counts from the moment its frame was captured.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.tasks.crops import Crop
from jetfleet_contract.errors import MalformedError, StorageError
from jetfleet_contract.messages import Message
from jetfleet_contract.topics import check_name

log = logging.getLogger(__name__)

MAX_WAITING = 64
MAX_HEADER_BYTES = 4096
MAX_PIXEL_BYTES = 8 << 20
_RETRY_S = 0.5
_SEND_TIMEOUT_S = 2.0
_LENGTHS = struct.Struct("<II")


class CropHeader(Message, frozen=True):
    """Where a crop is from: `box` in frame pixels, `captured` monotonic seconds, `wall` seconds since 1970."""

    source: str
    number: int
    position: int
    captured: float
    wall: float
    width: int
    height: int
    box: tuple[float, float, float, float]


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(CropHeader)


def socket_path(folder: Path, app: str) -> Path:
    """Where an app listens for crops; the name is checked before it becomes part of a path."""
    return folder / f"{check_name('app', app)}.sock"


def pack(frame: Frame, crop: Crop) -> bytes:
    """One crop as it travels."""
    height, width = crop.image.shape[:2]
    header = _ENCODER.encode(CropHeader(frame.source, frame.number, frame.position, frame.captured, frame.wall, width, height, crop.box))
    pixels = crop.image.tobytes()
    return _LENGTHS.pack(len(header), len(pixels)) + header + pixels


def unpack(header: bytes, pixels: bytes) -> Frame:
    """A received crop as a frame.

    Raises:
        MalformedError: `feed.bad`.
    """
    try:
        told = _DECODER.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedError("feed.bad", f"not a crop header: {error}") from None
    if told.width <= 0 or told.height <= 0 or told.width * told.height * 3 != len(pixels):
        raise MalformedError("feed.bad", f"a crop of {told.width}x{told.height} has {len(pixels)} bytes")
    image = np.frombuffer(pixels, np.uint8).reshape(told.height, told.width, 3)
    frame = Frame(told.source, told.number, told.position, image, told.captured, told.wall, box=told.box)
    frame.arrived = time.monotonic()
    return frame


def check_lengths(header_size: int, pixel_size: int) -> None:
    """What a sender announces is bounded before memory is taken for it; else MalformedError `feed.large`."""
    if header_size > MAX_HEADER_BYTES or pixel_size > MAX_PIXEL_BYTES:
        raise MalformedError("feed.large", f"a crop of {header_size} + {pixel_size} bytes is over the limit")


class FeedSender:
    """Sends crops to one app; counts those that it could not send."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._dropped = 0
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"feed-{path.stem}", daemon=True)
        self._thread.start()

    def send(self, frame: Frame, crops: list[Crop]) -> None:
        """Queue crops; never waits. One that is too large for the other side counts as dropped."""
        packed = [pack(frame, crop) for crop in crops if crop.image.nbytes <= MAX_PIXEL_BYTES]
        with self._changed:
            self._dropped += len(crops) - len(packed)
            for crop in packed:
                if len(self._waiting) >= MAX_WAITING:
                    self._waiting.popleft()
                    self._dropped += 1
                self._waiting.append(crop)
            self._changed.notify()

    def take_dropped(self) -> int:
        """Crops dropped since the last call."""
        with self._changed:
            dropped, self._dropped = self._dropped, 0
            return dropped

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(_SEND_TIMEOUT_S + 1.0)

    def _run(self) -> None:
        link: socket.socket | None = None
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    break
                data = self._waiting.popleft()
            link = link or self._connect()
            if link is None or not _sent(link, data):
                with self._changed:
                    self._dropped += 1
                if link is not None:
                    link.close()
                    link = None
        if link is not None:
            link.close()

    def _connect(self) -> socket.socket | None:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(_SEND_TIMEOUT_S)
        try:
            with reachable(self._path) as address:
                link.connect(address)
        except OSError:
            link.close()
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, _RETRY_S)
            return None
        return link


def _sent(link: socket.socket, data: bytes) -> bool:
    try:
        link.sendall(data)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """An address for `path` that fits into a socket name's 107 bytes, however deep the folder lies.

    Raises:
        OSError: the folder is not there.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        with reachable(path) as address:
            listener.bind(address)
        path.chmod(0o600)  # bind has no mode of its own
        listener.listen(4)
    except OSError as error:
        listener.close()
        raise StorageError("feed.listen", f"cannot listen for crops: {error.strerror or error}", where=str(path),
                           remedy="check that the agent's state folder is writable") from None
    return listener


class FeedReceiver:
    """Listens for crops and hands each to `on_frame`; a sender that talks nonsense is cut off."""

    def __init__(self, path: Path, on_frame: Callable[[Frame], None]) -> None:
        self._path = path
        self._on_frame = on_frame
        self._stopping = False
        self._listener = _listen(path)
        self._links: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name=f"fed-{path.stem}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        for link in (self._listener, *self._links):
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
            link.close()
        self._path.unlink(missing_ok=True)
        self._thread.join(2.0)

    def _accept(self) -> None:
        while not self._stopping:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            self._links.add(link)
            threading.Thread(target=self._receive, args=(link,), name="fed", daemon=True).start()

    def _receive(self, link: socket.socket) -> None:
        try:
            while (lengths := _exactly(link, _LENGTHS.size)) is not None:
                header_size, pixel_size = _LENGTHS.unpack(lengths)
                check_lengths(header_size, pixel_size)
                header = _exactly(link, header_size)
                pixels = _exactly(link, pixel_size)
                if header is None or pixels is None:
                    break
                self._on_frame(unpack(header, pixels))
        except (MalformedError, OSError) as error:
            if not self._stopping:
                log.warning("feed %s: %s", self._path.name, error)
        finally:
            self._links.discard(link)
            link.close()


def _exactly(link: socket.socket, size: int) -> bytes | None:
    """`size` bytes, or None when the other side is gone."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = link.recv_into(view[got:])
        if not count:
            return None
        got += count
    return bytes(data)
