"""GStreamer pipelines (``gst:`` and ``csi://``) through the system's GStreamer and PyGObject.

The pipeline ends in an appsink that keeps the newest frame only. One copy is made, from GStreamer's buffer into the frame's own memory,
by gst_buffer_extract through ctypes: PyGObject itself would make a bytes object of every frame.
A pipeline's text may hold a password, and so may GStreamer's messages: errors carry names of elements and codes, nothing else.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.sources import Buffers, FrameSource, Shot
from jetfleet_agent.pipeline.sources.colours import Packed420
from jetfleet_contract.errors import InputError, SourceError

OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 5.0
_SLICE_NS = 250_000_000
_PLAUSIBLE_S = 60.0
_SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")
_TAIL = 'appsink name=jetfleet drop=true max-buffers=1 sync=false caps="video/x-raw,format=(string){BGR,NV12}"'
# (domain, code) of a GLib error: ours, and what it means
_CAUSES = {
    ("gst-resource-error-quark", 3): ("source.missing", "does not find its device or file"),
    ("gst-resource-error-quark", 4): ("source.busy", "finds its device in use"),
    ("gst-resource-error-quark", 9): ("source.gone", "lost its device"),
    ("gst-resource-error-quark", 15): ("source.auth", "is refused by its camera"),
    ("gst-stream-error-quark", 4): ("source.format", "gets data of another type"),
    ("gst-stream-error-quark", 6): ("source.codec", "has no decoder for what it gets"),
    ("gst-stream-error-quark", 7): ("source.codec", "cannot decode what it gets"),
    ("gst-core-error-quark", 12): ("source.plugin", "lacks a plug-in"),
}


class GStreamerPipeline(FrameSource):
    """`description`: as for gst-launch-1.0, raw video at its end, no sink. BGR comes with one copy, NV12 with two and a
    conversion; for anything else put ``! videoconvert`` at its end."""

    live = True
    keeps_time = True

    def __init__(self, description: str, shown: str) -> None:
        super().__init__()
        if "appsink" in description or not description.strip():
            raise InputError("source.uri", f"the pipeline of {shown} must end in raw video, without a sink",
                             remedy="write gst:v4l2src device=/dev/video0 ! videoconvert")
        self._description = description
        self._shown = shown
        self._pipeline: Any = None
        self._packed = Packed420()
        self._planes: dict[int, Image] = {}

    def open(self) -> None:
        self.close()
        gst, self._video, self._extract = _libraries()
        self._gst = gst
        self._pipeline = self._parse(gst)
        self._sink = self._pipeline.get_by_name("jetfleet")
        self._bus = self._pipeline.get_bus()
        self._caps: Any = None
        changed = self._pipeline.set_state(gst.State.PLAYING)
        if changed == gst.StateChangeReturn.ASYNC:
            changed, _, _ = self._pipeline.get_state(int(OPEN_TIMEOUT_S * 1e9))
        if changed in {gst.StateChangeReturn.FAILURE, gst.StateChangeReturn.ASYNC}:
            cause = self._bus_error() or self._error("source.timeout", f"does not start within {OPEN_TIMEOUT_S:.0f} s")
            self.close()
            raise cause

    def _parse(self, gst: Any) -> Any:
        from gi.repository import GLib

        try:
            return gst.parse_launch(f"{self._description} ! {_TAIL}")
        except GLib.Error as error:
            missing = re.search(r'no element "([\w-]{1,60})"', error.message)
        if missing:
            raise self._error("source.plugin", f"needs the element {missing[1]}, which is not installed")
        raise self._error("source.pipeline", "is no pipeline that GStreamer understands")

    def read(self, buffers: Buffers) -> Shot | None:
        deadline = time.monotonic() + READ_TIMEOUT_S
        while True:
            sample = self._sink.try_pull_sample(_SLICE_NS)
            if sample is not None and self.wanted():
                return self._shot(sample, buffers)
            if sample is not None:
                deadline = time.monotonic() + READ_TIMEOUT_S
                continue
            cause = self._bus_error()
            if cause is not None:
                raise cause
            if self._sink.is_eos():
                raise self._error("source.gone", "has come to its end")
            if time.monotonic() > deadline:
                raise self._error("source.no-frames", f"gave nothing for {READ_TIMEOUT_S:.0f} s")

    def _shot(self, sample: Any, buffers: Buffers) -> Shot:
        buffer, caps = sample.get_buffer(), sample.get_caps()
        if self._caps is None or not caps.is_equal(self._caps):
            self._caps, self._info = caps, self._video.VideoInfo.new_from_caps(caps)
        image = buffers.take(self._info.height, self._info.width)
        self._copy(buffer, image)
        now = time.monotonic()
        age = self._age(sample, buffer)
        return Shot(image, now) if age is None else Shot(image, now - age, "sensor")

    def _age(self, sample: Any, buffer: Any) -> float | None:
        """Seconds since the source element stamped the frame (sensor or driver), by the pipeline's own clock."""
        clock = self._pipeline.get_clock()
        if clock is None or buffer.pts == self._gst.CLOCK_TIME_NONE:
            return None
        running = sample.get_segment().to_running_time(self._gst.Format.TIME, buffer.pts)
        age = (clock.get_time() - self._pipeline.get_base_time() - running) / 1e9
        return age if 0 <= age < _PLAUSIBLE_S else None

    def _copy(self, buffer: Any, image: Image) -> None:
        height, width = image.shape[:2]
        strides, offsets = self._layout(buffer)
        if self._info.finfo.name == "BGR":
            if strides[0] == 3 * width:
                self._take_out(buffer, offsets[0], image)
                return
            rows = self._rows(buffer, offsets[0], height, strides[0])
            image.reshape(height, 3 * width)[:] = rows[:, :3 * width]
            return
        if (height | width) & 1:
            raise self._error("source.format", f"gives NV12 of {width}x{height}, an odd size")
        luma = self._rows(buffer, offsets[0], height, strides[0])
        self._packed.to_bgr((luma, self._rows(buffer, offsets[1], height // 2, strides[1], plane=1)), image)

    def _layout(self, buffer: Any) -> tuple[list[int], list[int]]:
        """Strides and offsets in bytes: the buffer's own, where its maker padded rows, else those of its format."""
        meta = self._video.buffer_get_video_meta(buffer)
        layout = meta if meta is not None else self._info
        return list(layout.stride), list(layout.offset)

    def _rows(self, buffer: Any, offset: int, rows: int, stride: int, plane: int = 0) -> Image:
        """A plane, (rows, stride) uint8, in memory that is kept from frame to frame."""
        kept = self._planes.get(plane)
        if kept is None or kept.shape != (rows, stride):
            kept = self._planes[plane] = np.zeros((rows, stride), np.uint8)
        self._take_out(buffer, offset, kept)
        return kept

    def _take_out(self, buffer: Any, offset: int, image: Image) -> None:
        # The last row of a padded plane may be short: then fewer bytes come, and none that a picture uses is missing.
        self._extract(hash(buffer), offset, image.ctypes.data, image.nbytes)

    def _bus_error(self) -> SourceError | None:
        message = self._bus.pop_filtered(self._gst.MessageType.ERROR)
        if message is None:
            return None
        error, _ = message.parse_error()
        unknown = ("source.pipeline", f"failed ({error.domain.removesuffix('-quark')} {error.code})")
        code, what = _CAUSES.get((error.domain, error.code), unknown)
        return self._error(code, f"{what}, says its element {message.src.get_name()[:60]}")

    def close(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        self._planes = {}
        if pipeline is not None:
            pipeline.set_state(self._gst.State.NULL)
            self._sink = self._bus = None

    def _error(self, code: str, what: str) -> SourceError:
        return SourceError(code, f"the GStreamer source {self._shown} {what}", where=self._shown,
                           remedy="run it with gst-launch-1.0 -v ... ! fakesink on the board; it is tried again by itself")


def _libraries() -> tuple[Any, Any, Any]:
    """Gst, GstVideo and gst_buffer_extract.

    Raises:
        SourceError: `source.gstreamer`.
    """
    try:
        _find_gi()
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstApp", "1.0")
        gi.require_version("GstVideo", "1.0")
        from gi.repository import Gst, GstApp, GstVideo  # noqa: F401  GstApp gives appsinks their methods

        extract = ctypes.CDLL("libgstreamer-1.0.so.0").gst_buffer_extract
    except (ImportError, ValueError, OSError):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SourceError("source.gstreamer", f"GStreamer's Python binding cannot be used from this Python {version}",
                          remedy="apt install python3-gi gir1.2-gst-plugins-base-1.0, and run the agent in a venv of the system's Python: "
                                 "/usr/bin/python3 -m venv --system-site-packages") from None
    extract.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t]
    extract.restype = ctypes.c_size_t
    Gst.init(None)
    return Gst, GstVideo, extract


def _find_gi() -> None:
    """PyGObject comes with the system, not from PyPI. A venv that does not see the system's packages gets this one of them."""
    if "gi" in sys.modules or importlib.util.find_spec("gi") is not None:
        return
    spec = importlib.machinery.PathFinder.find_spec("gi", [str(_SYSTEM_PACKAGES)])
    if spec is None or spec.loader is None:
        raise ImportError("gi")
    module = sys.modules["gi"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:  # of another Python version
        del sys.modules["gi"]
        raise
