"""Results as JSON lines in files: the one that the command line names, and those of a deployment, which are rotated and bounded."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_contract.app_config import JsonlSink
from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import Result
from jetfleet_contract.sink_rules import file_limits
from jetfleet_contract.topics import check_name

from .port import Voice, Waiting

log = logging.getLogger(__name__)

MAX_WAITING = 4000
PAUSE_S = 0.05
RETRY_S = 30.0
LEAST_FREE_BYTES = 128 << 20
CLOSE_S = 3.0
_TAIL_BYTES = 1 << 16
_ENCODER = msgspec.json.Encoder(order="sorted")


def line_of(result: Result) -> bytes:
    """A result as one line of JSON with sorted keys, line feed included."""
    return _ENCODER.encode(result) + b"\n"


class JsonLines:
    """Appends each result to a file that the command line named; flushed line by line, so that ``tail -f`` works."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: BinaryIO = path.open("ab")
        except OSError as error:
            raise StorageError("sink.write", f"cannot write {path.name}: {error.strerror}", where=str(path)) from None

    def write(self, result: Result) -> None:
        self._file.write(line_of(result))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class ResultFiles:
    """``NAME.jsonl`` in the app's results folder, ``NAME.1.jsonl`` the one before it, and so on. Only whole lines: what a kill tore is cut
    off when the file is opened next. A full disk, or one with less than `least_free` bytes, which updates need, stops the writing; it is
    tried again every half minute. The last seconds before a power cut may be lost, as the kernel writes back by itself.

    Args:
        folder: of this app, made with mode 0700; files have 0600.
        local_mb: the board's own bound on all of this sink's files.
        clock: monotonic seconds.
    """

    def __init__(self, folder: Path, spec: JsonlSink, local_mb: int, voice: Voice, *, clock: Callable[[], float] = time.monotonic,
                 least_free: int = LEAST_FREE_BYTES) -> None:
        self._folder = folder
        self._name = check_name("result file", spec.name)
        self._most_bytes, self._keep = file_limits(spec, local_mb)
        self._voice = voice
        self._clock = clock
        self._least_free = least_free
        self._handle = -1
        self._size = 0
        self._retry_at = float("-inf")
        self._written = 0
        self._lost = 0
        self._waiting: Waiting[Result] = Waiting(MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name=f"file-{spec.name}"[:15], daemon=True)
        self._thread.start()

    def take(self, frame: Frame, result: Result, now: float) -> None:  # noqa: ARG002 - a Sink's shape
        self._waiting.put(result)

    def amend(self, result: Result) -> None:
        self._waiting.put(result)

    def counts(self) -> dict[str, int]:
        return {"written": self._written, "slow": self._waiting.dropped, "disk": self._lost}

    def close(self) -> None:
        self._waiting.close()
        self._thread.join(CLOSE_S)

    # --- the sink's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (results := self._waiting.gather(PAUSE_S)) is not None:
            lines = [line_of(result) for result in results]
            if self._clock() < self._retry_at:
                self._lost += len(lines)
                continue
            self._write(lines)
        self._shut()

    def _write(self, lines: list[bytes]) -> None:
        done = 0
        try:
            self._check_room()
            while done < len(lines):
                self._ready(len(lines[done]))
                done += self._append(lines, done)
        except OSError as error:
            self._shut()
            self._retry_at = self._clock() + RETRY_S
            self._voice.down(StorageError("sink.disk", f"no results to {self._name}.jsonl: {error.strerror or error}",
                                          remedy="free some space; it is tried again by itself"))
        else:
            self._voice.up()
        self._written += done
        self._lost += len(lines) - done

    def _check_room(self) -> None:
        if not self._least_free:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        room = os.statvfs(self._folder)
        if room.f_bavail * room.f_frsize < self._least_free:
            raise OSError(0, f"less than {self._least_free >> 20} MB are free, which updates need")

    def _ready(self, wanted: int) -> None:
        """An open file with room for a line, or an empty one."""
        if self._handle < 0:
            self._open()
        if self._size and self._size + wanted > self._most_bytes:
            self._put_away()
            self._open()

    def _open(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._handle = os.open(self._path(0), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._size = cut_torn_line(self._handle)
        for number in range(self._keep, self._keep + 100):  # what an older setting kept
            with contextlib.suppress(FileNotFoundError):
                self._path(number).unlink()

    def _append(self, lines: list[bytes], start: int) -> int:
        """Write as many lines as this file takes, in one go; how many. A write that fails leaves no part of a line behind."""
        end, size = start, 0
        while end < len(lines) and (not size or self._size + size + len(lines[end]) <= self._most_bytes):
            size += len(lines[end])
            end += 1
        view = memoryview(b"".join(lines[start:end]))
        try:
            while view:
                view = view[os.write(self._handle, view):]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._size)
            raise
        self._size += size
        return end - start

    def _put_away(self) -> None:
        """Each file becomes the next older one. A kill between two renames loses none: a gap in the numbers closes next time."""
        os.fsync(self._handle)
        self._shut()
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                self._path(number - 1).replace(self._path(number))
        if self._keep == 1:
            self._path(0).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / (f"{self._name}.{number}.jsonl" if number else f"{self._name}.jsonl")

    def _shut(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def cut_torn_line(handle: int) -> int:
    """Cut off what follows the last line feed of a file that is open for reading and writing.

    Returns:
        The size that is left, in bytes.
    """
    size = end = os.lseek(handle, 0, os.SEEK_END)
    while end:
        begin = max(0, end - _TAIL_BYTES)
        found = os.pread(handle, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end != size:
        os.ftruncate(handle, end)
        log.warning("%d bytes of a line that was never finished are cut off", size - end)
    return end
