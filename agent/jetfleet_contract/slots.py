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
    Watched   -         -               -          -         -                ok, or a breach: -> idle
    Faulted   -         -> idle         -> idle    -> idle   -> idle          -> idle
    Crashed   run it    run champion    the same   the same  count, again     count, again
    Rechosen  run so    late            late       late      late             late
    Tick      ok        ok              ok         ok        lease: -> idle   kept long enough: committed

Rules that hold everywhere:
1. `Persist` comes first, exactly once, whenever the state changed, and never when it did not.
2. Every effect may run twice: it says what should be, not what to add.
3. The champion is replaced in one place (`_commit`), and told to run otherwise in one (`_rechosen`); every failure leads to idle with the
   champion as it was, its config included. A board with a champion always has one slot that can run.
4. A model is convicted by its own doing (bundle, probe set, memory, comparison, what is watched after the switch, crashes), never by a
   camera, a full disk or time.
5. `MAX_ATTEMPTS` crashes or restarts in one phase give the challenger up with no word from any host; so do `MAX_STORES`
   stores for one deployment.
6. Time limits are elapsed seconds that were persisted, so that a wrong clock or a reboot neither shortens nor renews them. At their
   end, with no word from any host, the device commits if and only if its own gates passed.
7. A model's release never falls unless the signed deployment says that an operator approved it (`AppSpec.downgrade`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import OrderError
from .messages import AppState, Instant
from .slot_phases import (
    Step,
    again,
    apply_setup,
    candidate_name,
    challenger_of,
    champion_of,
    checkpoint,
    enter,
    live_slot,
    next_tick,
    progress_of,
    replaced,
    run_live,
    work,
)
from .slot_records import (
    Abandon,
    AppSlots,
    Choose,
    Chosen,
    CollectGarbage,
    Compared,
    Crashed,
    Deploy,
    Effects,
    Event,
    Faulted,
    Fetch,
    Fetched,
    FetchStep,
    Persist,
    Phase,
    Probe,
    Probed,
    Progress,
    Ran,
    Rechosen,
    Resume,
    SendReport,
    Slot,
    StartPipeline,
    StopPipeline,
    Target,
    Tick,
    TookOver,
    Undeploy,
    Watched,
)
from .slot_trials import MAX_ATTEMPTS, compared, crashed, faulted, give_up, lost, probed, ran, tick, took_over, watched

__all__ = ["MAX_ATTEMPTS", "MAX_STORES", "app_state", "blobs_in_use", "legal", "live_slot", "next_tick", "step"]

MAX_STORES = 64


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
        after, effects = give_up(state, now, "failed", "slots.stores",
                                  f"{state.stores} stores for one deployment: a loop, given up")
        if isinstance(event, (Resume, Crashed)):
            effects = (*effects, *run_live(after))
    stored = replaced(after, stores=state.stores + 1 if after.seq == state.seq else 1)
    return stored, (Persist(stored), *effects)


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
    if isinstance(event, (Fetched, Chosen, Probed, Compared, TookOver, Watched, Faulted)):
        return state.challenger is None or event.bundle != state.challenger.bundle
    return False


# --- events that may come in every phase -------------------------------------------------------------------


def _deploy(state: AppSlots, event: Deploy, now: Instant) -> Step:
    target = event.target
    if target.seq < state.seq:
        raise OrderError("slots.seq", f"deployment {target.seq} is older than {state.seq}", where=state.app)
    if target.seq == state.seq:
        return state, ()
    stays = state.champion is not None and state.champion.bundle == target.spec.bundle
    known = state.challenger if state.challenger and state.challenger.bundle == target.spec.bundle else None
    target = replaced(target, release=target.release or (known.release if known else 0))
    older = not stays and is_downgrade(state.champion, target)
    if known is not None and not older:
        return _carry_on(state, target)
    state, effects = give_up(state, now, "failed", "slots.superseded", f"deployment {target.seq} took its place")
    if stays:
        after, more = _reconfigure(state, target)
    elif older:
        after, more = _refuse_downgrade(state, target)
    else:
        after, more = _begin(state, target, now)
    return after, effects + more


