"""What the kernel tells of heat: zones with their trip points, and the cooling devices that cost speed.

Linux's thermal sysfs ABI (Documentation/driver-api/thermal/sysfs-api.rst): ``temp`` and ``trip_point_N_temp`` in milli-degrees,
``trip_point_N_type`` passive, active, hot or critical. Names are taken as they are; an unknown one is normal. Only the folder is asked, so
a recorded tree of any board can be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

_SLOWING = ("cpufreq", "devfreq", "processor", "throttle")
"""Kinds of cooling devices that cost speed; Jetson calls its alerts ``cpu-throttle-alert`` and the like. A fan costs none."""
_MAX_TRIPS = 16
_THROTTLES = frozenset({"passive", "hot"})


class Zone(msgspec.Struct, frozen=True):
    """One sensor. `throttles_c`: where the kernel begins to slow down (the lowest passive or hot point); `critical_c`: where it shuts
    down."""

    name: str
    celsius: float
    throttles_c: float | None = None
    critical_c: float | None = None

    @property
    def limit_c(self) -> float | None:
        """Where the board takes matters into its own hands."""
        return self.throttles_c if self.throttles_c is not None else self.critical_c

    @property
    def headroom_c(self) -> float | None:
        return None if self.limit_c is None else self.limit_c - self.celsius


class Cooling(msgspec.Struct, frozen=True):
    """One cooling device that costs speed, `state` of `most` (0: it slows nothing down now)."""

    name: str
    state: int
    most: int


class Thermal(msgspec.Struct, frozen=True):
    """All that the kernel tells; both empty where it tells nothing."""

    zones: tuple[Zone, ...] = ()
    slowing: tuple[Cooling, ...] = ()

    @property
    def hottest_c(self) -> float | None:
        return max((zone.celsius for zone in self.zones), default=None)

    @property
    def tightest(self) -> Zone | None:
        """The zone with the least headroom; None where no zone has a limit."""
        return min((zone for zone in self.zones if zone.headroom_c is not None), key=lambda zone: zone.headroom_c or 0.0, default=None)

    @property
    def throttling(self) -> tuple[str, ...]:
        """What is slowed down for heat or power now."""
        return tuple(device.name for device in self.slowing if device.state > 0)


def read_thermal(sysfs: Path = Path("/sys")) -> Thermal:
    """Read ``class/thermal`` below `sysfs`; what cannot be read is left out."""
    folder = sysfs / "class" / "thermal"
    return Thermal(tuple(_zones(folder)), tuple(_slowing(folder)))


def word(path: Path) -> str:
    """The text of a small file, trimmed; empty when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def whole(path: Path) -> int | None:
    """The whole number in a file."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _zones(folder: Path) -> Iterator[Zone]:
    for zone in sorted(folder.glob("thermal_zone*")):
        celsius = _celsius(zone / "temp")
        if celsius is None:
            continue
        trips = [(word(zone / f"trip_point_{n}_type"), _trip(zone / f"trip_point_{n}_temp"))
                 for n in range(_MAX_TRIPS) if (zone / f"trip_point_{n}_type").exists()]
        yield Zone(word(zone / "type") or zone.name, celsius,
                   min((at for kind, at in trips if kind in _THROTTLES and at is not None), default=None),
                   min((at for kind, at in trips if kind == "critical" and at is not None), default=None))


def _slowing(folder: Path) -> Iterator[Cooling]:
    for device in sorted(folder.glob("cooling_device*")):
        name, state = word(device / "type"), whole(device / "cur_state")
        if state is not None and any(kind in name.lower() for kind in _SLOWING):
            yield Cooling(name, state, whole(device / "max_state") or 0)


def _celsius(path: Path) -> float | None:
    """Sensors of parts that are switched off fail to read or say nonsense."""
    value = whole(path)
    return value / 1000 if value is not None and -40_000 < value < 200_000 else None


def _trip(path: Path) -> float | None:
    """A point that is disabled stands at or below zero, or beyond all reason."""
    value = _celsius(path)
    return value if value is not None and value > 0 else None
