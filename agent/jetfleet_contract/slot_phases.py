"""One phase of an update: its parts, its clock, what runs meanwhile and what it waits for. Shared by `slots` and `slot_trials`."""

from __future__ import annotations

from typing import Any

import msgspec

from .errors import OrderError
from .messages import Instant, TrialPolicy
from .slot_records import (
    AppSlots,
    Choose,
    Configure,
    Effects,
    Fetch,
    Outcome,
    Phase,
    Probe,
    Progress,
    Setup,
    Slot,
    StartPipeline,
    Try,
)

CHECKPOINT_S = 60.0

Step = tuple[AppSlots, Effects]


# --- its parts ---------------------------------------------------------------------------------------------


def replaced(value: Any, **changes: Any) -> Any:
    """A frozen record with some fields changed."""
    return msgspec.structs.replace(value, **changes)


def challenger_of(state: AppSlots) -> Slot:
    """The challenger of a phase that has one. Raises OrderError `slots.order`."""
    if state.challenger is None:
        raise OrderError("slots.order", f"{state.app} has no challenger while {state.phase}", where=state.app)
    return state.challenger


def champion_of(state: AppSlots) -> Slot:
    """The champion, where there must be one. Raises OrderError `slots.order`."""
    if state.champion is None:
        raise OrderError("slots.order", f"{state.app} has no champion while {state.phase}", where=state.app)
    return state.champion


def policy_of(state: AppSlots) -> TrialPolicy:
    """The deployment's policy; a way back to the last champion need not agree with, or be as fast as, what it replaces."""
    policy = state.target.spec.trial if state.target else TrialPolicy()
    if state.previous and state.challenger and state.previous.bundle == state.challenger.bundle:
        back: TrialPolicy = replaced(policy, min_agreement=0.0, min_iou=0.0, max_score_distance=1.0, max_p99_ratio=1e9, max_p99_ms=0.0,
                                     max_rise_c=0.0)
        return back
    return policy


def candidate_name(slot: Slot) -> str:
    """How the slot's model runs, empty before that is chosen."""
    return slot.candidate.name if slot.candidate else ""


def progress_of(state: AppSlots, *, outcome: Outcome = "", code: str = "", detail: str = "") -> Progress:
    """What to report of the challenger now."""
    slot = challenger_of(state)
    return Progress(state.seq, state.phase, slot.bundle, slot.version, state.champion.version if state.champion else "", outcome, code,
                    detail, candidate_name(slot), state.metrics, state.target.rollout if state.target else "")


# --- its clock ---------------------------------------------------------------------------------------------


def enter(state: AppSlots, phase: Phase, now: Instant) -> AppSlots:
    """Into a phase with its clock at zero. Crashes of trial and keeping count together; other phases begin anew."""
    attempt = state.attempt if phase == "keeping" or state.phase == phase else 0
    switched = state.switched if phase == "keeping" else False
    entered: AppSlots = replaced(state, phase=phase, attempt=attempt, switched=switched, spent_s=0.0, mark=now.mono, boot=now.boot_id)
    return entered


def again(state: AppSlots, now: Instant) -> AppSlots:
    """One more attempt at this phase. A trial's lease runs on; keeping begins again, because the watched process did."""
    after: AppSlots = replaced(state, attempt=state.attempt + 1, switched=False)
    return enter(after, "keeping", now) if state.phase == "keeping" else after


def checkpoint(state: AppSlots, now: Instant) -> AppSlots:
    """The time spent so far, made part of the state, so that a reboot does not give it back."""
    if state.phase not in ("trial", "keeping"):
        return state
    moved: AppSlots = replaced(state, spent_s=elapsed(state, now), mark=now.mono, boot=now.boot_id)
    return moved


def since_mark(state: AppSlots, now: Instant) -> float:
    """Seconds since the last checkpoint; another boot's clock says nothing about it."""
    return max(now.mono - state.mark, 0.0) if now.boot_id == state.boot else 0.0


def elapsed(state: AppSlots, now: Instant) -> float:
    """Seconds spent in this phase, over reboots."""
    return state.spent_s + since_mark(state, now)


def limit_s(state: AppSlots) -> float | None:
    """How long this phase may last; None when time has no say in it."""
    if state.phase == "trial":
        return policy_of(state).lease_s
    if state.phase == "keeping":
        return policy_of(state).keep_s if state.switched else policy_of(state).lease_s
    return None


def checkpoint_s(limit: float) -> float:
    """Seconds between two checkpoints of a phase that may last `limit`: few, because each is a write."""
    return max(CHECKPOINT_S, limit / 10)


def next_tick(state: AppSlots, now: Instant) -> float | None:
    """Seconds until `Tick` is wanted, or None when time changes nothing in this phase."""
    limit = limit_s(state)
    if limit is None:
        return None
    left = limit - elapsed(state, now)
    return max(min(left, checkpoint_s(limit) - since_mark(state, now)), 0.0)


# --- what runs, and what is waited for ---------------------------------------------------------------------


def live_slot(state: AppSlots) -> Slot | None:
    """The slot that a pipeline started now should run: the challenger once it took over or has no champion beside it. None when nothing
    is installed, or when the champion has made room for the probe."""
    if state.paused:
        return None
    if state.phase == "keeping" or (state.phase == "trial" and state.alone):
        return state.challenger
    return state.champion


def run_live(state: AppSlots) -> Effects:
    """What keeps the app answering."""
    slot = live_slot(state)
    return (StartPipeline(slot),) if slot else ()


def work(state: AppSlots) -> Effects:
    """What this phase is waiting for, asked for (again)."""
    challenger = challenger_of(state)
    if state.phase == "fetching":
        return (Fetch(challenger.bundle, state.fetch_step, challenger.blobs),)
    if state.phase == "choosing":
        return (Choose(challenger.bundle),)
    if state.phase == "probing":
        return (Probe(challenger),)
    if state.phase == "trial" and not state.alone:
        return (Try(challenger, policy_of(state)),)
    return ()


def apply_setup(old: Setup, slot: Slot) -> Effects:
    """From the setup that runs to that of `slot`, whose model runs."""
    if old == slot.setup:
        return ()
    if (old.input_from, old.runner) != (slot.setup.input_from, slot.setup.runner):
        return (StartPipeline(slot),)  # where frames come from is fixed for a pipeline's life
    return (Configure(slot.setup),)
