"""A real mosquitto as `jetfleet broker mosquitto` sets it up: mutual TLS, ACL, revocation list; and clients of it."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from brokers import LOOPBACK, free_port, need_mosquitto, until

from jetfleet_agent.supervisor import mqtt as agent_mqtt
from jetfleet_host import mqtt as host_mqtt
from jetfleet_host.broker_setup import authority_of, broker_folder, prepare, refresh_access, write_issued
from jetfleet_host.brokers import accepts
from jetfleet_host.certificates import CertificateAuthority
from jetfleet_host.project import Project


class SecuredBroker:
    """The broker of one project, on loopback under the names 127.0.0.1 and localhost."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.project = Project.init(folder / "fleet", broker=f"{LOOPBACK}:{self.port}")
        CertificateAuthority.create(self.project.dir / "ca", "test")
        self.config = prepare(self.project, bind=LOOPBACK, port=self.port, hosts=[LOOPBACK, "localhost"])
        self._child: subprocess.Popen[bytes] | None = None
        self._log = folder / "mosquitto.log"

    def start(self) -> None:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        with self._log.open("ab") as log:
            self._child = subprocess.Popen([program, "-c", str(self.config)], stdout=log, stderr=log)
        until(lambda: accepts(LOOPBACK, self.port), f"mosquitto on port {self.port}")

    def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()

    def reload(self) -> None:
        assert self._child is not None
        self._child.send_signal(signal.SIGHUP)

    def revoke(self, name: str) -> None:
        authority = authority_of(self.project)
        authority.revoke(name)
        assert refresh_access(self.project, authority)
        self.reload()

    def device_files(self, name: str) -> dict[str, Any]:
        """TLS files of a board, by their names in its settings."""
        folder = self.project.dir.parent / "boards" / name
        if not (folder / f"{name}.pem").exists():
            write_issued(folder, name, authority_of(self.project).issue_device(name))
        return {"ca": str(self.project.dir / "ca/ca.pem"), "cert": str(folder / f"{name}.pem"), "key": str(folder / f"{name}.key")}

    def host_files(self) -> dict[str, Any]:
        folder = broker_folder(self.project)
        return {"ca": str(folder / "ca.pem"), "cert": str(folder / "host.pem"), "key": str(folder / "host.key")}

    def device(self, name: str, *, client_id: str = "", **changes: Any) -> Listener:
        settings = agent_mqtt.BrokerSettings(LOOPBACK, self.port, **{**self.device_files(name), **changes})
        return Listener(agent_mqtt, settings, client_id or name)

    def host(self) -> Listener:
        return Listener(host_mqtt, host_mqtt.BrokerSettings(LOOPBACK, self.port, **self.host_files()), "serve")


class Listener:
    """A link that keeps what it hears, how often it was up, and why it went down."""

    def __init__(self, side: object, settings: object, client_id: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.ups: list[int] = []
        self.downs: list[str] = []
        make = side.MqttLink  # type: ignore[attr-defined]  # one of two modules of one shape
        self.link = make(settings, client_id, lambda topic, payload: self.heard.append((topic, payload)), lambda: self.ups.append(1),
                         self.downs.append)

    def __enter__(self) -> Listener:
        self.link.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.link.stop()

    def connected(self) -> Listener:
        until(lambda: self.ups, f"the link; so far: {self.downs}", 30)
        return self

    def say(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert self.link.publish(topic, payload, qos=1, retain=retain)

    def topics(self) -> set[str]:
        return {topic for topic, _ in self.heard}

    def hears(self, topic: str) -> None:
        until(lambda: topic in self.topics(), f"{topic}; heard: {sorted(self.topics())}", 30)


@contextlib.contextmanager
def secured_broker(folder: Path) -> Iterator[SecuredBroker]:
    """A running broker with mutual TLS; the test is skipped where mosquitto is not installed."""
    need_mosquitto()
    broker = SecuredBroker(folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()
