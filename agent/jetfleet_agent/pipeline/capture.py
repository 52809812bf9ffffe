"""One thread a source: reads, paces, reconnects, and tells typed causes. What to do with a frame is the `Intake`'s business.

Files: every frame, in order; at the end start again (`loop`) or finish. Cameras: reconnect for ever, with decorrelated jitter that grows
from half a second to an eighth of the outage, 30 s at most, and starts anew after `GOOD_FRAMES`. They are read without a pause whatever
the consumer does, so that nothing piles up before us. A source's failure is an event of its own and never a model's.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from jetfleet_agent.ipc import SourceEvent
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.pulse import Pulse
from jetfleet_agent.pipeline.sources import Buffers, FrameSource, FreshBuffers, Shot, open_source
from jetfleet_contract.errors import JetfleetError, SourceError
from jetfleet_contract.messages import Source
from jetfleet_contract.policy import decorrelated, patience

log = logging.getLogger(__name__)

SYNTHETIC_FPS = 30.0
GOOD_FRAMES = 10
_BAD_IMAGES_IN_A_ROW = 100


class Intake(Protocol):
    """Where frames go."""

    def number(self, source: str) -> int:
        """The next frame number of a source, over the pipeline's life."""

    def every(self, frame: Frame, stopped: threading.Event) -> None:
        """Take a frame that counts; wait for room."""

    def newest(self, frame: Frame) -> None:
        """Take a live frame; never wait."""

    def skipped(self, source: str, cause: str) -> None:
        """A frame was read, or should have been, and was not taken."""


class Pace:
    """When the next frame is due, at `fps` frames a second; 0 means at once. Times are monotonic seconds."""

    def __init__(self, fps: float, now: float) -> None:
        self._due = now
        self.set_fps(fps)

    def wait_s(self, now: float) -> float:
        """Seconds until the next frame may be read."""
        return max(0.0, self._due - now) if self._period else 0.0

    def set_fps(self, fps: float) -> None:
        """From the next frame on."""
        self._period = 1.0 / fps if fps > 0 else 0.0

    def is_early(self, now: float) -> bool:
        """True for a camera's frame that comes more than half a period before it is due: over the cap."""
        return now < self._due - 0.5 * self._period

    def taken(self, now: float) -> None:
        """A frame was taken. A late one does not make the next ones hurry: they keep their distance."""
        self._due = max(self._due + self._period, now)


