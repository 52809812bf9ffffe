"""Ranges of blobs from a web server: one connection, kept open, with limits on time, rate, redirects and bytes.

Nothing that comes is trusted here: whoever reads checks each chunk against the signed table. Certificates are checked all the same, against
`ca` when it is given. Neither addresses nor headers are logged: a fault names the host only.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
import time
from collections.abc import Callable, Iterator
from urllib.parse import urljoin, urlsplit

import msgspec

from jetfleet_contract import __version__
from jetfleet_contract.errors import InputError, TransportError

TIMEOUT_S = 10.0
WINDOW_S = 10.0
MAX_REDIRECTS = 3
PIECE_BYTES = 64 * 1024

_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")


class WebSettings(msgspec.Struct, frozen=True):
    """`url` is the folder of the blobs; `ca`, `cert` and `key` are files. Slower than `min_bytes_s` over 10 s is as bad as nothing."""

    url: str
    ca: str = ""
    cert: str = ""
    key: str = ""
    min_bytes_s: float = 8000.0


class Body(msgspec.Struct, frozen=True):
    """What an answer holds, from byte `start` of the blob on."""

    start: int
    pieces: Iterator[bytes]


class WebFolder:
    """Used by one thread, except `cut`.

    Raises:
        InputError: `mirror.tls` when a named file cannot be used.
    """

    def __init__(self, settings: WebSettings, mono: Callable[[], float] = time.monotonic) -> None:
        parts = urlsplit(settings.url)
        self._base = settings.url.rstrip("/") + "/"
        self._origin = (parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        self._tls = _tls(settings) if parts.scheme == "https" else None
        self._least = settings.min_bytes_s
        self._mono = mono
        self._connection: http.client.HTTPConnection | None = None

    @property
    def host(self) -> str:
        return self._origin[1]

    def get(self, blob: str, start: int, end: int, size: int, *, whole: bool) -> Body:
        """Bytes `start` to `end` (not included) of a blob of `size` bytes; a `whole` blob is also taken from a server that knows no ranges.

        Raises:
            TransportError: `mirror.missing` (404), `mirror.no-range`, `mirror.status`, `mirror.redirect`, `mirror.broken`, `mirror.tls`,
                `mirror.unreachable`, `mirror.slow`; the last ones also while the body is read, and `mirror.truncated`.
        """
        try:
            response = self._request(urlsplit(self._base + blob).path, f"bytes={start}-{end - 1}")
            return self._body(response, start, end, size, whole)
        except TransportError:
            self.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._error(error) from None

    def cut(self) -> None:
        """From another thread: end what is being read."""
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(2)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    # --- requests ---------------------------------------------------------------------------------------------

    def _request(self, path: str, wanted: str) -> http.client.HTTPResponse:
        for _ in range(MAX_REDIRECTS + 1):
            response = self._ask(path, wanted)
            if response.status not in (301, 302, 303, 307, 308):
                return response
            self.close()
            path = self._redirected(path, response.getheader("Location") or "")
        raise TransportError("mirror.redirect", f"mirror {self.host} redirects in a circle", where=self.host)

    def _ask(self, path: str, wanted: str) -> http.client.HTTPResponse:
        """One request; once more on a new connection when the server had closed the kept one."""
        headers = {"Range": wanted, "Accept-Encoding": "identity", "User-Agent": f"jetfleet-agent/{__version__}"}
        kept = self._connection is not None
        try:
            return self._send(path, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not kept:
                raise
            self.close()
            return self._send(path, headers)

    def _send(self, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._connection is None:
            _, host, port = self._origin
            self._connection = (http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=self._tls) if self._tls is not None
                                else http.client.HTTPConnection(host, port, timeout=TIMEOUT_S))
        self._connection.request("GET", path, headers=headers)
        return self._connection.getresponse()

    def _redirected(self, path: str, location: str) -> str:
        """The path to follow; only on the very same server, because another one was not named by whoever set this board up."""
        scheme, host, port = self._origin
        target = urlsplit(urljoin(f"{scheme}://{host}:{port}{path}", location))
        with contextlib.suppress(ValueError):
            if (target.scheme, target.hostname, target.port or (443 if scheme == "https" else 80)) == self._origin and target.path:
                return target.path
        raise TransportError("mirror.redirect", f"mirror {self.host} redirects to another server", where=self.host,
                             remedy="name that server in [mirror] url")

    # --- answers ----------------------------------------------------------------------------------------------

    def _body(self, response: http.client.HTTPResponse, start: int, end: int, size: int, whole: bool) -> Body:
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range") or "")
            if match is None or (int(match[1]), int(match[2])) != (start, end - 1) or match[3] not in (str(size), "*"):
                raise TransportError("mirror.broken", f"mirror {self.host} answers with another range than was asked for", where=self.host)
            return Body(start, self._pieces(response, end - start))
        if response.status == 200 and response.getheader("Content-Length") == str(size) and (whole or end - start == size):
            return Body(0, self._pieces(response, size))
        if response.status == 200:
            raise TransportError("mirror.no-range", f"mirror {self.host} does not serve ranges", where=self.host,
                                 remedy="use a web server that does: nginx does, `jetfleet mirror` does")
        if response.status in (404, 410):
            raise TransportError("mirror.missing", f"mirror {self.host} does not have the blob", where=self.host,
                                 remedy="serve the project's blobs folder, or copy it there")
        raise TransportError("mirror.status", f"mirror {self.host} answers with status {response.status}", where=self.host)

    def _pieces(self, response: http.client.HTTPResponse, length: int) -> Iterator[bytes]:
        """Exactly `length` bytes, each as soon as it is there; the connection is kept only when all were read."""
        left, began, in_window = length, self._mono(), 0
        try:
            while left:
                piece = response.read1(min(PIECE_BYTES, left))
                if not piece:
                    raise TransportError("mirror.truncated", f"mirror {self.host} ended {left} bytes early", where=self.host)
                left -= len(piece)
                in_window += len(piece)
                yield piece
                passed = self._mono() - began
                if passed >= WINDOW_S:
                    self._check_rate(in_window / passed)
                    began, in_window = self._mono(), 0
            response.read(1)  # the end of the body: the connection is free for the next request
        except (OSError, http.client.HTTPException) as error:
            raise self._error(error) from None
        finally:
            if left or not response.isclosed():
                self.close()

    def _check_rate(self, rate: float) -> None:
        if rate < self._least:
            raise TransportError("mirror.slow", f"mirror {self.host} sends {rate:.0f} bytes/s, at least {self._least:.0f} are wanted",
                                 where=self.host)

    def _error(self, error: Exception) -> TransportError:
        if isinstance(error, TimeoutError):
            return TransportError("mirror.slow", f"mirror {self.host} does not answer within {TIMEOUT_S:.0f} s", where=self.host)
        if isinstance(error, ssl.SSLError):
            return TransportError("mirror.tls", f"mirror {self.host} cannot be trusted: {error.reason or 'TLS failed'}", where=self.host,
                                  remedy="check [mirror] ca and the server's certificate")
        if isinstance(error, http.client.IncompleteRead):
            return TransportError("mirror.truncated", f"mirror {self.host} ended early", where=self.host)
        if isinstance(error, http.client.HTTPException):
            return TransportError("mirror.broken", f"mirror {self.host} does not speak HTTP: {type(error).__name__}", where=self.host)
        return TransportError("mirror.unreachable", f"mirror {self.host} cannot be reached: {type(error).__name__}", where=self.host,
                              remedy="check [mirror] url and the network")


def _tls(settings: WebSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key or None)
    except (OSError, ssl.SSLError) as error:
        raise InputError("mirror.tls", f"cannot use the TLS files of the mirror: {error}", where=settings.ca,
                         remedy="check [mirror] ca, cert and key: PEM files, readable, the key fitting the certificate") from None
    return context
