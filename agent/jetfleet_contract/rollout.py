"""The fleet's machine: one app's new bundle goes to many boards in waves, and stops where it hurts.

    planned -> running -> holding -> running -> holding -> ... -> done
       |          |          |
       |          |          +--passed, but outside a window or the day's budget--> waiting --> running
       +--too early--> waiting
                  |          +--breach--> stopped            (policy "abort")
                  +--breach--+--breach--> paused             (policy "pause")
                             +--breach--> reverting -> reverted   (policy "rollback")
                             +--undecided at the end--> paused, or as the plan says
    pause -> paused -> resume: where it was;  abort from anywhere that is not final

A wave runs until each of its boards has answered or `wave_timeout_s` is over; then the *install gate* judges the answers. The wave is
held, and from the end of the hold on the other gates look at the evidence up to `LOOKS` times, the last time `evidence_s` later. Only
passed gates open the next wave; all verdicts are kept in the state with their numbers. The first wave is the canary.

`step` is pure. A host that died between Persist and the effects that follow it sends `Restored`, which repeats them:
`Issue` and `Revert` are idempotent by (rollout, device). Everything about transitions is in `_TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .errors import OrderError
from .gates import LOOKS, Ruling, judge_evidence, judge_install
from .messages import Instant
from .rollout_plan import Plan, check_plan
from .rollout_records import (
    FINAL,
    Abort,
    Event,
    Evidence,
    Issue,
    Joined,
    Outcome,
    Pause,
    Persist,
    Phase,
    Progress,
    Restored,
    Resume,
    Revert,
    Rollout,
    Spent,
    Start,
    Step,
    Tick,
    Verdict,
    changed,
    with_devices,
    with_verdicts,
)
from .rollout_rules import back_status, due_look, in_order, install_verdict, lost_wave, next_status, not_yet, over_budget, verdicts_of

_SLACK_S = 60.0


def planned(plan: Plan) -> Rollout:
    """The state before the first event.

    Raises:
        OrderError: `rollout.plan` when a board appears twice or a wave is empty.
    """
    check_plan(plan)
    return Rollout(plan, {device: Progress(wave) for wave, members in enumerate(plan.waves) for device in members})


def step(state: Rollout, event: Event, now: Instant) -> Step:
    """One transition.

    Raises:
        OrderError: `rollout.order` when the event does not fit the phase, `rollout.stranger` when it is about a board
            outside the plan; the state is then unchanged.
    """
    handler = _TABLE.get((state.phase, type(event)))
    if handler is None:
        raise OrderError("rollout.order", f"a rollout that is {state.phase} takes no {type(event).__name__.lower()}",
                         where=state.plan.id)
    return handler(state, event, now)


def elapsed_s(since: Instant | None, now: Instant) -> float:
    """Seconds since then: by the monotonic clock within one boot, by the wall clock across boots, never negative."""
    if since is None:
        return 0.0
    if since.boot_id == now.boot_id:
        return max(0.0, now.mono - since.mono)
    return max(0.0, now.wall - since.wall)


# --- opening waves -------------------------------------------------------------------------------------------------


def _proceed(state: Rollout, _event: Event, now: Instant) -> Step:
    """Open the next wave, wait for its time, or end: all gates so far have passed."""
    following = state.wave + 1
    if following >= len(state.plan.waves):
        done = changed(state, phase="done", since=now, code="", reason="", standing=(), looks=0)
        return done, (Persist(done),)
    over = over_budget(state, following)
    if over:
        return _stop_for(changed(state, phase="waiting", standing=(), looks=0), "rollout.budget", over, now)
    code, reason = not_yet(state, following, now)
    if code and (state.phase, state.code, state.reason) == ("waiting", code, reason):
        return state, ()
    if code:
        waiting = changed(state, phase="waiting", since=now, code=code, reason=reason, standing=(), looks=0)
        return waiting, (Persist(waiting),)
    return _open_wave(state, following, now)


def _open_wave(state: Rollout, wave: int, now: Instant) -> Step:
    members = state.wave_devices(wave)
    opened = with_devices(state, {d: Progress(state.devices[d].wave, "issued") for d in members})
    opened = changed(opened, phase="running", wave=wave, since=now, code="", reason="", standing=(), looks=0)
    return opened, (Persist(opened, members), *(Issue(device) for device in members))


# --- answers -------------------------------------------------------------------------------------------------------


def _outcome(state: Rollout, event: Event, now: Instant) -> Step:
    recorded, told = _recorded(state, event)
    if not told:
        return state, ()
    lost = lost_wave(recorded)
    if lost is not None:
        return _breach(recorded, "rollout.install", now, install_verdict(recorded, lost, False), changed_boards=told)
    if recorded.phase == "running" and not recorded.count({"issued"}, recorded.wave):
        return _judge_install(recorded, now, told)
    return recorded, (Persist(recorded, told),)


def _record_only(state: Rollout, event: Event, _now: Instant) -> Step:
    recorded, told = _recorded(state, event)
    return (recorded, (Persist(recorded, told),)) if told else (state, ())


def _recorded(state: Rollout, event: Event) -> tuple[Rollout, tuple[str, ...]]:
    """The state with the board's answer in it; unchanged for duplicates and for answers that came out of season."""
    assert isinstance(event, Outcome)  # noqa: S101 - the table guarantees it
    old = state.devices.get(event.device)
    if old is None:
        raise OrderError("rollout.stranger", f"board {event.device} is not in the plan", where=state.plan.id)
    status = next_status(old.status, event)
    if status is None:
        return state, ()
    late = old.status == "silent" and status == "committed" and not event.code
    code, detail = ("rollout.late", f"committed late. {event.detail}".strip()) if late else (event.code, event.detail)
    return with_devices(state, {event.device: Progress(old.wave, status, code, detail[:500])}), (event.device,)


