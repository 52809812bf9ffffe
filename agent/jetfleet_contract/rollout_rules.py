"""The questions that the rollout machine asks of its state. They decide nothing; `rollout` does."""

from __future__ import annotations

from collections.abc import Iterable

from .gates import LOOK_SHARES, Ruling, judge_install
from .messages import Instant
from .rollout_plan import DAY_S
from .rollout_records import BAD, Outcome, Progress, Rollout, Status, Verdict


def planned_bytes(state: Rollout, wave: int) -> int:
    """What the boards of a wave are planned to receive."""
    return state.plan.board_bytes * len(state.wave_devices(wave))


def over_budget(state: Rollout, wave: int) -> str:
    """Why this wave can never be paid for; empty when it can."""
    budget, needed = state.plan.budget, planned_bytes(state, wave)
    if state.waived:
        return ""
    if budget.max_bytes and state.spent.total + needed > budget.max_bytes:
        return f"{state.spent.total} bytes received and {needed} planned for wave {wave + 1} are over the budget of {budget.max_bytes}"
    if budget.max_bytes_per_day and needed > budget.max_bytes_per_day:
        return f"{needed} bytes planned for wave {wave + 1} are over the budget of {budget.max_bytes_per_day} a day"
    return ""


def not_yet(state: Rollout, wave: int, now: Instant) -> tuple[str, str]:
    """Code and reason why this wave has to wait; empty when it may open."""
    if not state.plan.open_at(now.wall):
        return "rollout.window", f"wave {wave + 1} opens when its window does"
    budget = state.plan.budget.max_bytes_per_day
    today = state.spent.today if state.spent.day == int(now.wall // DAY_S) else 0
    if budget and not state.waived and today + planned_bytes(state, wave) > budget:
        return "rollout.day-budget", f"wave {wave + 1} opens tomorrow (UTC): today's budget of {budget} bytes is used up"
    return "", ""


def next_status(old: Status, event: Outcome) -> Status | None:
    """What an answer makes of a board; None when it is a repeat, or came out of season."""
    if event.back:
        if old not in ("reverting", "stuck"):
            return None
        return "reverted" if event.outcome == "committed" else "stuck"
    if old in ("issued", "silent"):
        return event.outcome
    if old == "committed" and event.outcome != "committed":
        return event.outcome  # committed first, rolled back by its own watchdog later
    return None


def back_status(state: Rollout, device: str, progress: Progress) -> Status:
    """What a touched board is when everything turns back."""
    if progress.status in BAD:
        return progress.status  # it kept, or went back to, its old model by itself
    if device not in state.plan.before:
        return "reverted"  # the app is taken off the board: there is no old version whose commit could be awaited
    return "reverting"


def lost_wave(state: Rollout) -> int | None:
    """The first wave that cannot pass any more, even if all its boards that are still out did commit; None when there is none."""
    gates = state.plan.gates
    for wave in range(state.accepted + 1, state.wave + 1):
        bad, size = state.count(BAD, wave), len(state.wave_devices(wave))
        if 0 <= gates.max_bad < bad or (bad and judge_install(gates, size - bad, size)[0] == "breached"):
            return wave
    return None


def install_verdict(state: Rollout, wave: int, passed: bool, *, undecided: bool = False) -> Verdict:
    """What the install gate said of a wave, with who answered what."""
    members = state.wave_devices(wave)
    told = ", ".join(f"{n} {s}" for s in ("committed", *sorted(BAD), "silent") if (n := state.count({s}, wave))) or "no answer"
    codes = sorted({p.code for d in members if (p := state.devices[d]).status in BAD and p.code})
    _, numbers = judge_install(state.plan.gates, state.count({"committed"}, wave), len(members))
    why = f"wave {wave + 1} of {len(members)}: {told}" + (f" ({', '.join(codes)})" if codes else "")
    if wave <= state.accepted:
        why += "; accepted by an operator"
    elif undecided:
        why += f"; a share of {state.plan.gates.min_success:.2f} is neither shown nor excluded"
    return Verdict(wave, "install", passed, why, numbers, undecided)


def due_look(state: Rollout, waited: float) -> int | None:
    """The number of the look that is due `waited` seconds after the hold (below 0: within it), None between two of them."""
    due = sum(waited >= share * state.plan.gates.evidence_s for share in LOOK_SHARES) - 1
    return due if due >= state.looks and waited >= 0.0 else None


def verdicts_of(state: Rollout, rulings: Iterable[Ruling], *, undecided_pass: bool = False) -> tuple[Verdict, ...]:
    """Rulings on the wave under way, to be kept; with `undecided_pass`, the plan lets through what they leave open."""
    return tuple(Verdict(state.wave, r.gate, r.result == "passed" or (undecided_pass and r.result == "undecided"), r.why, r.numbers,
                         r.result == "undecided") for r in rulings)


def in_order(state: Rollout, wanted: Iterable[str]) -> list[str]:
    """These boards in the order of the waves."""
    chosen = set(wanted)
    return [device for wave in state.plan.waves for device in wave if device in chosen]
