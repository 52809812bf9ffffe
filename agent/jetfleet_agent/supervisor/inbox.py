"""The control thread's one queue, and what may lie in it.

Every other thread (MQTT client, pipeline link, chooser) only puts; the control thread only takes. The queue is bounded, and a
full one makes the putting thread wait: chunks then wait in TCP, not in memory. What the control thread puts itself never waits.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Union

import msgspec

from jetfleet_agent import ipc
from jetfleet_contract import slot_records as slots
from jetfleet_contract.errors import JetfleetError

MAX_ITEMS = 256
PUT_CHECK_S = 0.5


class Arrived(msgspec.Struct, frozen=True):
    """An MQTT message."""

    topic: str
    payload: bytes


class LinkUp(msgspec.Struct, frozen=True):
    """The broker is connected (again)."""


class LinkDown(msgspec.Struct, frozen=True):
    """The broker is lost."""

    reason: str


class BlobDone(msgspec.Struct, frozen=True):
    """A blob is verified and in the store."""

    blob: str


class BlobFailed(msgspec.Struct, frozen=True):
    """A blob cannot be fetched; the error says whether that is its doing or the board's."""

    blob: str
    error: JetfleetError


class AppEvent(msgspec.Struct, frozen=True):
    """An event for one app's slot machine, from work that ran elsewhere. `turn` tells whether that work still counts."""

    app: str
    event: slots.Event
    turn: int = 0


class PipelineSaid(msgspec.Struct, frozen=True):
    """A line from a pipeline process."""

    app: str
    pid: int
    event: ipc.Event


class PipelineEnded(msgspec.Struct, frozen=True):
    """A pipeline process is gone. `code` is its exit status, negative for a signal; `tail` the end of its stderr."""

    app: str
    pid: int
    code: int
    tail: str


class StopAll(msgspec.Struct, frozen=True):
    """Finish."""


Item = Union[Arrived, LinkUp, LinkDown, BlobDone, BlobFailed, AppEvent, PipelineSaid, PipelineEnded, StopAll]


class Inbox:
    """See the module. The thread that first calls `take` is the control thread."""

    def __init__(self, maximum: int = MAX_ITEMS) -> None:
        self._queue: queue.Queue[Item] = queue.Queue(maximum)
        self._own: deque[Item] = deque()
        self._owner = 0
        self._closed = False

    def put(self, item: Item) -> None:
        """From any thread. Waits while the queue is full, unless the caller is the control thread."""
        if threading.get_ident() == self._owner:
            self._own.append(item)
            return
        while not self._closed:
            try:
                self._queue.put(item, timeout=PUT_CHECK_S)
            except queue.Full:
                continue
            return

    def close(self) -> None:
        """Nobody takes any more: what is put from now on is lost, and nobody waits."""
        self._closed = True

    def take(self, timeout_s: float) -> Item | None:
        """The next item, or None after `timeout_s` seconds without one."""
        self._owner = threading.get_ident()
        if self._own:
            return self._own.popleft()
        try:
            return self._queue.get(timeout=timeout_s) if timeout_s > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None

    # The names that the link and the fetcher call back.

    def message(self, topic: str, payload: bytes) -> None:
        self.put(Arrived(topic, payload))

    def link_up(self) -> None:
        self.put(LinkUp())

    def link_down(self, reason: str) -> None:
        self.put(LinkDown(reason))

    def blob_done(self, blob: str) -> None:
        self.put(BlobDone(blob))

    def blob_failed(self, blob: str, error: JetfleetError) -> None:
        self.put(BlobFailed(blob, error))

    def stop(self) -> None:
        self.put(StopAll())
