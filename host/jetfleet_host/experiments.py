"""Drives experiments: database <-> the contract's machine. Both arms and the promotion are ordinary rollouts with their gates.

A step's new state and the rollouts that it asks for are rows of one transaction, so a kill leaves both or neither.
"""

from __future__ import annotations

import logging

from sqlalchemy.orm import Session

from jetfleet_contract.cohorts import ARMS, Arm
from jetfleet_contract.errors import InputError, OrderError
from jetfleet_contract.experiments import (
    LATENCIES,
    Abort,
    ArmFailed,
    Cancel,
    Effect,
    Event,
    Experiment,
    Install,
    Installed,
    Persist,
    Promote,
    PromoteArm,
    Promoted,
    Seen,
    Start,
    look_due,
    step,
)
from jetfleet_contract.gates import Gates
from jetfleet_contract.messages import AppSpec, Instant
from jetfleet_contract.rollout_plan import Plan, waves_of

from .store import experiments, journal
from .store.database import Transactions
from .store.journal import ControlRequest, StartRequest

TICK_S = 1.0
PROMOTION = "win"
REQUESTS: dict[str, Event] = {"abort": Abort(), "promote a": PromoteArm("a"), "promote b": PromoteArm("b")}

_log = logging.getLogger(__name__)


def rollout_id(experiment: str, part: str) -> str:
    """The rollout of an arm (`a`, `b`) or of the promotion (`win`)."""
    return f"{experiment}-{part}"


def check_no_experiment(session: Session, plan: Plan) -> None:
    """Both versions stay until the verdict: a rollout that is none of the experiment's own would spoil the comparison.

    Raises:
        InputError: `rollout.experiment`.
    """
    state = experiments.on_boards(session, plan.app, (device for wave in plan.waves for device in wave))
    if state is not None and plan.id not in [rollout_id(state.plan.id, part) for part in ("a", "b", PROMOTION)]:
        raise InputError("rollout.experiment", f"experiment {state.plan.id} compares versions of app {plan.app} on some of these boards",
                         remedy=f"wait for its verdict, or: jetfleet experiment abort {state.plan.id}")


class ExperimentDriver:
    """Runs all experiments that are not over. Used by one thread; keeps nothing in memory."""

    def __init__(self, database: Transactions) -> None:
        self._database = database
        self._next = 0.0

    def tick(self, now: Instant) -> None:
        """Carry out requests, hear how rollouts ended, take looks that are due. Raises StorageError; nothing is lost then."""
        if now.mono < self._next:
            return
        self._next = now.mono + TICK_S
        with self._database.reading() as session:
            requests, states = experiments.asked(session), experiments.active(session)
        for experiment, what in requests:
            self._carry_out(experiment, what, now)
        for state in states:
            self._follow(state.plan.id, now)

    def _carry_out(self, experiment: str, what: str, now: Instant) -> None:
        with self._database.session() as session:
            state = experiments.load(session, experiment)
            try:
                if state is not None:
                    self._step(session, state, REQUESTS[what], now)
            except OrderError as error:
                experiments.answer(session, experiment, f"{error.code}\n{error.what}")
            else:
                experiments.answer(session, experiment, "")

    def _follow(self, experiment: str, now: Instant) -> None:
        with self._database.session() as session:
            state = experiments.load(session, experiment)
            for event in self._news(session, state, now) if state and not state.final else ():
                if state is None or state.final:
                    return
                state = self._step(session, state, event, now)

    def _news(self, session: Session, state: Experiment, now: Instant) -> list[Event]:
        if state.phase == "planned":
            return [Start()]
        if state.phase == "installing":
            return [event for arm in ARMS if arm not in state.installed and (event := self._arm_end(session, state, arm))]
        if state.phase == "running":
            return [Seen(self._values(session, state))] if look_due(state, now) else []
        over, trouble = experiments.rollout_end(session, rollout_id(state.plan.id, PROMOTION))
        if not over or not state.winner:
            return []
        return [ArmFailed(state.winner, f"its promotion: {trouble}")] if trouble else [Promoted()]

    def _arm_end(self, session: Session, state: Experiment, arm: Arm) -> Event | None:
        over, trouble = experiments.rollout_end(session, rollout_id(state.plan.id, arm))
        if not over:
            return None
        return ArmFailed(arm, trouble) if trouble else Installed(arm)

    def _values(self, session: Session, state: Experiment) -> dict[str, float]:
        plan, since = state.plan, state.since.wall if state.since else 0.0
        if plan.metric not in LATENCIES:
            return experiments.observed(session, plan.app, plan.metric, since)
        return experiments.latencies(session, plan.app, {plan.a.bundle, plan.b.bundle}, int(plan.metric[1:]) / 100.0, since)

    # --- one step ---------------------------------------------------------------------------------------------

    def _step(self, session: Session, state: Experiment, event: Event, now: Instant) -> Experiment:
        after, effects = step(state, event, now)
        for effect in effects:
            self._perform(session, after, effect, now)
        if after.phase != state.phase:
            _log.info("experiment %s: %s -> %s %s", after.plan.id, state.phase, after.phase, after.reason)
        return after

    def _perform(self, session: Session, state: Experiment, effect: Effect, now: Instant) -> None:
        plan = state.plan
        if isinstance(effect, Persist):
            experiments.save(session, effect.state, now.wall)
        elif isinstance(effect, Install):
            self._roll_out(session, state, effect.arm, effect.arm, plan.cohort(effect.arm), now)
        elif isinstance(effect, Promote):
            self._roll_out(session, state, effect.arm, PROMOTION, plan.cohort("b" if effect.arm == "a" else "a"), now)
        elif isinstance(effect, Cancel):
            self._cancel(session, state, now)

    def _roll_out(self, session: Session, state: Experiment, arm: Arm, part: str, devices: tuple[str, ...], now: Instant) -> None:
        plan, version = state.plan, state.plan.version(arm)
        rollout = rollout_id(plan.id, part)
        if experiments.rollout_known(session, rollout):
            return
        spec = AppSpec(plan.app, version.bundle, version.name, version.version, downgrade=True)  # the operator named both versions
        gates = Gates(max_p95_ratio=0.0, hold_s=0.0)  # how fast it is, is what the experiment asks
        wanted = Plan(rollout, plan.app, version.bundle, version.name, version.version, waves_of(devices, canary=1),
                      before=_before(session, devices, plan.app), gates=gates)
        journal.ask(session, rollout, StartRequest(wanted, spec, keep=True), now.wall)

    def _cancel(self, session: Session, state: Experiment, now: Instant) -> None:
        for part in ("a", "b", PROMOTION):
            rollout = rollout_id(state.plan.id, part)
            if experiments.rollout_known(session, rollout) and not experiments.rollout_end(session, rollout)[0]:
                journal.ask(session, rollout, ControlRequest("abort"), now.wall)


def _before(session: Session, devices: tuple[str, ...], app: str) -> dict[str, str]:
    before = {}
    for device in devices:
        deployment = journal.deployment_of(session, device)
        spec = next((spec for spec in deployment.apps if spec.app == app), None) if deployment else None
        if spec is not None:
            before[device] = spec.version
    return before
