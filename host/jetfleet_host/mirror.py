"""A web server over published blobs: the second transport of boards, beside MQTT. Read-only, one range a request, names are digests only.

    GET | HEAD  /blobs/<64 hex digits>      200, 206, 304, 404, 416; anything else 404 or 405

What it serves is signed elsewhere and checked chunk by chunk by who fetches it, so this server need not be trusted; but whoever reaches it
can read the models: `client_ca` lets in only who shows a certificate. Connections are bounded in number, in the time for a request's head
and in the time for each piece of an answer, so that slow clients cannot take the server from the others.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import ipaddress
import logging
import re
import socket
import ssl
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from jetfleet_contract import __version__
from jetfleet_contract.errors import InputError, MalformedError, TransportError

from .project import BlobFolder

MAX_CONNECTIONS = 128
HEAD_S = 15.0
PIECE_S = 60.0
PIECE_BYTES = 256 * 1024
MAX_HEAD_BYTES = 16 * 1024

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_log = logging.getLogger(__name__)


class MirrorSettings(msgspec.Struct, frozen=True):
    """Where to listen (`port` 0: any free one) and, for TLS, which PEM files to use. `client_ca`: clients must show a certificate by it."""

    host: str = "127.0.0.1"
    port: int = 8080
    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    insecure: bool = False


def parse_bind(text: str) -> tuple[str, int]:
    """``HOST:PORT``, an IPv6 address in brackets. InputError `mirror.bind`."""
    host, _, port = text.rpartition(":")
    if not host.strip("[]") or not (port.isascii() and port.isdigit() and int(port[:6]) < 65536):
        raise InputError("mirror.bind", f"{text[:80]!r} is no address to listen on", where="--bind", remedy="for instance 127.0.0.1:8080")
    return host.strip("[]"), int(port)


def wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """The bytes [from, to) that a Range header asks for; the whole blob when it is absent, has several ranges or cannot be read (RFC 9110,
    14.2); None when it cannot be satisfied."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match[0] == "bytes=-":
        return 0, size
    first, last = match[1], match[2]
    if not first:
        return None if not int(last) or not size else (max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return 0, size
    if int(first) >= size:
        return None
    return int(first), min(size, int(last) + 1) if last else size


class MirrorServer(http.server.ThreadingHTTPServer):
    """`serve_forever` until `shutdown`; one thread a connection, at most `MAX_CONNECTIONS`.

    Raises:
        InputError: `mirror.open` for plain HTTP beyond loopback, `mirror.tls`, `mirror.bind`.
        TransportError: `mirror.port` when the port is taken.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, blobs: BlobFolder, settings: MirrorSettings) -> None:
        self.blobs = blobs
        self.sent_bytes = 0
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._tls = _tls(settings)
        _check_open(settings)
        if ":" in settings.host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((settings.host, settings.port), _Handler)
        except OSError as error:
            raise TransportError("mirror.port", f"cannot listen there: {error.strerror or error}", where=f"{settings.host}:{settings.port}",
                                 remedy="stop the program that has the port, or choose another one with --bind") from None
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"{'https' if self._tls else 'http'}://{host}:{self.server_address[1]}/blobs"

    def process_request(self, request: Any, client_address: Any) -> None:
        """In the listening thread: hand over to a thread of its own, or say at once that there is none."""
        if not self._slots.acquire(blocking=False):
            with contextlib.suppress(OSError):
                if self._tls is None:
                    request.send(_BUSY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except Exception:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            if self._tls is not None:
                request.settimeout(HEAD_S)  # of the whole handshake
                request = self._tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError as error:
            _log.info("%s: no connection: %s", client_address[0], type(error).__name__)
            self.shutdown_request(request)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's shape
        """A client that went away or stalled is no news."""
        _log.info("%s: the connection ended early", client_address[0], exc_info=_log.isEnabledFor(logging.DEBUG))


class _Head(io.RawIOBase):
    """The client's bytes, with one deadline and one bound for a whole request head: a byte now and then does not keep it open."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = 0.0
        self._left = 0

    def begin(self) -> None:
        self._deadline = time.monotonic() + HEAD_S
        self._left = MAX_HEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0 or self._left <= 0:
            raise TimeoutError("the request's head takes too long, in time or bytes")
        self._connection.settimeout(left)
        got = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= got
        return got


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"jetfleet/{__version__}"
    sys_version = ""
    server: MirrorServer

    def setup(self) -> None:
        self.connection = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = _Head(self.connection)
        self.rfile = io.BufferedReader(self._head, 4096)
        self.wfile = io.BytesIO()  # the head of an answer; it is sent with the first piece

    def finish(self) -> None:
        self.rfile.close()

    def handle_one_request(self) -> None:
        self._head.begin()
        try:
            super().handle_one_request()
            self._send(b"")
        except (TimeoutError, ConnectionError, ssl.SSLError):
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002 - http.server's shape
        """What http.server itself refuses, such as another method: no page, and the connection ends (a body is not read)."""
        self.close_connection = True
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._short(HTTPStatus.METHOD_NOT_ALLOWED, Allow="GET, HEAD")
        elif getattr(self, "request_version", "HTTP/0.9") != "HTTP/0.9":
            self._short(code)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's shape
        _log.info("%s " + format, self.client_address[0], *args)

    def _answer(self, *, with_body: bool) -> None:
        blob = self.path.removeprefix("/blobs/")
        try:
            size = self.server.blobs.size(blob) if self.path.startswith("/blobs/") else None
        except (MalformedError, OSError):
            size = None
        if size is None:
            self._short(HTTPStatus.NOT_FOUND)
            return
        etag = f'"{blob}"'
        if self.headers.get("If-None-Match", "").strip() == etag:
            self._short(HTTPStatus.NOT_MODIFIED, ETag=etag)
            return
        header = self.headers.get("Range", "") if self.headers.get("If-Range", etag).strip() == etag else ""
        span = wanted_range(header, size)
        if span is None:
            self._short(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, **{"Content-Range": f"bytes */{size}"})
            return
        start, end = span
        partly = end - start < size
        self.send_response(HTTPStatus.PARTIAL_CONTENT if partly else HTTPStatus.OK)
        headers = {"Content-Length": str(end - start), "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": etag,
                   "Cache-Control": "public, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
        if partly:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self._stream(blob, start, end)

    def _stream(self, blob: str, start: int, end: int) -> None:
        with self.server.blobs.path(blob).open("rb") as stream:
            stream.seek(start)
            while start < end:
                piece = stream.read(min(PIECE_BYTES, end - start))
                if not piece:  # it was cut while we read: the client sees that bytes are missing
                    self.close_connection = True
                    return
                self._send(piece)
                start += len(piece)
                self.server.sent_bytes += len(piece)

    def _send(self, piece: bytes) -> None:
        """What waits of the head, then the piece, within `PIECE_S`."""
        head = self.wfile.getvalue()  # type: ignore[attr-defined]
        self.wfile.seek(0)
        self.wfile.truncate()
        if head or piece:
            self.connection.settimeout(PIECE_S)
            self.connection.sendall(head + piece)

    def _short(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", "0")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def _check_open(settings: MirrorSettings) -> None:
    if settings.cert or settings.insecure or settings.host == "localhost":
        return
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(settings.host).is_loopback:
            return
    raise InputError("mirror.open", f"plain HTTP on {settings.host} would show the models to everybody on the way", where="--bind",
                     remedy="give --cert and --key (and --client-ca), or say --insecure-http if that network is yours alone")


def _tls(settings: MirrorSettings) -> ssl.SSLContext | None:
    if settings.cert is None:
        if settings.key or settings.client_ca:
            raise InputError("mirror.tls", "--key and --client-ca need --cert", where="--cert",
                             remedy="give --cert and --key of this server, both PEM files")
        return None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(settings.cert, settings.key)
        if settings.client_ca is not None:
            context.load_verify_locations(settings.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InputError("mirror.tls", f"cannot use the TLS files: {error}", where=str(settings.cert),
                         remedy="check --cert, --key and --client-ca: PEM files, readable, the key fitting the certificate") from None
    return context
