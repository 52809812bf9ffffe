"""The device's A/B machine: how one app of one board comes from the model it runs to the model it should run.

Two slots an app. The *champion* is committed and runs; the *challenger* is fetched, chosen, probed and tried beside it.
The atomic switch is one persisted record in which the challenger has become the champion. Nothing here does I/O:
``step(state, event, now) -> (state, effects)``; the caller runs the effects in their order.

Transitions (`-` = OrderError and the state unchanged; news of another bundle than the one under way is late, not illegal: it
changes nothing in any phase):

    event     idle      fetching        choosing   probing   trial            keeping
    Resume    run it    fetch again     again      again     again            run the challenger, watch again
    Deploy    the same bundle: configure it; another: give up what is under way and -> fetching
    Undeploy  -> idle, nothing runs
    Fetched   -         next step,      -          -         -                -
                        -> choosing
    Chosen    -         -               -> probing -         -                -
    Probed    -         -               -          -> trial  -                -
    Compared  -         -               -          -         -> keeping       -
    Ran       ok        ok              ok         ok        alone: keeping   the switch is done
    TookOver  ok        ok              ok         ok        ok               the switch is done
    Faulted   -         -> idle         -> idle    -> idle   -> idle          -> idle
    Crashed   run it    run champion    the same   the same  count, again     count, again
    Tick      ok        ok              ok         ok        lease: -> idle   kept long enough: committed

Rules that hold everywhere:
1. `Persist` comes first, exactly once, whenever the state changed, and never when it did not.
2. Every effect may run twice: it says what should be, not what to add.
3. The champion is replaced in one place (`_commit`); every failure leads to idle with the champion as it was, its config
   included. A board with a champion always has one slot that can run.
4. A model is convicted by its own doing (bundle, probe set, comparison, crashes), never by a camera, a full disk or time.
5. `MAX_ATTEMPTS` crashes or restarts in one phase give the challenger up with no word from any host; so do `MAX_STORES`
   stores for one deployment.
6. Time limits are elapsed seconds that were persisted, so that a wrong clock or a reboot neither shortens nor renews them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .errors import OrderError
from .messages import AppState, Instant, TrialPolicy
from .policy import TrialNumbers, judge_trial
from .slot_records import (
    Abandon,
    AppSlots,
    Back,
    Choose,
    Chosen,
    CollectGarbage,
    Compared,
    Configure,
    Crashed,
    Deploy,
    DropChallenger,
    Effects,
    Event,
    Faulted,
    Fetch,
    Fetched,
    FetchStep,
    Outcome,
    Persist,
    Phase,
    Probe,
    Probed,
    Progress,
    Ran,
    Resume,
    SendReport,
    Setup,
    Slot,
    StartPipeline,
    StopPipeline,
    Switch,
    Target,
    Tick,
    TookOver,
    Try,
    Undeploy,
)

MAX_ATTEMPTS = 3
MAX_STORES = 64
CHECKPOINT_S = 60.0

Step = tuple[AppSlots, Effects]


# --- the machine -------------------------------------------------------------------------------------------


def step(state: AppSlots, event: Event, now: Instant) -> Step:
    """One transition.

    Returns:
        The new state and the effects in their order: `Persist` first when the state changed, no `Persist` when not.

    Raises:
        OrderError: `slots.order` when the table has no such transition, `slots.seq` for a lower deployment number.
    """
    if _is_late(state, event):
        return state, ()
    handler = _TABLE[state.phase].get(type(event))
    if handler is None:
        raise OrderError("slots.order", f"{type(event).__name__} cannot come while {state.app} is {state.phase}", where=state.app)
    after, effects = handler(state, event, now)
    if after == state:
        return state, effects
    if state.stores >= MAX_STORES and after.seq == state.seq and after.phase != "idle":
        after, effects = _give_up(state, now, "failed", "slots.stores",
                                  f"{state.stores} stores for one deployment: a loop, given up")
    stored = _with(after, stores=state.stores + 1 if after.seq == state.seq else 1)
    return stored, (Persist(stored), *effects)


def next_tick(state: AppSlots, now: Instant) -> float | None:
    """Seconds until `Tick` is wanted, or None when time changes nothing in this phase."""
    limit = _limit_s(state)
    if limit is None:
        return None
    left = limit - _elapsed(state, now)
    return max(min(left, _checkpoint_s(limit) - _since_mark(state, now)), 0.0)


def live_slot(state: AppSlots) -> Slot | None:
    """The slot that a pipeline started now should run: the challenger once it took over or has no champion beside it."""
    if state.phase == "keeping" or (state.phase == "trial" and state.alone):
        return state.challenger
    return state.champion


def blobs_in_use(state: AppSlots) -> frozenset[str]:
    """What the store must keep for this app: both slots, the one being filled, and the last one before this."""
    slots = (state.champion, state.challenger, state.previous)
    return frozenset(blob for slot in slots if slot for blob in (slot.bundle, slot.weights, *slot.blobs) if blob)


def app_state(state: AppSlots) -> AppState:
    """The line of this app in the board's inventory."""
    slot = live_slot(state)
    phase = state.phase if state.phase != "idle" or state.last is None else state.last.outcome
    reason = state.last.code if state.last and state.phase == "idle" else ""
    if slot is None:
        return AppState(state.app, phase=phase, reason=reason)
    return AppState(state.app, slot.bundle, slot.name, slot.version, slot.candidate.name if slot.candidate else "", phase, reason)


