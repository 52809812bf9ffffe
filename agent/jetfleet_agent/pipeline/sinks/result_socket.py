"""Results for programs on the same board: a Unix socket that anybody who may open it can read, described in docs/results.md.

Each reader gets a hello line, then one line of JSON a result, from the moment it came. Readers wait for nobody and nobody waits for them:
each has a short queue of its own, whose oldest lines go when it reads too slowly, and it is told how many. One that takes nothing for
half a minute is hung up on. Without readers nothing is encoded.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from jetfleet_agent.pipeline.feed import reachable, socket_path
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import Result

from .files import line_of
from .port import Voice

PROTOCOL = 1
MAX_READERS = 16
MAX_WAITING = 1000
MAX_LINES = MAX_WAITING  # of one reader: a burst is no slowness of its own
MAX_UNSENT_BYTES = 1 << 16
STUCK_S = 30.0
CLOSE_S = 3.0


class _Reader:
    """One that listens. `missed` lines went because it read too slowly, and it was not told yet."""

    def __init__(self, connection: socket.socket, hello: bytes, now: float) -> None:
        self.connection = connection
        self.lines: deque[bytes] = deque()
        self.unsent = bytearray(hello)
        self.missed = 0
        self.moved = now

    def offer(self, line: bytes) -> int:
        """Queue a line; how many older ones went for it."""
        lost = 0
        if len(self.lines) >= MAX_LINES:
            self.lines.popleft()
            self.missed += 1
            lost = 1
        self.lines.append(line)
        return lost

    def send(self, now: float) -> bool:
        """Send what the other side takes. True when nothing is left. Raises OSError when it is gone."""
        while True:
            if self.missed and self.lines:
                self.unsent += b'{"missed":%d}\n' % self.missed
                self.missed = 0
            while self.lines and len(self.unsent) < MAX_UNSENT_BYTES:
                self.unsent += self.lines.popleft()
            if not self.unsent:
                return True
            try:
                del self.unsent[:self.connection.send(self.unsent)]
            except BlockingIOError:
                return False
            self.moved = now


class ResultSocket:
    """See the module. The socket is ``FOLDER/APP.sock``, mode 0660: the folder's and the socket's group decide who may read.

    Raises:
        StorageError: `sink.socket`. MalformedError: `name.bad`.
    """

    def __init__(self, folder: Path, app: str, voice: Voice, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = socket_path(folder, app)
        self._hello = msgspec.json.encode({"jetfleet": "results", "version": PROTOCOL, "app": app}) + b"\n"
        self._voice = voice
        self._clock = clock
        self._results: deque[Result] = deque()
        self._lock = threading.Lock()
        self._woken = self._closing = False
        self._readers: dict[socket.socket, _Reader] = {}
        self._sent = self._slow = self._overflow = self._refused = 0
        self._listener = _listen(self._path)
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._wake_in.setblocking(False)
        for end in (self._listener, self._wake_out):
            end.setblocking(False)
            self._selector.register(end, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="result-socket", daemon=True)
        self._thread.start()

    @property
    def readers(self) -> int:
        return len(self._readers)

    def take(self, frame: Frame, result: Result, now: float) -> None:  # noqa: ARG002 - a Sink's shape
        self.amend(result)

    def amend(self, result: Result) -> None:
        if not self._readers:
            return
        with self._lock:
            if len(self._results) >= MAX_WAITING:
                self._results.popleft()
                self._overflow += 1
            self._results.append(result)
            woken, self._woken = self._woken, True
        if not woken:
            self._wake()

    def counts(self) -> dict[str, int]:
        return {"readers": len(self._readers), "lines": self._sent, "slow": self._slow, "overflow": self._overflow,
                "refused": self._refused}

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._wake()
        self._thread.join(CLOSE_S)
        self._path.unlink(missing_ok=True)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_in.send(b".")

    # --- the sink's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for key, events in self._selector.select(STUCK_S / 2):
                self._turn(key.fileobj, events)
            self._hand_out()
            self._hang_up_stuck()
        self._hand_out()
        for reader in list(self._readers.values()):
            self._drop(reader)
        self._selector.close()
        for end in (self._listener, self._wake_in, self._wake_out):
            end.close()

    def _turn(self, end: object, events: int) -> None:
        if end is self._listener:
            self._accept()
        elif end is self._wake_out:
            with contextlib.suppress(BlockingIOError):
                self._wake_out.recv(4096)
        elif isinstance(end, socket.socket) and end in self._readers:
            reader = self._readers[end]
            if events & selectors.EVENT_READ and not _is_there(end):
                self._drop(reader)
            else:
                self._flush(reader)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._readers) >= MAX_READERS:
            self._refused += 1
            connection.close()
            return
        connection.setblocking(False)
        reader = _Reader(connection, self._hello, self._clock())
        self._readers[connection] = reader
        self._selector.register(connection, selectors.EVENT_READ)
        self._flush(reader)

    def _hand_out(self) -> None:
        with self._lock:
            results, self._woken = list(self._results), False
            self._results.clear()
        if not results or not self._readers:
            return
        now = self._clock()
        for reader in self._readers.values():
            if not (reader.unsent or reader.lines):
                reader.moved = now  # it had nothing to take until now
        for result in results:
            line = line_of(result)
            for reader in self._readers.values():
                self._slow += reader.offer(line)
                self._sent += 1
        for reader in list(self._readers.values()):
            self._flush(reader)

    def _flush(self, reader: _Reader) -> None:
        try:
            done = reader.send(self._clock())
        except OSError:
            self._drop(reader)
            return
        wanted = selectors.EVENT_READ | (0 if done else selectors.EVENT_WRITE)
        self._selector.modify(reader.connection, wanted)

    def _hang_up_stuck(self) -> None:
        now = self._clock()
        for reader in list(self._readers.values()):
            if (reader.unsent or reader.lines) and now - reader.moved > STUCK_S:
                self._drop(reader)

    def _drop(self, reader: _Reader) -> None:
        self._readers.pop(reader.connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(reader.connection)
        reader.connection.close()


def _is_there(connection: socket.socket) -> bool:
    """Whether the reader still is; what it says is read and forgotten."""
    try:
        return bool(connection.recv(4096))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        path.unlink(missing_ok=True)
        with reachable(path) as address:
            listener.bind(address)
        path.chmod(0o660)  # bind has no mode of its own; nobody can connect before listen
        listener.listen(MAX_READERS)
    except OSError as error:
        listener.close()
        raise StorageError("sink.socket", f"cannot listen for readers of results: {error.strerror or error}", where=str(path),
                           remedy="check that the folder of result sockets is writable") from None
    return listener
