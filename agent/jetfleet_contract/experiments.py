"""An A/B experiment: two published versions of a model on two cohorts of boards, until a sequential test prefers one.

    planned -> installing -> running -> promoting -> done
                  |             |           |
                  +--arm fails--+-----------+--> failed;    abort from anywhere that is not final
                                +--undecided, keep--> kept

Both versions stay on their cohorts until the verdict, or an operator, promotes one: then the other cohort gets the winner. Installing and
promoting are rollouts with their own gates; this machine only says which, and hears how they ended.

The test looks at most `looks` times, evenly over `duration_s`. Each look may use up what the spending function has released since
the look before (`cohorts.spent_alpha`), so looking often does not raise the false-alarm rate above `alpha`: the releases add up to it.

`step` is pure. `Persist` comes first; `Install` and `Promote` are idempotent by (experiment, arm), and `Restored` repeats them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Union

import msgspec

from .cohorts import ARMS, Arm, difference, randomisation_p, spent_alpha
from .errors import MalformedError, OrderError
from .messages import Instant, Message
from .rollout import elapsed_s
from .topics import check_blob, check_name

Phase = Literal["planned", "installing", "running", "promoting", "done", "kept", "failed", "aborted"]
FINAL: frozenset[str] = frozenset({"done", "kept", "failed", "aborted"})
LATENCIES = ("p50", "p95", "p99")
MAX_BOARDS = 100_000
MAX_LOOKS = 100


class Version(Message, frozen=True):
    """One arm's model: `bundle` is its manifest, 64 hex digits."""

    name: str
    version: str
    bundle: str


class Plan(Message, frozen=True):
    """What is compared where. `arms` and `strata` map each board to its cohort and its device class.

    `metric`: p50, p95 or p99 (ms, of stage `total`, compared as ratios), or the name of an observed figure (f1, a KPI; compared as
    differences). `better` says which way is good. `if_undecided` is promoted when the last look shows no difference; `keep` leaves both.
    """

    id: str
    app: str
    a: Version
    b: Version
    arms: dict[str, Arm]
    strata: dict[str, str]
    metric: str
    better: Literal["lower", "higher"]
    alpha: float = 0.05
    looks: int = 10
    duration_s: float = 86400.0
    min_boards: int = 3
    if_undecided: Literal["a", "b", "keep"] = "a"
    promotes: Literal["verdict", "operator"] = "verdict"

    def cohort(self, arm: Arm) -> tuple[str, ...]:
        """The boards of one arm, by name."""
        return tuple(sorted(device for device, of in self.arms.items() if of == arm))

    def version(self, arm: Arm) -> Version:
        return self.a if arm == "a" else self.b


class Look(Message, frozen=True):
    """What one look saw: boards with a value in each arm, the effect (`b` against `a`: a ratio for latencies, else a difference), p, and
    how small p had to be. `p` is 1 and `needed` 0 when too few boards had a value."""

    number: int
    at_s: float
    boards_a: int
    boards_b: int
    effect: float
    p: float
    needed: float
    winner: Literal["", "a", "b"] = ""


class Experiment(Message, frozen=True):
    """The whole state. `since` is when the phase began; `spent` is the part of alpha that looks have used up."""

    plan: Plan
    phase: Phase = "planned"
    since: Instant | None = None
    installed: tuple[Arm, ...] = ()
    looks: tuple[Look, ...] = ()
    spent: float = 0.0
    winner: Literal["", "a", "b"] = ""
    code: str = ""
    reason: str = ""

    @property
    def final(self) -> bool:
        return self.phase in FINAL


class Start(Message, frozen=True):
    """Bring both versions to their cohorts."""


class Installed(Message, frozen=True):
    """The rollout of this arm is done."""

    arm: Arm


class ArmFailed(Message, frozen=True):
    """The rollout of this arm, or of the promotion, ended otherwise."""

    arm: Arm
    reason: str


class Seen(Message, frozen=True):
    """Values by board since the experiment runs; a board without one is left out. Latencies in ms."""

    values: dict[str, float]


class PromoteArm(Message, frozen=True):
    """An operator decides."""

    arm: Arm


class Promoted(Message, frozen=True):
    """The other cohort runs the winner."""