def _is_late(state: AppSlots, event: Event) -> bool:
    """News of a bundle that is not the one under way: work that was given up may still report."""
    if isinstance(event, (Fetched, Chosen, Probed, Compared, TookOver, Faulted)):
        return state.challenger is None or event.bundle != state.challenger.bundle
    return False


# --- events that may come in every phase -------------------------------------------------------------------


def _deploy(state: AppSlots, event: Deploy, now: Instant) -> Step:
    target = event.target
    if target.seq < state.seq:
        raise OrderError("slots.seq", f"deployment {target.seq} is older than {state.seq}", where=state.app)
    if target.seq == state.seq:
        return state, ()
    if state.challenger is not None and state.challenger.bundle == target.spec.bundle:
        return _carry_on(state, target)
    state, effects = _give_up(state, now, "failed", "slots.superseded", f"deployment {target.seq} took its place")
    if state.champion is not None and state.champion.bundle == target.spec.bundle:
        after, more = _reconfigure(state, target)
    else:
        after, more = _begin(state, target, now)
    return after, effects + more


def _carry_on(state: AppSlots, target: Target) -> Step:
    """The same bundle under a new number: go on, with the new setup and policy."""
    challenger = _with(_challenger(state), setup=target.setup)
    after = _with(state, seq=target.seq, target=target, challenger=challenger, stores=0)
    live = state.alone or state.switched
    effects: Effects = _apply(_challenger(state).setup, challenger) if live else ()
    return after, (*effects, SendReport(_progress(after)))


def _reconfigure(state: AppSlots, target: Target) -> Step:
    """The champion is what is wanted: only its setup may change, so no trial."""
    old = _champion(state)
    new = _with(old, setup=target.setup, name=target.spec.name, version=target.spec.version)
    done = Progress(target.seq, "idle", new.bundle, new.version, old.version, "committed", "", "this model already runs",
                    _candidate_name(new), {}, target.rollout)
    after = _with(state, seq=target.seq, target=target, champion=new, last=done)
    return after, (*_apply(old.setup, new), SendReport(done))


def _apply(old: Setup, slot: Slot) -> Effects:
    if old == slot.setup:
        return ()
    if old.input_from != slot.setup.input_from:
        return (StartPipeline(slot),)  # where frames come from is fixed for a pipeline's life
    return (Configure(slot.setup),)


def _begin(state: AppSlots, target: Target, now: Instant) -> Step:
    spec = target.spec
    challenger = Slot(spec.bundle, spec.name, spec.version, target.setup, blobs=(spec.bundle,))
    after = _enter(_with(state, seq=target.seq, target=target, challenger=challenger, fetch_step="manifest", metrics={}), "fetching", now)
    return after, (SendReport(_progress(after)), Fetch(spec.bundle, "manifest", (spec.bundle,)))


def _undeploy(state: AppSlots, event: Undeploy, now: Instant) -> Step:
    if event.seq < state.seq:
        raise OrderError("slots.seq", f"deployment {event.seq} is older than {state.seq}", where=state.app)
    if event.seq == state.seq:
        return state, ()
    state, effects = _give_up(state, now, "failed", "slots.superseded", f"deployment {event.seq} has no such app")
    gone = _with(state, seq=event.seq, target=None, champion=None, previous=None)
    told = tuple(effect for effect in effects if isinstance(effect, (Abandon, SendReport)))
    return gone, (*told, StopPipeline(), CollectGarbage())


