"""Turns the governor: reads the board's heat each second while an app is governed, and tells pipelines and operators what it decides.

An app is governed by its own settings, else by the board's default, else not at all; then nothing is read and nothing is woken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from jetfleet_agent import ipc
from jetfleet_agent.power import read_over_currents
from jetfleet_agent.thermal import read_thermal
from jetfleet_contract.app_config import AppConfig, Governor
from jetfleet_contract.governor import GovernorState, Heat, Load, Means, Paced, Reason, foreseen_c, standing, step

log = logging.getLogger(__name__)

POLL_S = 1.0
IDLE_S = 5.0
"""How soon newly governed apps are seen."""
_WORK = ("pre", "infer", "decode")


class Pacing(Protocol):
    """What is used of Pipelines here."""

    def configs(self) -> dict[str, AppConfig]: ...
    def means(self, name: str) -> Means: ...
    def pace(self, name: str, pace: ipc.Pace) -> None: ...


class Governing:
    """Used by the control thread only.

    Args:
        default: for apps whose settings have no governor.
        note: takes an alarm's beginning or end, with the app's name.
        clock: monotonic seconds.
        sysfs: the root of the kernel's ``/sys``.
    """

    def __init__(self, pipelines: Pacing, default: Governor | None, note: Callable[[str, ipc.Raised], None], clock: Callable[[], float],
                 sysfs: Path = Path("/sys")) -> None:
        self._pipelines = pipelines
        self._default = default
        self._note = note
        self._clock = clock
        self._sysfs = sysfs
        self._state = GovernorState()
        self._heat = Heat()
        self._rates: dict[str, dict[str, float]] = {}
        self._busy: dict[str, float] = {}
        self._over_currents: int | None = None
        self._due = 0.0

    def heard(self, app: str, window: ipc.Window) -> None:
        """A window tells how many frames of each source an app answers, and what they cost."""
        if window.duration_s <= 0:
            return
        rates: dict[str, float] = {}
        busy = 0.0
        for series in window.series:
            rates[series.source] = rates.get(series.source, 0.0) + series.done / window.duration_s
            busy += sum(series.stages[stage].total for stage in _WORK if stage in series.stages) / window.duration_s
        self._rates[app], self._busy[app] = rates, busy

    def tick(self) -> float:
        """Read and decide when it is time. Seconds until the next call is wanted."""
        now = self._clock()
        if now < self._due:
            return self._due - now
        rules = self._rules()
        self._free(set(self._state.apps) - set(rules))
        if not rules:
            self._state, self._due = GovernorState(), now + IDLE_S
            return IDLE_S
        self._due = now + POLL_S
        self._heat = self._read()
        loads = tuple(Load(app, rule, self._rates.get(app, {}), self._busy.get(app, 0.0), self._pipelines.means(app))
                      for app, rule in rules.items())
        self._state, effects = step(self._state, self._heat, loads, now)
        for paced in effects:
            self._obey(paced)
        self._stand(rules)
        return POLL_S

    def gauges(self) -> dict[str, float]:
        """`governor.foreseen_c`, and `APP.governor_rung`, `APP.governor_share` (of the ladder, 0..1), `APP.governor_eco`,
        `APP.governor_lean` and `APP.governor_whole` (0 or 1) of each governed app."""
        rules = self._rules()
        gauges: dict[str, float] = {}
        foreseen = foreseen_c(self._state)
        if foreseen is not None:
            gauges["governor.foreseen_c"] = foreseen
        for app, rung in self._state.apps.items():
            if app in rules:
                gauges[f"{app}.governor_rung"] = float(rung.rung)
                now = standing(rules[app], rung)
                gauges[f"{app}.governor_share"] = rung.rung / max(now.of, 1)
                gauges |= {f"{app}.governor_eco": float(now.eco), f"{app}.governor_lean": float(now.lean),
                           f"{app}.governor_whole": float(now.whole)}
        return gauges

    def reasons(self) -> dict[str, Reason]:
        """Why each governed app is held back; empty: it is not."""
        return {app: rung.reason for app, rung in self._state.apps.items()}

    def _rules(self) -> Mapping[str, Governor]:
        rules = {app: config.governor or self._default for app, config in self._pipelines.configs().items()}
        return {app: rule for app, rule in rules.items() if rule is not None}

    def _read(self) -> Heat:
        thermal = read_thermal(self._sysfs)
        events = read_over_currents(self._sysfs)
        fired = self._over_currents is not None and events > self._over_currents
        self._over_currents = events
        zone = thermal.tightest
        if zone is None:
            return Heat(throttled=bool(thermal.throttling), over_current=fired)
        return Heat(zone.celsius, zone.limit_c, zone.name, bool(thermal.throttling), fired)

    def _obey(self, paced: Paced) -> None:
        zone = f"{self._heat.zone} {self._heat.temperature_c:.0f} C" if self._heat.temperature_c is not None else "the board"
        log.warning("%s: rung %d of %d%s at %s %s", paced.app, paced.rung, paced.of, _given_up(paced), zone,
                    f"[{paced.reason}]" if paced.reason else "(free again)")
        self._pipelines.pace(paced.app, ipc.Pace(dict(paced.fps), paced.hot, paced.reason, paced.eco, paced.whole, paced.lean))

    def _stand(self, rules: Mapping[str, Governor]) -> None:
        for app, rung in self._state.apps.items():
            if rung.rung:
                now = standing(rules[app], rung)
                detail = f"rung {rung.rung} of {now.of}: {rung.reason}{_given_up(now)}"
                self._note(app, ipc.Raised("", True, "governor", detail))
            else:
                self._note(app, ipc.Raised("", False, "governor"))

    def _free(self, apps: set[str]) -> None:
        for app in apps:
            self._pipelines.pace(app, ipc.Pace())
            self._note(app, ipc.Raised("", False, "governor"))
            self._rates.pop(app, None)
            self._busy.pop(app, None)


def _given_up(paced: Paced) -> str:
    """In words, with a comma before each part; empty when nothing is."""
    parts = [*(["frugal settings"] if paced.eco else []), *(["a cheaper candidate"] if paced.lean else [])]
    if paced.fps:
        parts.append(f"at most {max(paced.fps.values()):.3g} frames a second")
    return "".join(f", {part}" for part in (*parts, *(("no tiles",) if paced.whole else ())))