# --- the install gate ----------------------------------------------------------------------------------------------


def _running_tick(state: Rollout, _event: Event, now: Instant) -> Step:
    if not state.count({"issued"}, state.wave):
        return _judge_install(state, now, ())
    if elapsed_s(state.since, now) < state.plan.gates.wave_timeout_s:
        return state, ()
    late = {d: Progress(state.wave, "silent", "rollout.silent")
            for d in state.wave_devices(state.wave) if state.devices[d].status == "issued"}
    return _judge_install(with_devices(state, late), now, tuple(late))


def _judge_install(state: Rollout, now: Instant, told: tuple[str, ...]) -> Step:
    """Every board of the wave has answered or is overdue: may it be held?"""
    gates = state.plan.gates
    result, _ = judge_install(gates, state.count({"committed"}, state.wave), len(state.wave_devices(state.wave)))
    if state.wave <= state.accepted or result == "passed":
        return _hold(state, now, told, install_verdict(state, state.wave, True, undecided=result == "undecided"))
    if result == "breached":
        return _breach(state, "rollout.install", now, install_verdict(state, state.wave, False), changed_boards=told)
    overdue = elapsed_s(state.since, now) >= gates.wave_timeout_s + gates.evidence_s
    if state.count({"silent"}, state.wave) and not overdue:  # a board that wakes up may still decide it
        standing = (install_verdict(state, state.wave, False, undecided=True),)
        if not told and standing == state.standing:
            return state, ()
        state = changed(state, standing=standing)
        return state, (Persist(state, told),)
    if gates.on_undecided == "pass":
        return _hold(state, now, told, install_verdict(state, state.wave, True, undecided=True))
    return _undecided(state, now, told, (install_verdict(state, state.wave, False, undecided=True),))


def _hold(state: Rollout, now: Instant, told: tuple[str, ...], verdict: Verdict) -> Step:
    held = changed(with_verdicts(state, verdict), phase="holding", since=now, standing=(), looks=0)
    return held, (Persist(held, told),)


# --- the other gates -----------------------------------------------------------------------------------------------


def _holding_tick(state: Rollout, _event: Event, now: Instant) -> Step:
    gates, waited = state.plan.gates, elapsed_s(state.since, now) - state.plan.hold_s(state.wave)
    if waited < 0.0:
        return state, ()
    if not gates.need_evidence or state.wave <= state.accepted:
        verdict = Verdict(state.wave, "latency", True, "accepted by an operator" if state.wave <= state.accepted else "no latency gate")
        return _proceed(with_verdicts(state, verdict), Tick(), now)
    if waited < gates.evidence_s + _SLACK_S:  # the host looks for evidence all the time; it had a minute more
        return state, ()
    verdict = Verdict(state.wave, "latency", False, f"no evidence of the new bundle {waited:.0f} s after the hold")
    return _breach(state, "rollout.no-evidence", now, verdict)


