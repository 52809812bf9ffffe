"""The virtual devices of a run together: started, made to suffer by their schedules, healed, and looked at."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec

from .device import Device
from .faults import Event, Faults, events_of
from .world import World

START_A_SECOND = 400


class Sample(msgspec.Struct, frozen=True):
    """How many devices were in each phase, `at` seconds after the run began."""

    at: float
    phases: dict[str, int]


class Fleet:
    """See the module."""

    def __init__(self, names: list[str], world: World, faults: Faults, seed: int) -> None:
        self._world = world
        self._faults = faults
        self._seed = seed
        self.devices = {name: Device(name, world, faults, seed) for name in names}
        self._suffering: asyncio.Task[None] | None = None
        self.samples: list[Sample] = []
        self._began = time.monotonic()

    async def start(self) -> None:
        """Power all devices on, a few hundred a second: a broker has to take their connections."""
        for number, device in enumerate(self.devices.values()):
            device.start()
            if number % 20 == 19:
                await asyncio.sleep(20 / START_A_SECOND)

    def begin_faults(self) -> None:
        """From now on things happen to them."""
        for device in self.devices.values():
            device.calm = False
            if device.life is not None:
                device.life.port.calm = False
        self._suffering = asyncio.get_running_loop().create_task(self._suffer())

    async def _suffer(self) -> None:
        began = time.monotonic()
        streams: dict[str, Iterator[Event]] = {name: events_of(self._faults, self._seed, name) for name in self.devices}
        heap: list[tuple[float, str, Event]] = []
        for name, stream in streams.items():
            event = next(stream, None)
            if event is not None:
                heap.append((event.at, name, event))
        heapq.heapify(heap)
        while heap:
            at, name, event = heapq.heappop(heap)
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            self.devices[name].suffer(event)
            following = next(streams[name])
            heapq.heappush(heap, (following.at, name, following))

    def heal(self) -> None:
        """Nothing more goes wrong."""
        if self._suffering is not None:
            self._suffering.cancel()
        for device in self.devices.values():
            device.heal()

    def unsettled(self) -> list[str]:
        """Devices that are down, or have something under way."""
        return [name for name, device in self.devices.items() if device.life is None or not device.life.settled]

    def close_windows(self) -> dict[str, tuple[int, int]]:
        """Every device sends a last window. Gives session and number of it, by device."""
        for device in self.devices.values():
            if device.life is not None:
                device.life.close_window()
        return {name: (device.life.session, len(device.ledger.windows[device.life.session]))
                for name, device in self.devices.items() if device.life is not None}

    def count(self, condition: Callable[[Device], bool]) -> int:
        return sum(condition(device) for device in self.devices.values())

    def running(self, bundle: str) -> int:
        """How many have committed this bundle."""
        return self.count(lambda device: bundle in champions(device))

    def sample(self, new: str) -> Sample:
        """Note where everybody is. `new`: the bundle that is rolled out."""
        phases = Counter(_phase(device, new) for device in self.devices.values())
        sample = Sample(time.monotonic() - self._began, dict(phases))
        self.samples.append(sample)
        return sample

    async def close(self) -> None:
        if self._suffering is not None:
            self._suffering.cancel()
        for device in self.devices.values():
            life, device.life = device.life, None
            if life is not None:
                life.cut()
        await asyncio.sleep(0)


def champions(device: Device) -> set[str]:
    """The bundles that a device has committed, as its disk says."""
    life = device.life
    return {state.champion.bundle for state in life.apps.states.values() if state.champion} if life is not None else set()


def _phase(device: Device, new: str) -> str:
    life = device.life
    if life is None:
        return "down"
    for state in life.apps.states.values():
        if state.phase != "idle":
            return state.phase
    return "updated" if new and new in champions(device) else "idle"
