"""Two Linux network namespaces and a wire between them that can be slow, lossy, delayed or cut. Nothing leaves them.

The host's side is 10.77.0.1 and the boards' side 10.77.0.2, whatever the machine around them uses. Needs root, ip and /dev/net/tun; a
test is skipped by name where one is missing.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOST, BOARDS = "10.77.0.1", "10.77.0.2"
_NUMBERS = itertools.count()


class Side:
    """One namespace with its end of the wire. `prefix` before a command runs it there."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.prefix = ("ip", "netns", "exec", name)

    def sent(self) -> int:
        """Bytes that left over the wire, headers included, lost ones too."""
        return int(_run(*self.prefix, "cat", "/sys/class/net/wire/statistics/tx_bytes"))


class Wire:
    """Both sides and what is between them."""

    def __init__(self, host: Side, boards: Side, relay: subprocess.Popen[str]) -> None:
        self.host, self.boards = host, boards
        self._relay = relay
        self.shape()

    def shape(self, *, delay_s: float = 0.0, loss: float = 0.0, back_delay_s: float = 0.0, back_loss: float = 0.0) -> None:
        """What goes from the host to the boards comes `delay_s` later, a share `loss` of it never; and the same for the way back."""
        assert self._relay.stdin is not None
        assert self._relay.stdout is not None
        self._relay.stdin.write(json.dumps([{"delay_s": delay_s, "loss": loss}, {"delay_s": back_delay_s, "loss": back_loss}]) + "\n")
        self._relay.stdin.flush()
        assert self._relay.stdout.readline() == "done\n"

    def cut(self) -> None:
        """Swallow everything, both ways: neither side's TCP is told."""
        self.shape(loss=1.0, back_loss=1.0)

    def mend(self) -> None:
        self.shape()


@contextmanager
def lossy_wire(seed: int = 1) -> Iterator[Wire]:
    """A host's side and a boards' side with a wire in user space. Everything in them is ended and both are removed at the end."""
    demand("/dev/net/tun")
    with _two_sides() as sides:
        for side in sides:
            _run("ip", "-n", side.name, "tuntap", "add", "dev", "wire", "mode", "tun")
            _run("ip", "-n", side.name, "link", "set", "wire", "txqueuelen", "5000")
        command = [sys.executable, str(Path(__file__).with_name("wire_relay.py")), *(side.name for side in sides), str(seed)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as relay:
            try:
                assert relay.stdout is not None
                assert relay.stdout.readline() == "ready\n"
                _address(sides)
                yield Wire(*sides, relay)
            finally:
                relay.kill()


@contextmanager
def narrow_wire(rate_mbit_s: int) -> Iterator[tuple[Side, Side]]:
    """The same two sides on a kernel's veth pair; what leaves the host's side is held to `rate_mbit_s` by tc's token bucket."""
    demand("tc")
    with _two_sides() as sides:
        _run("ip", "-n", sides[0].name, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", sides[1].name)
        _address(sides)
        _run(*sides[0].prefix, "tc", "qdisc", "replace", "dev", "wire", "root", "tbf", "rate", f"{rate_mbit_s}mbit", "burst", "128kb",
             "latency", "200ms")
        yield sides


@contextmanager
def _two_sides() -> Iterator[tuple[Side, Side]]:
    stem = f"jf{os.getpid() % 100000}n{next(_NUMBERS)}"
    sides = Side(f"{stem}h", HOST), Side(f"{stem}b", BOARDS)
    try:
        for side in sides:
            _run("ip", "netns", "add", side.name)
            _run("ip", "-n", side.name, "link", "set", "lo", "up")
        yield sides
    finally:
        for side in sides:
            _end(side.name)


def _address(sides: tuple[Side, Side]) -> None:
    for side in sides:
        _run("ip", "-n", side.name, "addr", "add", f"{side.address}/24", "dev", "wire")
        _run("ip", "-n", side.name, "link", "set", "wire", "up")


def _end(name: str) -> None:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    for pid in listed.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), 9)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def demand(*needed: str) -> None:
    """Skip the test by name where this machine makes no namespaces or lacks one of `needed` (programs or files). A program that is missing
    fails it in CI, where it can be installed."""
    import pytest  # not needed by the benchmarks, which use this file too

    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [one for one in ("ip", *needed) if not one.startswith("/") and not shutil.which(one, path=path)]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{' and '.join(missing)} missing: apt-get install iproute2")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    for file in needed:
        if file.startswith("/") and not Path(file).exists():
            pytest.skip(f"this machine has no {file}")
    probe = f"jf{os.getpid() % 100000}probe"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    _end(probe)
    if done.returncode:
        pytest.skip(f"this machine makes no network namespaces: {done.stderr.strip()}")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
