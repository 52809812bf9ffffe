"""Real brokers on free loopback ports, for tests: mosquitto and the embedded one, both stoppable and restartable on the same port."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from jetfleet_host.brokers import EmbeddedBroker, write_mosquitto_config

DEADLINE_S = 20.0
LOOPBACK = "127.0.0.1"
BROKERS = ("mosquitto", "embedded")


class Mosquitto:
    """A real mosquitto in a child process, its state in memory only unless `persistence`. `extra`: more lines of its configuration, each
    in the place of a line with the same keyword. `prefix`: what stands before the command."""

    def __init__(self, folder: Path, port: int, extra: Sequence[str] = (), *, persistence: bool = False,
                 prefix: Sequence[str] = ()) -> None:
        self.port = port
        self._prefix = prefix
        folder.chmod(0o777)  # started as root, mosquitto drops to a user of its own
        self._config = write_mosquitto_config(folder / "mosquitto.conf", port=port, persistence=folder if persistence else None)
        self.configure(*extra)
        self._child: subprocess.Popen[bytes] | None = None

    def configure(self, *lines: str) -> None:
        """Other limits, from the next start on."""
        given = {line.split()[0] for line in lines}
        kept = [line for line in self._config.read_text().splitlines() if line.split()[0] not in given]
        self._config.write_text("\n".join([*kept, *lines]) + "\n")

    def start(self) -> None:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self._child = subprocess.Popen([*self._prefix, program, "-c", str(self._config)], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
        until(self._listens, f"mosquitto on port {self.port}")

    def _listens(self) -> bool:
        """Asked of the kernel, for it may listen in another network namespace."""
        assert self._child is not None
        table = Path(f"/proc/{self._child.pid}/net/tcp")
        return any(f":{self.port:04X} 00000000:0000 0A" in line for line in table.read_text().splitlines())

    def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()


def need_mosquitto() -> None:
    """Skip on somebody's laptop; fail in continuous integration, where what is needed is installed."""
    if not (shutil.which("mosquitto") or Path("/usr/sbin/mosquitto").exists()):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("mosquitto is not installed")


@contextlib.contextmanager
def mosquitto(*extra: str, persistence: bool = False, prefix: Sequence[str] = ()) -> Iterator[Mosquitto]:
    """A running mosquitto, see `Mosquitto`; the test is skipped where the program is not installed, and fails there in CI."""
    need_mosquitto()
    with tempfile.TemporaryDirectory() as folder:
        port = next((int(line.split()[1]) for line in extra if line.startswith("listener ")), 0) or free_port()
        broker = Mosquitto(Path(folder), port, extra, persistence=persistence, prefix=prefix)
        broker.start()
        try:
            yield broker
        finally:
            broker.stop()


@contextlib.contextmanager
def embedded() -> Iterator[EmbeddedBroker]:
    """A running embedded broker."""
    broker = EmbeddedBroker()
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def running(name: str) -> contextlib.AbstractContextManager[Mosquitto | EmbeddedBroker]:
    """The broker of `BROKERS` by name."""
    return mosquitto() if name == "mosquitto" else embedded()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition, polling, and fail with a sentence when it does not come true in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_s} s in vain for {what}")
        time.sleep(0.005)
