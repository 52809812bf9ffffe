"""The doctor's look at the board itself: heat, power, memory, wear, and how it last went down. What the kernel does not tell is no
fault."""

from __future__ import annotations

from pathlib import Path

from .checks import Check
from .power import Power, read_power
from .thermal import Thermal, read_thermal, word

LITTLE_HEADROOM_C = 10.0
LITTLE_MEMORY_MB = 256
WORN = 9
"""eMMC's life time estimate, JEDEC JESD84-B51: n means (n - 1) x 10 % to n x 10 % of the device's life is used; 11 is beyond it."""


def board_checks(root: Path = Path("/"), needed_mb: float = 0.0) -> tuple[Check, ...]:
    """Everything below `root` (``/`` of the board, or a recorded tree).

    Args:
        needed_mb: peak memory of the models that run here, as measured; 0: unknown.
    """
    thermal, power = read_thermal(root / "sys"), read_power(root)
    return (heat(thermal), throttling(thermal, power), power_mode(power), over_current(power), memory(root, needed_mb), wear(root),
            last_end(root))


def heat(thermal: Thermal) -> Check:
    zone = thermal.tightest
    if zone is None or zone.headroom_c is None:
        told = f"{thermal.hottest_c:.0f} C, no throttling point is told" if thermal.hottest_c is not None else "the kernel tells none"
        return Check("heat", "ok", told)
    finding = f"{zone.name} is at {zone.celsius:.0f} C, {zone.headroom_c:.0f} C below its limit of {zone.limit_c:.0f} C"
    if zone.headroom_c < LITTLE_HEADROOM_C:
        return Check("heat", "warning", finding, "give it air or a bigger heat sink; let apps give way: [governor] enabled = true")
    return Check("heat", "ok", finding)


def throttling(thermal: Thermal, power: Power) -> Check:
    """A cooling device at work is throttling; a clock that may not run at full speed without one is a cap, by the power mode or by hand."""
    if thermal.throttling:
        return Check("throttling", "warning", f"slowed down now by {', '.join(thermal.throttling)}",
                     "cool the board, lower the frame rate, or choose a power mode that it can hold")
    capped = [f"{clock.name} at {clock.allowed / clock.most:.0%}" for clock in power.clocks if clock.capped]
    if capped:
        return Check("throttling", "ok", f"nothing is throttled; capped by the power mode or by hand: {', '.join(capped[:6])}")
    return Check("throttling", "ok", "nothing is slowed down" if thermal.slowing or power.clocks else "the kernel tells of nothing")


def power_mode(power: Power) -> Check:
    mode = power.mode
    if mode is None:
        return Check("power mode", "ok", "this board has none (no nvpmodel)")
    name = mode.name or f"number {mode.number}"
    watts = f", {power.total_w:.1f} W now" if power.total_w is not None else ""
    if mode.best and mode.name and mode.best != mode.name:
        return Check("power mode", "warning", f"{name}{watts}; the module's fastest is {mode.best}",
                     "sudo nvpmodel -m NUMBER sets another (numbers in /etc/nvpmodel.conf), if supply and cooling allow it")
    return Check("power mode", "ok", f"{name}{watts}")


def over_current(power: Power) -> Check:
    if not power.over_currents:
        return Check("over-current", "ok", "the kernel does not tell")
    if power.over_current_events:
        which = ", ".join(f"{name} {count}" for name, count in power.over_currents.items() if count)
        return Check("over-current", "warning", f"events since boot: {which}",
                     "use a stronger supply and a shorter cable, or a lower power mode: each event slows the board down")
    return Check("over-current", "ok", "no event since boot")


def memory(root: Path, needed_mb: float) -> Check:
    facts = dict(_meminfo(root / "proc/meminfo"))
    free = facts.get("MemAvailable")
    if free is None:
        return Check("memory", "ok", "the kernel does not tell")
    swap = facts.get("SwapTotal", 0.0)
    kind = "zram" if "zram" in word(root / "proc/swaps") else "swap"
    finding = f"{free:.0f} MB free, {swap:.0f} MB {kind}" if swap else f"{free:.0f} MB free, no swap"
    if needed_mb:
        finding += f"; the models here need {needed_mb:.0f} MB at their peak"
    used_swap = swap - facts.get("SwapFree", swap)
    if free < LITTLE_MEMORY_MB:
        return Check("memory", "failed", finding, "stop what else runs, run fewer apps, or set memory_mb: smaller variants are chosen then")
    if free < needed_mb:
        return Check("memory", "warning", finding, "an update needs both models at once: set the trial to stop-start, or free memory")
    if swap and kind == "swap" and used_swap > swap / 2:
        return Check("memory", "warning", f"{finding}, {used_swap:.0f} MB of it used", "swapping to flash is slow and wears it: use zram")
    return Check("memory", "ok", finding)


def wear(root: Path) -> Check:
    used = []
    for device in sorted((root / "sys/class/mmc_host").glob("mmc*/mmc*:*")):
        numbers = [int(part, 16) for part in word(device / "life_time").split() if part.lower().startswith("0x")]
        if numbers and max(numbers) > 0:
            used.append((max(numbers), word(device / "name") or device.name))
    if not used:
        return Check("flash wear", "ok", "no eMMC tells its age")
    worst, name = max(used)
    finding = f"{name}: {min(worst, 10) * 10} % of its life used at most" if worst <= 10 else f"{name} is beyond its life"
    if worst >= WORN:
        return Check("flash wear", "warning", finding, "plan to replace the module or move state_dir to another disk")
    return Check("flash wear", "ok", finding)


def last_end(root: Path) -> Check:
    """pstore keeps what the kernel said last when it crashed."""
    folder = root / "sys/fs/pstore"
    try:
        records = sorted(path.name for path in folder.iterdir())
    except OSError:
        records = []
    if records:
        return Check("last shutdown", "warning", f"the kernel left a crash record: {', '.join(records[:3])}",
                     f"read it below {folder} or /var/lib/systemd/pstore, then remove it; `journalctl -b -1 -e` shows what came before")
    return Check("last shutdown", "ok", "no crash record")


def _meminfo(path: Path) -> list[tuple[str, float]]:
    found = []
    for line in word(path).splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()[:1]
        if number and number[0].isdigit():
            found.append((name, int(number[0]) / 1024))
    return found
