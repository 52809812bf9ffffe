"""The gates of a wave: what a wave has shown, and what that proves. Pure: evidence in, rulings with their numbers out.

Each gate has three answers. *passed* and *breached* are said only when the evidence excludes the opposite at the plan's confidence;
*undecided* asks for more evidence, and is never taken for a pass. What a board did not tell stays unknown.

Install: the share of committed boards against `min_success`, by Clopper and Pearson's bound, so that one flaky board of five neither
blocks nor passes a rollout. Latency: the ratio of a quantile, new over old on the same board. From `MIN_BOARDS` boards on, each board is
one observation (frames of a board are not independent): Student's t on the logarithms. With fewer it can speak of these boards only:
each quantile's error by order statistics on the buckets, with the counts weighed down by their scatter between windows. A gate that
looks `LOOKS` times at growing evidence errs more often than one that looks once, so each look gets an equal part of the error (Bonferroni).
Business figures: the mean over frames, by itself or against the old one on the same boards; boards or windows are the observations, and
the same looks and confidence hold (see `kpis`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from . import significance
from .kpis import KpiBound, Tally, bounds
from .messages import Message
from .sketch import RELATIVE_ERROR, Sketch

GateName = Literal["install", "latency", "tail", "agreement", "probe", "crashes", "heat", "throttling", "kpi"]
Result = Literal["passed", "breached", "undecided"]

LOOK_SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
"""When the gates look, in parts of `evidence_s` after the hold: each time at about twice the evidence."""
LOOKS = len(LOOK_SHARES)
MIN_BOARDS = 5


class Gates(Message, frozen=True):
    """When a wave counts as good.

    `max_bad` boards of one wave may refuse, roll back or fail (below 0: any number), and a share of at least `min_success` (0..1) of it
    must commit; a share that is below, but could be chance at `confidence`, is undecided. `max_p95_ratio` and `max_p99_ratio` bound the
    new quantile of the stage `total` over the old (0: no such gate); they speak once both sides have `min_samples` frames. No samples of
    the new bundle `evidence_s` after the hold, where the old one had some, is a breach. `min_agreement` and `min_probe_agreement` (0..1,
    0: none) bound what boards reported of live frames and probe set. `max_crashes` bounds the pipeline's crashes on any board (below 0:
    none), `max_temperature_c` its heat (0: none), `max_throttled` the share (0..1, 1: none) of windows in which it was throttled.
    `on_undecided` is what follows when `evidence_s` did not suffice. `kpis` bounds business figures by name.
    """

    max_bad: int = 0
    min_success: float = 1.0
    max_p95_ratio: float = 2.0
    min_samples: int = 30
    hold_s: float = 30.0
    evidence_s: float = 120.0
    wave_timeout_s: float = 3600.0
    confidence: float = 0.95
    max_p99_ratio: float = 0.0
    min_agreement: float = 0.0
    min_probe_agreement: float = 0.0
    max_crashes: int = -1
    max_temperature_c: float = 0.0
    max_throttled: float = 1.0
    on_undecided: Literal["pause", "pass", "breach"] = "pause"
    kpis: dict[str, KpiBound] = {}

    @property
    def need_evidence(self) -> bool:
        """Whether any gate asks for more than the boards' answers."""
        return bool(self.max_p95_ratio or self.max_p99_ratio or self.min_agreement or self.min_probe_agreement or self.max_crashes >= 0
                    or self.max_temperature_c or self.max_throttled < 1.0 or self.kpis)


class BoardEvidence(Message, frozen=True):
    """What one board has shown since it got the new bundle; None: it did not tell.

    `old` and `new` are its frames' latency (stage `total`, ms) under the old and the new bundle; `old_spread` and `new_spread` are their
    `significance.dispersion`. `noisy` counts windows left out, because the board was throttled or its processor was taken by others.
    `crashes` since the issue; `temperature_c` the highest; `throttled` a share of windows; agreements 0..1 as reported. `kpis`: each
    figure that the plan bounds, under the old and the new bundle.
    """

    device: str
    old: Sketch = Sketch()
    new: Sketch = Sketch()
    old_spread: float = 1.0
    new_spread: float = 1.0
    noisy: int = 0
    crashes: float | None = None
    temperature_c: float | None = None
    throttled: float | None = None
    agreement: float | None = None
    probe_agreement: float | None = None
    first: bool = False  # it had no such app before: there is nothing to compare with
    kpis: dict[str, tuple[Tally, Tally]] = {}


class Ruling(msgspec.Struct, frozen=True):
    """What one gate says, with the numbers behind it. `missing`: the new bundle gave no evidence at all."""

    gate: GateName
    result: Result
    why: str
    numbers: dict[str, float] = {}
    missing: bool = False


def judge_install(gates: Gates, committed: int, size: int) -> tuple[Result, dict[str, float]]:
    """Whether `committed` boards of `size` are enough, and the bounds that say so."""
    low, high = significance.share_bounds(committed, size, gates.confidence)
    numbers = {"committed": float(committed), "boards": float(size), "low": low, "high": high}
    if committed >= gates.min_success * size - 1e-9:  # 55 % of 100 is a little more than 55 in binary
        return "passed", numbers
    return ("breached" if high < gates.min_success else "undecided"), numbers


