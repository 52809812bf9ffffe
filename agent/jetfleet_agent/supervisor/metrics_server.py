"""Serves the metrics page to a local scraper: one path, one method, nothing is read from the request but its first line and headers."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from jetfleet_contract.errors import TransportError

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_S = 5.0


class MetricsServer:
    """Listens from its making on.

    Args:
        port: 0 takes any free one; `port` then tells it.
        text: makes the page, in a thread of the server's.

    Raises:
        TransportError: `metrics.listen`.
    """

    def __init__(self, address: str, port: int, text: Callable[[], bytes]) -> None:
        class Handler(_Page):
            page = staticmethod(text)

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
            daemon_threads = True

        try:
            self._server = Server((address, port), Handler)
        except OSError as error:
            raise TransportError("metrics.listen", f"cannot listen on {address} port {port}: {error.strerror or error}",
                                 remedy="choose another port under [metrics], or 0 to serve no metrics") from None
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        log.info("metrics at http://%s:%d/metrics", address, self.port)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Page(BaseHTTPRequestHandler):
    page: Callable[[], bytes]
    timeout = REQUEST_S
    server_version = "jetfleet"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        body = type(self).page()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        log.debug(format, *args)
