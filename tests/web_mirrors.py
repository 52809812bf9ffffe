"""Web servers for tests: nginx over a folder of blobs, a mirror that misbehaves on demand, and one that webhooks post to."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import LOOPBACK, free_port, until

from jetfleet_host.brokers import accepts

_NGINX = """
worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off;
events {{ worker_connections 64; }}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen {host}:{port}{tls}; location /blobs/ {{ alias {blobs}/; {more} }} }}
}}
"""


@contextlib.contextmanager
def nginx(folder: Path, blobs: Path, *, more: str = "", cert: Path | None = None, key: Path | None = None) -> Iterator[str]:
    """A running nginx over `blobs`; its address. Locally skipped, in CI a failure, where it is not installed."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("nginx is not installed")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*folder.parents, blobs):
        with contextlib.suppress(OSError):
            path.chmod(path.stat().st_mode | 0o055)  # its workers are another user
    tls = f" ssl; ssl_certificate {cert}; ssl_certificate_key {key}" if cert else ""
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, host=LOOPBACK, port=port, tls=tls, blobs=blobs, more=more))
    child = subprocess.Popen([program, "-c", str(config), "-p", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: accepts(LOOPBACK, port) or child.poll() is not None, "nginx")
        assert child.poll() is None, (folder / "error.log").read_text()
        yield f"{'https' if cert else 'http'}://{LOOPBACK}:{port}/blobs"
    finally:
        child.terminate()
        child.wait(10)


class BadServer:
    """Serves blobs as `ways` says: `fine`, `truncated`, `wrong`, `missing`, `whole`, `slow`, `error`, `elsewhere`, `around`, `garbage`,
    `other-range`. `asked` counts requests; `wrong_at` are offsets (whole blob) of bytes that are turned over."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.way = "fine"
        self.wrong_at: set[int] = set()
        self.asked: list[tuple[str, str]] = []
        self.connections = 0
        self.elsewhere = ""
        self.stop = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):
                    outer.answer(self)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://{LOOPBACK}:{self._server.server_address[1]}/blobs"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.stop.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        blob = request.path.rsplit("/", 1)[-1]
        wanted = request.headers.get("Range", "")
        self.asked.append((blob, wanted))
        data = self.blobs.get(blob)
        if self.way == "garbage":
            request.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            request.close_connection = True
            return
        if self.way in ("missing", "error") or data is None:
            self._head(request, 500 if self.way == "error" else 404, 0)
            return
        if self.way in ("elsewhere", "around"):
            self._head(request, 302, 0, Location=self.elsewhere if self.way == "elsewhere" else request.path)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        start, end = (int(match[1]), int(match[2]) + 1) if match and self.way != "whole" else (0, len(data))
        body = bytearray(data[start:end])
        for at in self.wrong_at:
            if start <= at < end:
                body[at - start] ^= 0xFF
        if self.way == "whole":
            self._head(request, 200, len(body))
        else:
            shift = 1 if self.way == "other-range" else 0
            self._head(request, 206, len(body), **{"Content-Range": f"bytes {start + shift}-{end - 1 + shift}/{len(data)}"})
        if self.way == "truncated" and len(body) > 65536:
            body = body[: len(body) // 2]
            request.close_connection = True
        if self.way == "slow":
            for at in range(0, len(body), 10):
                request.wfile.write(body[at : at + 10])
                if self.stop.wait(0.2):
                    return
            return
        request.wfile.write(body)

    def _head(self, request: http.server.BaseHTTPRequestHandler, status: int, length: int, **headers: str) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(length))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()


def tls_files(folder: Path) -> dict[str, Path]:
    """A private CA, a server certificate for the loopback address and a client's, made with openssl."""
    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test CA",
        "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for name, names in (("server", "IP:127.0.0.1"), ("client", "DNS:b0")):
        (folder / "ext").write_text(f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\n")
        run("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        run("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.pem",
            "-days", "2", "-extfile", "ext")
    return {path.stem + path.suffix: path for path in folder.iterdir()}


class Shop:
    """A server that keeps what it is posted and answers as `ways` says, in turn; then 204."""

    def __init__(self, port: int = 0, *, tls: ssl.SSLContext | None = None) -> None:
        self.ways: list[int | str] = []
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        shop = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                shop.asked.append((self.path, dict(self.headers.items()), json.loads(body)))
                way = shop.ways.pop(0) if shop.ways else 204
                if way == "hang up":
                    self.close_connection = True
                    return
                if way == "nonsense":
                    self.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")
                    self.close_connection = True
                    return
                self.send_response(int(way))
                if way in (301, 302, 307, 308):
                    self.send_header("Location", "/elsewhere")
                if way == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer((LOOPBACK, port), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.url = f"http{'s' if tls else ''}://{LOOPBACK}:{self.port}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def frames(self) -> list[int]:
        """Frames of batches, each key counted once, as a receiver that heeds the key has them."""
        books = {headers["Idempotency-Key"]: body for _, headers, body in self.asked}
        return [one["frame"] for body in books.values() for one in body]
