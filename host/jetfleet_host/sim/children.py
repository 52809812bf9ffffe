"""The processes of a rehearsal: a broker of its own and the real `jetfleet serve`, both killed and started again on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import msgspec

from jetfleet_contract.errors import IncompatibleError, InputError, RuntimeFailure, TransportError
from jetfleet_host.brokers import LOOPBACK, EmbeddedBroker, accepts, write_mosquitto_config

START_S = 60.0
STOP_S = 20.0
COMMAND_S = 180.0
_JETFLEET = (sys.executable, "-m", "jetfleet_host")


class Broker(Protocol):
    """A broker of the rehearsal's own."""

    port: int

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Mosquitto:
    """mosquitto on a free loopback port, its state in memory: what it retained is gone when it is killed.

    Raises:
        IncompatibleError: `sim.no-mosquitto` when it is not installed.
    """

    def __init__(self, folder: Path, port: int) -> None:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        if not Path(program).exists():
            raise IncompatibleError("sim.no-mosquitto", "mosquitto is not installed", where="--mosquitto",
                                    remedy="apt install mosquitto, or leave --mosquitto out and use the embedded broker")
        self.port = port
        self._program = program
        self._config = write_mosquitto_config(folder / "mosquitto.conf", port=port)
        self._log = folder / "mosquitto.log"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it accepts connections. TransportError `broker.start`."""
        with self._log.open("ab") as log:
            self._child = subprocess.Popen([*_ends_with_us(), self._program, "-c", str(self._config)], stdin=subprocess.DEVNULL, stdout=log,
                                           stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_S
        while not accepts(LOOPBACK, self.port):
            if time.monotonic() > deadline or self._child.poll() is not None:
                raise TransportError("broker.start", "mosquitto did not start", where=str(self._log), remedy="read that log")
            time.sleep(0.02)

    def stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()


class Usage(msgspec.Struct):
    """What a process and its successors took: CPU seconds in all, and the largest resident memory in MB."""

    cpu_s: float = 0.0
    rss_mb: float = 0.0


class Serve:
    """`jetfleet serve` on a project folder, as a process that can be killed."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder = folder
        self._log = log
        self._child: asyncio.subprocess.Process | None = None
        self._up = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None and self._child.returncode is None else None

    async def start(self) -> None:
        """Start and wait until its link is up. RuntimeFailure `sim.serve` with the end of its log."""
        self._up.clear()
        self.starts += 1
        with self._log.open("ab") as log:
            self._child = await asyncio.create_subprocess_exec(
                *_ends_with_us(), *_JETFLEET, "-v", "serve", "--dir", str(self._folder), "--json", stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=log, start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        self._listening = asyncio.create_task(self._listen(self._child))
        try:
            await asyncio.wait_for(self._up.wait(), START_S)
        except TimeoutError:
            raise self._trouble("serve did not come up") from None
        self.check()

    def check(self) -> None:
        """Raise RuntimeFailure `sim.serve` when it ended by itself."""
        if self._child is not None and self._child.returncode is not None:
            raise self._trouble(f"serve ended with status {self._child.returncode}")

    async def kill(self) -> None:
        """SIGKILL: it gets no chance to say anything."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def _end(self, number: int) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            child.send_signal(number)
        try:
            await asyncio.wait_for(child.wait(), STOP_S)
        except TimeoutError:
            child.kill()
            await child.wait()
        if self._listening is not None:
            await self._listening

    async def _listen(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None  # noqa: S101 - it was asked for
        while line := await child.stdout.readline():
            if b'"event": "up"' in line:
                self._up.set()
        self._up.set()  # whoever waits looks whether it lives

    def _trouble(self, what: str) -> RuntimeFailure:
        tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:] if self._log.exists() else []
        return RuntimeFailure("sim.serve", "\n".join([what, *tail]), where=str(self._log), remedy="run again with --keep and read that log")


async def command(folder: Path, *arguments: str) -> Any:
    """Run `jetfleet ARGUMENTS --json` on the project; what it printed. InputError with its own code when it refuses."""
    child = await asyncio.create_subprocess_exec(*_JETFLEET, *arguments, "--dir", str(folder), "--json", stdin=subprocess.DEVNULL,
                                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = await asyncio.wait_for(child.communicate(), COMMAND_S)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        raise
    if child.returncode == 0:
        return json.loads(out)
    try:
        error = json.loads(out)["error"]
    except (ValueError, KeyError, TypeError):
        raise RuntimeFailure("sim.command", f"jetfleet {' '.join(arguments[:2])} failed: {err.decode(errors='replace')[-800:]}") from None
    raise InputError(error["code"], error["what"], where=error["where"], remedy=error["remedy"])


def own_broker(kind: str, folder: Path, port: int) -> Broker:
    """The broker of that kind, not started: `embedded` or `mosquitto`."""
    return Mosquitto(folder, port) if kind == "mosquitto" else EmbeddedBroker(port)


def measure(usage: dict[str, Usage], serve_pid: int | None, seen: dict[int, float]) -> None:
    """Bring `usage` (serve, broker, sim) up to date. `seen`: CPU seconds by process so far, so that successors add up."""
    import psutil

    me = psutil.Process()
    watched = {"sim": [me], "serve": [], "broker": []}
    with contextlib.suppress(psutil.Error):
        for child in me.children():
            name = " ".join(child.cmdline())
            kind = "broker" if "jetfleet_host.brokers" in name or "mosquitto" in name else "serve" if child.pid == serve_pid else ""
            if kind:
                watched[kind].append(child)
    for kind, processes in watched.items():
        for process in processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                spent = times.user + times.system
                usage[kind].cpu_s += max(0.0, spent - seen.get(process.pid, 0.0))
                seen[process.pid] = spent
                usage[kind].rss_mb = max(usage[kind].rss_mb, process.memory_info().rss / 1e6)


def _ends_with_us() -> list[str]:
    """What makes the kernel stop a child whose parent was killed: util-linux's setpriv, which every Debian and Ubuntu has."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