def is_downgrade(champion: Slot | None, target: Target) -> bool:
    """Whether `target` is an older release of the model that runs, and nobody approved that. Unknown releases are never older."""
    if champion is None or target.spec.downgrade or champion.name != target.spec.name:
        return False
    return 0 < target.release < champion.release


def _refuse_downgrade(state: AppSlots, target: Target) -> Step:
    champion, spec = champion_of(state), target.spec
    refused = Progress(target.seq, "idle", spec.bundle, spec.version, champion.version, "refused", "slots.downgrade",
                       _older(target, champion), rollout=target.rollout)
    return replaced(state, seq=target.seq, target=target, last=refused), (SendReport(refused),)


def _older(target: Target, champion: Slot) -> str:
    return (f"{target.spec.version} is release {target.release} of {champion.name}, older than release {champion.release}, which runs, "
            "and the deployment does not approve a downgrade")


def _carry_on(state: AppSlots, target: Target) -> Step:
    """The same bundle under a new number: go on, with the new setup and policy."""
    known = challenger_of(state)
    challenger = replaced(known, setup=target.setup, release=target.release)
    after = replaced(state, seq=target.seq, target=target, challenger=challenger, stores=0)
    live = state.switched or (state.phase == "trial" and state.alone)
    effects: Effects = apply_setup(known.setup, challenger) if live else ()
    return after, (*effects, SendReport(progress_of(after)))


def _reconfigure(state: AppSlots, target: Target) -> Step:
    """The champion is what is wanted: only its setup may change, so no trial."""
    old = champion_of(state)
    new = replaced(old, setup=target.setup, name=target.spec.name, version=target.spec.version, release=target.release or old.release)
    done = Progress(target.seq, "idle", new.bundle, new.version, old.version, "committed", "", "this model already runs",
                    candidate_name(new), {}, target.rollout)
    after = replaced(state, seq=target.seq, target=target, champion=new, last=done)
    return after, (*apply_setup(old.setup, new), SendReport(done))


def _begin(state: AppSlots, target: Target, now: Instant) -> Step:
    spec = target.spec
    challenger = Slot(spec.bundle, spec.name, spec.version, target.setup, blobs=(spec.bundle,), release=target.release)
    after = enter(replaced(state, seq=target.seq, target=target, challenger=challenger, fetch_step="manifest", metrics={}), "fetching", now)
    return after, (SendReport(progress_of(after)), Fetch(spec.bundle, "manifest", (spec.bundle,)))


def _undeploy(state: AppSlots, event: Undeploy, now: Instant) -> Step:
    if event.seq < state.seq:
        raise OrderError("slots.seq", f"deployment {event.seq} is older than {state.seq}", where=state.app)
    if event.seq == state.seq:
        return state, ()
    state, effects = give_up(state, now, "failed", "slots.superseded", f"deployment {event.seq} has no such app")
    gone = replaced(state, seq=event.seq, target=None, champion=None, previous=None)
    told = tuple(effect for effect in effects if isinstance(effect, (Abandon, SendReport)))
    return gone, (*told, StopPipeline(), CollectGarbage())


def _resume(state: AppSlots, _event: Resume, now: Instant) -> Step:
    state = checkpoint(state, now)
    if state.phase == "idle":
        repeat: Effects = (SendReport(state.last),) if state.last else ()
        return state, (*run_live(state), *repeat, CollectGarbage())
    if state.phase == "fetching":
        return state, (*run_live(state), *work(state))
    after = again(state, now)
    if after.attempt >= MAX_ATTEMPTS:
        detail = f"the board restarted {after.attempt} times while {state.phase}"
        after, effects = lost(state, now, "slots.loop", detail, model=False)
        return after, (*effects, *run_live(after))
    return after, (*run_live(after), *work(after))


def _note(state: AppSlots, _event: Event, _now: Instant) -> Step:
    return state, ()


