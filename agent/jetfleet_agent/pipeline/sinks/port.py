"""What a sink is, and what all of them share: a bounded queue whose oldest go, and a voice that says each trouble once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from jetfleet_agent.ipc import Raised
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import Result

T = TypeVar("T")


class Sink(Protocol):
    """One way out. Its trouble is its own: it says it, counts what it drops, and tries again."""

    def take(self, frame: Frame, result: Result, now: float) -> None:
        """Decode thread: one answered frame; `now` is monotonic seconds. Never waits, never raises, keeps nothing of `frame.image`."""

    def amend(self, result: Result) -> None:
        """Controller's thread: a frame's result once more, with the host's word on it (`Result.amended`). As `take`."""

    def counts(self) -> dict[str, int]:
        """What it did and dropped since it began, by cause. Any thread."""

    def close(self) -> None:
        """Hand on what waits, within seconds, and end. Idempotent."""


class Voice:
    """Raises an alarm when a part stops working, and ends it when it works again: once each, not once a frame. One alarm at a time."""

    def __init__(self, part: str, send: Callable[[Raised], None]) -> None:
        self._part = part
        self._send = send
        self._lock = threading.Lock()
        self._code = ""

    def down(self, error: JetfleetError) -> None:
        before = self._became(error.code)
        if before == error.code:
            return
        if before:
            self._send(Raised(self._part, False, before))
        self._send(Raised(self._part, True, error.code, error.what))

    def up(self) -> None:
        before = self._became("")
        if before:
            self._send(Raised(self._part, False, before))

    def _became(self, code: str) -> str:
        with self._lock:
            before, self._code = self._code, code
            return before


class Waiting(Generic[T]):
    """A bounded queue between the decode thread and a sink's own: the oldest go when it is full, counted."""

    def __init__(self, most: int) -> None:
        self._items: deque[T] = deque()
        self._most = most
        self._changed = threading.Condition()
        self._closed = False
        self.dropped = 0

    def put(self, item: T) -> None:
        """Queue at once."""
        with self._changed:
            if len(self._items) >= self._most:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            if len(self._items) == 1:
                self._changed.notify()

    def gather(self, pause_s: float) -> list[T] | None:
        """Wait for something, then up to `pause_s` for more, so that a thread wakes a few times a second and not once a frame. None when
        it is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            if not self._closed:
                self._changed.wait_for(lambda: self._closed, pause_s)
            items = list(self._items)
            self._items.clear()
            return items or None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
