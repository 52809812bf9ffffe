"""The Unix socket to the supervisor: orders in, events out, each in a thread of its own.

Events are few and all kept; results are many and bounded: a supervisor that does not read costs old results, counted, and
never holds up a frame.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from jetfleet_agent.ipc import MAX_LINE_BYTES, Hello, Order, Results, order_from, to_line
from jetfleet_contract.errors import MalformedError, TransportError
from jetfleet_contract.messages import Result

log = logging.getLogger(__name__)

MAX_RESULTS_WAITING = 2000
MAX_RESULTS_A_LINE = 64
MAX_NUMBERS_A_LINE = 24_000
_BATCH_S = 0.05


class Link:
    """Connects once; `on_order` gets each order and, at the end, None when the supervisor is gone."""

    def __init__(self, path: Path, on_order: Callable[[Order | None], None]) -> None:
        self._on_order = on_order
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            raise TransportError("ipc.connect", f"cannot reach the supervisor: {error.strerror or error}", where=str(path),
                                 remedy="the supervisor starts pipelines by itself: run jetfleet-agent run") from None
        self._events: deque[bytes] = deque()
        self._results: deque[Result] = deque()
        self._results_dropped = 0
        self._changed = threading.Condition()
        self._closing = False
        self._reader = threading.Thread(target=self._read, name="orders", daemon=True)
        self._writer = threading.Thread(target=self._write, name="events", daemon=True)

    def start(self, app: str, pid: int) -> None:
        self.send(Hello(app, pid))
        self._reader.start()
        self._writer.start()

    def send(self, event: msgspec.Struct) -> None:
        """Queue an event; never waits."""
        with self._changed:
            self._events.append(to_line(event))
            self._changed.notify()

    def publish(self, result: Result) -> None:
        """Queue a result; the oldest goes when there are too many."""
        with self._changed:
            if len(self._results) >= MAX_RESULTS_WAITING:
                self._results.popleft()
                self._results_dropped += 1
            self._results.append(result)

    def take_dropped(self) -> int:
        """Results dropped since the last call."""
        with self._changed:
            dropped, self._results_dropped = self._results_dropped, 0
            return dropped

    def close(self, timeout: float = 2.0) -> None:
        """Send what waits, then hang up."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._writer.join(timeout)
        self._socket.close()

    def _write(self) -> None:
        while True:
            with self._changed:
                if not self._events and not self._closing:
                    self._changed.wait(_BATCH_S)
                lines = list(self._events)
                self._events.clear()
                batches = self._take_results()
                if self._closing and not lines and not batches:
                    return
            # Results first: what was answered before a Switched is also told before it.
            if not self._sent([to_line(Results(batch)) for batch in batches] + lines):
                return

    def _take_results(self) -> list[tuple[Result, ...]]:
        batches: list[tuple[Result, ...]] = []
        batch: list[Result] = []
        numbers = 0
        while self._results:
            result = self._results.popleft()
            if batch and (len(batch) >= MAX_RESULTS_A_LINE or numbers + _numbers(result) > MAX_NUMBERS_A_LINE):
                batches.append(tuple(batch))
                batch, numbers = [], 0
            batch.append(result)
            numbers += _numbers(result)
        if batch:
            batches.append(tuple(batch))
        return batches

    def _sent(self, lines: list[bytes]) -> bool:
        try:
            for line in lines:
                self._socket.sendall(line)
        except OSError:
            return False
        return True

    def _read(self) -> None:
        try:
            with self._socket.makefile("rb") as stream:
                while line := stream.readline(MAX_LINE_BYTES):
                    self._order(line)
        except (OSError, ValueError):
            pass
        finally:
            self._on_order(None)

    def _order(self, line: bytes) -> None:
        try:
            order = order_from(line)
        except MalformedError as error:
            log.error("%s", error)  # noqa: TRY400  the sentence says it all
            return
        self._on_order(order)


def _numbers(result: Result) -> int:
    """What decides how long a result's text is."""
    return sum(detection.numbers for detection in result.detections)
