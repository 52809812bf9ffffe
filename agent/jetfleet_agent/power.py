"""What the kernel tells of power: rails, over-current alarms, how fast the clocks may run, and the power mode.

Rails are hwmon's INA3221 channels (Documentation/hwmon/ina3221.rst): ``inN_label`` with ``inN_input`` (mV) and ``currN_input`` (mA), or
``powerN_input`` (uW) of other chips. Shunt voltages have no current of their own. Orin's kernel counts over-current events in hwmon
``soctherm_oc`` as ``ocN_event_cnt``; INA3221 itself raises ``currN_crit_alarm`` and ``currN_max_alarm``. The power mode is what NVIDIA's
nvpmodel last wrote to ``/var/lib/nvpmodel/status``, and its modes are those of ``/etc/nvpmodel.conf``. No table of boards or releases: a
name that is not known is passed on as it is, and what is not there is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from jetfleet_contract.conditions import Conditions

from .capability import l4t_release
from .thermal import whole, word

MAX_CONF_BYTES = 1 << 20
TOTAL_RAILS = ("VDD_IN", "VIN_SYS_5V0", "POM_5V_IN", "VIN")
"""Labels of the rail that feeds the whole module, in the order in which they are believed; without one the total is not known."""
_STATUS = re.compile(r"pmode:0*(\d+)")
_MODE = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", re.MULTILINE)
_FREQUENCY = re.compile(r"^\s*(CPU|GPU|EMC)\S*\s+MAX_FREQ\s+(-?\d+)\s*$")

_GPU = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b|gb10b")
"""In the devfreq names of Jetson's GPUs: ``17000000.gpu``, ``17000000.ga10b`` and so on."""
_UNBOUND = 2**40


class Rail(msgspec.Struct, frozen=True):
    """One supply, in watts."""

    name: str
    watts: float


class Clock(msgspec.Struct, frozen=True):
    """One part's clock, in kHz (CPU) or Hz (devfreq), as the kernel gives it: now, the most it may be now, and the most it can be."""

    name: str
    now: int
    allowed: int
    most: int

    @property
    def capped(self) -> bool:
        """May not run at its full speed: by the power mode, or, when a cooling device works at the same time, by throttling."""
        return 0 < self.allowed < self.most


class PowerMode(msgspec.Struct, frozen=True):
    """nvpmodel's mode. `name` is empty where only its number is known. `best` is the mode of the most cpu and gpu clock in the board's own
    ``nvpmodel.conf``; empty where that cannot be told. (Modes' numbers are no order.)"""

    number: int
    name: str = ""
    best: str = ""


class Power(msgspec.Struct, frozen=True):
    """`over_currents`: events since boot, and alarms that stand, by name; empty where the kernel tells of none."""

    rails: tuple[Rail, ...] = ()
    over_currents: dict[str, int] = {}
    clocks: tuple[Clock, ...] = ()
    mode: PowerMode | None = None

    @property
    def total_w(self) -> float | None:
        """Of the whole module; None where no rail says so."""
        by_name = {rail.name: rail.watts for rail in self.rails}
        return next((by_name[name] for name in TOTAL_RAILS if name in by_name), None)

    @property
    def over_current_events(self) -> int:
        return sum(self.over_currents.values())


def read_power(root: Path = Path("/")) -> Power:
    """Read ``sys``, ``var/lib/nvpmodel`` and ``etc/nvpmodel.conf`` below `root`; what cannot be read is left out."""
    chips = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    return Power(tuple(rail for chip in chips for rail in _rails(chip)), dict(entry for chip in chips for entry in _over_currents(chip)),
                 tuple(_clocks(root / "sys")), read_mode(root))


def read_over_currents(sysfs: Path = Path("/sys")) -> int:
    """Only the sum of over-current events and standing alarms: what a governor asks for each second."""
    return sum(count for chip in (sysfs / "class/hwmon").glob("hwmon*") for _, count in _over_currents(chip))


