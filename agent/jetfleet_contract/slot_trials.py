"""The trial of a challenger: probed, compared, switched to, kept, and committed or undone.

Its lease is a duration in persisted elapsed time. At its end, and at the end of keeping, nobody is asked: the device commits if and
only if its own gates passed (probe set, comparison or a first run, switch, no crash while it was kept), else the champion stays.
"""

from __future__ import annotations

import msgspec

from .messages import Instant
from .policy import TrialNumbers, judge_trial
from .slot_phases import (
    Step,
    again,
    apply_setup,
    challenger_of,
    checkpoint,
    checkpoint_s,
    elapsed,
    enter,
    limit_s,
    policy_of,
    progress_of,
    replaced,
    run_live,
    since_mark,
    work,
)
from .slot_records import (
    Abandon,
    AppSlots,
    Back,
    CollectGarbage,
    Compared,
    Crashed,
    DropChallenger,
    Effects,
    Faulted,
    Outcome,
    Probed,
    Ran,
    SendReport,
    StopPipeline,
    Switch,
    Tick,
    TookOver,
)

MAX_ATTEMPTS = 3
NOT_THE_MODELS = ("source.", "watchdog.source", "watchdog.sink")
"""Causes of a pipeline's end, or their beginnings, that say nothing about its model."""


# --- gates -------------------------------------------------------------------------------------------------


def probed(state: AppSlots, event: Probed, now: Instant) -> Step:
    """The signed probe set has been answered: the first gate."""
    state = replaced(state, metrics={**state.metrics, "probe_agreement": event.agreement})
    if event.code:
        return lost(state, now, event.code, event.detail, model=True)
    passed, code, sentence = judge_trial(policy_of(state), TrialNumbers(probe_agreement=event.agreement, probe_bound=event.bound))
    sentence = f"probe set: agreement {event.agreement:.3f}" if passed else sentence
    if not passed:
        return lost(state, now, code, sentence, model=True)
    after = enter(replaced(state, alone=state.champion is None, champion_crashes=0), "trial", now)
    return after, (SendReport(progress_of(after, detail=sentence)), *(run_live(after) if after.alone else ()), *work(after))


def compared(state: AppSlots, event: Compared, now: Instant) -> Step:
    """Challenger and champion saw the same live frames: the second gate."""
    before = state
    numbers = msgspec.structs.replace(event.numbers, probe_agreement=state.metrics.get("probe_agreement", 1.0))
    state = replaced(state, metrics={
        **state.metrics, "agreement": numbers.live_agreement, "frames_compared": float(numbers.live_frames),
        "champion_p99_ms": numbers.champion_p99_ms, "challenger_p99_ms": numbers.challenger_p99_ms})
    if event.code:
        return lost(state, now, event.code, event.detail, model=not event.code.startswith("source."))
    policy = policy_of(state)
    passed, code, sentence = judge_trial(policy, numbers)
    if numbers.live_frames < policy.frames and not (passed and numbers.live_frames):
        return before, work(before)  # no frames, or too few to convict: that gate is not passed, so try again until the lease ends
    if not passed:
        return lost(state, now, code, sentence, model=True)
    after = enter(state, "keeping", now)
    return after, (SendReport(progress_of(after, detail=sentence)), Switch(challenger_of(after).bundle, policy.keep_s))


def ran(state: AppSlots, event: Ran, now: Instant) -> Step:
    """A pipeline runs the challenger, started from nothing."""
    challenger = challenger_of(state)
    if event.bundle != challenger.bundle:
        return state, ()
    if state.phase == "keeping":
        return enter(replaced(state, switched=True), "keeping", now), ()
    if not state.alone:
        return state, ()
    after = enter(replaced(state, switched=True), "keeping", now)
    return after, (SendReport(progress_of(after, detail="runs; no champion to compare with")),)


def took_over(state: AppSlots, event: TookOver, now: Instant) -> Step:
    """The switch between two frames is done: from now on the model is kept."""
    if state.switched:
        return state, ()
    metrics = {**state.metrics, "gap_ms": event.gap_ms, "frames_lost": float(event.frames_lost),
               "steady_gap_p99_ms": event.steady_gap_p99_ms}
    after = enter(replaced(state, metrics=metrics, switched=True), "keeping", now)
    old = state.champion.setup if state.champion else challenger_of(state).setup
    return after, apply_setup(old, challenger_of(after))


