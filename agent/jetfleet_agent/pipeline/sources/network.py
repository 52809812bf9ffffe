"""Network cameras through PyAV: TCP, TLS, the video track alone, time-outs, and a typed cause for whatever goes wrong.

FFmpeg's messages, and PyAV's exceptions, quote the address with user and password. So FFmpeg logs nothing here, and of an exception only
its class is looked at, never its text; our errors are raised outside the handler and carry no context.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import numpy as np

from jetfleet_agent.pipeline.preprocess import Image
from jetfleet_agent.pipeline.sources import Buffers, FrameSource, Shot
from jetfleet_agent.pipeline.sources.colours import Packed420
from jetfleet_agent.pipeline.sources.reach import SECURE, redact, unreachable
from jetfleet_contract.camera_time import CameraClock
from jetfleet_contract.errors import InputError, SourceError

OPEN_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 5.0
KEY_TIMEOUT_S = 15.0  # groups of pictures of 10 s are sold as "smart" codecs
BEHIND_S = 1.0
MAX_PIXELS = 64 << 20
_AT_ONCE_S = 0.002  # a packet that comes sooner had been waiting here
_FULL_RANGE = 2
_DAMAGED_S = 2.0
_AGAIN = "it is tried again by itself; check its power and network"
_PROTOCOLS = "tcp,tls,udp,rtp,srtp,http,https,httpproxy,rtmp,crypto"


class NetworkCamera(FrameSource):
    """One stream. `uri` may hold user and password; nothing here lets them out.

    A fragment ``#ca=FILE`` asks for a certificate that leads to one in FILE; without it TLS hides but does not authenticate, because
    cameras sign their certificates themselves.
    """

    live = True
    keeps_time = True

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._shown = redact(uri)
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise InputError("source.uri", f"the camera's address {self._shown} cannot be read",
                             remedy="write it as rtsp://user:password@host:port/path, with %40 for @ inside a password") from None
        self._scheme = parts.scheme.lower()
        self._uri = urlunsplit(parts._replace(fragment=""))
        self._trusted = parse_qs(parts.fragment).get("ca", [""])[0]
        self._container: Any = None
        self._packets: Iterator[Any] = iter(())
        self._packed = Packed420()
        self._reformatter: Any = None
        self._forget()

    def _forget(self) -> None:
        self._clock = CameraClock()
        self._opened = time.monotonic()
        self._packets_seen = 0
        self._frames_seen = 0
        self._ready: list[Any] = []
        self._behind = False
        self._damaged_until = 0.0

    # --- opening -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        import av
        import av.logging

        self.close()
        self._forget()
        av.logging.set_level(None)
        cause: SourceError | None = None
        try:
            self._container = av.open(self._uri, options=self._options(), timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))
        except Exception as error:  # noqa: BLE001  its text holds the password, so it ends here
            cause = self._not_opened(error)
        if cause is not None:
            raise cause
        self._choose_video()

    def _options(self) -> dict[str, str]:
        options = {"protocol_whitelist": _PROTOCOLS}
        if self._scheme in {"rtsp", "rtsps"}:
            # The session's description says what the codec is; looking into the stream would only wait for a key frame before we do.
            options |= {"rtsp_transport": "tcp", "allowed_media_types": "video", "probesize": "32", "fpsprobesize": "0"}
        else:
            options |= {"analyzeduration": "1000000", "rw_timeout": str(int(READ_TIMEOUT_S * 1e6))}
        if self._scheme in SECURE and self._trusted:
            options |= {"tls_verify": "1", "ca_file": self._trusted}
        return options

    def _not_opened(self, error: Exception) -> SourceError:
        import av.error as kinds

        if isinstance(error, (kinds.HTTPUnauthorizedError, kinds.HTTPForbiddenError)):
            return self._error("source.auth", "refuses this user and password",
                               "check them in the address, with %40 for @ inside a password")
        if isinstance(error, kinds.HTTPNotFoundError):
            return self._error("source.path", "has no stream at this path", "look up the path in the camera's manual or with ONVIF")
        if isinstance(error, kinds.HTTPOtherClientError) and self._has_no_video():
            return self._no_video()
        if isinstance(error, (kinds.HTTPError, kinds.HTTPClientError)):
            return self._error("source.answer", "answers with an error of its own", "see that its video is on; look at its log; restart it")
        reason = unreachable(self._uri, OPEN_TIMEOUT_S, self._trusted)
        if reason is not None:
            return reason
        if isinstance(error, (kinds.ProtocolNotFoundError, kinds.DecoderNotFoundError, kinds.DemuxerNotFoundError)):
            return self._error("source.codec", "speaks a protocol or codec that is not in this build", "set the camera to H.264 over RTSP")
        if time.monotonic() - self._opened >= OPEN_TIMEOUT_S:
            return self._error("source.timeout", "accepts the connection and then says nothing", "restart the camera")
        return self._error("source.open", "answers, but not with a stream", "check scheme, port and path; rtsps:// when it wants TLS")

    def _has_no_video(self) -> bool:
        """Asked of a camera that refused to play its video track: it offers tracks, and none is a picture."""
        import av

        options = {name: value for name, value in self._options().items() if name != "allowed_media_types"}
        try:
            with av.open(self._uri, options=options, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S)) as container:
                return not container.streams.video
        except Exception:  # noqa: BLE001  see the module
            return False

    def _no_video(self) -> SourceError:
        return self._error("source.no-video", "has no video track", "check the path, and that the camera's video is on")

    def _choose_video(self) -> None:
        import av.error

        video = next(iter(self._container.streams.video), None)
        if video is None:
            self.close()
            raise self._no_video()
        if video.codec_context is None:
            self.close()
            raise self._error("source.codec", "sends a codec that is not in this build", "set the camera to H.264, H.265 or MJPEG")
        video.thread_type = "SLICE"  # threads by frame would add a frame of delay each
        video.codec_context.thread_count = 2
        self._damage = av.error.InvalidDataError
        self._packets = self._container.demux(video)

    # --- reading -----------------------------------------------------------------------------------------------

    def read(self, buffers: Buffers) -> Shot | None:
        while True:
            while self._ready:
                frame = self._ready.pop(0)
                if self._is_whole(frame) and self.wanted():
                    return self._shot(frame, buffers)
            packet = self._next_packet()
            if packet is not None:
                self._decode(packet)

    def _next_packet(self) -> Any:
        """The next packet that is worth decoding, or None: one that came too late, with the next ones already waiting behind it."""
        asked = time.monotonic()
        cause: SourceError | None = None
        packet = None
        try:
            packet = next(self._packets)
        except StopIteration:
            cause = self._ended()
        except Exception as error:  # noqa: BLE001  see the module
            cause = self._ended(error, time.monotonic() - asked)
        if cause is not None:
            raise cause
        if packet is None or not packet.size:
            raise self._ended()
        now = time.monotonic()
        self._packets_seen += 1
        if not self._frames_seen and now - self._opened > KEY_TIMEOUT_S:
            raise self._error("source.no-keyframe", f"sent no key frame within {KEY_TIMEOUT_S:.0f} s",
                              "set its key-frame interval (GOP, I-frame interval) to two seconds or less")
        late = self._late(packet, now)
        if late > BEHIND_S and now - asked < _AT_ONCE_S:
            self._behind = True
        elif self._behind and packet.is_keyframe:
            self._behind = False
        if self._behind:
            self.lose("behind")
            return None
        return packet

    def _late(self, packet: Any, now: float) -> float:
        """Seconds; 0 for a stream whose stamps do not come from a camera's clock."""
        if packet.pts is None or self._scheme not in {"rtsp", "rtsps"}:
            return 0.0
        return self._clock.arrived(float(packet.pts * packet.time_base), now)

    def _ended(self, error: Exception | None = None, waited_s: float = 0.0) -> SourceError:
        if error is not None and waited_s >= 0.9 * READ_TIMEOUT_S:
            if self._packets_seen and not self._frames_seen:
                return self._error("source.no-keyframe", "stopped before its first key frame", _AGAIN)
            return self._error("source.no-frames", f"sent nothing for {READ_TIMEOUT_S:.0f} s", _AGAIN)
        if self._frames_seen:
            return self._error("source.gone", "ended the stream", _AGAIN)
        return self._error("source.no-frames", "ended the stream before its first picture", "check that the camera's video is on")

    def _decode(self, packet: Any) -> None:
        cause: SourceError | None = None
        try:
            self._ready.extend(packet.decode())
        except self._damage:
            if self._frames_seen:  # before the first key frame there is nothing to decode upon
                self._damaged(packet.is_keyframe)
        except Exception as error:  # noqa: BLE001  see the module
            cause = self._error("source.codec", f"sends what cannot be decoded ({type(error).__name__})",
                                "set the camera to H.264 main profile")
        if cause is not None:
            raise cause

    def _damaged(self, is_key: bool) -> None:
        """What follows builds upon the damage, until the next key frame; a camera that damages its key frames is taken as it is."""
        self.lose("damaged")
        if not is_key:
            self._damaged_until = time.monotonic() + _DAMAGED_S

    def _is_whole(self, frame: Any) -> bool:
        self._frames_seen += 1
        if frame.is_corrupt:
            self._damaged(bool(frame.key_frame))
            return False
        if frame.key_frame:
            self._damaged_until = 0.0
        elif self._damaged_until > time.monotonic():
            self.lose("damaged")
            return False
        return True

    def _shot(self, frame: Any, buffers: Buffers) -> Shot:
        image = self._bgr(frame, buffers)
        now = time.monotonic()
        if frame.pts is None or self._scheme not in {"rtsp", "rtsps"}:
            return Shot(image, now)
        return Shot(image, self._clock.taken_at(float(frame.pts * frame.time_base), now), "rtp")

    def _bgr(self, frame: Any, buffers: Buffers) -> Image:
        height, width = frame.height, frame.width
        if not 0 < height * width <= MAX_PIXELS:
            raise self._error("source.format", f"sends pictures of {width}x{height}", "set the camera to a smaller resolution")
        image = buffers.take(height, width)
        if frame.format.name in {"yuv420p", "nv12"} and frame.color_range != _FULL_RANGE and not (height | width) & 1:
            self._packed.to_bgr(tuple(_rows(plane) for plane in frame.planes), image)
            return image
        cause: SourceError | None = None
        try:
            # Deep, sub-sampled differently, gray, full range: swscale knows them all.
            image.reshape(height, width * 3)[:] = _rows(self._any_format(frame).planes[0])[:, :width * 3]
        except (ValueError, OSError):
            cause = self._error("source.format", f"sends pixels as {frame.format.name}, which cannot be converted", "set it to 8-bit 4:2:0")
        if cause is not None:
            raise cause
        return image

    def _any_format(self, frame: Any) -> Any:
        from av.video.reformatter import VideoReformatter

        if self._reformatter is None:
            self._reformatter = VideoReformatter()
        return self._reformatter.reformat(frame, format="bgr24", src_color_range=frame.color_range or None)

    def close(self) -> None:
        container, self._container = self._container, None
        self._packets = iter(())
        self._ready = []
        if container is not None:
            container.close()

    def _error(self, code: str, what: str, remedy: str) -> SourceError:
        return SourceError(code, f"the camera {self._shown} {what}", where=self._shown, remedy=remedy)


def _rows(plane: Any) -> Image:
    """(rows, stride) uint8: a view of the decoder's memory."""
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