def read_mode(root: Path = Path("/")) -> PowerMode | None:
    """The power mode now; None on a board without nvpmodel."""
    status = _STATUS.search(word(root / "var/lib/nvpmodel/status"))
    if status is None:
        return None
    number = int(status[1])
    modes = _modes(_conf(root / "etc/nvpmodel.conf"))
    names = {one: name for one, (name, _) in modes.items()}
    ranked = sorted(modes.values(), key=lambda mode: mode[1])
    best = ranked[-1][0] if ranked and (len(ranked) == 1 or ranked[-1][1] > ranked[-2][1]) else ""
    return PowerMode(number, names.get(number, ""), best)


def read_conditions(root: Path = Path("/")) -> Conditions:
    """What measurements depend on; see `Conditions`."""
    mode, clocks = read_mode(root), tuple(_clocks(root / "sys"))
    name = (mode.name or str(mode.number)) if mode is not None else ""
    return Conditions(l4t_release(root), name, max((clock.allowed // 1000 for clock in clocks if clock.name.startswith("cpu.")), default=0),
                      max((clock.allowed // 1_000_000 for clock in clocks if _GPU.search(clock.name)), default=0),
                      word(root / "sys/devices/system/cpu/online"))


def _rails(chip: Path) -> Iterator[Rail]:
    for label in sorted(chip.glob("in*_label")):
        millivolts, milliamperes = whole(chip / label.name.replace("label", "input")), whole(
            chip / label.name.replace("in", "curr", 1).replace("label", "input"))
        if millivolts is not None and milliamperes is not None and "shunt" not in word(label).lower():
            yield Rail(word(label), millivolts * milliamperes / 1e6)
    for power in sorted(chip.glob("power*_input")):
        microwatts = whole(power)
        if microwatts is not None:
            yield Rail(word(chip / power.name.replace("input", "label")) or f"{word(chip / 'name')}.{power.name.split('_')[0]}",
                       microwatts / 1e6)


def _over_currents(chip: Path) -> Iterator[tuple[str, int]]:
    for pattern in ("oc*_event_cnt", "curr*_crit_alarm", "curr*_max_alarm"):
        for path in sorted(chip.glob(pattern)):
            count = whole(path)
            if count is not None and count >= 0:
                yield f"{word(chip / 'name') or chip.name}.{path.name}", count


def _clocks(sysfs: Path) -> Iterator[Clock]:
    for policy in sorted((sysfs / "devices/system/cpu/cpufreq").glob("policy*")):
        values = [whole(policy / name) for name in ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")]
        yield from _clock(f"cpu.{policy.name}", values)
    for device in sorted((sysfs / "class/devfreq").glob("*")):
        available = [int(one) for one in word(device / "available_frequencies").split() if one.isdigit()]
        yield from _clock(device.name, [whole(device / "cur_freq"), whole(device / "max_freq"), max(available, default=None)])


def _clock(name: str, values: list[int | None]) -> Iterator[Clock]:
    now, allowed, most = values
    if now is not None and allowed is not None and most is not None:
        yield Clock(name, now, allowed, most)


def _conf(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_CONF_BYTES).decode(errors="replace")
    except OSError:
        return ""


def _modes(conf: str) -> dict[int, tuple[str, float]]:
    """Name of each mode and the sum of its cpu, gpu and memory clocks' bounds; 0, -1 and INT_MAX mean none."""
    found: dict[int, tuple[str, float]] = {}
    parts = _MODE.split(conf)[1:]
    for number, name, body in zip(parts[::3], parts[1::3], parts[2::3]):  # noqa: B905  always whole triples
        bounds = [int(match[2]) for line in body.splitlines() if (match := _FREQUENCY.match(line))]
        found[int(number)] = (name, float(sum(_UNBOUND if bound <= 0 or bound >= 2**31 - 1 else bound for bound in bounds)))
    return found
