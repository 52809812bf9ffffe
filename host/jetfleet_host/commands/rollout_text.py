"""What `rollout status` prints: phases, waves, gates with their numbers, boards, bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jetfleet_contract.rollout_records import Rollout, Verdict
    from jetfleet_host.views import RolloutBytes

STATUSES = ("committed", "issued", "waiting", "refused", "rolled_back", "failed", "silent", "reverting", "reverted", "stuck")
BAR = 20


def line_of(state: Rollout) -> str:
    """One rollout in one line."""
    plan = state.plan
    told = ", ".join(f"{count} {name}" for name in STATUSES if (count := state.count({name})))
    model = f"{plan.name}:{plan.version}"
    return f"{plan.id:<34} {plan.app:<14} {model:<22} {state.phase:<10} wave {max(state.wave + 1, 0)}/{len(plan.waves)}  {told}"


def lines_of(state: Rollout) -> list[str]:
    """One rollout with its waves, gates and boards."""
    lines = [line_of(state)]
    if state.reason:
        lines.append(f"  {state.reason}" + (f" [{state.code}]" if state.code else ""))
    if state.phase == "paused":
        lines.append(f"  go on: jetfleet rollout resume {state.plan.id}    (--accept overrules; or abort, abort --rollback)")
    if state.plan.approved_by:
        lines.append(f"  an older release was allowed by {state.plan.approved_by}")
    for wave in range(len(state.plan.waves)):
        lines += _wave(state, wave)
    for device, progress in sorted(state.devices.items(), key=lambda item: (item[1].wave, item[0])):
        detail = re.sub(r"\s+", " ", f"{progress.code} {progress.detail}").strip()
        lines.append(f"  {device:<28} wave {progress.wave + 1:<3} {progress.status:<12} {detail}".rstrip())
    return lines


def _wave(state: Rollout, wave: int) -> list[str]:
    size = len(state.wave_devices(wave))
    done = state.count({"committed"}, wave)
    bad = size - done - state.count({"waiting", "issued"}, wave)
    bar = "#" * (BAR * done // size) + "!" * (BAR * bad // size)
    phase = "under way" if wave == state.wave and not state.final else "opened" if wave <= state.wave else "to come"
    name = "canary" if wave == 0 else f"wave {wave + 1}"
    lines = [f"  {name:<9} [{bar:<{BAR}}] {done:>5} of {size} committed, {phase}"]
    lines += [_gate(verdict, "passed" if verdict.passed else "undecided" if verdict.undecided else "FAILED")
              for verdict in state.verdicts if verdict.wave == wave]
    lines += [_gate(verdict, "undecided so far" if verdict.undecided else "good so far")
              for verdict in state.standing if verdict.wave == wave]
    return lines


def _gate(verdict: Verdict, word: str) -> str:
    return f"    gate {verdict.gate:<10} {word}, {verdict.why}"


def bytes_lines(state: Rollout, counted: RolloutBytes) -> list[str]:
    """Every byte, by board and in all, in MB. `useful`: what boards kept; the rest of what they received was repeated or not for them."""
    lines = ["  bytes (MB)                      planned   received     useful  saved by deltas   way back"]
    for device in sorted(counted.devices):
        row = counted.devices[device]
        lines.append(_bytes(device, state.plan.board_bytes, row.received, row.useful, row.saved, row.back))
    total = counted.total
    lines.append(_bytes("all boards", counted.planned, total.received, total.useful, total.saved, total.back))
    shared = f", {total.received / counted.published:.2f} bytes received a byte published" if counted.published else ""
    lines.append(f"  the host published {counted.published / 1e6:.3f} MB of this bundle, over all rollouts of it{shared}")
    return lines


def _bytes(name: str, planned: int, received: int, useful: int, saved: int, back: int) -> str:
    return (f"    {name:<28} {planned / 1e6:>8.3f} {received / 1e6:>10.3f} {useful / 1e6:>10.3f} {saved / 1e6:>16.3f} "
            f"{back / 1e6:>10.3f}")