def _resume(state: AppSlots, _event: Resume, now: Instant) -> Step:
    state = _checkpoint(state, now)
    if state.phase == "idle":
        repeat: Effects = (SendReport(state.last),) if state.last else ()
        return state, (*_run_live(state), *repeat, CollectGarbage())
    if state.phase == "fetching":
        return state, (*_run_live(state), *_work(state))
    after = _again(state, now)
    if after.attempt >= MAX_ATTEMPTS:
        detail = f"the board restarted {after.attempt} times while {state.phase}"
        after, effects = _lost(state, now, "slots.loop", detail, model=False)
        return after, (*effects, *_run_live(after))
    return after, (*_run_live(after), *_work(after))


def _again(state: AppSlots, now: Instant) -> AppSlots:
    """One more attempt at this phase. A trial's lease runs on; keeping begins again, because the watched process did."""
    after: AppSlots = _with(state, attempt=state.attempt + 1, switched=False)
    return _enter(after, "keeping", now) if state.phase == "keeping" else after


def _run_live(state: AppSlots) -> Effects:
    slot = live_slot(state)
    return (StartPipeline(slot),) if slot else ()


def _work(state: AppSlots) -> Effects:
    """What this phase is waiting for, asked for (again)."""
    challenger = _challenger(state)
    if state.phase == "fetching":
        return (Fetch(challenger.bundle, state.fetch_step, challenger.blobs),)
    if state.phase == "choosing":
        return (Choose(challenger.bundle),)
    if state.phase == "probing":
        return (Probe(challenger),)
    if state.phase == "trial" and not state.alone:
        return (Try(challenger, _policy(state)),)
    return ()


def _crashed(state: AppSlots, event: Crashed, now: Instant) -> Step:
    if state.phase not in ("trial", "keeping") or event.code.startswith("source."):
        return state, (*_run_live(state), *(_work(state) if state.phase == "trial" else ()))
    champion = state.champion
    if state.phase == "trial" and champion and not state.alone and event.bundle == champion.bundle:
        return _champion_crashed(state, now)
    after = _again(state, now)
    if after.attempt >= MAX_ATTEMPTS:
        detail = f"the pipeline crashed {after.attempt} times: {event.code} {event.detail}".rstrip(": ")
        after, effects = _lost(state, now, "trial.crash", detail, model=True)
        return after, (*effects, *_run_live(after))
    return after, (*_run_live(after), *_work(after))


def _champion_crashed(state: AppSlots, now: Instant) -> Step:
    """A champion that cannot stay up must not keep its successor out: then the challenger goes without comparison."""
    after = _with(state, champion_crashes=state.champion_crashes + 1)
    if after.champion_crashes >= MAX_ATTEMPTS:
        after = _enter(_with(after, alone=True), "trial", now)
    return after, (*_run_live(after), *_work(after))


def _tick(state: AppSlots, _event: Tick, now: Instant) -> Step:
    limit = _limit_s(state)
    if limit is None:
        return state, ()
    if _elapsed(state, now) < limit:
        return (_checkpoint(state, now) if _since_mark(state, now) >= _checkpoint_s(limit) else state), ()
    if state.phase == "trial":
        return _lost(state, now, "trial.lease", f"no comparison within {limit:.0f} s", model=False)
    if not state.switched:
        return _lost(state, now, "trial.switch", f"the challenger did not take over within {limit:.0f} s", model=False)
    return _commit(state, now)


def _note(state: AppSlots, _event: Event, _now: Instant) -> Step:
    return state, ()


# --- the way of an update ----------------------------------------------------------------------------------


def _fetched(state: AppSlots, event: Fetched, now: Instant) -> Step:
    if event.step != state.fetch_step:
        return state, ()
    challenger = _challenger(state)
    metrics = {**state.metrics, "bytes": state.metrics.get("bytes", 0.0) + event.received}
    if event.step == "weights":
        after = _enter(_with(state, metrics=metrics, fetch_step=""), "choosing", now)
        return after, (SendReport(_progress(after)), Choose(challenger.bundle))
    following: FetchStep = "parts" if event.step == "manifest" else "weights"
    blobs = (*challenger.blobs, *(blob for blob in event.then if blob not in challenger.blobs))
    after = _with(state, metrics=metrics, fetch_step=following, challenger=_with(challenger, blobs=blobs))
    return after, (Fetch(challenger.bundle, following, blobs),)


