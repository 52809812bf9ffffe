"""Where frames come from, by URI.

    /path, file:/path          a video: every frame, in order; a folder: its images by name; one image
    synthetic:640x480          moving labels, live; ``synthetic:640x480?frames=100`` makes it a file of 100 frames
    rtsp:// rtsps:// http://   a network camera, through PyAV's FFmpeg; ``rtsps://camera/path#ca=FILE`` checks its certificate
    v4l2:/dev/video0           a local camera; v4l2:///dev/video0 and v4l2://0 are the same
    csi://0?width=1280         a Jetson's CSI sensor, through the system's GStreamer
    gst:PIPELINE               any GStreamer pipeline that ends in raw video; from the board's own config only

A source reads; it starts no thread, counts nothing and does not reconnect (`capture` does). Names, user and password of a camera
never leave this package: errors carry the redacted URI.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.sources.reach import redact as redact
from jetfleet_contract.errors import InputError, SourceError
from jetfleet_contract.messages import Source

_NETWORK = {"rtsp", "rtsps", "rtmp", "http", "https"}
_LOCAL_CAMERA = re.compile(r"(?://)?(/dev/video\d{1,3}|\d{1,3})")
_SYNTHETIC = re.compile(r"(\d{1,4})x(\d{1,4})(?:\?frames=(\d{1,9}))?")


class Buffers(Protocol):
    """Where a source gets the memory for its frames."""

    def take(self, height: int, width: int) -> Image:
        """(height, width, 3) uint8, with anything in it; the frame's end gives it back, never the source."""


class FreshBuffers:
    """New memory for every frame."""

    def take(self, height: int, width: int) -> Image:
        return np.empty((height, width, 3), np.uint8)


class Shot:
    """One frame as a source gives it: `image` (H, W, 3) uint8 BGR in memory from `Buffers` (or of its own).

    `captured`: monotonic seconds at which the scene was taken, as well as `clock` can tell: the sensor's or driver's own stamp, RTP and its
    sender reports, or only the arrival here.
    """

    __slots__ = ("captured", "clock", "image")

    def __init__(self, image: Image, captured: float, clock: Literal["sensor", "rtp", "arrival"] = "arrival") -> None:
        self.image = image
        self.captured = captured
        self.clock = clock


def _always() -> bool:
    return True


class FrameSource(ABC):
    """`live`: newest frame wins. `keeps_time`: frames come when the source has them, so that it must be read without a pause; a cap on
    its rate passes frames over. `position` is the index of the frame that `read` gave last (-1: live).

    `wanted` is asked by a camera once a frame is there, before its pixels are converted; where it says no, the frame is passed over.
    `lost` counts frames that came and could not be given, by cause: ``damaged``, ``behind``; who reads takes them out.
    """

    live = False
    keeps_time = False
    wanted: Callable[[], bool]

    def __init__(self) -> None:
        self.position = -1
        self.wanted = _always
        self.lost: dict[str, int] = {}

    def lose(self, cause: str) -> None:
        """Count one frame that is not given."""
        self.lost[cause] = self.lost.get(cause, 0) + 1

    @abstractmethod
    def open(self) -> None:
        """Open, or open again from the beginning.

        Raises:
            SourceError: with a typed cause: source.missing, source.open, source.refused, source.timeout, source.dns ...
        """

    @abstractmethod
    def read(self, buffers: Buffers) -> Shot | None:
        """The next frame; None at the end.

        Raises:
            SourceError: source.truncated, source.lost ...
        """

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""


def open_source(source: Source) -> FrameSource:
    """The reader for a source's URI, not yet opened.

    Raises:
        InputError: `source.uri`.
    """
    scheme, colon, rest = source.uri.partition(":")
    scheme = scheme.lower()
    if scheme == "file" or not colon or source.uri.startswith("/"):
        return _file(Path(_file_path(source.uri)))
    if scheme == "synthetic":
        return _synthetic(source, rest)
    if scheme in _NETWORK and rest.startswith("//"):
        from jetfleet_agent.pipeline.sources.network import NetworkCamera

        return NetworkCamera(source.uri)
    if scheme == "v4l2" and (device := _LOCAL_CAMERA.fullmatch(rest)):
        from jetfleet_agent.pipeline.sources.v4l2 import LocalCamera

        return LocalCamera(device[1] if device[1].startswith("/") else f"/dev/video{device[1]}")
    if scheme in {"csi", "gst"}:
        return _pipeline(source, scheme, rest)
    raise InputError("source.uri", f"source {source.name!r}: {redact(source.uri)[:80]!r} is no source this board knows",
                     remedy="use a path, file:, synthetic:, rtsp://, csi:// or v4l2:/dev/videoN; local: names are the agent's to resolve")


def _file(path: Path) -> FrameSource:
    from jetfleet_agent.pipeline.sources.images import ImageFolder
    from jetfleet_agent.pipeline.sources.video import VideoFile

    return ImageFolder(path) if path.is_dir() or path.suffix.lower() in ImageFolder.SUFFIXES else VideoFile(path)


def _synthetic(source: Source, rest: str) -> FrameSource:
    from jetfleet_agent.pipeline.sources.synthetic import Synthetic

    size = _SYNTHETIC.fullmatch(rest)
    if not size or min(int(size[1]), int(size[2])) < 16:
        raise InputError("source.uri", f"source {source.name!r}: {source.uri[:80]!r} is no size",
                         remedy="write synthetic:640x480 or synthetic:640x480?frames=100")
    return Synthetic(int(size[1]), int(size[2]), int(size[3]) if size[3] else None)


def _pipeline(source: Source, scheme: str, rest: str) -> FrameSource:
    from jetfleet_agent.pipeline.sources.csi import csi_pipeline
    from jetfleet_agent.pipeline.sources.gstreamer import GStreamerPipeline

    return GStreamerPipeline(csi_pipeline(source.uri) if scheme == "csi" else rest, source.name)


def _file_path(uri: str) -> str:
    if uri.startswith("file://"):
        return uri[len("file://"):]
    return uri.removeprefix("file:")


def missing(path: Path) -> SourceError:
    return SourceError("source.missing", f"the source {path.name} is not there", where=str(path),
                       remedy="check the path in the deployment, or the [sources] table of the board's own config")
