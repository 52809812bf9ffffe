"""The trial of a challenger: probed, compared, switched to, kept and watched, and committed or undone.

On a board that cannot hold two models (`stop-start`), the challenger runs alone at once: what it is compared with is then the probe set,
and what the champion was seen to take before it was stopped.

Its lease is a duration in persisted elapsed time. At its end, and at the end of keeping, nobody is asked: the device commits if and
only if its own gates passed (probe set, comparison or a first run, switch, no crash and no breach while it was kept), else the champion
stays.
"""

from __future__ import annotations

import msgspec

from .messages import Instant
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
    StartPipeline,
    StopPipeline,
    Switch,
    Tick,
    TookOver,
    Watch,
    Watched,
)
from .trials import WATCH_FRAMES, TrialNumbers, WatchNumbers, judge_trial, judge_watch, plan_trial

MAX_ATTEMPTS = 3
NOT_THE_MODELS = ("source.", "watchdog.source", "watchdog.sink")
"""Causes of a pipeline's end, or their beginnings, that say nothing about its model."""


# --- gates -------------------------------------------------------------------------------------------------


def probed(state: AppSlots, event: Probed, now: Instant) -> Step:
    """The signed probe set has been answered: the first gate."""
    plan = plan_trial(policy_of(state), event.room, champion=state.champion is not None)
    if event.unstarted and not state.paused and plan.mode == "stop-start":
        return _pause(state, event)
    state = replaced(state, metrics={**state.metrics, "probe_agreement": event.agreement})
    if event.code:
        return lost(state, now, event.code, event.detail, model=True)
    passed, code, sentence = judge_trial(policy_of(state), TrialNumbers(probe_agreement=event.agreement, probe_bound=event.bound))
    if not passed:
        return lost(state, now, code, sentence, model=True)
    sentence = f"probe set: agreement {event.agreement:.3f}"
    if not plan.mode and not state.paused:
        return lost(state, now, "backend.memory", plan.reason, model=True)
    if plan.mode == "stop-start":
        sentence = f"{sentence}; stop-start: {plan.reason}"
    alone = state.champion is None or state.paused or plan.mode == "stop-start"
    metrics = {**state.metrics, **_memory(event, alone=alone)}
    after = enter(replaced(state, alone=alone, paused=False, champion_crashes=0, metrics=metrics), "trial", now)
    return after, (SendReport(progress_of(after, detail=sentence)), *(run_live(after) if after.alone else ()), *work(after))


def _pause(state: AppSlots, event: Probed) -> Step:
    """Not even the throw-away process fits beside the champion: that stops, so that it can be probed, and starts again if it fails."""
    metrics = {**state.metrics, **_memory(event, alone=True)}
    after = replaced(state, paused=True, metrics=metrics)
    return after, (SendReport(progress_of(after, detail=f"the running model is stopped for the probe: {event.detail}")), StopPipeline(),
                   *work(after))


def _memory(event: Probed, *, alone: bool) -> dict[str, float]:
    """What is remembered of the plan: predicted memory, and how fast the champion was, where it will not run beside the challenger."""
    need = event.room.need
    known = {"memory_predicted_mb": need.alone_mb if alone else need.beside_mb, "memory_free_mb": event.room.free_mb,
             "champion_p99_ms": event.champion_p99_ms if alone else 0.0}
    return {name: value for name, value in known.items() if value}


def compared(state: AppSlots, event: Compared, now: Instant) -> Step:
    """Challenger and champion saw the same live frames: the second gate."""
    before = state
    numbers = msgspec.structs.replace(event.numbers, probe_agreement=state.metrics.get("probe_agreement", 1.0))
    state = replaced(state, metrics={**state.metrics, **_compared_metrics(numbers)})
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


def _compared_metrics(numbers: TrialNumbers) -> dict[str, float]:
    told = {"agreement": numbers.live_agreement, "frames_compared": float(numbers.live_frames),
            "champion_p99_ms": numbers.champion_p99_ms, "challenger_p99_ms": numbers.challenger_p99_ms,
            "mean_iou": numbers.mean_iou, "score_distance": numbers.score_distance}
    skipped = {f"skipped_{reason}": float(count) for reason, count in numbers.skipped.items()}
    cost = {"shadow_share": numbers.spent_share, "memory_mb": numbers.memory_mb}
    return {**told, **skipped, **{name: value for name, value in cost.items() if value}}