def _chosen(state: AppSlots, event: Chosen, now: Instant) -> Step:
    if event.candidate is None:
        return _lost(state, now, "choice.none", event.reason or "no variant of this bundle runs on this board", model=True)
    challenger = _with(_challenger(state), candidate=event.candidate, weights=event.weights)
    after = _enter(_with(state, challenger=challenger), "probing", now)
    return after, (SendReport(_progress(after, detail=event.reason)), Probe(challenger))


def _probed(state: AppSlots, event: Probed, now: Instant) -> Step:
    state = _with(state, metrics={**state.metrics, "probe_agreement": event.agreement})
    if event.code:
        return _lost(state, now, event.code, event.detail, model=True)
    passed, code, sentence = judge_trial(_policy(state), TrialNumbers(probe_agreement=event.agreement, probe_bound=event.bound))
    sentence = f"probe set: agreement {event.agreement:.3f}" if passed else sentence
    if not passed:
        return _lost(state, now, code, sentence, model=True)
    after = _enter(_with(state, alone=state.champion is None, champion_crashes=0), "trial", now)
    return after, (SendReport(_progress(after, detail=sentence)), *(_run_live(after) if after.alone else ()), *_work(after))


def _compared(state: AppSlots, event: Compared, now: Instant) -> Step:
    before = state
    numbers = msgspec.structs.replace(event.numbers, probe_agreement=state.metrics.get("probe_agreement", 1.0))
    state = _with(state, metrics={
        **state.metrics, "agreement": numbers.live_agreement, "frames_compared": float(numbers.live_frames),
        "champion_p99_ms": numbers.champion_p99_ms, "challenger_p99_ms": numbers.challenger_p99_ms})
    if event.code:
        return _lost(state, now, event.code, event.detail, model=not event.code.startswith("source."))
    policy = _policy(state)
    passed, code, sentence = judge_trial(policy, numbers)
    if not passed and 0 < numbers.live_frames < policy.frames:
        return before, _work(before)  # the frames ran out: too few to convict, so try again until the lease ends
    if not passed:
        return _lost(state, now, code, sentence, model=True)
    after = _enter(state, "keeping", now)
    return after, (SendReport(_progress(after, detail=sentence)), Switch(_challenger(after).bundle, policy.keep_s))


def _ran(state: AppSlots, event: Ran, now: Instant) -> Step:
    challenger = _challenger(state)
    if event.bundle != challenger.bundle:
        return state, ()
    if state.phase == "keeping":
        return _enter(_with(state, switched=True), "keeping", now), ()
    if not state.alone:
        return state, ()
    after = _enter(_with(state, switched=True), "keeping", now)
    return after, (SendReport(_progress(after, detail="runs; no champion to compare with")),)


def _took_over(state: AppSlots, event: TookOver, now: Instant) -> Step:
    if state.switched:
        return state, ()
    metrics = {**state.metrics, "gap_ms": event.gap_ms, "frames_lost": float(event.frames_lost),
               "steady_gap_p99_ms": event.steady_gap_p99_ms}
    after = _enter(_with(state, metrics=metrics, switched=True), "keeping", now)
    old = state.champion.setup if state.champion else _challenger(state).setup
    return after, _apply(old, _challenger(after))


def _commit(state: AppSlots, now: Instant) -> Step:
    """The atomic switch: the one place where a champion is replaced."""
    done = _progress(state, outcome="committed", detail="kept without a crash")
    after = _enter(_with(state, champion=state.challenger, previous=state.champion or state.previous, challenger=None, last=done),
                   "idle", now)
    return after, (SendReport(done), CollectGarbage())


def _faulted(state: AppSlots, event: Faulted, now: Instant) -> Step:
    return _lost(state, now, event.code, event.detail, model=event.model)


def _lost(state: AppSlots, now: Instant, code: str, detail: str, *, model: bool) -> Step:
    """The challenger is out. Blame decides the word: refused before the switch, rolled back after it, else failed."""
    if state.phase == "keeping":
        return _give_up(state, now, "rolled_back", code, detail)
    return _give_up(state, now, "refused" if model else "failed", code, detail)


def _give_up(state: AppSlots, now: Instant, outcome: Outcome, code: str, detail: str) -> Step:
    """Idle with the champion as it was, and whatever was under way undone. Nothing under way: nothing changes."""
    if state.phase == "idle":
        return state, ()
    challenger = _challenger(state)
    done = _progress(state, outcome=outcome, code=code, detail=detail)
    after = _enter(_with(state, challenger=None, last=done, fetch_step="", alone=False), "idle", now)
    return after, (Abandon(challenger.bundle), *_undo(state), SendReport(done), CollectGarbage())


