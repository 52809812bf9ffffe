"""What a run says at its end: one mapping for `--json`, and the tables that a person reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from jetfleet_contract.rollout_records import Rollout
from jetfleet_host.store.models import Issued

from .children import Usage
from .device import Device
from .tap import Tap

if TYPE_CHECKING:
    from rich.table import Table


class WaveTimes(msgspec.Struct, frozen=True):
    """One wave: its devices, the seconds from the first issue to the last answer, and quantiles of one device's update time."""

    rollout: str
    wave: int
    devices: int
    seconds: float
    p50_s: float
    p99_s: float
    outcomes: dict[str, int]


def wave_times(session: Session, rollouts: Iterable[Rollout], devices: Mapping[str, Device]) -> list[WaveTimes]:
    """Update times by wave: from the host's issue to the moment that the device made its outcome durable. One machine, one clock."""
    rows = []
    for state in rollouts:
        issues = {row.device: row for row in session.scalars(
            select(Issued).where(Issued.rollout == state.plan.id, Issued.kind == "forward"))}
        for wave, members in enumerate(state.plan.waves):
            touched = [name for name in members if name in issues]
            ends = {name: at for name in touched if (at := _answered(devices[name], issues[name].seq)) is not None}
            if not touched:
                continue
            took = sorted(at - issues[name].at for name, at in ends.items())
            first = min(issues[name].at for name in touched)
            outcomes: Counter[str] = Counter(state.devices[name].status for name in touched)
            rows.append(WaveTimes(state.plan.id, wave + 1, len(touched), max(ends.values(), default=first) - first,
                                  quantile(took, 0.5), quantile(took, 0.99), dict(outcomes)))
    return rows


def _answered(device: Device, seq: int) -> float | None:
    return min((told.at for told in device.ledger.told.values() if told.seq == seq), default=None)


def quantile(values: list[float], q: float) -> float:
    """The nearest-rank quantile of sorted values; 0.0 of none."""
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def totals(devices: Iterable[Device]) -> dict[str, Any]:
    """Sums over all devices: classes, injected faults, refusals and chunk accounts."""
    classes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    port: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    windows = sessions = 0
    for device in devices:
        ledger = device.ledger
        classes[device.board.name] += 1
        faults.update(ledger.faults)
        refusals.update(ledger.codes)
        outcomes.update(f"{told.outcome}{f' {told.code}' if told.code else ''}" for told in ledger.told.values())
        port.update(msgspec.structs.asdict(ledger.port))
        taken.update(msgspec.structs.asdict(ledger.transfers))
        windows += sum(len(sent) for sent in ledger.windows.values())
        sessions += len(ledger.windows)
        faults["slow-reader"] += bool(device.was_slow)
    for name in ("lost", "doubled", "delayed", "corrupted"):
        faults[f"chunk-{name}"] = port[name]
    return {"classes": dict(classes), "faults": {k: v for k, v in sorted(faults.items()) if v}, "refusals": dict(refusals),
            "outcomes": dict(outcomes), "chunks": {**dict(port), **dict(taken)}, "windows_sent": windows, "sessions": sessions}


def delivery(tap: Tap, needed: int, devices: int) -> dict[str, Any]:
    """What the host published: its bytes, and their ratio to one copy of all that was new. `needed`: bytes of the bundles."""
    return {"published_bytes": tap.chunk_bytes, "unicast_bytes": tap.unicast_bytes, "chunks": tap.chunks, "bundle_bytes": needed,
            "ratio_to_one_copy": round(tap.chunk_bytes / needed, 3) if needed else 0.0,
            "ratio_to_one_copy_each": round(tap.chunk_bytes / (needed * devices), 5) if needed and devices else 0.0}


def usage_view(usage: Mapping[str, Usage]) -> dict[str, Any]:
    return {name: {"cpu_s": round(one.cpu_s, 1), "rss_mb": round(one.rss_mb, 1)} for name, one in usage.items()}


def tables(outcome: Mapping[str, Any]) -> list[Table]:
    """The outcome as rich tables."""
    return [_waves_table(outcome), _figures_table(outcome), _rules_table(outcome)]


def _waves_table(outcome: Mapping[str, Any]) -> Table:
    table = _table("Waves", "rollout", "wave", "devices", "whole wave", "a device p50", "p99", "outcomes")
    for row in outcome["waves"]:
        table.add_row(row["rollout"], str(row["wave"]), str(row["devices"]), f"{row['seconds']:.1f} s", f"{row['p50_s']:.1f} s",
                      f"{row['p99_s']:.1f} s", _told(row["outcomes"]))
    return table


def _figures_table(outcome: Mapping[str, Any]) -> Table:
    table = _table(f"Run of {outcome['devices']} devices, seed {outcome['seed']}, schedule {outcome['schedule']}", "what", "figures")
    sent = outcome["delivery"]
    table.add_row("took", f"{outcome['seconds']:.1f} s, of it the rollout {outcome['rollout_seconds']:.1f} s")
    table.add_row("classes", _told(outcome["classes"]))
    table.add_row("outcomes", _told(outcome["outcomes"]))
    table.add_row("faults", _told(outcome["faults"]) or "none")
    table.add_row("refusals", _told(outcome["refusals"]) or "none")
    table.add_row("host published", f"{sent['published_bytes'] / 1e6:.2f} MB in {sent['chunks']} chunks, {sent['ratio_to_one_copy']:.2f}x "
                                    f"one copy ({sent['bundle_bytes'] / 1e6:.2f} MB), {sent['ratio_to_one_copy_each']:.4f}x one each")
    table.add_row("windows", f"{outcome['windows_sent']} sent in {outcome['sessions']} sessions")
    for name, one in outcome["usage"].items():
        table.add_row(name, f"{one['cpu_s']:.1f} s CPU, {one['rss_mb']:.0f} MB at most")
    return table


def _rules_table(outcome: Mapping[str, Any]) -> Table:
    table = _table("Was anything lost?", "", "rule", "found")
    for rule, found in outcome["rules"].items():
        table.add_row("[red]\u2718[/]" if found else "[green]\u2714[/]", rule, "\n".join(found))
    return table


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
