"""Brokers: the embedded one for a single machine, and a mosquitto configuration for everything bigger.

The embedded broker is rumqttd from the PyPI wheel `iotcore`, with a listener for MQTT 5. It keeps everything in memory and knows no
client certificates and no ACL, so it binds to loopback only. It cannot be stopped inside a process, so it runs in a child that ends when
our end of its standard input closes, that is: with us, however we end.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from jetfleet_contract.errors import TransportError

LOOPBACK = "127.0.0.1"
MAX_PAYLOAD_BYTES = 4 << 20
START_S = 20.0
_LOOPBACKS = (LOOPBACK, "localhost", "::1")
DEVICE_READS = ("desired", "cmd", "ack", "answer", "upwant/#")
DEVICE_WRITES = ("birth", "state", "report", "telemetry", "result", "rsp/#", "offer", "crop", "up/#")
"""What lies below ``jf/1/d/DEVICE`` and is that board's own to hear, and to say."""
_POLL_S = 0.02
_FREE_PORT_TRIES = 5

# rumqttd keeps a log a topic in memory and evicts whole segments: 8 x 8 MiB hold more than the sender's window of 48 MiB.
_RUMQTTD = """\
id = 0
[router]
id = 0
max_connections = 4096
max_outgoing_packet_count = 1000
max_segment_size = 8388608
max_segment_count = 8
[v5.1]
name = "jetfleet"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 10000
max_payload_size = {max_payload}
max_inflight_count = 500
dynamic_filters = true
"""


