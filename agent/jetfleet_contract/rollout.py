"""The fleet's machine: one app's new bundle goes to many boards in waves, and stops where it hurts.

    planned -> running -> holding -> running -> holding -> ... -> done
                  |          |
                  +--breach--+--> stopped            (policy "stop")
                  |          +--> reverting -> reverted   (policy "rollback")
                  +--pause--> paused --resume--> where it was;  abort from anywhere that is not final

A wave runs until each of its boards has answered or `wave_timeout_s` is over; then the *install gate* judges the
answers. The wave is held for `hold_s`, then the *latency gate* compares the sketch of the new bundle with the sketch
of the old one. Only two passed gates open the next wave; both verdicts are kept in the state. The first wave is the
canary.

`step` is pure. A host that died between Persist and the effects that follow it sends `Restored`, which repeats them:
`Issue` and `Revert` are idempotent by (rollout, device). Everything about transitions is in `_TABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Union

import msgspec

from .errors import OrderError
from .messages import Instant, Message
from .sketch import Sketch

Phase = Literal["planned", "running", "holding", "paused", "reverting", "done", "stopped", "aborted", "reverted"]
Status = Literal["waiting", "issued", "committed", "refused", "rolled_back", "failed", "silent", "reverting", "reverted", "stuck"]

FINAL: frozenset[str] = frozenset({"done", "stopped", "aborted", "reverted"})
BAD: frozenset[str] = frozenset({"refused", "rolled_back", "failed"})
MAX_WAVES = 1000


class Gates(Message, frozen=True):
    """When a wave counts as good.

    `max_bad` boards of one wave may refuse, roll back or fail, and at least `min_success` (0..1) of it must commit.
    `max_p95_ratio` bounds new over old p95 of the stage `total` (0: no latency gate); it speaks once both sides have
    `min_samples`. No samples of the new bundle `evidence_s` after the hold, where the old one had some, is a breach.
    """

    max_bad: int = 0
    min_success: float = 1.0
    max_p95_ratio: float = 2.0
    min_samples: int = 30
    hold_s: float = 30.0
    evidence_s: float = 120.0
    wave_timeout_s: float = 3600.0


class Plan(Message, frozen=True):
    """What goes where. `before` maps each board to the version it ran of this app, absent when it had none."""

    id: str
    app: str
    bundle: str
    name: str
    version: str
    waves: tuple[tuple[str, ...], ...]
    before: dict[str, str] = {}
    gates: Gates = Gates()
    on_breach: Literal["stop", "rollback"] = "rollback"


class Progress(Message, frozen=True):
    """One board's part of a rollout."""

    wave: int
    status: Status = "waiting"
    code: str = ""
    detail: str = ""


class Verdict(Message, frozen=True):
    """What a gate said of a wave."""

    wave: int
    gate: Literal["install", "latency"]
    passed: bool
    why: str


class Rollout(Message, frozen=True):
    """The whole state. `since` is when the current phase began; `resume_to` is set while paused."""

    plan: Plan
    devices: dict[str, Progress]
    phase: Phase = "planned"
    wave: int = -1
    since: Instant | None = None
    resume_to: Phase = "planned"
    verdicts: tuple[Verdict, ...] = ()
    code: str = ""
    reason: str = ""

    def wave_devices(self, wave: int) -> tuple[str, ...]:
        return self.plan.waves[wave] if 0 <= wave < len(self.plan.waves) else ()

    def count(self, statuses: Iterable[str], wave: int | None = None) -> int:
        """How many boards (of one wave, or of all) have one of these statuses."""
        wanted = set(statuses)
        return sum(p.status in wanted and wave in (None, p.wave) for p in self.devices.values())

    @property
    def final(self) -> bool:
        return self.phase in FINAL


# --- events ------------------------------------------------------------------------------------------------------


class Start(Message, frozen=True):
    """Begin with the canary."""


class Outcome(Message, frozen=True):
    """A board's verified answer to what this rollout issued to it; `back` when it answers the way back."""

    device: str
    outcome: Literal["committed", "refused", "rolled_back", "failed"]
    code: str = ""
    detail: str = ""
    back: bool = False


class Evidence(Message, frozen=True):
    """Latency of stage `total` on this wave's boards: of the old bundle before, of the new one since, in ms."""

    old: Sketch
    new: Sketch


class Tick(Message, frozen=True):
    """Time has passed."""


class Pause(Message, frozen=True):
    """No further waves until `Resume`; boards that already have the new deployment go on."""


class Resume(Message, frozen=True):
    """Go on where `Pause` stopped; the clocks of the phase start anew."""


