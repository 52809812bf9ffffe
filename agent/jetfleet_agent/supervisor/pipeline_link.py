"""The supervisor's end of the pipelines' Unix socket: one thread that watches sockets, standard errors and deaths.

Only a process that this supervisor started may speak (SO_PEERCRED: same user, known process id, and its `Hello` names the app
it was started for). Deaths are seen through pidfds, so nothing polls and no child stays a zombie. Before a death is told, the
socket and the standard error are read to their ends: the last words come first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import cast

from jetfleet_agent import ipc
from jetfleet_contract.errors import MalformedError, StorageError

from .inbox import PipelineEnded, PipelineSaid

log = logging.getLogger(__name__)

MAX_SOCKET_PATH = 90  # the kernel's limit is 107 bytes; the feed sockets beside ours need some for their names
MAX_UNSENT_BYTES = 4 << 20
TAIL_BYTES = 2048
_READ = 1 << 16


def run_folder(state: Path) -> Path:
    """Where the sockets lie: ``<state>/run``, or a private temporary folder when that path is too long for a socket."""
    folder = state / "run"
    if len(str(folder)) > MAX_SOCKET_PATH - 40:
        return Path(tempfile.mkdtemp(prefix="jetfleet-"))
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StorageError("run.folder", f"the folder for sockets cannot be made: {error.strerror}", where=str(folder)) from None
    return folder


class _Child:
    def __init__(self, app: str, process: subprocess.Popen[bytes], pidfd: int) -> None:
        self.app = app
        self.process = process
        self.pidfd = pidfd
        self.tail = bytearray()
        self.peer: _Peer | None = None


class _Peer:
    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection = connection
        self.pid = pid
        self.known = False
        self.received = bytearray()
        self.unsent = bytearray()


class PipelineLink:
    """See the module.

    Args:
        path: the socket's path; made with mode 0600.
        post: gets `PipelineSaid` and `PipelineEnded`, from this thread.
    """

    def __init__(self, path: Path, post: Callable[[PipelineSaid | PipelineEnded], None]) -> None:
        self.path = path
        self._post = post
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}
        self._work: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="pipelines", daemon=True)
        self._listener = self._listen()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close everything. Children must have been stopped before."""
        self._call(self._halt)
        self._thread.join(timeout=5.0)
        self.path.unlink(missing_ok=True)
        for folder in (self.path.parent / "feed", self.path.parent / "results", self.path.parent):
            with contextlib.suppress(OSError):  # another agent's files may lie beside it
                folder.rmdir()

    def watch(self, app: str, process: subprocess.Popen[bytes]) -> None:
        """Expect this process to connect and to end. Its standard error, if piped, is read here."""
        pidfd = os.pidfd_open(process.pid)
        self._call(lambda: self._adopt(_Child(app, process, pidfd)))

    def send(self, pid: int, order: ipc.Order) -> None:
        """Queue an order; one to a process that has gone is lost, which its `PipelineEnded` tells."""
        line = ipc.to_line(order)
        self._call(lambda: self._queue(pid, line))

    # --- the thread ---------------------------------------------------------------------------------------

    def _call(self, work: Callable[[], None]) -> None:
        self._work.append(work)
        with contextlib.suppress(OSError):
            self._wake_in.send(b".")

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                listener.bind(str(self.path))
            finally:
                os.umask(before)
            listener.listen(32)
        except OSError as error:
            listener.close()
            raise StorageError("run.socket", f"the socket for pipelines cannot be made: {error.strerror or error}",
                               where=str(self.path)) from None
        listener.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._woken)
        return listener

    def _loop(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select():
                self._guarded(key.data)
        self._selector.close()
        for end in (self._listener, self._wake_in, self._wake_out):
            end.close()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # one broken peer must not end the thread that serves all
            log.exception("the pipeline link failed at one event")

    def _halt(self) -> None:
        for child in list(self._children.values()):
            if child.peer:
                child.peer.connection.close()
        self._stopping = True

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_out.recv(4096):
                pass
        while self._work:
            self._work.popleft()()

    def _adopt(self, child: _Child) -> None:
        self._children[child.process.pid] = child
        if child.process.stderr is not None:
            os.set_blocking(child.process.stderr.fileno(), False)
            self._selector.register(child.process.stderr, selectors.EVENT_READ, lambda: self._hear_stderr(child))
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._bury(child))

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if pid not in self._children or uid != os.getuid():
            log.warning("process %d of user %d may not speak here", pid, uid)
            connection.close()
            return
        child = self._children[pid]
        if child.peer is not None:
            self._close(child)
        connection.setblocking(False)
        child.peer = _Peer(connection, pid)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._turn(child))

    def _turn(self, child: _Child) -> None:
        self._flush(child)
        self._hear(child)

    def _hear(self, child: _Child) -> None:
        peer = child.peer
        while peer is not None and child.peer is peer:
            try:
                data = peer.connection.recv(_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close(child)
                return
            peer.received += data
            self._lines(child, peer)

    def _lines(self, child: _Child, peer: _Peer) -> None:
        *lines, rest = peer.received.split(b"\n")
        peer.received = bytearray(rest)
        try:
            for line in lines:
                self._event(child, peer, ipc.event_from(bytes(line)))
            _check_rest(rest)
        except MalformedError as error:
            log.warning("pipeline %s is ended: %s", child.app, error.what)
            child.tail += b"\n" + error.what.encode()
            child.process.kill()
            self._close(child)

    def _event(self, child: _Child, peer: _Peer, event: ipc.Event) -> None:
        if not peer.known:
            if not isinstance(event, ipc.Hello) or event.app != child.app:
                raise MalformedError("ipc.bad", f"the first line is not the hello of {child.app}")
            peer.known = True
        self._post(PipelineSaid(child.app, peer.pid, event))

    def _hear_stderr(self, child: _Child) -> bool:
        """Keep the end of what it prints, and pass it on. True at the end of the stream."""
        stderr = child.process.stderr
        if stderr is None or stderr.closed:
            return True
        data = cast("bytes | None", stderr.read(_READ))
        if data is None:
            return False
        if not data:
            self._selector.unregister(stderr)
            stderr.close()
            return True
        child.tail = (child.tail + data)[-TAIL_BYTES:]
        for line in data.decode(errors="replace").splitlines():
            log.info("%s: %s", child.app, line)
        return False

    def _bury(self, child: _Child) -> None:
        if child.peer is not None:
            self._hear(child)
            if child.peer is not None:
                self._close(child)
        self._last_words(child)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        code = child.process.wait()
        self._children.pop(child.process.pid, None)
        self._post(PipelineEnded(child.app, child.process.pid, code, child.tail.decode(errors="replace").strip()))

    def _last_words(self, child: _Child) -> None:
        stderr = child.process.stderr
        before = -1
        while stderr is not None and not stderr.closed and before != len(child.tail):
            before = len(child.tail)
            if self._hear_stderr(child):
                return
        if stderr is not None and not stderr.closed:  # a grandchild still holds it open
            self._selector.unregister(stderr)
            stderr.close()

    def _queue(self, pid: int, line: bytes) -> None:
        child = self._children.get(pid)
        if child is None or child.peer is None:
            return
        if len(child.peer.unsent) + len(line) > MAX_UNSENT_BYTES:
            log.warning("pipeline %s does not take its orders and is ended", child.app)
            child.process.send_signal(signal.SIGKILL)
            return
        child.peer.unsent += line
        self._flush(child)

    def _flush(self, child: _Child) -> None:
        peer = child.peer
        if peer is None:
            return
        try:
            while peer.unsent:
                del peer.unsent[:peer.connection.send(peer.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            return  # reading tells the end
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
        self._selector.modify(peer.connection, wanted, lambda: self._turn(child))

    def _close(self, child: _Child) -> None:
        if child.peer is not None:
            self._selector.unregister(child.peer.connection)
            child.peer.connection.close()
            child.peer = None


def _check_rest(rest: bytearray) -> None:
    if len(rest) > ipc.MAX_LINE_BYTES:
        raise MalformedError("ipc.large", f"a line of over {len(rest)} bytes")