# --- the way of an update ----------------------------------------------------------------------------------


def _fetched(state: AppSlots, event: Fetched, now: Instant) -> Step:
    if event.step != state.fetch_step:
        return state, ()
    state = _with_release(state, event.release)
    if state.target is not None and is_downgrade(state.champion, state.target):
        return lost(state, now, "slots.downgrade", _older(state.target, champion_of(state)), model=True)
    challenger = challenger_of(state)
    metrics = {**state.metrics, "bytes": state.metrics.get("bytes", 0.0) + event.received,
               "bytes_received": state.metrics.get("bytes_received", 0.0) + event.carried}
    if event.by_delta:
        metrics |= {"bytes_delta": float(event.by_delta), "bytes_saved": float(event.saved)}
    if event.step == "weights":
        after = enter(replaced(state, metrics=metrics, fetch_step=""), "choosing", now)
        return after, (SendReport(progress_of(after)), Choose(challenger.bundle))
    following: FetchStep = "parts" if event.step == "manifest" else "weights"
    blobs = (*challenger.blobs, *(blob for blob in event.then if blob not in challenger.blobs))
    after = replaced(state, metrics=metrics, fetch_step=following, challenger=replaced(challenger, blobs=blobs))
    return after, (Fetch(challenger.bundle, following, blobs),)


def _with_release(state: AppSlots, release: int) -> AppSlots:
    """The signed target came after the deployment: only now is it known how old the bundle is."""
    if not release or state.target is None or state.target.release == release:
        return state
    told: AppSlots = replaced(state, target=replaced(state.target, release=release),
                              challenger=replaced(challenger_of(state), release=release))
    return told


def _chosen(state: AppSlots, event: Chosen, now: Instant) -> Step:
    if event.candidate is None:
        return lost(state, now, "choice.none", event.reason or "no variant of this bundle runs on this board", model=True)
    challenger = replaced(challenger_of(state), candidate=event.candidate, weights=event.weights)
    after = enter(replaced(state, challenger=challenger), "probing", now)
    return after, (SendReport(progress_of(after, detail=event.reason)), Probe(challenger))


def _rechosen(state: AppSlots, event: Rechosen, _now: Instant) -> Step:
    """The same model runs otherwise from now on: no trial, because its outputs were accepted with the bundle and probed again. While an
    update is under way it is late: the update's own choice counts."""
    champion = state.champion
    if state.phase != "idle" or champion is None or champion.bundle != event.bundle or champion.candidate == event.candidate:
        return state, ()
    if event.weights not in champion.blobs:  # not kept on this board: it could not be started
        return state, ()
    new = replaced(champion, candidate=event.candidate, weights=event.weights)
    done = Progress(state.seq, "idle", new.bundle, new.version, new.version, "committed", "", event.reason, candidate_name(new), {},
                    state.target.rollout if state.target else "")
    return replaced(state, champion=new, last=done), (StartPipeline(new), SendReport(done))


_Handler = Callable[[AppSlots, Any, Instant], Step]
_ANYWHERE: dict[type, _Handler] = {
    Resume: _resume, Deploy: _deploy, Undeploy: _undeploy, Crashed: crashed, Ran: _note, TookOver: _note, Tick: tick,
    Rechosen: _rechosen,
}
_TABLE: dict[Phase, dict[type, _Handler]] = {
    "idle": _ANYWHERE,
    "fetching": {**_ANYWHERE, Fetched: _fetched, Faulted: faulted},
    "choosing": {**_ANYWHERE, Chosen: _chosen, Faulted: faulted},
    "probing": {**_ANYWHERE, Probed: probed, Faulted: faulted},
    "trial": {**_ANYWHERE, Compared: compared, Ran: ran, Faulted: faulted},
    "keeping": {**_ANYWHERE, TookOver: took_over, Ran: ran, Watched: watched, Faulted: faulted},
}


def legal(phase: Phase, event: type) -> bool:
    """Whether the table has this transition; tests and documentation read it from here."""
    return event in _TABLE[phase]