class EmbeddedBroker:
    """rumqttd on a loopback port (a free one for 0), in memory, one child process.

    Retained messages are lost when it stops: whoever owns them publishes them again when its link comes up.

    Raises:
        TransportError: `broker.open` for a `bind` that is not loopback.
    """

    def __init__(self, port: int = 0, bind: str = LOOPBACK) -> None:
        if bind not in (LOOPBACK, "localhost"):
            raise TransportError("broker.open", "the embedded broker lets everybody in, so it listens on this machine only", where=bind,
                                 remedy="leave out the address; for boards on a network: jetfleet broker mosquitto --bind ADDRESS")
        self.port = port
        self._any_port = port == 0
        self._child: subprocess.Popen[bytes] | None = None
        self._config = ""

    def start(self) -> None:
        """Start and wait until it accepts connections. Does nothing when it runs.

        Raises:
            TransportError: `broker.port` when the port is taken, `broker.start` when it does not come up.
        """
        if self.running:
            return
        for left in reversed(range(_FREE_PORT_TRIES if self._any_port else 1)):
            if self._any_port:
                self.port = _free_port()
            try:
                self._start_once()
            except TransportError:
                if not left:
                    raise
            else:
                self._any_port = False  # a restart comes back on the same port
                atexit.register(self.stop)
                return

    def stop(self) -> None:
        """Stop it and free the port; safe to call twice."""
        atexit.unregister(self.stop)
        child, self._child = self._child, None
        if child is not None:
            child.kill()  # it keeps nothing that could be lost
            child.wait()
            if child.stdin:
                child.stdin.close()
        if self._config:
            Path(self._config).unlink(missing_ok=True)
            self._config = ""

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def wait(self) -> int:
        """Block until it ends by itself; its exit status."""
        return self._child.wait() if self._child else 0

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_once(self) -> None:
        if accepts(LOOPBACK, self.port):
            raise TransportError("broker.port", f"port {self.port} is taken by another program", where=f"{LOOPBACK}:{self.port}",
                                 remedy="stop that program or choose another port")
        with tempfile.NamedTemporaryFile("w", suffix=".toml", prefix="jetfleet-broker-", delete=False) as config:
            config.write(_RUMQTTD.format(host=LOOPBACK, port=self.port, max_payload=MAX_PAYLOAD_BYTES))
        self._config = config.name
        # its own session: Ctrl-C in a terminal reaches us alone, and we end it in order
        self._child = subprocess.Popen([sys.executable, "-m", __name__, config.name], stdin=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._child.poll() is None:
            if accepts(LOOPBACK, self.port):
                return
            time.sleep(_POLL_S)
        status = self._child.poll()
        self.stop()
        raise TransportError("broker.start", f"the embedded broker did not start (status {status})", where=f"{LOOPBACK}:{self.port}",
                             remedy="is the port free, and the package iotcore installed (pip install 'jetfleet[host]')?")


def accepts(host: str, port: int) -> bool:
    """True when something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def write_mosquitto_config(
    path: Path,
    *,
    port: int,
    bind: str = "",
    ca: str = "",
    cert: str = "",
    key: str = "",
    crl: str = "",
    password_file: str = "",
    acl_file: str = "",
    persistence: Path | None = None,
    user: str = "",
) -> Path:
    """Write a mosquitto.conf (2.0 and newer) for jetfleet: queues in bytes, no Nagle, payloads to 4 MiB.

    Without `ca` or `password_file` it allows anonymous clients and must bind to loopback. With `ca`, clients must show a certificate, whose
    common name becomes their user name for the ACL and their client id, so that no board can push another off by its id. `crl` lists
    certificates that count no longer. `persistence` is a folder for retained and queued messages; `user` is whom mosquitto becomes when
    root starts it.

    Raises:
        TransportError: `broker.open` for anonymous clients on an address that is not loopback.
    """
    bind = bind or (LOOPBACK if not (ca or password_file) else "0.0.0.0")  # noqa: S104  chosen only with authentication
    if not (ca or password_file) and bind not in _LOOPBACKS:
        raise TransportError("broker.open", f"a broker on {bind} that lets everybody in was asked for", where=str(path),
                             remedy="give ca, cert and key, or a password file")
    lines = [
        "per_listener_settings false",
        f"listener {port} {bind}",
        "set_tcp_nodelay true",
        "max_queued_messages 1000",
        "max_queued_bytes 67108864",
        f"message_size_limit {MAX_PAYLOAD_BYTES}",
        f"allow_anonymous {'false' if ca or password_file else 'true'}",
        "autosave_interval 60",
        f"persistence {'true' if persistence else 'false'}",
    ]
    if persistence:
        lines.append(f"persistence_location {persistence}/")
    if ca:
        lines += [f"cafile {ca}", f"certfile {cert}", f"keyfile {key}", "require_certificate true", "use_identity_as_username true",
                  "use_username_as_clientid true", "tls_version tlsv1.2"]
    named = (("crlfile", crl), ("password_file", password_file), ("acl_file", acl_file), ("user", user))
    lines += [f"{name} {value}" for name, value in named if value]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_acl(path: Path, host_user: str, revoked: Iterable[str] = ()) -> Path:
    """Write the ACL for mosquitto: the host may do all below ``jf/1``; a device (user name = device name) only what is its own.

    `revoked` devices may do nothing: their certificate keeps them out at the next connection, this silences the one they have.
    """
    rules = [
        f"user {host_user}",
        "topic readwrite jf/1/#",
        "",
        *(line for device in revoked for line in (f"user {device}", "topic deny jf/1/#", "")),
        "pattern read jf/1/meta",
        *(f"pattern read jf/1/d/%u/{leaf}" for leaf in DEVICE_READS),
        *(f"pattern write jf/1/d/%u/{leaf}" for leaf in DEVICE_WRITES),
        "pattern read jf/1/b/+/round/#",
        "pattern read jf/1/b/+/c/#",
        "pattern read jf/1/b/+/u/%u",
        "pattern write jf/1/b/+/want/%u",
    ]
    path.write_text("\n".join(rules) + "\n", encoding="utf-8")
    return path


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        sys.stdin.buffer.read()  # returns when the parent's end closes
    os._exit(0)


def _serve(config: str) -> None:
    import logging

    from iotcore import IotCoreBroker

    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)  # it logs a span a packet as an error
    threading.Thread(target=_end_with_parent, daemon=True).start()
    IotCoreBroker(config_path=config).run_forever()


if __name__ == "__main__":
    _serve(sys.argv[1])
