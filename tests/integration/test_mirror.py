"""Blobs from web servers: nginx and our own, honest and lying ones, beside MQTT and instead of it."""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from brokers import LOOPBACK, Mosquitto, mosquitto, until
from delivery_rig import Board, Host, MemoryBlobs, content, holds
from fleet_rig import AgentProcess, HostRig, app_spec
from interrupts import interruptible
from web_mirrors import BadServer, nginx, tls_files

from jetfleet_agent.supervisor import web
from jetfleet_agent.supervisor.mirror import Mirror
from jetfleet_agent.supervisor.web import WebFolder, WebSettings
from jetfleet_contract import mirrors
from jetfleet_contract.chunks import CHUNK_BYTES
from jetfleet_contract.errors import InputError, TransportError
from jetfleet_contract.mirrors import Mode
from jetfleet_host import mirror as mirror_module
from jetfleet_host.mirror import MirrorServer, MirrorSettings
from jetfleet_host.project import BlobFolder, Project

SIZE = 3_000_000 + 77
WAIT_S = 60.0


class Site:
    """A broker, one blob and its pages on disk and in memory, and boards with a mirror; all stopped at the end."""

    def __init__(self, broker: Mosquitto, root: Path) -> None:
        self.broker, self.root = broker, root
        self.blobs = MemoryBlobs()
        self.data = content(SIZE)
        self.blob, self.info = self.blobs.add(self.data)
        self.folder = root / "blobs"
        self.folder.mkdir()
        for name, data in self.blobs.blobs.items():
            (self.folder / name).write_bytes(data)
        self._stops: list[Callable[[], None]] = []

    def board(self, url: str, mode: Mode = "only", *, name: str = "b0", ca: str = "", cert: str = "", key: str = "") -> Board:
        board = Board(name, self.broker.port, self.root)
        self._stops.append(board.stop)
        board.fetcher._mirror = Mirror(WebFolder(WebSettings(url, ca, cert, key)), mode)
        return board

    def host(self) -> Host:
        host = Host(self.broker.port, self.blobs)
        self._stops.append(host.stop)
        return host

    def server(self) -> BadServer:
        server = BadServer(self.blobs.blobs)
        self._stops.insert(0, server.close)
        return server

    def fetch(self, board: Board) -> None:
        board.want(self.blob, self.info)
        until(lambda: self.blob in board.done or board.failed or board.faults, "the blob", WAIT_S)
        assert not board.failed, board.failed
        assert holds(board, self.blob)
        assert not board.faults, board.faults

    def stop(self) -> None:
        for stop in self._stops:
            stop()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with mosquitto() as broker:
        made = Site(broker, tmp_path)
        yield made
        made.stop()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, so that tests of them end."""
    monkeypatch.setattr(mirrors, "RETRY_BASE_S", 0.05)
    monkeypatch.setattr(mirrors, "RETRY_CAP_S", 0.2)
    monkeypatch.setattr(mirrors, "PATIENCE_S", 0.3)


def own(site: Site, **settings: Any) -> MirrorServer:
    server = MirrorServer(BlobFolder(site.folder), MirrorSettings(port=0, **settings))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site._stops += [server.shutdown, server.server_close]
    return server


# --- honest servers -------------------------------------------------------------------------------------------


def test_all_of_a_blob_from_nginx_in_merged_ranges(site: Site, tmp_path: Path) -> None:
    with nginx(tmp_path / "nginx", site.folder) as url:
        board = site.board(url)
        site.fetch(board)
        assert board.chunks == 0
        assert SIZE <= board.fetcher.gauges["mirror_bytes"] <= SIZE + 4096, "the blob and the page of its table, once"
        lines = (tmp_path / "nginx" / "access.log").read_text().splitlines()
        assert len(lines) == 2, "one request for the table, one for all chunks"
        assert all('" 206 ' in line for line in lines)


def test_all_of_a_blob_from_our_own_server_also_without_a_broker(site: Site) -> None:
    server = own(site)
    site.broker.stop()
    board = site.board(server.url)
    site.fetch(board)
    assert server.sent_bytes >= SIZE


def test_it_goes_on_where_it_was(site: Site) -> None:
    server = site.server()
    board = site.board(server.url)
    server.way = "truncated"
    board.want(site.blob, site.info)
    until(lambda: board.progress() > SIZE / 8, "some of it", WAIT_S)
    board.stop()
    server.way = "fine"
    server.asked.clear()
    again = site.board(server.url)
    site.fetch(again)
    first = next(wanted for blob, wanted in server.asked if blob == site.blob)
    assert int(first.removeprefix("bytes=").split("-")[0]) > 0, "what was there is not fetched again"


def test_tls_with_a_private_ca_and_a_clients_certificate(site: Site, tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "tls"
    folder.mkdir()
    files = tls_files(folder)
    server = own(site, cert=files["server.pem"], key=files["server.key"], client_ca=files["ca.pem"])
    assert server.url.startswith("https://")
    stranger = site.board(server.url, name="stranger", ca=str(files["ca.pem"]))
    stranger.want(site.blob, site.info)
    until(lambda: stranger.fetcher._mirror.trouble, "no entry without a certificate", WAIT_S)  # type: ignore[union-attr]
    suspicious = site.board(server.url, name="suspicious")  # it knows the system's CAs only
    suspicious.want(site.blob, site.info)
    until(lambda: suspicious.fetcher._mirror.trouble == "mirror.tls", "no trust in a stranger's CA", WAIT_S)  # type: ignore[union-attr]
    board = site.board(server.url, ca=str(files["ca.pem"]), cert=str(files["client.pem"]), key=str(files["client.key"]))
    site.fetch(board)
    assert not stranger.done
    assert not suspicious.done
    with nginx(tmp_path / "nginx", site.folder, cert=files["server.pem"], key=files["server.key"]) as url:
        site.fetch(site.board(url, name="b1", ca=str(files["ca.pem"])))


# --- servers that lie, fail or stall --------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["truncated", "missing", "error", "elsewhere", "around", "garbage", "other-range"])
def test_what_a_server_does_wrong_is_named_and_mqtt_takes_over(site: Site, quick: None, way: str, caplog: pytest.LogCaptureFixture) -> None:
    server = site.server()
    server.way, server.elsewhere = way, "http://elsewhere.example.org/blobs/x"
    site.host()
    board = site.board(server.url, "prefer")
    site.fetch(board)
    assert board.chunks > 0
    codes = {"truncated": "mirror.truncated", "missing": "mirror.missing", "error": "mirror.status", "elsewhere": "mirror.redirect",
             "around": "mirror.redirect", "garbage": "mirror.broken", "other-range": "mirror.broken"}
    assert f"[{codes[way]}]" in caplog.text
    assert server.asked


def test_a_server_without_ranges_serves_what_is_wholly_missing(site: Site, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    server = site.server()
    server.way = "whole"
    site.fetch(site.board(server.url))
    assert len(server.asked) == 2
    board = site.board(server.url, "prefer", name="b1")
    until(lambda: board.link.connected, "the link", WAIT_S)
    part = board.store.part(site.blob)
    part.write_bytes(site.data[: 2 * SIZE // 3])  # resumed, with less than half missing: the whole again would be a waste
    site.host()
    site.fetch(board)
    assert "[mirror.no-range]" in caplog.text
    assert board.fetcher.gauges["mirror_bytes"] < SIZE / 10


def test_a_slow_server_is_left_for_mqtt(site: Site, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(web, "WINDOW_S", 1.0)
    server = site.server()
    server.way = "slow"
    site.host()
    site.fetch(site.board(server.url, "prefer"))
    assert "[mirror.slow]" in caplog.text


def test_one_wrong_chunk_costs_that_chunk(site: Site, quick: None) -> None:
    server = site.server()
    server.wrong_at = {5 * CHUNK_BYTES + 9}
    site.host()
    board = site.board(server.url, "prefer")
    site.fetch(board)
    assert board.fetcher.gauges["mirror_wrong"] >= 1
    assert board.fetcher.gauges["mirror_bytes"] >= SIZE - CHUNK_BYTES, "all the others came from there"
    assert board.chunks <= 8


def test_a_lying_server_is_dropped(site: Site, quick: None, caplog: pytest.LogCaptureFixture) -> None:
    server = site.server()
    server.wrong_at = set(range(0, SIZE, CHUNK_BYTES))
    site.host()
    board = site.board(server.url, "prefer")
    site.fetch(board)
    assert board.fetcher.gauges["mirror_wrong"] == mirrors.MAX_WRONG
    assert board.fetcher._mirror.trouble == "mirror.wrong"  # type: ignore[union-attr]
    asked = len(server.asked)
    other, info = site.blobs.add(content(100_000, seed=2))
    board.want(other, info)
    until(lambda: other in board.done, "another blob", WAIT_S)
    assert len(server.asked) == asked, "it is left alone"


def test_the_mirror_takes_over_where_mqtt_is_silent(site: Site, quick: None) -> None:
    server = site.server()
    board = site.board(server.url, "fallback")  # there is a broker, but no host
    site.fetch(board)
    assert board.chunks == 0


def test_with_mqtt_at_work_a_fallback_is_not_asked(site: Site) -> None:
    server = site.server()
    site.host()
    site.fetch(site.board(server.url, "fallback"))
    assert server.asked == []


def test_one_connection_is_used_again_and_a_closed_one_replaced(site: Site) -> None:
    server = site.server()
    board = site.board(server.url)
    site.fetch(board)
    other, info = site.blobs.add(content(200_000, seed=3))
    board.want(other, info)
    until(lambda: other in board.done, "another blob", WAIT_S)
    assert server.connections == 1


def test_faults_of_the_disk_end_the_fetch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from jetfleet_agent.supervisor.store import Partial
    from jetfleet_contract.errors import StorageError

    def full(*_: object) -> bool:
        raise StorageError("store.full", "no space")

    monkeypatch.setattr(Partial, "write", full)
    board = site.board(site.server().url)
    board.want(site.blob, site.info)
    until(lambda: board.failed, "the failure", WAIT_S)
    assert board.failed[0][1].code == "store.full"


def test_no_address_and_no_credentials_reach_an_error() -> None:
    folder = WebFolder(WebSettings("http://127.0.0.1:1/secret-token/blobs"))
    with pytest.raises(TransportError) as caught:
        folder.get("ab" * 32, 0, 10, 10, whole=True)
    assert caught.value.code == "mirror.unreachable"
    assert "secret-token" not in str(caught.value)
    with pytest.raises(InputError, match="TLS files"):
        WebFolder(WebSettings("https://127.0.0.1:1/", ca="/no/such/file"))


# --- our own server -------------------------------------------------------------------------------------------


def ask(server: MirrorServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(LOOPBACK, urlsplit(server.url).port or 0, timeout=20)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def test_ranges_heads_and_validators(site: Site) -> None:
    server = own(site)
    path = f"/blobs/{site.blob}"
    status, headers, body = ask(server, path)
    assert (status, body, headers["etag"], headers["accept-ranges"]) == (200, site.data, f'"{site.blob}"', "bytes")
    for header, span in (("bytes=0-0", (0, 1)), (f"bytes={SIZE - 1}-", (SIZE - 1, SIZE)), ("bytes=-10", (SIZE - 10, SIZE)),
                         ("bytes=100-99999999999", (100, SIZE))):
        status, headers, body = ask(server, path, Range=header)
        assert (status, body) == (206, site.data[slice(*span)])
        assert headers["content-range"] == f"bytes {span[0]}-{span[1] - 1}/{SIZE}"
    for header in ("bytes=5-2", "bytes=-", "chunks=1-2", "bytes=0-1,5-6", "bytes=x"):
        assert ask(server, path, Range=header)[0] == 200
    status, headers, body = ask(server, path, Range=f"bytes={SIZE}-")
    assert (status, headers["content-range"], body) == (416, f"bytes */{SIZE}", b"")
    assert ask(server, path, Range="bytes=-0")[0] == 416
    assert ask(server, path, Range="bytes=0-9", If_Range='"another"')[0] == 200
    assert ask(server, path, If_None_Match=f'"{site.blob}"')[0] == 304
    status, headers, body = ask(server, path, "HEAD", Range="bytes=0-99")
    assert (status, headers["content-length"], body) == (206, "100", b"")


@pytest.mark.parametrize("path", ["/", "/blobs/", "/blobs/../keys/root.pem", "/blobs/%2e%2e/keys", "/blobs/" + "0" * 64,
                                  "/blobs/" + "A" * 64, "//etc/passwd", "/blobs/jetfleet.toml", "/keys/root.pem",
                                  "/blobs/" + "0" * 64 + "/..", "/blobs"])
def test_only_digests_have_a_name(site: Site, path: str) -> None:
    status, _, body = ask(own(site), path)
    assert (status, body) == (404, b"")


def test_other_methods_and_broken_requests_are_refused(site: Site) -> None:
    server = own(site)
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "BREW"):
        status, headers, _ = ask(server, f"/blobs/{site.blob}", method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")
    with socket.create_connection((LOOPBACK, server.server_address[1]), timeout=20) as sock:
        sock.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert sock.recv(1000) == b"", "no HTTP, no answer"
    assert ask(server, f"/blobs/{site.blob}", Range="bytes=0-3")[2] == site.data[:4]


def test_slow_heads_and_too_many_clients_do_not_take_the_server(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "HEAD_S", 1.0)
    monkeypatch.setattr(mirror_module, "MAX_CONNECTIONS", 4)
    server = own(site)
    idle = [socket.create_connection((LOOPBACK, server.server_address[1]), timeout=20) for _ in range(4)]
    for sock in idle:
        sock.sendall(b"GET /blo")
    with socket.create_connection((LOOPBACK, server.server_address[1]), timeout=20) as fifth:
        assert fifth.recv(100).startswith(b"HTTP/1.1 503 "), "the fifth is told so"
    for sock in idle:  # a byte now and then does not keep a head open
        for _ in range(3):
            try:
                sock.sendall(b"b")
            except OSError:
                break
        assert sock.recv(100) == b""
        sock.close()
    until(lambda: ask_or_busy(server, site.blob), "room for the next", WAIT_S)
    endless = socket.create_connection((LOOPBACK, server.server_address[1]), timeout=20)
    endless.sendall(b"GET /x HTTP/1.1\r\n")
    try:
        for _ in range(100):
            endless.sendall(b"X-Pad: " + b"p" * 1000 + b"\r\n")
    except OSError:
        pass
    assert ask_or_busy(server, site.blob)
    endless.close()


def ask_or_busy(server: MirrorServer, blob: str) -> bool:
    try:
        return ask(server, f"/blobs/{blob}", Range="bytes=0-9")[0] == 206
    except OSError:
        return False


@pytest.mark.parametrize(("settings", "code"), [
    (MirrorSettings("0.0.0.0", 0), "mirror.open"),  # noqa: S104 - it is refused
    (MirrorSettings("192.0.2.1", 0), "mirror.open"),
    (MirrorSettings("::", 0), "mirror.open"),
    (MirrorSettings(port=0, key=Path("x")), "mirror.tls"),
    (MirrorSettings(port=0, cert=Path("/no/such.pem")), "mirror.tls"),
])
def test_it_does_not_listen_where_all_can_hear(site: Site, settings: MirrorSettings, code: str) -> None:
    with pytest.raises(InputError) as caught:
        MirrorServer(BlobFolder(site.folder), settings)
    assert caught.value.code == code


def test_the_command_serves_a_project_and_ends_cleanly(tmp_path: Path) -> None:
    project = Project.init(tmp_path / "fleet")
    data = random.Random(1).randbytes(1000)
    blob = hashlib.sha256(data).hexdigest()
    project.blobs.path(blob).write_bytes(data)
    command = [sys.executable, "-m", "jetfleet_host", "mirror", "--dir", str(project.dir), "--json", "--bind"]
    child = interruptible([*command, "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        url = json.loads(child.stdout.readline())["url"]
        folder = WebFolder(WebSettings(url))
        assert b"".join(folder.get(blob, 10, 1000, 1000, whole=False).pieces) == data[10:]
        folder.close()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
    done = subprocess.run([*command, "0.0.0.0:0"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "mirror.open" in done.stdout) == (2, True)


def test_tls_1_2_is_the_least(site: Site, tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    files = tls_files(tmp_path / "tls")
    server = own(site, cert=files["server.pem"], key=files["server.key"])
    context = ssl.create_default_context(cafile=str(files["ca.pem"]))
    with socket.create_connection((LOOPBACK, server.server_address[1]), timeout=20) as sock, \
            context.wrap_socket(sock, server_hostname=LOOPBACK) as secure:
        assert secure.version() in ("TLSv1.2", "TLSv1.3")


def test_a_real_agent_updates_by_the_mirror_alone(tmp_path: Path) -> None:
    with mosquitto() as broker:
        host = HostRig(tmp_path / "host", broker.port)
        server = MirrorServer(host.project.blobs, MirrorSettings(port=0))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        agent = AgentProcess(tmp_path / "gate-1", "gate-1", broker.port, host.project.root_file)
        agent.config.write_text(f'{agent.config.read_text()}\n[mirror]\nurl = "{server.url}"\nmode = "only"\n')
        agent.start()
        try:
            outcome = host.outcome(host.deploy("gate-1", app_spec(host.publish("1"), "1")), deadline_s=120)
            assert outcome.outcome == "committed", outcome
            until(lambda: host.telemetry and host.telemetry[-1].gauges.get("mirror_bytes"), "what came by the mirror", WAIT_S)
            assert host.telemetry[-1].gauges["mirror_bytes"] >= server.sent_bytes > 0
            assert host._distributor.stats.published_bytes == 0, "nothing came over MQTT"
        finally:
            agent.stop()
            host.stop()
            server.shutdown()
            server.server_close()
        assert not host.faults, host.faults