def _evidence(state: Rollout, event: Event, now: Instant) -> Step:
    assert isinstance(event, Evidence)  # noqa: S101 - the table guarantees it
    if state.wave <= state.accepted:
        return _holding_tick(state, Tick(), now)
    gates, waited = state.plan.gates, elapsed_s(state.since, now) - state.plan.hold_s(state.wave)
    boards = [board for board in event.boards if board.device in state.devices and state.devices[board.device].status == "committed"]
    rulings = judge_evidence(gates, boards)
    harm = [ruling for ruling in rulings if ruling.result == "breached" and ruling.gate not in ("latency", "tail", "kpi")]
    if harm:  # what happened once has happened: no test, and so no reason to wait
        return _breach(state, f"rollout.{harm[0].gate}", now, *verdicts_of(state, harm))
    look = due_look(state, waited)
    if look is None:
        return state, ()
    breached = [ruling for ruling in rulings if ruling.result == "breached"]
    if breached:
        code = "rollout.kpi" if all(ruling.gate == "kpi" for ruling in breached) else "rollout.latency"
        return _breach(state, code, now, *verdicts_of(state, breached))
    if all(ruling.result == "passed" for ruling in rulings):
        return _proceed(with_verdicts(state, *verdicts_of(state, rulings)), Tick(), now)
    if look < LOOKS - 1:
        seen = changed(state, looks=look + 1, standing=verdicts_of(state, rulings))
        return seen, (Persist(seen),)
    return _last_look(state, rulings, now)


def _last_look(state: Rollout, rulings: tuple[Ruling, ...], now: Instant) -> Step:
    if any(ruling.missing for ruling in rulings):
        missing = [ruling for ruling in rulings if ruling.missing]
        return _breach(state, "rollout.no-evidence", now, *verdicts_of(state, missing))
    if state.plan.gates.on_undecided == "pass":
        return _proceed(with_verdicts(state, *verdicts_of(state, rulings, undecided_pass=True)), Tick(), now)
    return _undecided(state, now, (), verdicts_of(state, rulings))


# --- breaches ------------------------------------------------------------------------------------------------------


def _undecided(state: Rollout, now: Instant, told: tuple[str, ...], verdicts: tuple[Verdict, ...]) -> Step:
    """The evidence did not suffice, and the plan says that this is no pass."""
    if state.plan.gates.on_undecided == "breach":
        return _breach(state, "rollout.undecided", now, *verdicts, changed_boards=told)
    why = "; ".join(f"{v.gate}: {v.why}" for v in verdicts if v.undecided)
    return _stop_for(with_verdicts(state, *verdicts), "rollout.undecided", why, now, told)


def _breach(state: Rollout, code: str, now: Instant, *verdicts: Verdict, changed_boards: tuple[str, ...] = ()) -> Step:
    why = next(v.why for v in verdicts if not v.passed)
    failed = changed(with_verdicts(state, *verdicts), code=code, reason=why, standing=(), looks=0)
    if state.plan.on_breach == "rollback":
        return _turn_back(failed, now, changed_boards)
    if state.plan.on_breach == "pause":
        return _stop_for(failed, code, why, now, changed_boards)
    stopped = changed(failed, phase="stopped", since=now)
    return stopped, (Persist(stopped, changed_boards),)


def _stop_for(state: Rollout, code: str, why: str, now: Instant, told: tuple[str, ...] = ()) -> Step:
    """Pause by itself; an operator resumes or aborts it."""
    back: Phase = state.resume_to if state.phase == "paused" else state.phase
    paused = changed(state, phase="paused", resume_to=back, since=now, code=code, reason=why)
    return paused, (Persist(paused, told),)


def _turn_back(state: Rollout, now: Instant, told: tuple[str, ...] = ()) -> Step:
    """Every touched board gets its old deployment again; we wait only for those that have to switch."""
    touched = {d: p for d, p in state.devices.items() if p.status != "waiting"}
    marked = {d: Progress(p.wave, back_status(state, d, p), p.code, p.detail) for d, p in touched.items()}
    turned = changed(with_devices(state, marked), phase="reverting", since=now)
    everyone = tuple(dict.fromkeys((*told, *marked)))
    # Even with nobody to wait for, the phase stays until the next tick: a host killed here repeats the effects.
    return turned, (Persist(turned, everyone), *(Revert(device) for device in in_order(turned, marked)))


def _reverting_outcome(state: Rollout, event: Event, now: Instant) -> Step:
    recorded, told = _recorded(state, event)
    if not told:
        return state, ()
    if not recorded.count({"reverting"}):
        recorded = changed(recorded, phase="reverted", since=now)
    return recorded, (Persist(recorded, told),)


def _reverting_tick(state: Rollout, _event: Event, now: Instant) -> Step:
    if state.count({"reverting"}) and elapsed_s(state.since, now) < state.plan.gates.wave_timeout_s:
        return state, ()
    stuck = {d: Progress(p.wave, "stuck", "rollout.silent", p.detail) for d, p in state.devices.items() if p.status == "reverting"}
    ended = changed(with_devices(state, stuck), phase="reverted", since=now)
    return ended, (Persist(ended, tuple(stuck)),)


# --- the operator, the budget, and boards that come later ------------------------------------------------------------