class Abort(Message, frozen=True):
    """End now; every board stays as it is."""


class Restored(Message, frozen=True):
    """The host has loaded this state: repeat what may have been lost."""


Event = Union[Start, Installed, ArmFailed, Seen, PromoteArm, Promoted, Abort, Restored]


class Persist(Message, frozen=True):
    """Make `state` durable before anything that follows."""

    state: Experiment


class Install(Message, frozen=True):
    """Roll this arm's version out to its cohort, unless that was begun."""

    arm: Arm


class Promote(Message, frozen=True):
    """Roll this arm's version out to the other cohort, unless that was begun."""

    arm: Arm


class Cancel(Message, frozen=True):
    """Abort the rollouts that this experiment has under way; boards stay as they are."""


Effect = Union[Persist, Install, Promote, Cancel]
Step = tuple[Experiment, tuple[Effect, ...]]


def check_plan(plan: Plan) -> Plan:
    """Bounds and names of a plan.

    Raises:
        MalformedError: `experiment.plan`, `name.bad`, `blob.bad`.
    """
    check_name("app", plan.app)
    check_name("metric", plan.metric)
    for version in (plan.a, plan.b):
        check_blob(version.bundle)
    problem = _problem(plan)
    if problem:
        raise MalformedError("experiment.plan", problem, where=plan.id)
    return plan


def _problem(plan: Plan) -> str:
    if plan.a.bundle == plan.b.bundle:
        return "both arms are the same bundle"
    if not 0.0 < plan.alpha < 0.5 or not 1 <= plan.looks <= MAX_LOOKS or not (math.isfinite(plan.duration_s) and plan.duration_s > 0):
        return f"alpha is not within 0..0.5, looks not within 1..{MAX_LOOKS}, or the duration is not positive"
    if len(plan.arms) > MAX_BOARDS or plan.arms.keys() != plan.strata.keys():
        return f"over {MAX_BOARDS} boards, or a board without a class"
    short = [arm for arm in ARMS if len(plan.cohort(arm)) < max(1, plan.min_boards)]
    if short:
        return f"arm {short[0]} has {len(plan.cohort(short[0]))} boards, and a comparison needs {max(1, plan.min_boards)}"
    return ""


def step(state: Experiment, event: Event, now: Instant) -> Step:
    """One transition. Raises OrderError `experiment.order` when the event does not fit the phase; the state is then unchanged."""
    handler = _TABLE.get((state.phase, type(event)))
    if handler is None:
        raise OrderError("experiment.order", f"an experiment that is {state.phase} takes no {type(event).__name__.lower()}",
                         where=state.plan.id)
    return handler(state, event, now)


def look_due(state: Experiment, now: Instant) -> bool:
    """Whether the next look should be taken now: send `Seen`. One that could not be judged does not put off the next."""
    return state.phase == "running" and elapsed_s(state.since, now) >= _look_at(state, len(state.looks) + 1)


def _look_at(state: Experiment, number: int) -> float:
    return state.plan.duration_s * number / state.plan.looks


def _with(state: Experiment, **changes: object) -> Experiment:
    return msgspec.structs.replace(state, **changes)


def _start(state: Experiment, _event: Event, now: Instant) -> Step:
    begun = _with(state, phase="installing", since=now)
    return begun, (Persist(begun), Install("a"), Install("b"))


def _installed(state: Experiment, event: Installed, now: Instant) -> Step:
    if event.arm in state.installed:
        return state, ()
    after = _with(state, installed=(*state.installed, event.arm))
    if len(after.installed) == 2:
        after = _with(after, phase="running", since=now)
    return after, (Persist(after),)


def _arm_failed(state: Experiment, event: ArmFailed, now: Instant) -> Step:
    failed = _with(state, phase="failed", since=now, code="experiment.arm", reason=f"arm {event.arm}: {event.reason}"[:500])
    return failed, (Persist(failed), Cancel())


def _seen(state: Experiment, event: Seen, now: Instant) -> Step:
    if not look_due(state, now):
        return state, ()
    look, spent = _judge(state, event.values, elapsed_s(state.since, now))
    after = _with(state, looks=(*state.looks, look), spent=spent)
    if look.winner:
        return _decide(after, look.winner, _sentence(state.plan, look), now)
    if len(after.looks) < state.plan.looks:
        return after, (Persist(after),)
    return _undecided(after, look, now)


