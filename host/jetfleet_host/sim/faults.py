"""The fault file: what is injected, how often, and the schedule that follows from it and a seed.

Everything random is drawn from streams named ``SEED/DEVICE/PURPOSE``, one draw a decision, so that the same seed gives the same
decisions in the same order, however fast the machine is. What it cannot give is the same interleaving: real sockets, a real broker and
a real host run in real time between them.
"""

from __future__ import annotations

import hashlib
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from jetfleet_contract.errors import InputError
from jetfleet_contract.unknown_keys import refuse_unknown

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Loss = Annotated[float, Meta(ge=0.0, le=0.9)]
Rate = Annotated[float, Meta(ge=0.0, le=60.0)]
Seconds = Annotated[float, Meta(ge=0.0, le=3600.0)]
Count = Annotated[int, Meta(ge=0, le=20)]

MAX_FILE_BYTES = 64 * 1024

EXAMPLE = """\
# The default fault mix of `jetfleet sim`. Leave a key out and it is 0: nothing of that kind happens.

[chunks]                     # at each device's chunk port, each chunk that arrives by itself
loss = 0.02                  # share that never arrives (0..0.9)
duplicate = 0.01             # share that arrives twice
reorder = 0.02               # share that is held back until a later message has passed it
corrupt = 0.002              # share with one bit flipped: the chunk table has to refuse it

[readers]
slow_share = 0.05            # share of the devices (0..1) that read their socket slowly
slow_ms = 3.0                # milliseconds they take for a message
sleepy_share = 0.03          # share of the devices that stop reading now and then, as a board in deep sleep does
sleep_s = 4.0                # seconds each time; an awake spell is ten times as long on average

[devices]                    # events a device and minute (0..60)
kills = 0.15                 # SIGKILL of the agent: it starts again from what it had stored
power_cuts = 0.1             # the same, and what was not fsynced may be lost or torn
mid_write = 0.5              # share of both (0..1) that strike at a durable write: just before, or just after it
restart_s = 1.0              # seconds until it runs again, on average
clock_jumps = 0.05           # the wall clock is plainly wrong for a while
clock_jump_days = 400.0      # by so many days, forward or back
clock_wrong_s = 3.0          # until it is set right, on average

[broker]
restarts = 1                 # SIGKILL and start, while boards are being updated; what it retained is gone

[host]
kills = 1                    # SIGKILL of `jetfleet serve` and start, while boards are being updated
down_s = 2.0                 # seconds until it is started again

[model]                      # of the version that is rolled out
bad_share = 0.0              # share of the devices (0..1) whose own trial finds it bad
latency = 1.0                # its latency over the old one's: more than the gate's limit must be stopped by the fleet
"""


class ChunkFaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of the chunks that arrive at a device."""

    loss: Loss = 0.0
    duplicate: Share = 0.0
    reorder: Share = 0.0
    corrupt: Loss = 0.0


class ReaderFaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Devices that are late in taking what the broker has for them."""

    slow_share: Share = 0.0
    slow_ms: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    sleepy_share: Share = 0.0
    sleep_s: Seconds = 0.0


class DeviceFaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Events a device and minute, and what they are like."""

    kills: Rate = 0.0
    power_cuts: Rate = 0.0
    mid_write: Share = 0.0
    restart_s: Seconds = 1.0
    clock_jumps: Rate = 0.0
    clock_jump_days: Annotated[float, Meta(ge=0.0, le=20_000.0)] = 400.0
    clock_wrong_s: Seconds = 3.0


class BrokerFaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    restarts: Count = 0


class HostFaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kills: Count = 0
    down_s: Seconds = 2.0


class ModelFaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bad_share: Share = 0.0
    latency: Annotated[float, Meta(ge=0.1, le=100.0)] = 1.0


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The checked content of a fault file; without one, nothing goes wrong."""

    chunks: ChunkFaults = ChunkFaults()
    readers: ReaderFaults = ReaderFaults()
    devices: DeviceFaults = DeviceFaults()
    broker: BrokerFaults = BrokerFaults()
    host: HostFaults = HostFaults()
    model: ModelFaults = ModelFaults()


