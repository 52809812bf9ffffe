"""Gives way to heat before the SoC takes it: apps give up work by rungs, and get it back, without oscillating.

An app's ladder begins with what costs no frame: its runtime's frugal setting, where this board has measured one; then another
candidate of the same bundle that takes clearly less CPU time here, whose accuracy the signed evaluation accepts. Then come the shares of
its frame rate, and last, for an app with tiles, one run over the whole frame instead of one a tile. Each rung is less work than the one
before it. A smaller batch is no rung: the same frames in more runs are more work, not less.

Pure: `step(state, heat, loads, now)`. The board's temperature is extrapolated along its own slope; when what is foreseen comes nearer to
the lowest throttling point than an app's margin, the app that matters least gives up a rung. It gets it back when the board is foreseen
`HYSTERESIS_C` cooler than that, and not before `wait_s` has passed; a rung that had to be given up again soon after it was got back
doubles that wait. So of three turns in a row the outer two are never nearer than `UP_WAIT_S`, whatever the weather does.

Fair rule: the app with the least `importance` gives way first; among equals the one whose work (busy ms a second) is greatest; then by
name. Back in the opposite order: the most important first, then the one that gave up most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from .app_config import Governor

SHARES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Of an app's own frame rate, by rung; `Governor.least_fps` ends the ladder early."""
AHEAD_S = 8.0
SLOPE_S = 4.0
"""Time constant of the slope's smoothing: sensors tell whole or half degrees."""
HYSTERESIS_C = 4.0
DOWN_WAIT_S = 3.0
"""Between two rungs down: what the last one brought must be seen first, unless less than half of the margin is left."""
URGENT_WAIT_S = 1.0
UP_WAIT_S = 30.0
MAX_UP_WAIT_S = 480.0
ASSUMED_FPS = 30.0
"""Of a source that was never measured ungoverned."""
RATE_SMOOTHING = 0.3

Reason = Literal["", "governor.heat", "governor.throttled", "governor.power"]


class Heat(msgspec.Struct, frozen=True):
    """What the board tells. `temperature_c` and `limit_c` (the lowest throttling point) are those of the zone with the least headroom;
    None where it tells neither. `throttled`: the kernel already slows something down for heat; `over_current`: the supply's alarm fired
    since the last reading."""

    temperature_c: float | None = None
    limit_c: float | None = None
    zone: str = ""
    throttled: bool = False
    over_current: bool = False


class Means(msgspec.Struct, frozen=True):
    """What an app can give up besides frames. `eco`: its runtime has a setting that takes clearly less CPU time here; `lean`:
    another candidate of its bundle does; `tiled`: its frames are cut into tiles, each a run of the model."""

    eco: bool = False
    tiled: bool = False
    lean: bool = False

    @property
    def frugal(self) -> tuple[Literal["eco", "lean"], ...]:
        """What costs no frame, in the order in which it is given up."""
        having: tuple[tuple[Literal["eco", "lean"], bool], ...] = (("eco", self.eco), ("lean", self.lean))
        return tuple(name for name, has in having if has)


FRAMES_ONLY = Means()


class Load(msgspec.Struct, frozen=True):
    """A governed app: its rule, the measured frames a second by source, the busy ms a second that they cost, and what else it can give
    up."""

    app: str
    rule: Governor
    rates: Mapping[str, float] = {}
    busy_ms: float = 0.0
    means: Means = FRAMES_ONLY


class Rung(msgspec.Struct, frozen=True):
    """Where an app stands on its ladder. `rates` and `means`: its frames a second by source, and what else it had to give, while it was
    free: a ladder keeps its shape while somebody stands on it. Times are monotonic seconds."""

    rung: int = 0
    reason: Reason = ""
    rates: Mapping[str, float] = {}
    lifted: float = -1e9
    wait_s: float = UP_WAIT_S
    means: Means = FRAMES_ONLY


class GovernorState(msgspec.Struct, frozen=True):
    """Not persisted: heat outlives no restart that matters. `changed` is when any rung changed last."""

    apps: Mapping[str, Rung] = {}
    temperature_c: float | None = None
    slope: float = 0.0
    at: float = 0.0
    changed: float = -1e9


class Paced(msgspec.Struct, frozen=True):
    """An app's new caps, in frames a second by source (``""``: any other); empty: none. `rung` of `of`; `hot`: nothing that can wait may
    run; `eco`: the runtime's frugal setting; `lean`: the cheaper candidate; `whole`: no
    tiles."""

    app: str
    fps: Mapping[str, float]
    rung: int
    of: int
    hot: bool
    reason: Reason
    eco: bool = False
    whole: bool = False
    lean: bool = False


def foreseen_c(state: GovernorState) -> float | None:
    """The temperature `AHEAD_S` from now if nothing changes; a falling slope is not trusted."""
    return None if state.temperature_c is None else state.temperature_c + AHEAD_S * max(state.slope, 0.0)


def lowest(rule: Governor, rates: Mapping[str, float], means: Means = FRAMES_ONLY) -> int:
    """The last rung of an app's ladder."""
    return len(means.frugal) + _lowest_rate(rule, rates) + int(means.tiled and rule.whole)


def standing(rule: Governor, at: Rung) -> Paced:
    """What an app does on the rung where it stands (the app's name is left empty)."""
    given = at.means.frugal[:at.rung]
    rate = max(at.rung - len(at.means.frugal), 0)
    slowest = _lowest_rate(rule, at.rates)
    return Paced("", caps(rule, at.rates, min(rate, slowest)), at.rung, lowest(rule, at.rates, at.means), at.rung > 0, at.reason,
                 "eco" in given, at.means.tiled and rule.whole and rate > slowest, "lean" in given)


