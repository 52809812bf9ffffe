"""A wire between two network namespaces, in user space: carries IP packets between two TUN devices, late, and not all of them.

Run by `network_namespaces` as ``python wire_relay.py NAMESPACE NAMESPACE SEED``; both must have a TUN device named ``wire``. Each line on
standard input is a JSON list of two like ``{"delay_s": 0.1, "loss": 0.02}``, which hold from then on for what leaves the first and what
leaves the second namespace. Loss is per packet and independent. It needs no netem, which is not in every kernel.
"""

from __future__ import annotations

import collections
import ctypes
import fcntl
import json
import os
import random
import select
import struct
import sys
import time

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
MAX_WAITING = 20_000


class Direction:
    """Packets from one device to the other."""

    def __init__(self, source: int, target: int, draw: random.Random) -> None:
        self.source, self.target = source, target
        self.delay_s = self.loss = 0.0
        self._draw = draw
        self._waiting: collections.deque[tuple[float, bytes]] = collections.deque()

    def take(self, now: float) -> None:
        """Everything that is there to read: kept until it is due, or dropped."""
        while True:
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            if self._draw.random() >= self.loss and len(self._waiting) < MAX_WAITING:
                self._waiting.append((now + self.delay_s, packet))

    def give(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            try:
                os.write(self.target, self._waiting.popleft()[1])
            except OSError:
                continue  # as if it were lost: the other end is full or down

    def due_s(self, now: float) -> float:
        return max(0.0, self._waiting[0][0] - now) if self._waiting else 60.0


def device_in(namespace: str) -> int:
    """A descriptor of the TUN device ``wire`` in that namespace; this process stays there."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    if libc.setns(place, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    os.close(place)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"wire", _IFF_TUN | _IFF_NO_PI))
    return device


def relay(namespaces: list[str], seed: int) -> None:
    """Carry packets until standard input ends."""
    draw = random.Random(seed)
    devices = [device_in(name) for name in namespaces]
    ways = [Direction(devices[0], devices[1], draw), Direction(devices[1], devices[0], draw)]
    print("ready", flush=True)
    while True:
        now = time.monotonic()
        ready, _, _ = select.select([sys.stdin, *devices], [], [], min(way.due_s(now) for way in ways))
        if sys.stdin in ready:
            line = sys.stdin.readline()
            if not line:
                return
            for way, told in zip(ways, json.loads(line), strict=True):
                way.delay_s, way.loss = told["delay_s"], told["loss"]
            print("done", flush=True)
        now = time.monotonic()
        for way in ways:
            if way.source in ready:
                way.take(now)
            way.give(now)


if __name__ == "__main__":
    relay(sys.argv[1:3], int(sys.argv[3]))