def read_faults(path: Path) -> Faults:
    """Read a fault file.

    Raises:
        InputError: `faults.unreadable`, `faults.syntax`, `faults.unknown` (with the nearest key), `faults.value`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError("faults.unreadable", f"cannot read {path}: {error.strerror}", where="--faults",
                         remedy="write one: jetfleet sim --faults-example > faults.toml") from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError("faults.syntax", f"{path.name} is over the limit of {MAX_FILE_BYTES} bytes", where=str(path))
    return parse_faults(data, str(path))


def parse_faults(data: bytes, where: str) -> Faults:
    """The checked content of a fault file's bytes; raises as `read_faults`."""
    try:
        table = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError("faults.syntax", f"the fault file is no TOML: {error}", where=where,
                         remedy="compare it with: jetfleet sim --faults-example") from None
    refuse_unknown(table, Faults, "faults.unknown", "the fault file", where)
    try:
        return msgspec.convert(table, Faults)
    except msgspec.ValidationError as error:
        raise InputError("faults.value", f"a value in the fault file is wrong: {error}", where=where,
                         remedy="correct the value at the place named after the '$'") from None


def default_faults() -> Faults:
    """The mix of `EXAMPLE`."""
    return parse_faults(EXAMPLE.encode(), "default mix")


# --- the schedule -------------------------------------------------------------------------------------------

Kind = Literal["kill", "power-cut", "clock-jump", "sleep"]
Strike = Literal["", "before", "after"]


class Event(msgspec.Struct, frozen=True):
    """Something that happens to a device `at` seconds after the faults begin, for `lasts` seconds. `strike`: at a durable write."""

    at: float
    kind: Kind
    lasts: float
    strike: Strike = ""
    amount: float = 0.0


def stream(seed: int, device: str, purpose: str) -> random.Random:
    """A device's own random numbers for one purpose."""
    return random.Random(f"{seed}/{device}/{purpose}")  # noqa: S311 - a rehearsal has to be repeatable


def is_chosen(seed: int, device: str, purpose: str, share: float) -> bool:
    """Whether this device is one of the share."""
    return stream(seed, device, purpose).random() < share


def events_of(faults: Faults, seed: int, device: str) -> Iterator[Event]:
    """The endless schedule of a device, in order of time; empty when nothing of it can happen."""
    sources = [source for source in _sources(faults, seed, device) if source is not None]
    heads = [next(source) for source in sources]
    while sources:
        index = min(range(len(heads)), key=lambda i: heads[i].at)
        yield heads[index]
        heads[index] = next(sources[index])


def _sources(faults: Faults, seed: int, device: str) -> tuple[Iterator[Event] | None, ...]:
    rates, readers = faults.devices, faults.readers
    sleepy = readers.sleep_s > 0 and is_chosen(seed, device, "sleepy", readers.sleepy_share)
    return (
        _poisson(stream(seed, device, "kill"), "kill", rates.kills, rates) if rates.kills else None,
        _poisson(stream(seed, device, "power-cut"), "power-cut", rates.power_cuts, rates) if rates.power_cuts else None,
        _poisson(stream(seed, device, "clock-jump"), "clock-jump", rates.clock_jumps, rates) if rates.clock_jumps else None,
        _sleeps(stream(seed, device, "sleep"), readers.sleep_s) if sleepy else None,
    )


def _poisson(draws: random.Random, kind: Kind, per_minute: float, rates: DeviceFaults) -> Iterator[Event]:
    at = 0.0
    while True:
        at += draws.expovariate(per_minute / 60.0)
        strike: Strike = ""
        if draws.random() < rates.mid_write and kind != "clock-jump":
            strike = "before" if draws.random() < 0.5 else "after"
        mean = rates.clock_wrong_s if kind == "clock-jump" else rates.restart_s
        amount = rates.clock_jump_days * 86_400.0 * (1 if draws.random() < 0.5 else -1)
        yield Event(at, kind, mean * (0.5 + draws.random()), strike, amount if kind == "clock-jump" else 0.0)


def _sleeps(draws: random.Random, seconds: float) -> Iterator[Event]:
    at = 0.0
    while True:
        at += draws.expovariate(1 / (seconds * 10))
        yield Event(at, "sleep", seconds)
        at += seconds


def schedule_digest(faults: Faults, seed: int, devices: list[str], horizon_s: float = 600.0) -> str:
    """A short name of what is going to happen in the first `horizon_s` seconds: two runs with the same one had the same faults planned."""
    whole = hashlib.sha256(msgspec.json.encode(faults))
    for device in devices:
        for event in events_of(faults, seed, device):
            if event.at > horizon_s:
                break
            whole.update(f"{device}{event}".encode())
    return whole.hexdigest()[:16]