def judge_evidence(gates: Gates, boards: Sequence[BoardEvidence]) -> tuple[Ruling, ...]:
    """One ruling of each gate that the plan has set, on what the committed boards of a wave have shown so far."""
    rulings = [_latency(gates, "latency", 0.95, gates.max_p95_ratio, boards), _latency(gates, "tail", 0.99, gates.max_p99_ratio, boards)]
    compared = [board for board in boards if not board.first]
    if gates.min_agreement:
        rulings.append(_least("agreement", gates.min_agreement, compared, lambda b: b.agreement))
    if gates.min_probe_agreement:
        rulings.append(_least("probe", gates.min_probe_agreement, boards, lambda b: b.probe_agreement))
    if gates.max_crashes >= 0:
        rulings.append(_most("crashes", float(gates.max_crashes), boards, lambda b: b.crashes, "crashes on one board"))
    if gates.max_temperature_c:
        rulings.append(_most("heat", gates.max_temperature_c, boards, lambda b: b.temperature_c, "C at the hottest board"))
    if gates.max_throttled < 1.0:
        rulings.append(_most("throttling", gates.max_throttled, boards, lambda b: b.throttled, "of a board's windows throttled"))
    for name, bound in gates.kpis.items():
        rulings += _figures(gates, name, bound, boards)
    return tuple(ruling for ruling in rulings if ruling is not None)


# --- bounds of what boards told ------------------------------------------------------------------------------------


def _least(gate: GateName, bound: float, boards: Sequence[BoardEvidence], figure: Callable[[BoardEvidence], float | None]) -> Ruling:
    told = {board.device: value for board in boards if (value := figure(board)) is not None}
    unknown = len(boards) - len(told)
    numbers = {"bound": bound, "boards": float(len(told)), "unknown": float(unknown)}
    if not boards:
        return Ruling(gate, "passed", "no old bundle to agree with", numbers)
    if not told:
        return Ruling(gate, "undecided", f"none of {_count(len(boards))} told its agreement", numbers)
    worst = min(told, key=lambda device: told[device])
    numbers["least"] = told[worst]
    why = f"least {told[worst]:.3f} on {worst}, limit {bound:.3f}{_rest(unknown)}"
    return Ruling(gate, _result(told[worst] < bound, unknown), why, numbers)


def _most(gate: GateName, bound: float, boards: Sequence[BoardEvidence], figure: Callable[[BoardEvidence], float | None],
          what: str) -> Ruling:
    told = {board.device: value for board in boards if (value := figure(board)) is not None}
    unknown = len(boards) - len(told)
    numbers = {"bound": bound, "boards": float(len(told)), "unknown": float(unknown)}
    if not told:
        return Ruling(gate, "undecided", f"none of {_count(len(boards))} told", numbers)
    worst = max(told, key=lambda device: told[device])
    numbers["most"] = told[worst]
    why = f"{told[worst]:.4g} {what} ({worst}), limit {bound:.4g}{_rest(unknown)}"
    return Ruling(gate, _result(told[worst] > bound, unknown), why, numbers)


def _count(boards: int) -> str:
    return f"{boards} board{'' if boards == 1 else 's'}"


def _rest(unknown: int) -> str:
    return f", unknown on {unknown}" if unknown else ""


def _result(bad: bool, unknown: int) -> Result:
    if bad:
        return "breached"
    return "undecided" if unknown else "passed"


# --- latency -------------------------------------------------------------------------------------------------------


def _latency(gates: Gates, gate: GateName, q: float, limit: float, boards: Sequence[BoardEvidence]) -> Ruling | None:
    name = f"p{q * 100:.0f}"
    if not limit:
        return Ruling(gate, "passed", "no latency gate") if gate == "latency" else None
    compared = [board for board in boards if board.old.count >= gates.min_samples]
    noisy = sum(board.noisy for board in boards if not board.first)  # noise hides nothing where there is nothing to compare with
    if not compared:
        why = f"{noisy} windows were too noisy to compare" if noisy else "no old bundle to compare with"
        return Ruling(gate, "undecided" if noisy else "passed", why, {"noisy_windows": float(noisy)} if noisy else {})
    paired = [board for board in compared if board.new.count >= gates.min_samples]
    mute = len(compared) - len(paired)
    numbers = {"limit": limit, "boards": float(len(paired)), "mute": float(mute), "frames": float(sum(b.new.count for b in paired)),
               "noisy_windows": float(noisy)}
    if not paired:
        return Ruling(gate, "undecided", f"no latency of the new bundle on {_count(len(compared))}", numbers, missing=not noisy)
    middle, low, high = ratio_bounds(paired, q, (1.0 - gates.confidence) / LOOKS)
    numbers |= {"ratio": middle, "low": low} | ({"high": high} if math.isfinite(high) else {})
    why = (f"{name} is {middle:.2f}x the old one on {_count(len(paired))}, surely {low:.2f} to "
           f"{f'{high:.2f}' if math.isfinite(high) else 'unknown'}, limit {limit:.2f}x" + (f", no frames yet from {mute}" if mute else ""))
    if low > limit:
        return Ruling(gate, "breached", why, numbers)
    return Ruling(gate, "passed" if high <= limit and not mute else "undecided", why, numbers)


