"""What receives the frames of a capture under test, and what ends the capture."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from jetfleet_agent.ipc import SourceEvent
from jetfleet_agent.pipeline.capture import Capture
from jetfleet_agent.pipeline.frames import Frame


class Taken:
    """An intake that keeps everything, and can be waited on."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.skips: list[str] = []
        self.events: list[SourceEvent] = []
        self._changed = threading.Condition()
        self._numbers = 0

    def number(self, source: str) -> int:
        self._numbers += 1
        return self._numbers - 1

    def every(self, frame: Frame, stopped: threading.Event) -> None:
        self.newest(frame)

    def newest(self, frame: Frame) -> None:
        with self._changed:
            self.frames.append(frame)
            self._changed.notify_all()

    def skipped(self, source: str, cause: str) -> None:
        with self._changed:
            self.skips.append(cause)
            self._changed.notify_all()

    def told(self, event: SourceEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def codes(self) -> list[str]:
        return [event.code for event in self.events if not event.up]

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            deadline = time.monotonic() + timeout
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 0.1))
            return True

    def until(self, condition: Callable[[], bool]) -> None:
        assert self.wait_for(condition, 60), (self.events, len(self.frames), self.skips[-20:])

    def until_frames(self, count: int) -> None:
        self.until(lambda: len(self.frames) >= count)

    def until_code(self, code: str) -> None:
        self.until(lambda: code in self.codes())


@pytest.fixture
def taken() -> Taken:
    return Taken()


@pytest.fixture
def captures() -> Iterator[list[Capture]]:
    """Those to be stopped with the test."""
    running: list[Capture] = []
    yield running
    for capture in running:
        capture.stop()