class Capture:
    """Runs one source until it ends or `stop`."""

    def __init__(self, source: Source, intake: Intake, tell: Callable[[SourceEvent], None], buffers: Buffers | None = None) -> None:
        self.source = source
        self._buffers = buffers or FreshBuffers()
        self._intake = intake
        self._tell = tell
        self._stopped = threading.Event()
        self._last_event: tuple[bool, str] | None = None
        self._pulse = Pulse()
        self._cap = 0.0
        self._left = False
        self._thread = threading.Thread(target=self._run, name=f"capture-{source.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """A camera that hangs in a driver is left behind (the thread is a daemon); it can no longer hand in frames."""
        self._stopped.set()
        self._thread.join(timeout)

    def abandon(self) -> None:
        """Leave a thread behind that hangs in a driver; it can hand in and tell nothing any more."""
        self._left = True
        self._stopped.set()

    def set_cap(self, fps: float) -> None:
        """From any thread: take no more than `fps` frames a second from now on, however many the source's own setting allows; 0 lifts the
        cap. A file is read more slowly: none of its frames is skipped."""
        self._cap = max(0.0, fps)

    def stuck_s(self, now: float) -> float:
        """Seconds that the call into the source in hand has taken at `now`, 0 between calls."""
        return self._pulse.stuck_s(now)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            reader = open_source(self.source)
        except JetfleetError as error:
            self._event(False, error.code, error.what)
            return
        try:
            self._keep_reading(reader)
        except Exception as error:  # noqa: BLE001  a codec's surprise ends this source, not the app
            # Its type only: a vendor's message may hold the URI, password included.
            log.error("source %s ended by %s", self.source.name, type(error).__name__)  # noqa: TRY400
            self._event(False, "source.crash", f"{type(error).__name__} while reading {self.source.name}")
        finally:
            reader.close()

    def _keep_reading(self, reader: FrameSource) -> None:
        pause_s = 0.0
        well = time.monotonic()
        while not self._stopped.is_set():
            count = 0
            try:
                with self._pulse:
                    reader.open()
                for shot, took_ms in self._frames(reader):
                    count += 1
                    if count >= GOOD_FRAMES:
                        pause_s, well = 0.0, time.monotonic()
                    self._event(True, "", "")
                    self._hand_in(reader, shot, took_ms)
            except SourceError as error:
                self._event(False, error.code, error.what)
                if not reader.live and error.code == "source.truncated" and not self.source.loop:
                    return
                pause_s = self._pause(pause_s, well)
                continue
            finally:
                reader.close()
            if not self.source.loop:
                if not self._stopped.is_set():
                    self._event(False, "source.ended", f"{self.source.name} is at its end after {count} frames")
                return
            if not count:  # a loop over nothing readable must not spin
                pause_s = self._pause(pause_s, well)

    def _pause(self, previous_s: float, well: float) -> float:
        """Wait before the next try; how long that was. `well`: when the source last was."""
        cap_s = patience(time.monotonic() - well)
        pause_s = decorrelated(previous_s, random.random(), cap_s=cap_s)  # noqa: S311  jitter, not a secret
        self._stopped.wait(pause_s)
        return pause_s

    def _frames(self, reader: FrameSource) -> Iterator[tuple[Shot, float]]:
        """(shot, read time in ms) until the end, paced by fps; unreadable images are told and skipped."""
        pace = Pace(self._fps(reader), time.monotonic())
        reader.wanted = lambda: self._is_due(pace)
        bad = 0
        while not self._stopped.is_set():
            pace.set_fps(self._fps(reader))
            if not reader.keeps_time and self._stopped.wait(pace.wait_s(time.monotonic())):
                return
            began = time.monotonic()
            try:
                with self._pulse:
                    shot = reader.read(self._buffers)
            except SourceError as error:
                bad += 1
                if error.code != "source.image" or bad > _BAD_IMAGES_IN_A_ROW:
                    raise
                self._event(False, error.code, error.what)
                self._intake.skipped(self.source.name, "unreadable")
                continue
            finally:
                self._count_lost(reader)
            if shot is None:
                return
            bad = 0
            now = time.monotonic()
            pace.taken(now)
            yield shot, (now - began) * 1e3

    def _fps(self, reader: FrameSource) -> float:
        """Frames a second that are wanted, 0 for all: the least of what the deployment and the governor allow."""
        own = self.source.fps or (SYNTHETIC_FPS if reader.live and not reader.keeps_time else 0.0)
        return min(own or self._cap, self._cap) if self._cap else own

    def _is_due(self, pace: Pace) -> bool:
        if self._stopped.is_set() or not pace.is_early(time.monotonic()):
            return True
        self._intake.skipped(self.source.name, "fps-cap")
        return False

    def _count_lost(self, reader: FrameSource) -> None:
        while reader.lost:
            cause, count = reader.lost.popitem()
            for _ in range(count):
                self._intake.skipped(self.source.name, cause)

    def _hand_in(self, reader: FrameSource, shot: Shot, took_ms: float) -> None:
        if self._stopped.is_set():  # a read that outlived `stop`
            return
        now = time.monotonic()
        frame = Frame(self.source.name, self._intake.number(self.source.name), reader.position, shot.image, shot.captured,
                      time.time() - (now - shot.captured), arrived=now, capture_ms=took_ms)
        if reader.live:
            self._intake.newest(frame)
        else:
            self._intake.every(frame, self._stopped)

    def _event(self, up: bool, code: str, detail: str) -> None:
        """Tell a change of state once; a repeated cause is silent until the source was up again."""
        if self._left or (self._last_event == (up, code) and code != "source.image"):
            return
        self._last_event = (up, code)
        self._tell(SourceEvent(self.source.name, up, code, detail))