def ran(state: AppSlots, event: Ran, now: Instant) -> Step:
    """A pipeline runs the challenger, started from nothing."""
    challenger = challenger_of(state)
    if event.bundle != challenger.bundle:
        return state, ()
    if state.phase == "keeping":
        after = enter(replaced(state, switched=True), "keeping", now)
        return after, _watch(after)
    if not state.alone:
        return state, ()
    metrics = {**state.metrics, "gap_ms": event.gap_ms} if event.gap_ms and state.champion else state.metrics
    after = enter(replaced(state, switched=True, metrics=metrics), "keeping", now)
    said = "runs in place of the champion" if state.champion else "runs; no champion to compare with"
    return after, (SendReport(progress_of(after, detail=said)), *_watch(after))


def _watch(state: AppSlots) -> Effects:
    """A process that was started with the challenger has no old model to compare with, only what is remembered of it."""
    if state.champion is None:
        return ()
    return (Watch(challenger_of(state).bundle, policy_of(state), state.metrics.get("champion_p99_ms", 0.0)),)


def took_over(state: AppSlots, event: TookOver, now: Instant) -> Step:
    """The switch between two frames is done: from now on the model is kept."""
    if state.switched:
        return state, ()
    metrics = {**state.metrics, "gap_ms": event.gap_ms, "frames_lost": float(event.frames_lost),
               "steady_gap_p99_ms": event.steady_gap_p99_ms}
    after = enter(replaced(state, metrics=metrics, switched=True), "keeping", now)
    old = state.champion.setup if state.champion else challenger_of(state).setup
    return after, apply_setup(old, challenger_of(after))


def watched(state: AppSlots, event: Watched, now: Instant) -> Step:
    """How the kept model does: the third gate. Good news is stored once, when half of the time has passed: each store is a write."""
    if not state.switched or state.champion is None:
        return state, ()
    policy, numbers = policy_of(state), event.numbers
    if not numbers.old_p99_ms:
        numbers = replaced(numbers, old_p99_ms=state.metrics.get("champion_p99_ms", 0.0))
    passed, code, sentence = judge_watch(policy, numbers)
    told = replaced(state, metrics={**state.metrics, **_watched_metrics(numbers)})
    if not passed:
        return lost(told, now, code, sentence, model=True)
    if "keep_p99_ms" in state.metrics or numbers.frames < WATCH_FRAMES or elapsed(state, now) < policy.keep_s / 2:
        return state, ()
    return told, ()


def _watched_metrics(numbers: WatchNumbers) -> dict[str, float]:
    known = {"keep_p99_ms": numbers.p99_ms, "keep_old_p99_ms": numbers.old_p99_ms, "keep_rise_c": numbers.rise_c,
             "memory_mb": numbers.memory_mb}
    compared = {"keep_agreement": numbers.agreement, "keep_compared": float(numbers.compared)} if numbers.compared else {}
    return {**compared, **{name: value for name, value in known.items() if value}}


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
    done = progress_of(state, outcome="committed", detail=f"kept without a crash or a breach{_said(state.metrics)}")
    after = enter(replaced(state, champion=state.challenger, previous=state.champion or state.previous, challenger=None, last=done),
                   "idle", now)
    return after, (SendReport(done), CollectGarbage())


def _said(metrics: dict[str, float]) -> str:
    """What the trial saw, for people who read the report."""
    parts = []
    if "agreement" in metrics:
        parts.append(f"agreement {metrics['agreement']:.3f}, IoU {metrics.get('mean_iou', 1.0):.3f}, score distance "
                     f"{metrics.get('score_distance', 0.0):.3f} over {metrics.get('frames_compared', 0.0):.0f} frames")
    if metrics.get("champion_p99_ms") and metrics.get("challenger_p99_ms"):
        parts.append(f"p99 {metrics['challenger_p99_ms']:.1f} ms where the model before took {metrics['champion_p99_ms']:.1f}")
    if "gap_ms" in metrics:
        parts.append(f"gap {metrics['gap_ms']:.0f} ms")
    if metrics.get("memory_predicted_mb") and metrics.get("memory_mb"):
        parts.append(f"memory {metrics['memory_mb']:.0f} MB, predicted {metrics['memory_predicted_mb']:.0f}")
    return f": {'; '.join(parts)}" if parts else ""


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
    after = enter(replaced(state, challenger=None, last=done, fetch_step="", alone=False, paused=False), "idle", now)
    return after, (Abandon(challenger.bundle), *_undo(state), SendReport(done), CollectGarbage())


def _undo(state: AppSlots) -> Effects:
    champion = state.champion
    if state.paused and champion is not None:
        return (StartPipeline(champion),)
    if state.phase not in ("trial", "keeping"):
        return ()
    if champion is None:
        return (StopPipeline(),)
    if state.phase == "keeping" or state.alone:
        return (Back(champion),)
    return (DropChallenger(challenger_of(state).bundle),)
