"""The annotated preview: MJPEG over HTTP, for a browser, from the pipeline's own process.

    GET /              a page with every source
    GET /SOURCE.mjpg   multipart/x-mixed-replace, JPEG after JPEG
    GET /SOURCE.jpg    the next picture

On the loopback without a token; then only requests whose Host is the loopback too are answered, so that a web page cannot read it through a
name of its own that points here. With a token every request carries it: ``?token=...`` or ``Authorization: Bearer ...``. Requests are read
by the standard library's server, with a deadline, a bounded number of connections, and no log of what was asked.
"""

from __future__ import annotations

import contextlib
import hmac
import html
import http.server
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_contract.app_config import PreviewSink
from jetfleet_contract.errors import StorageError
from jetfleet_contract.messages import Result
from jetfleet_contract.sink_rules import LOOPBACK, check_preview

from .views import Views

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 24
REQUEST_S = 10.0
SLOW_S = 5.0
FIRST_PICTURE_S = 10.0
_BOUNDARY = "jetfleet"

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{app} - jetfleet</title><style>body{{margin:1rem;font:15px system-ui,sans-serif;background:#16181d;color:#e8e8e8}}
h1{{font-size:1.1rem;font-weight:600}}main{{display:flex;flex-wrap:wrap;gap:1rem}}figure{{margin:0;max-width:960px}}
img{{max-width:100%;display:block;background:#000;min-height:4rem}}figcaption{{padding:.3rem 0;color:#b9bec8}}</style>
<h1>{app}</h1><main>{figures}</main>
<script>for (const i of document.images) i.src = i.dataset.src + location.search;</script></html>
"""
_FIGURE = '<figure><img data-src="{path}.mjpg" alt="{name}"><figcaption>{name}</figcaption></figure>'
_NO_SOURCE = "<p>No frame has come yet. Reload this page when a camera is up.</p>"


class Preview:
    """See the module.

    Args:
        address: what the board's config gives to previews with a token.
        purposes: of the app's privacy policy.

    Raises:
        InputError: `preview.token`, `preview.privacy`. StorageError: `preview.listen`.
    """

    def __init__(self, app: str, spec: PreviewSink, purposes: tuple[str, ...], address: str) -> None:
        bound = check_preview(spec, purposes, address)
        self._views = Views(spec.fps, spec.width)
        self._app = app
        self._stopping = threading.Event()
        try:
            self._server = _Server(bound, spec.port, self._handler(spec.token.encode(), bound))
        except OSError as error:
            self._views.close()
            raise StorageError("preview.listen", f"the preview cannot listen on port {spec.port}: {error.strerror or error}",
                               remedy="is the port taken? `port` 0 takes any free one") from None
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="preview", daemon=True)
        self._thread.start()
        log.info("preview of %s: http://%s:%d/%s", app, f"[{bound}]" if ":" in bound else bound, self.port,
                 " (with its token)" if spec.token else "")

    def take(self, frame: Frame, result: Result, now: float) -> None:
        self._views.take(frame, result.version, now)

    def amend(self, result: Result) -> None:
        """Its picture has gone already."""

    def counts(self) -> dict[str, int]:
        return {"viewers": self._views.watchers, "encoded": self._views.encoded, "superseded": self._views.superseded,
                "slow": self._server.slow, "refused": self._server.refused}

    def close(self) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._views.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(3.0)

    def _handler(self, token: bytes, bound: str) -> type[http.server.BaseHTTPRequestHandler]:
        return type("Handler", (_Request,), {"views": self._views, "app": self._app, "token": token, "only_local": bound in LOOPBACK})


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """A thread a connection, so many and no more; faults of one end that one."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16
    allow_reuse_address = True

    def __init__(self, address: str, port: int, handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.slow = self.refused = 0
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((address, port), handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the name service for our own name
        self.server_name, self.server_port = "preview", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.refused += 1
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the standard library's shape
        log.debug("a preview's connection failed", exc_info=True)  # noqa: LOG014 - the server calls it inside its handler


class _Request(http.server.BaseHTTPRequestHandler):
    views: Views
    app: str
    token: bytes
    only_local: bool
    timeout = REQUEST_S
    server_version = "jetfleet"
    sys_version = ""

    def handle(self) -> None:
        """One request; its head must be there in time, however it trickles."""
        deadline = threading.Timer(REQUEST_S, self._cut)
        deadline.daemon = True
        deadline.start()
        self._deadline = deadline
        try:
            with contextlib.suppress(OSError):
                self.handle_one_request()
        finally:
            deadline.cancel()

    def do_GET(self) -> None:
        self._deadline.cancel()
        try:
            path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query, max_num_fields=8)
        except ValueError:
            self._say(400, b"bad request\n")
            return
        if not self._may_see(query):
            return
        name, _, kind = unquote(path.removeprefix("/")).rpartition(".")
        if path == "/":
            self._say(200, self._page().encode(), "text/html; charset=utf-8")
        elif kind == "mjpg" and self.views.watch(name):
            self._watched(name, self._stream)
        elif kind == "jpg" and self.views.watch(name):
            self._watched(name, self._picture)
        else:
            self._say(404, b"no such source\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's shape; the request may hold the token
        pass

    def version_string(self) -> str:
        return self.server_version

    # --- who may see ------------------------------------------------------------------------------------------

    def _may_see(self, query: dict[str, list[str]]) -> bool:
        if self.token:
            if any(hmac.compare_digest(said.encode(errors="replace"), self.token) for said in self._tokens(query)):
                return True
            self._say(401, b"this preview wants its token\n")
            return False
        host = (self.headers.get("Host") or "").rpartition("]")[0].removeprefix("[") or (self.headers.get("Host") or "").split(":")[0]
        if self.only_local and host not in LOOPBACK:
            self._say(421, b"this preview is for the board itself\n")
            return False
        return True

    def _tokens(self, query: dict[str, list[str]]) -> Iterator[str]:
        yield from query.get("token", [])[:1]
        kind, _, said = (self.headers.get("Authorization") or "").partition(" ")
        if kind.lower() == "bearer":
            yield said.strip()

    # --- what is seen -----------------------------------------------------------------------------------------

    def _page(self) -> str:
        figures = "".join(_FIGURE.format(path=html.escape(quote(name, safe="")), name=html.escape(name)) for name in self.views.sources())
        return _PAGE.format(app=html.escape(self.app), figures=figures or _NO_SOURCE)

    def _watched(self, source: str, show: Callable[[str], None]) -> None:
        self.connection.settimeout(SLOW_S)
        try:
            show(source)
        except TimeoutError:
            self.server.slow += 1  # type: ignore[attr-defined]
        except OSError:
            pass  # it went away
        finally:
            self.views.leave(source)

    def _picture(self, source: str) -> None:
        shown = self.views.next(source, -1, FIRST_PICTURE_S)
        if shown is None:
            self._say(503, b"no frame comes\n")
            return
        self._say(200, shown[1], "image/jpeg")

    def _stream(self, source: str) -> None:
        self._head(200, f"multipart/x-mixed-replace; boundary={_BOUNDARY}", -1)
        number = -1
        while self._is_there():
            shown = self.views.next(source, number, 1.0)
            if shown is not None:
                number, data = shown
                self.wfile.write(b"--%s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (_BOUNDARY.encode(), len(data)))
                self.wfile.write(data + b"\r\n")
            elif self.views.closed:
                return

    def _is_there(self) -> bool:
        """A viewer that left is noticed even while no picture comes."""
        self.connection.setblocking(False)
        try:
            return bool(self.connection.recv(4096))
        except (BlockingIOError, InterruptedError):
            return True
        finally:
            self.connection.settimeout(SLOW_S)

    def _say(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self._head(status, kind, len(body))
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def _head(self, status: int, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length >= 0:
            self.send_header("Content-Length", str(length))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; "
                                                    "script-src 'unsafe-inline'; frame-ancestors 'none'")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