def _undo(state: AppSlots) -> Effects:
    champion = state.champion
    if state.phase not in ("trial", "keeping"):
        return ()
    if champion is None:
        return (StopPipeline(),)
    if state.phase == "keeping" or state.alone:
        return (Back(champion),)
    return (DropChallenger(_challenger(state).bundle),)


# --- small parts -------------------------------------------------------------------------------------------


def _with(value: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(value, **changes)


def _enter(state: AppSlots, phase: Phase, now: Instant) -> AppSlots:
    """Into a phase with its clock at zero. Crashes of trial and keeping count together; other phases begin anew."""
    attempt = state.attempt if phase == "keeping" or state.phase == phase else 0
    switched = state.switched if phase == "keeping" else False
    entered: AppSlots = _with(state, phase=phase, attempt=attempt, switched=switched, spent_s=0.0, mark=now.mono, boot=now.boot_id)
    return entered


def _checkpoint(state: AppSlots, now: Instant) -> AppSlots:
    if state.phase not in ("trial", "keeping"):
        return state
    moved: AppSlots = _with(state, spent_s=_elapsed(state, now), mark=now.mono, boot=now.boot_id)
    return moved


def _since_mark(state: AppSlots, now: Instant) -> float:
    return max(now.mono - state.mark, 0.0) if now.boot_id == state.boot else 0.0


def _elapsed(state: AppSlots, now: Instant) -> float:
    return state.spent_s + _since_mark(state, now)


def _limit_s(state: AppSlots) -> float | None:
    if state.phase == "trial":
        return _policy(state).lease_s
    if state.phase == "keeping":
        return _policy(state).keep_s if state.switched else _policy(state).lease_s
    return None


def _checkpoint_s(limit: float) -> float:
    return max(CHECKPOINT_S, limit / 10)


def _challenger(state: AppSlots) -> Slot:
    if state.challenger is None:
        raise OrderError("slots.order", f"{state.app} has no challenger while {state.phase}", where=state.app)
    return state.challenger


def _champion(state: AppSlots) -> Slot:
    if state.champion is None:
        raise OrderError("slots.order", f"{state.app} has no champion while {state.phase}", where=state.app)
    return state.champion


def _policy(state: AppSlots) -> TrialPolicy:
    """The deployment's policy; a way back to the last champion need not agree with, or be as fast as, what it replaces."""
    policy = state.target.spec.trial if state.target else TrialPolicy()
    if state.previous and state.challenger and state.previous.bundle == state.challenger.bundle:
        back: TrialPolicy = _with(policy, min_agreement=0.0, max_p99_ratio=1e9, max_p99_ms=0.0)
        return back
    return policy


def _candidate_name(slot: Slot) -> str:
    return slot.candidate.name if slot.candidate else ""


def _progress(state: AppSlots, *, outcome: Outcome = "", code: str = "", detail: str = "") -> Progress:
    slot = _challenger(state)
    return Progress(state.seq, state.phase, slot.bundle, slot.version, state.champion.version if state.champion else "", outcome, code,
                    detail, _candidate_name(slot), state.metrics, state.target.rollout if state.target else "")


_Handler = Callable[[AppSlots, Any, Instant], Step]
_ANYWHERE: dict[type, _Handler] = {
    Resume: _resume, Deploy: _deploy, Undeploy: _undeploy, Crashed: _crashed, Ran: _note, TookOver: _note, Tick: _tick,
}
_TABLE: dict[Phase, dict[type, _Handler]] = {
    "idle": _ANYWHERE,
    "fetching": {**_ANYWHERE, Fetched: _fetched, Faulted: _faulted},
    "choosing": {**_ANYWHERE, Chosen: _chosen, Faulted: _faulted},
    "probing": {**_ANYWHERE, Probed: _probed, Faulted: _faulted},
    "trial": {**_ANYWHERE, Compared: _compared, Ran: _ran, Faulted: _faulted},
    "keeping": {**_ANYWHERE, TookOver: _took_over, Ran: _ran, Faulted: _faulted},
}


def legal(phase: Phase, event: type) -> bool:
    """Whether the table has this transition; tests and documentation read it from here."""
    return event in _TABLE[phase]
