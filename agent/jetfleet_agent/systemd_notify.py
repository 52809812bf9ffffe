"""Tells systemd how the agent is (sd_notify's datagram protocol, see its manual page); says nothing where nobody listens."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping


class ServiceManager:
    """The other end of ``NOTIFY_SOCKET``.

    Args:
        environment: the process's; without ``NOTIFY_SOCKET`` every call does nothing.
        pid: ours; a watchdog meant for another process is ignored.
    """

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        meant_for_us = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        limit = environment.get("WATCHDOG_USEC", "0")
        self._watchdog_s = int(limit) / 1e6 if meant_for_us and limit.isdigit() else 0.0

    @property
    def watchdog_s(self) -> float:
        """Seconds after which silence counts as a hang; 0: nobody watches."""
        return self._watchdog_s if self._address else 0.0

    def ready(self, status: str) -> None:
        """Start-up is done."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """Not hung."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Shut-down has begun."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(text.encode(), self._address)


class Heartbeat:
    """Called each time round the control loop: the first beat says ready, later ones feed the watchdog, not more than needed."""

    def __init__(self, manager: ServiceManager, status: str, clock: Callable[[], float]) -> None:
        self._manager = manager
        self._status = status
        self._clock = clock
        self._due = 0.0
        self._ready = False

    def beat(self) -> None:
        """The loop made progress."""
        if not self._ready:
            self._ready = True
            self._manager.ready(self._status)
        now = self._clock()
        if self._manager.watchdog_s and now >= self._due:
            self._due = now + self._manager.watchdog_s / 4
            self._manager.alive()