def _pause(state: Rollout, _event: Event, now: Instant) -> Step:
    paused = changed(state, phase="paused", resume_to=state.phase, since=now)
    return paused, (Persist(paused),)


def _resume(state: Rollout, event: Event, now: Instant) -> Step:
    assert isinstance(event, Resume)  # noqa: S101 - the table guarantees it
    resumed = changed(state, phase=state.resume_to, since=now, code="", reason="", standing=(), looks=0)
    if event.accept:
        waived = state.waived or state.code == "rollout.budget"
        resumed = changed(resumed, accepted=resumed.wave, waived=waived, reason=f"accepted by {event.by or 'an operator'}"[:200])
    if resumed.phase == "running" and not resumed.count({"issued"}, resumed.wave):
        return _judge_install(resumed, now, ())
    if event.accept and resumed.phase == "holding":
        verdict = Verdict(resumed.wave, "latency", True, resumed.reason, undecided=True)
        return _proceed(with_verdicts(resumed, verdict), event, now)
    if resumed.phase == "waiting":
        return _proceed(resumed, event, now)
    return resumed, (Persist(resumed),)


def _abort(state: Rollout, event: Event, now: Instant) -> Step:
    assert isinstance(event, Abort)  # noqa: S101 - the table guarantees it
    ended = changed(state, phase="aborted", since=now, code="rollout.aborted", reason="aborted by the operator")
    if event.rollback and state.count({"waiting"}) < len(state.devices):
        return _turn_back(ended, now)
    return ended, (Persist(ended),)


def _spent(state: Rollout, event: Event, now: Instant) -> Step:
    assert isinstance(event, Spent)  # noqa: S101 - the table guarantees it
    if event.spending == state.spent:
        return state, ()
    noted, limit = changed(state, spent=event.spending), state.plan.budget.max_bytes
    if limit and event.spending.total > limit and state.phase != "paused" and not state.waived:
        return _stop_for(noted, "rollout.budget", f"{event.spending.total} bytes received are over the budget of {limit}", now)
    return noted, (Persist(noted),)


def _joined(state: Rollout, event: Event, _now: Instant) -> Step:
    """New boards go into the last wave that has not opened yet, or into a new one."""
    assert isinstance(event, Joined)  # noqa: S101 - the table guarantees it
    fresh = tuple(device for device in event.boards if device not in state.devices)
    if not fresh:
        return state, ()
    waves = state.plan.waves
    grown = (*waves[:-1], (*waves[-1], *fresh)) if len(waves) > state.wave + 1 else (*waves, fresh)
    before = state.plan.before | {device: event.boards[device] for device in fresh if event.boards[device]}
    joined = with_devices(state, {device: Progress(len(grown) - 1) for device in fresh})
    joined = changed(joined, plan=msgspec.structs.replace(state.plan, waves=grown, before=before))
    return joined, (Persist(joined, fresh),)


# --- after a restart -----------------------------------------------------------------------------------------------


def _restored(state: Rollout, _event: Event, _now: Instant) -> Step:
    """Repeat what may have been lost. Boards that already answered need no deployment again."""
    issued = [d for d, p in state.devices.items() if p.status == "issued"]
    return state, tuple(Issue(device) for device in in_order(state, issued))


def _restored_back(state: Rollout, _event: Event, _now: Instant) -> Step:
    touched = [d for d, p in state.devices.items() if p.status != "waiting"]
    return state, tuple(Revert(device) for device in in_order(state, touched))


def _nothing(state: Rollout, _event: Event, _now: Instant) -> Step:
    return state, ()


Handler = Callable[[Rollout, Event, Instant], Step]

_TABLE: dict[tuple[str, type], Handler] = {
    ("planned", Start): _proceed,
    ("planned", Abort): _abort,
    ("planned", Restored): _nothing,
    ("waiting", Tick): _proceed,
    ("running", Tick): _running_tick,
    ("holding", Tick): _holding_tick,
    ("holding", Evidence): _evidence,
    ("paused", Tick): _nothing,
    ("paused", Resume): _resume,
    **{(phase, Pause): _pause for phase in ("waiting", "running", "holding")},
    **{(phase, kind): handler for phase in ("waiting", "running", "holding", "paused") for kind, handler in (
        (Outcome, _outcome), (Spent, _spent), (Joined, _joined), (Abort, _abort), (Restored, _restored))},
    ("reverting", Outcome): _reverting_outcome,
    ("reverting", Tick): _reverting_tick,
    ("reverting", Restored): _restored_back,
    **{(phase, Outcome): _record_only for phase in FINAL},
    **{(phase, Restored): _nothing for phase in FINAL},
}