def crashed(state: AppSlots, event: Crashed, now: Instant) -> Step:
    """The pipeline ended. Outside a trial it is just started again; in one it counts, unless a camera or a sink was to blame."""
    if state.phase not in ("trial", "keeping") or event.code.startswith(NOT_THE_MODELS):
        return state, (*run_live(state), *(work(state) if state.phase == "trial" else ()))
    champion = state.champion
    if state.phase == "trial" and champion and not state.alone and event.bundle == champion.bundle:
        return _champion_crashed(state, now)
    after = again(state, now)
    if after.attempt >= MAX_ATTEMPTS:
        detail = f"the pipeline crashed {after.attempt} times: {event.code} {event.detail}".rstrip(": ")
        after, effects = lost(state, now, "trial.crash", detail, model=True)
        return after, (*effects, *run_live(after))
    return after, (*run_live(after), *work(after))


def _champion_crashed(state: AppSlots, now: Instant) -> Step:
    """A champion that cannot stay up must not keep its successor out: then the challenger goes without comparison."""
    after = replaced(state, champion_crashes=state.champion_crashes + 1)
    if after.champion_crashes >= MAX_ATTEMPTS:
        after = enter(replaced(after, alone=True), "trial", now)
    return after, (*run_live(after), *work(after))


def tick(state: AppSlots, _event: Tick, now: Instant) -> Step:
    """Time has passed: a checkpoint, or the end of the lease or of keeping, which nobody but the device decides."""
    limit = limit_s(state)
    if limit is None:
        return state, ()
    if elapsed(state, now) < limit:
        return (checkpoint(state, now) if since_mark(state, now) >= checkpoint_s(limit) else state), ()
    if state.phase == "trial":
        return lost(state, now, "trial.lease", f"no comparison within {limit:.0f} s", model=False)
    if not state.switched:
        return lost(state, now, "trial.switch", f"the challenger did not take over within {limit:.0f} s", model=False)
    return _commit(state, now)


# --- ends --------------------------------------------------------------------------------------------------


def _commit(state: AppSlots, now: Instant) -> Step:
    """The atomic switch: the one place where a champion is replaced."""
    done = progress_of(state, outcome="committed", detail="kept without a crash")
    after = enter(replaced(state, champion=state.challenger, previous=state.champion or state.previous, challenger=None, last=done),
                   "idle", now)
    return after, (SendReport(done), CollectGarbage())


def faulted(state: AppSlots, event: Faulted, now: Instant) -> Step:
    """Work on the challenger cannot go on."""
    return lost(state, now, event.code, event.detail, model=event.model)


def lost(state: AppSlots, now: Instant, code: str, detail: str, *, model: bool) -> Step:
    """The challenger is out. Blame decides the word: refused before the switch, rolled back after it, else failed."""
    if state.phase == "keeping":
        return give_up(state, now, "rolled_back", code, detail)
    return give_up(state, now, "refused" if model else "failed", code, detail)


def give_up(state: AppSlots, now: Instant, outcome: Outcome, code: str, detail: str) -> Step:
    """Idle with the champion as it was, and whatever was under way undone. Nothing under way: nothing changes."""
    if state.phase == "idle":
        return state, ()
    challenger = challenger_of(state)
    done = progress_of(state, outcome=outcome, code=code, detail=detail)
    after = enter(replaced(state, challenger=None, last=done, fetch_step="", alone=False), "idle", now)
    return after, (Abandon(challenger.bundle), *_undo(state), SendReport(done), CollectGarbage())


def _undo(state: AppSlots) -> Effects:
    champion = state.champion
    if state.phase not in ("trial", "keeping"):
        return ()
    if champion is None:
        return (StopPipeline(),)
    if state.phase == "keeping" or state.alone:
        return (Back(champion),)
    return (DropChallenger(challenger_of(state).bundle),)