class Abort(Message, frozen=True):
    """End now; with `rollback` the touched boards get their old version again."""

    rollback: bool = False


class Restored(Message, frozen=True):
    """The host has loaded this state from its journal: repeat the effects that may have been lost."""


Event = Union[Start, Outcome, Evidence, Tick, Pause, Resume, Abort, Restored]


# --- effects -----------------------------------------------------------------------------------------------------


class Persist(Message, frozen=True):
    """Make `state` durable; `changed` names the boards whose `Progress` differs from the last durable one."""

    state: Rollout
    changed: tuple[str, ...] = ()


class Issue(Message, frozen=True):
    """Give this board the new bundle, unless this rollout already did."""

    device: str


class Revert(Message, frozen=True):
    """Give this board what it had before this rollout, unless this rollout already did."""

    device: str


Effect = Union[Persist, Issue, Revert]
Step = tuple[Rollout, tuple[Effect, ...]]


# --- building a plan ---------------------------------------------------------------------------------------------


def waves_of(devices: Sequence[str], *, canary: int, wave_size: int = 0) -> tuple[tuple[str, ...], ...]:
    """Cut boards into waves, in the order given: `canary` boards first, then `wave_size` each (0: all the rest)."""
    first = max(1, canary)
    rest = devices[first:]
    size = max(wave_size if wave_size > 0 else len(rest), -(-len(rest) // (MAX_WAVES - 1)))
    later = [tuple(rest[i : i + size]) for i in range(0, len(rest), size)] if rest else []
    return tuple(wave for wave in (tuple(devices[:first]), *later) if wave)


def planned(plan: Plan) -> Rollout:
    """The state before the first event.

    Raises:
        OrderError: `rollout.plan` when a board appears twice or a wave is empty.
    """
    devices = {device: Progress(wave) for wave, members in enumerate(plan.waves) for device in members}
    if not plan.waves or not all(plan.waves) or len(devices) != sum(len(w) for w in plan.waves):
        raise OrderError("rollout.plan", "a plan needs waves with boards in them, each board once", where=plan.id)
    return Rollout(plan, devices)


# --- the machine -------------------------------------------------------------------------------------------------


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


def _start(state: Rollout, _event: Event, now: Instant) -> Step:
    return _open_wave(state, 0, now)


def _open_wave(state: Rollout, wave: int, now: Instant) -> Step:
    members = state.wave_devices(wave)
    opened = _with_devices(state, {d: msgspec.structs.replace(state.devices[d], status="issued") for d in members})
    opened = msgspec.structs.replace(opened, phase="running", wave=wave, since=now)
    return opened, (Persist(opened, members), *(Issue(device) for device in members))


def _outcome(state: Rollout, event: Event, now: Instant) -> Step:
    recorded, changed = _recorded(state, event)
    if not changed:
        return state, ()
    if _too_many_bad(recorded):
        return _breach(recorded, "rollout.install", _install_sentence(recorded), now, gate="install", changed=changed)
    if recorded.phase == "running" and not recorded.count({"issued"}, recorded.wave):
        return _judge_install(recorded, now, changed)
    return recorded, (Persist(recorded, changed),)


def _record_only(state: Rollout, event: Event, _now: Instant) -> Step:
    recorded, changed = _recorded(state, event)
    return (recorded, (Persist(recorded, changed),)) if changed else (state, ())


def _recorded(state: Rollout, event: Event) -> tuple[Rollout, tuple[str, ...]]:
    """The state with the board's answer in it; unchanged for duplicates and for answers that came out of season."""
    assert isinstance(event, Outcome)  # noqa: S101 - the table guarantees it
    old = state.devices.get(event.device)
    if old is None:
        raise OrderError("rollout.stranger", f"board {event.device} is not in the plan", where=state.plan.id)
    status = _next_status(old.status, event)
    if status is None:
        return state, ()
    progress = Progress(old.wave, status, event.code, event.detail[:500])
    return _with_devices(state, {event.device: progress}), (event.device,)


def _next_status(old: Status, event: Outcome) -> Status | None:
    if event.back:
        if old not in ("reverting", "stuck"):
            return None
        return "reverted" if event.outcome == "committed" else "stuck"
    if old in ("issued", "silent"):
        return event.outcome
    if old == "committed" and event.outcome != "committed":
        return event.outcome  # committed first, rolled back by its own watchdog later
    return None


def _running_tick(state: Rollout, _event: Event, now: Instant) -> Step:
    if elapsed_s(state.since, now) < state.plan.gates.wave_timeout_s:
        return state, ()
    late = {d: msgspec.structs.replace(state.devices[d], status="silent", code="rollout.silent")
            for d in state.wave_devices(state.wave) if state.devices[d].status == "issued"}
    return _judge_install(_with_devices(state, late), now, tuple(late))


def _judge_install(state: Rollout, now: Instant, changed: tuple[str, ...]) -> Step:
    """Every board of the wave has answered or is overdue: may it be held?"""
    size = len(state.wave_devices(state.wave))
    why = _install_sentence(state)
    if state.count({"committed"}, state.wave) < state.plan.gates.min_success * size:
        return _breach(state, "rollout.install", why, now, gate="install", changed=changed)
    held = _with_verdict(state, Verdict(state.wave, "install", True, why))
    held = msgspec.structs.replace(held, phase="holding", since=now)
    return held, (Persist(held, changed),)


def _holding_tick(state: Rollout, _event: Event, now: Instant) -> Step:
    gates = state.plan.gates
    waited = elapsed_s(state.since, now)
    if waited < gates.hold_s:
        return state, ()
    if not gates.max_p95_ratio:
        return _pass_latency(state, "no latency gate", now)
    if waited < gates.hold_s + gates.evidence_s:
        return state, ()
    return _breach(state, "rollout.no-evidence", f"no latency of the new bundle {waited:.0f} s after the wave", now, gate="latency")


def _evidence(state: Rollout, event: Event, now: Instant) -> Step:
    assert isinstance(event, Evidence)  # noqa: S101 - the table guarantees it
    gates = state.plan.gates
    if elapsed_s(state.since, now) < gates.hold_s:
        return state, ()
    if not gates.max_p95_ratio:
        return _pass_latency(state, "no latency gate", now)
    if event.old.count < gates.min_samples:
        return _pass_latency(state, "no old bundle to compare with", now)
    if event.new.count < gates.min_samples:
        return _holding_tick(state, Tick(), now)
    old, new = event.old.quantile(0.95), event.new.quantile(0.95)
    why = f"p95 {new:.2f} ms against {old:.2f} ms before, limit {gates.max_p95_ratio:.2f}x"
    if new > gates.max_p95_ratio * old:
        return _breach(state, "rollout.latency", why, now, gate="latency")
    return _pass_latency(state, why, now)


def _pass_latency(state: Rollout, why: str, now: Instant) -> Step:
    passed = _with_verdict(state, Verdict(state.wave, "latency", True, why))
    if state.wave + 1 < len(state.plan.waves):
        return _open_wave(passed, state.wave + 1, now)
    done = msgspec.structs.replace(passed, phase="done", since=now)
    return done, (Persist(done),)


def _breach(state: Rollout, code: str, why: str, now: Instant, *, gate: Literal["install", "latency"],
            changed: tuple[str, ...] = ()) -> Step:
    failed = _with_verdict(state, Verdict(state.wave, gate, False, why))
    failed = msgspec.structs.replace(failed, code=code, reason=why)
    if state.plan.on_breach == "rollback":
        return _turn_back(failed, now, changed)
    stopped = msgspec.structs.replace(failed, phase="stopped", since=now)
    return stopped, (Persist(stopped, changed),)


def _turn_back(state: Rollout, now: Instant, changed: tuple[str, ...] = ()) -> Step:
    """Every touched board gets its old deployment again; we wait only for those that have to switch."""
    touched = {d: p for d, p in state.devices.items() if p.status != "waiting"}
    marked = {d: msgspec.structs.replace(p, status=_back_status(state, d, p)) for d, p in touched.items()}
    turned = msgspec.structs.replace(_with_devices(state, marked), phase="reverting", since=now)
    everyone = tuple(dict.fromkeys((*changed, *marked)))
    # Even with nobody to wait for, the phase stays until the next tick: a host killed here repeats the effects.
    return turned, (Persist(turned, everyone), *(Revert(device) for device in _in_order(turned, marked)))


def _back_status(state: Rollout, device: str, progress: Progress) -> Status:
    if progress.status in BAD:
        return progress.status  # it kept, or went back to, its old model by itself
    if device not in state.plan.before:
        return "reverted"  # the app is taken off the board: there is no old version whose commit could be awaited
    return "reverting"


def _reverting_outcome(state: Rollout, event: Event, now: Instant) -> Step:
    recorded, changed = _recorded(state, event)
    if not changed:
        return state, ()
    if not recorded.count({"reverting"}):
        recorded = msgspec.structs.replace(recorded, phase="reverted", since=now)
    return recorded, (Persist(recorded, changed),)


def _reverting_tick(state: Rollout, _event: Event, now: Instant) -> Step:
    if state.count({"reverting"}) and elapsed_s(state.since, now) < state.plan.gates.wave_timeout_s:
        return state, ()
    stuck = {d: msgspec.structs.replace(p, status="stuck", code="rollout.silent")
             for d, p in state.devices.items() if p.status == "reverting"}
    ended = msgspec.structs.replace(_with_devices(state, stuck), phase="reverted", since=now)
    return ended, (Persist(ended, tuple(stuck)),)


def _pause(state: Rollout, _event: Event, now: Instant) -> Step:
    paused = msgspec.structs.replace(state, phase="paused", resume_to=state.phase, since=now)
    return paused, (Persist(paused),)


def _resume(state: Rollout, _event: Event, now: Instant) -> Step:
    resumed = msgspec.structs.replace(state, phase=state.resume_to, since=now)
    if resumed.phase == "running" and not resumed.count({"issued"}, resumed.wave):
        return _judge_install(resumed, now, ())
    return resumed, (Persist(resumed),)


def _abort(state: Rollout, event: Event, now: Instant) -> Step:
    assert isinstance(event, Abort)  # noqa: S101 - the table guarantees it
    ended = msgspec.structs.replace(state, phase="aborted", since=now, code="rollout.aborted", reason="aborted by the operator")
    if event.rollback and state.count({"waiting"}) < len(state.devices):
        return _turn_back(ended, now)
    return ended, (Persist(ended),)


def _restored(state: Rollout, _event: Event, _now: Instant) -> Step:
    """Repeat what may have been lost. Boards that already answered need no deployment again."""
    issued = [d for d, p in state.devices.items() if p.status == "issued"]
    return state, tuple(Issue(device) for device in _in_order(state, issued))


def _restored_back(state: Rollout, _event: Event, _now: Instant) -> Step:
    touched = [d for d, p in state.devices.items() if p.status != "waiting"]
    return state, tuple(Revert(device) for device in _in_order(state, touched))


def _nothing(state: Rollout, _event: Event, _now: Instant) -> Step:
    return state, ()


def _in_order(state: Rollout, wanted: Iterable[str]) -> list[str]:
    chosen = set(wanted)
    return [device for wave in state.plan.waves for device in wave if device in chosen]


def _too_many_bad(state: Rollout) -> bool:
    return any(state.count(BAD, wave) > state.plan.gates.max_bad for wave in range(state.wave + 1))


def _install_sentence(state: Rollout) -> str:
    members = state.wave_devices(state.wave)
    counts = {s: state.count({s}, state.wave) for s in ("committed", "refused", "rolled_back", "failed", "silent")}
    told = ", ".join(f"{n} {s}" for s, n in counts.items() if n) or "no answer"
    codes = sorted({p.code for d, p in state.devices.items() if d in members and p.status in BAD and p.code})
    return f"wave {state.wave + 1} of {len(members)}: {told}" + (f" ({', '.join(codes)})" if codes else "")


def _with_devices(state: Rollout, changed: dict[str, Progress]) -> Rollout:
    return msgspec.structs.replace(state, devices={**state.devices, **changed})


def _with_verdict(state: Rollout, verdict: Verdict) -> Rollout:
    return msgspec.structs.replace(state, verdicts=(*state.verdicts, verdict))


Handler = Callable[[Rollout, Event, Instant], Step]

_TABLE: dict[tuple[str, type], Handler] = {
    ("planned", Start): _start,
    ("planned", Abort): _abort,
    ("planned", Restored): _nothing,
    ("running", Outcome): _outcome,
    ("running", Tick): _running_tick,
    ("running", Pause): _pause,
    ("running", Abort): _abort,
    ("running", Restored): _restored,
    ("holding", Outcome): _outcome,
    ("holding", Tick): _holding_tick,
    ("holding", Evidence): _evidence,
    ("holding", Pause): _pause,
    ("holding", Abort): _abort,
    ("holding", Restored): _restored,
    ("paused", Outcome): _outcome,
    ("paused", Tick): _nothing,
    ("paused", Resume): _resume,
    ("paused", Abort): _abort,
    ("paused", Restored): _restored,
    ("reverting", Outcome): _reverting_outcome,
    ("reverting", Tick): _reverting_tick,
    ("reverting", Restored): _restored_back,
    **{(phase, Outcome): _record_only for phase in FINAL},
    **{(phase, Restored): _nothing for phase in FINAL},
}