def _lowest_rate(rule: Governor, rates: Mapping[str, float]) -> int:
    """The first share at which the fastest source is at `least_fps`."""
    fastest = max(rates.values(), default=ASSUMED_FPS)
    return next((rung for rung, share in enumerate(SHARES) if fastest * share <= rule.least_fps), len(SHARES) - 1)


def caps(rule: Governor, rates: Mapping[str, float], rung: int) -> dict[str, float]:
    """Frames a second by source at a place in `SHARES`; empty at the first."""
    if rung <= 0:
        return {}
    share = SHARES[min(rung, len(SHARES) - 1)]
    return {source: max(rate * share, rule.least_fps) for source, rate in {**rates, "": max(rates.values(), default=ASSUMED_FPS)}.items()}


def step(state: GovernorState, heat: Heat, loads: tuple[Load, ...], now: float) -> tuple[GovernorState, tuple[Paced, ...]]:
    """One reading. At most one app changes, by one rung.

    Args:
        loads: the governed apps; one that is not among them any more is forgotten, and freed by whoever took it out.
        now: monotonic seconds.
    """
    state = _noted(state, heat, loads, now)
    down = _giving_way(state, heat, loads, now)
    if down is not None:
        return _changed(state, down, now, _reason(heat), by=1)
    up = _getting_back(state, heat, loads, now)
    if up is not None:
        return _changed(state, up, now, _reason(heat), by=-1)
    return state, ()


def _noted(state: GovernorState, heat: Heat, loads: tuple[Load, ...], now: float) -> GovernorState:
    apps = {load.app: _with_rates(state.apps.get(load.app, Rung()), load) for load in loads}
    slope = 0.0
    passed = now - state.at
    if heat.temperature_c is not None and state.temperature_c is not None and passed > 0:
        share = min(passed / (SLOPE_S + passed), 1.0)
        slope = state.slope + share * ((heat.temperature_c - state.temperature_c) / passed - state.slope)
    return msgspec.structs.replace(state, apps=apps, temperature_c=heat.temperature_c, slope=slope, at=now)


def _with_rates(rung: Rung, load: Load) -> Rung:
    """A free app's rates and means are learnt; a governed one's rates are what the caps made of them."""
    if rung.rung:
        return rung
    if rung.means != load.means:
        rung = msgspec.structs.replace(rung, means=load.means)
    rates = {source: rung.rates.get(source, rate) + RATE_SMOOTHING * (rate - rung.rates.get(source, rate))
             for source, rate in load.rates.items() if rate > 0}
    return msgspec.structs.replace(rung, rates=rates) if rates else rung


def _headroom(state: GovernorState, heat: Heat) -> float | None:
    foreseen = foreseen_c(state)
    return None if foreseen is None or heat.limit_c is None else heat.limit_c - foreseen


def _reason(heat: Heat) -> Reason:
    if heat.over_current:
        return "governor.power"
    return "governor.throttled" if heat.throttled else "governor.heat"


def _giving_way(state: GovernorState, heat: Heat, loads: tuple[Load, ...], now: float) -> Load | None:
    headroom = _headroom(state, heat)
    forced = heat.throttled or heat.over_current

    def presses(load: Load) -> bool:
        return forced or (headroom is not None and headroom < load.rule.margin_c)

    def left(load: Load) -> bool:
        rung = state.apps[load.app]
        return rung.rung < lowest(load.rule, rung.rates, rung.means)

    pressed = [load for load in loads if presses(load) and left(load)]
    if not pressed:
        return None
    urgent = headroom is not None and headroom < min(load.rule.margin_c for load in pressed) / 2
    if now - state.changed < (URGENT_WAIT_S if urgent else DOWN_WAIT_S):
        return None
    return min(pressed, key=lambda load: (load.rule.importance, -load.busy_ms, load.app))


def _getting_back(state: GovernorState, heat: Heat, loads: tuple[Load, ...], now: float) -> Load | None:
    if heat.throttled or heat.over_current:
        return None
    foreseen = _headroom(state, heat)
    headroom = math.inf if foreseen is None else foreseen  # a board that tells no temperature: only time can tell
    cool = [load for load in loads
            if state.apps[load.app].rung and headroom > load.rule.margin_c + HYSTERESIS_C
            and now - state.changed >= state.apps[load.app].wait_s]
    return min(cool, key=lambda load: (-load.rule.importance, -state.apps[load.app].rung, load.app), default=None)


def _changed(state: GovernorState, load: Load, now: float, reason: Reason, by: int) -> tuple[GovernorState, tuple[Paced, ...]]:
    old = state.apps[load.app]
    rung = old.rung + by
    lifted, wait_s = old.lifted, old.wait_s
    if by < 0:
        if now - old.lifted > 4 * MAX_UP_WAIT_S:
            wait_s = UP_WAIT_S
        lifted = now
    elif now - old.lifted < 2 * old.wait_s:  # what was got back could not be kept
        wait_s = min(2 * old.wait_s, MAX_UP_WAIT_S)
    new = msgspec.structs.replace(old, rung=rung, reason=reason if rung else "", lifted=lifted, wait_s=wait_s)
    after = msgspec.structs.replace(state, apps={**state.apps, load.app: new}, changed=now)
    return after, (msgspec.structs.replace(standing(load.rule, new), app=load.app),)