def ratio_bounds(boards: Sequence[BoardEvidence], q: float, alpha: float) -> tuple[float, float, float]:
    """New over old quantile `q`: the geometric mean of the boards' ratios, and its bounds, each wrong with a chance of about `alpha`."""
    ratios = [math.log(_positive(board.new.quantile(q)) / _positive(board.old.quantile(q))) for board in boards]
    middle = math.fsum(ratios) / len(ratios)
    if len(boards) >= MIN_BOARDS:
        low, high = significance.mean_bounds(ratios, alpha)
    else:
        sides = [side for board in boards for side in ((board.old, board.old_spread), (board.new, board.new_spread))]
        errors = [significance.log_quantile_error(sketch, q, spread) for sketch, spread in sides]
        reach = significance.normal_quantile(1.0 - alpha) * math.hypot(*errors) / len(boards)
        low, high = middle - reach, middle + reach
    step = (1.0 + RELATIVE_ERROR) ** 2  # equal quantiles on the two sides of a bucket's edge
    return math.exp(middle), math.exp(low) / step, (math.exp(high) if math.isfinite(high) else math.inf) * step


def _positive(value: float) -> float:
    return max(value, 1e-3)


# --- business figures ----------------------------------------------------------------------------------------------


class _Limit(msgspec.Struct, frozen=True):
    """``new - factor * old`` may not be below `value`, or above it where it is a ceiling. `is_ratio`: it needs an old figure."""

    factor: float
    value: float
    is_ceiling: bool
    is_ratio: bool


def _figures(gates: Gates, name: str, bound: KpiBound, boards: Sequence[BoardEvidence]) -> list[Ruling]:
    """One ruling for each limit that the plan sets of this figure."""
    alone = [_Limit(0.0, value, is_ceiling, is_ratio=False) for value, is_ceiling in ((bound.least, False), (bound.most, True))
             if value is not None]
    ratios = [_Limit(factor, 0.0, is_ceiling, is_ratio=True) for factor, is_ceiling in ((bound.min_ratio, False), (bound.max_ratio, True))
              if factor is not None]
    return [_figure(gates, name, limit, boards) for limit in (*alone, *ratios)]


def _figure(gates: Gates, name: str, limit: _Limit, boards: Sequence[BoardEvidence]) -> Ruling:
    """Whether this figure surely keeps, or surely breaks, one limit."""
    asked = [board for board in boards if not (limit.is_ratio and board.first)]
    if not asked:
        return Ruling("kpi", "passed", f"{name}: no old bundle to compare with")
    pairs = [board.kpis.get(name, (Tally(), Tally())) for board in asked]
    told = [(old, new) for old, new in pairs
            if new.count >= gates.min_samples and (not limit.is_ratio or old.count >= gates.min_samples)]
    mute = len(asked) - len(told)
    numbers = {"boards": float(len(told)), "mute": float(mute), "limit": limit.factor if limit.is_ratio else limit.value}
    if not told:
        had = any(old.count >= gates.min_samples and not new.count for old, new in pairs)
        return Ruling("kpi", "undecided", f"{name}: no figures on {_count(len(asked))}", numbers, missing=had)
    old, new = (math.fsum(pair[side].mean for pair in told) / len(told) for side in (0, 1))
    if limit.is_ratio and old < 0.0:
        return Ruling("kpi", "undecided", f"{name}: its old mean {old:.4g} is negative, a ratio says nothing of it", numbers)
    _, low, high = bounds(told, limit.factor, (1.0 - gates.confidence) / LOOKS)
    base, side = limit.factor * old, "at most" if limit.is_ceiling else "at least"
    numbers |= {"new": new, "old": old} | ({"low": low + base, "high": high + base} if math.isfinite(high) else {})
    sure = f", surely {low + base:.4g} to {high + base:.4g}" if math.isfinite(high) else ", too few windows to be sure"
    asks = f"{side} {base:.4g}, {limit.factor:.4g} of the old {old:.4g}" if limit.is_ratio else f"{side} {limit.value:.4g}"
    why = f"{name}: mean {new:.4g} on {_count(len(told))}{sure}, limit {asks}" + (f", no figures yet from {mute}" if mute else "")
    slack = 1e-9 * max(abs(new), abs(base), abs(limit.value))  # equal figures are equal, whatever binary makes of them
    if low > limit.value + slack if limit.is_ceiling else high < limit.value - slack:
        return Ruling("kpi", "breached", why, numbers)
    keeps = high <= limit.value + slack if limit.is_ceiling else low >= limit.value - slack
    return Ruling("kpi", "passed" if keeps and not mute else "undecided", why, numbers)
