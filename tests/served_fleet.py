"""A fleet for tests: a project with published bundles, `jetfleet serve` as a process that can be killed, and its commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from brokers import until
from bundle_maker import make_bundle
from sqlalchemy.orm import Session

from jetfleet_host import views
from jetfleet_host.project import Project
from jetfleet_host.publish import publish
from jetfleet_host.store.database import Database

APPS = """
[reader]
sources = [{ name = "front", uri = "local:front", fps = 10.0 }]
options = { threshold = 0.3 }

[sorter]
input_from = "reader"
"""


class ServedFleet:
    """A project folder on a broker's port, with a command line and a server."""

    def __init__(self, folder: Path, broker: str, project: Project | None = None, prefix: Sequence[str] = ()) -> None:
        self.dir = project.dir if project else folder / "fleet"
        self.apps = folder / "apps.toml"
        self.apps.write_text(APPS)
        self.project = project or Project.init(self.dir, broker=broker)
        self.root = self.project.root_file.read_bytes()
        self.log = folder / "serve.log"
        self._scratch = folder
        self._prefix = prefix
        self._child: subprocess.Popen[bytes] | None = None

    def publish(self, version: str, *, name: str = "toy") -> str:
        """Publish a small bundle; the manifest's 64 hex digits."""
        bundle = self._scratch / f"{name}-{version}.bundle"
        digest = make_bundle(bundle, name=name, version=version, weight_bytes=3000, seed=len(version))
        publish(self.project, bundle)
        return digest.removeprefix("sha256:")

    def start(self, event: str = "up") -> None:
        """Start serve and wait until its link is up, or until it says another event."""
        lines = self._lines(event)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen([*self._prefix, sys.executable, "-m", "jetfleet_host", "-v", "serve", "--dir",
                                            str(self.dir), "--json"], stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        until(lambda: self._lines(event) > lines or self._ended(), f"serve to come up, see {self.log}", 60)
        assert not self._ended(), self.log.read_text()

    def kill(self) -> None:
        """As a power cut would: SIGKILL."""
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        child.send_signal(number)
        return child.wait(timeout=60)

    def broker_process(self) -> psutil.Process | None:
        """The embedded broker that serve started."""
        assert self._child is not None
        found = [c for c in psutil.Process(self._child.pid).children(recursive=True) if "jetfleet_host.brokers" in " ".join(_command(c))]
        return found[0] if found else None

    def cli(self, *arguments: str, fails: bool = False) -> Any:
        """Run a command with --json; its value, or the error's when it has to fail."""
        done = subprocess.run([sys.executable, "-m", "jetfleet_host", *arguments, "--dir", str(self.dir), "--json"],
                              capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode != 0) == fails, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def rollout(self, *arguments: str, fails: bool = False) -> Any:
        return self.cli("rollout", *arguments, fails=fails)

    def begin(self, model: str, *arguments: str, app: str = "reader") -> str:
        """Start a rollout with quick gates; its id."""
        return str(self.rollout("start", "--app", app, "--model", model, "--apps", str(self.apps), "--hold", "0", *arguments)["rollout"])

    def phase(self, rollout: str) -> str:
        with self.reading() as session:
            return views.rollout(session, rollout).phase

    def knows(self, *devices: str) -> bool:
        with self.reading() as session:
            return set(devices) <= {row.device for row in views.devices(session)}

    def events(self) -> list[views.EventRow]:
        with self.reading() as session:
            return views.events(session, 0.0)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """The database beside the running server: quick enough to poll, which a command is not."""
        with closing(Database.open(self.project.database_url)) as database, database.reading() as session:
            yield session

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    def _lines(self, event: str) -> int:
        return self.log.read_text().count(f'"event": "{event}"') if self.log.exists() else 0

    def _ended(self) -> bool:
        return self._child is None or self._child.poll() is not None


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):  # it may end while we look
        line: list[str] = process.cmdline()
        return line
    return []


@contextmanager
def fleet_on(folder: Path, broker: str, prefix: Sequence[str] = ()) -> Iterator[ServedFleet]:
    """A fleet whose server is stopped at the end. `prefix`: what stands before the server's command."""
    fleet = ServedFleet(folder, broker, prefix=prefix)
    try:
        yield fleet
    finally:
        fleet.stop()