def _judge(state: Experiment, values: dict[str, float], at_s: float) -> tuple[Look, float]:
    plan, number = state.plan, len(state.looks) + 1
    usable = {device: value for device, value in values.items() if device in plan.arms and math.isfinite(value)}
    ratios = plan.metric in LATENCIES
    if ratios:
        usable = {device: math.log(value) for device, value in usable.items() if value > 0}
    boards = {arm: sum(plan.arms[device] == arm for device in usable) for arm in ARMS}
    gap = difference(usable, plan.arms, plan.strata)
    effect = math.exp(gap) if ratios else gap
    if min(boards.values()) < plan.min_boards:
        return Look(number, at_s, boards["a"], boards["b"], effect, 1.0, 0.0), state.spent
    released = spent_alpha(number / plan.looks, plan.alpha)
    needed = max(0.0, released - state.spent)
    p = randomisation_p(usable, plan.arms, plan.strata, f"{plan.id}/{number}")
    better: Arm = "b" if (gap < 0) == (plan.better == "lower") else "a"
    return Look(number, at_s, boards["a"], boards["b"], effect, p, needed, better if p <= needed else ""), released


def _sentence(plan: Plan, look: Look) -> str:
    unit = f"{look.effect:.3f}x" if plan.metric in LATENCIES else f"{look.effect:+.4f}"
    return (f"{plan.metric} of b against a: {unit} on {look.boards_a} and {look.boards_b} boards, p {look.p:.4f} "
            f"(needed at look {look.number} of {plan.looks}: {look.needed:.4f})")


def _undecided(state: Experiment, look: Look, now: Instant) -> Step:
    why = f"no difference was shown: {_sentence(state.plan, look)}"
    if state.plan.if_undecided == "keep":
        kept = _with(state, phase="kept", since=now, code="experiment.undecided", reason=why)
        return kept, (Persist(kept),)
    return _decide(state, state.plan.if_undecided, why, now)


def _decide(state: Experiment, winner: Arm, why: str, now: Instant) -> Step:
    if state.plan.promotes == "operator":
        kept = _with(state, phase="kept", since=now, winner=winner, reason=why)
        return kept, (Persist(kept),)
    return _promote(state, winner, why, now)


def _promote(state: Experiment, winner: Arm, why: str, now: Instant) -> Step:
    after = _with(state, phase="promoting", since=now, winner=winner, reason=why)
    return after, (Persist(after), Promote(winner))


def _by_operator(state: Experiment, event: PromoteArm, now: Instant) -> Step:
    return _promote(state, event.arm, f"an operator promoted {event.arm}; {state.reason}".rstrip("; "), now)


def _promoted(state: Experiment, _event: Event, now: Instant) -> Step:
    done = _with(state, phase="done", since=now)
    return done, (Persist(done),)


def _abort(state: Experiment, _event: Event, now: Instant) -> Step:
    ended = _with(state, phase="aborted", since=now, code="experiment.aborted", reason="an operator ended it; both versions stay")
    return ended, (Persist(ended), Cancel())


def _again(state: Experiment, _event: Event, _now: Instant) -> Step:
    if state.phase == "installing":
        return state, tuple(Install(arm) for arm in ARMS if arm not in state.installed)
    if state.phase == "promoting" and state.winner:
        return state, (Promote(state.winner),)
    return state, ()


_Handler = Callable[..., Step]
_TABLE: dict[tuple[str, type], _Handler] = {
    ("planned", Start): _start,
    ("planned", Abort): _abort,
    ("planned", Restored): _start,
    ("installing", Installed): _installed,
    ("installing", ArmFailed): _arm_failed,
    ("installing", Abort): _abort,
    ("installing", Restored): _again,
    ("running", Seen): _seen,
    ("running", PromoteArm): _by_operator,
    ("running", Abort): _abort,
    ("running", Restored): _again,
    ("promoting", Promoted): _promoted,
    ("promoting", ArmFailed): _arm_failed,
    ("promoting", Abort): _abort,
    ("promoting", Restored): _again,
    ("kept", PromoteArm): _by_operator,
}
