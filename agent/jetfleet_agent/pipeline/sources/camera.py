"""Network and local cameras through OpenCV: opened and read with time-outs, causes told apart before FFmpeg hides them.

OpenCV says only "not opened". So a network camera's host and port are tried first: name, refusal and silence get their own codes;
what remains (`source.open`) is a camera that answers but gives no stream: path, user, password or codec.
"""

from __future__ import annotations

import socket
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from jetfleet_agent.pipeline.sources import Buffers, FrameSource, Shot, redact
from jetfleet_contract.errors import SourceError

OPEN_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 5.0
_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "http": 80, "https": 443}


class Camera(FrameSource):
    """`uri` may hold user and password; nothing here lets them out."""

    live = True

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._uri = uri
        self._shown = redact(uri)
        self._capture: Any = None
        self._size: tuple[int, int] | None = None  # of the last frame: what the next one is read into

    def open(self) -> None:
        import cv2

        self.close()
        if self._uri.startswith("/dev/"):
            self._capture = cv2.VideoCapture(self._uri, cv2.CAP_V4L2)
        else:
            self._reach()
            self._capture = cv2.VideoCapture(self._uri, cv2.CAP_FFMPEG, [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(OPEN_TIMEOUT_S * 1000),
                cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(READ_TIMEOUT_S * 1000)])
        if not self._capture.isOpened():
            self.close()
            raise SourceError("source.open", f"the camera {self._shown} gives no stream", where=self._shown,
                              remedy="check the path, the user and password, and the codec")
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def _reach(self) -> None:
        parts = urlsplit(self._uri)
        try:
            address = (parts.hostname or "", parts.port or _PORTS.get(parts.scheme.lower(), 554))
            socket.create_connection(address, timeout=OPEN_TIMEOUT_S).close()
        except socket.gaierror:
            raise self._unreachable("source.dns", "has a host name that cannot be resolved") from None
        except ConnectionRefusedError:
            raise self._unreachable("source.refused", "refuses the connection") from None
        except TimeoutError:
            raise self._unreachable("source.timeout", f"does not answer within {OPEN_TIMEOUT_S:.0f} s") from None
        except (OSError, ValueError):
            raise self._unreachable("source.unreachable", "cannot be reached") from None

    def _unreachable(self, code: str, what: str) -> SourceError:
        return SourceError(code, f"the camera {self._shown} {what}", where=self._shown,
                           remedy="check that it is on, on this network, and serves at this address")

    def read(self, buffers: Buffers) -> Shot | None:
        good, image = self._capture.read(buffers.take(*self._size)) if self._size else self._capture.read()
        if not good:
            raise SourceError("source.lost", f"the camera {self._shown} stopped giving frames", where=self._shown,
                              remedy="it is tried again by itself")
        self._size = image.shape[:2]
        return Shot(np.asarray(image, np.uint8), time.monotonic())

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
