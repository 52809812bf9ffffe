"""The driver of rollouts: database <-> the contract's machine. Composes, signs and publishes deployments.

Order of every step: persist the new state, then make what it asks for durable (deployment signed and stored), then publish.
A kill between any two is repaired by `restore`: the machine repeats its effects, and the key of table `issued` makes
each of them happen once, so that no board ever gets a second deployment for the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec
from sqlalchemy.orm import Session

from jetfleet_contract.errors import InputError, JetfleetError, MalformedError
from jetfleet_contract.messages import AppSpec, Deployment, Instant, Report
from jetfleet_contract.rollout import (
    Abort,
    Effect,
    Event,
    Evidence,
    Issue,
    Outcome,
    Pause,
    Persist,
    Plan,
    Restored,
    Resume,
    Revert,
    Rollout,
    Start,
    Tick,
    elapsed_s,
    planned,
    step,
)
from jetfleet_contract.trust import check_deployment

from .store import journal
from .store.database import Database
from .store.journal import ControlRequest, Request, StartRequest
from .store.models import Device

DEPLOYMENT_LIFE_S = 90 * 86400.0
RENEW_BEFORE_S = 30 * 86400.0
RENEW_EVERY_S = 3600.0
EVIDENCE_EVERY_S = 1.0
EVIDENCE_SPAN_S = 3600.0

_log = logging.getLogger(__name__)


class RolloutDriver:
    """Runs all rollouts that are not over. Used by one thread.

    Args:
        sign: gives the envelope of a deployment. publish: `(device, envelope)`, retained. known: whether the signed
            targets vouch for this bundle (manifest's hex digest).
    """

    def __init__(self, database: Database, sign: Callable[[Deployment], bytes], publish: Callable[[str, bytes], None],
                 known: Callable[[str], bool]) -> None:
        self._database = database
        self._sign = sign
        self._publish = publish
        self._known = known
        self._active: dict[str, Rollout] = {}
        self._next_evidence = 0.0
        self._next_renewal = 0.0

    def restore(self, now: Instant) -> None:
        """Load what is under way and repeat what the last process may not have come to: effects, and stored answers.

        Also right after a database error, when memory and journal may differ.
        """
        with self._database.reading() as session:
            states = journal.active(session)
        self._active = {state.plan.id: state for state in states}
        for state in states:
            # `planned` is persisted before it is started, so a kill between the two leaves it to be started here.
            self._send(state.plan.id, Start() if state.phase == "planned" else Restored(), now)
            with self._database.reading() as session:
                told = journal.outcomes_of(session, state)
            self.on_reports(told, now)

    def retained(self) -> list[tuple[str, bytes]]:
        """What the broker has to hold for each board."""
        with self._database.reading() as session:
            return journal.retained(session)

    # --- requests -----------------------------------------------------------------------------------------------

    def poll_requests(self, now: Instant) -> int:
        """Carry out what commands asked for; each gets an answer. Returns how many there were."""
        with self._database.reading() as session:
            requests = journal.open_requests(session)
        for number, rollout, request in requests:
            with self._database.session() as session:
                if not journal.take(session, number):
                    continue
            code, text = self._carry_out(rollout, request, now)
            with self._database.session() as session:
                journal.answer(session, number, code, text)
        return len(requests)

    def _carry_out(self, rollout: str, request: Request, now: Instant) -> tuple[str, str]:
        try:
            if isinstance(request, StartRequest):
                self._start(request, now)
            else:
                self._control(rollout, request, now)
        except JetfleetError as error:
            return error.code, f"{error.what}\n{error.remedy}".strip()
        return "", ""

    def _start(self, request: StartRequest, now: Instant) -> None:
        plan = request.plan
        with self._database.reading() as session:
            if journal.exists(session, plan.id):
                return  # the last process stored it, but died before it could answer
        if not self._known(plan.bundle):
            raise InputError("rollout.unpublished", f"bundle {plan.name} {plan.version} is not among the signed targets",
                             remedy="jetfleet publish BUNDLE first")
        self._check_free(plan)
        with self._database.session() as session:
            unknown = [d for d in _devices_of(plan) if session.get(Device, d) is None]
            if unknown:
                raise InputError("rollout.unknown-device", f"no such board: {', '.join(unknown[:5])}", remedy="jetfleet devices lists them")
            for device in _devices_of(plan):
                _check_deployable(session, request, device)
            state = planned(plan)
            journal.add_rollout(session, state, request.spec, request.keep, now.wall)
        self._active[plan.id] = state
        self._send(plan.id, Start(), now)

    def _check_free(self, plan: Plan) -> None:
        wanted = set(_devices_of(plan))
        for other in self._active.values():
            shared = wanted & set(other.devices)
            if other.plan.app == plan.app and shared:
                raise InputError("rollout.busy", f"rollout {other.plan.id} still brings app {plan.app} to {min(shared)}",
                                 remedy=f"wait for it, or: jetfleet rollout abort {other.plan.id}")

    def _control(self, rollout: str, request: ControlRequest, now: Instant) -> None:
        if rollout not in self._active:
            raise InputError("rollout.over", f"rollout {rollout} is over, or was never started", remedy="jetfleet rollout status")
        events: dict[str, Event] = {"pause": Pause(), "resume": Resume(), "abort": Abort(request.rollback)}
        self._send(rollout, events[request.op], now)

    # --- news ---------------------------------------------------------------------------------------------------

    def on_reports(self, reports: Iterable[Report], now: Instant) -> None:
        """Pass verified outcomes to the rollouts that they answer."""
        for report in reports:
            if report.outcome:
                self._on_outcome(report, now)

    def _on_outcome(self, report: Report, now: Instant) -> None:
        for state in list(self._active.values()):
            if state.plan.app != report.app or report.device not in state.devices:
                continue
            back = self._answers(state, report)
            if back is not None and report.outcome:
                self._send(state.plan.id, Outcome(report.device, report.outcome, report.code, report.detail[:500], back), now)

    def _answers(self, state: Rollout, report: Report) -> bool | None:
        """Whether the report answers what was issued (False), its way back (True), or neither (None).

        By bundle, and not older than what was issued: a board may answer under a later number, when another app's
        rollout came between.
        """
        with self._database.reading() as session:
            for kind in ("back", "forward"):
                row = journal.issued(session, state.plan.id, report.device, kind)
                if row and report.seq >= row.seq and report.bundle == row.bundle:
                    return kind == "back"
        return None

    def tick(self, now: Instant) -> None:
        """Let time pass for every rollout, give held waves their latency evidence, renew what will expire."""
        if now.wall >= self._next_renewal:
            self._next_renewal = now.wall + RENEW_EVERY_S
            self._renew(now)
        measure = now.mono >= self._next_evidence
        if measure:
            self._next_evidence = now.mono + EVIDENCE_EVERY_S
        for rollout, state in list(self._active.items()):
            if state.phase in ("planned", "paused"):
                continue
            held = state.phase == "holding" and elapsed_s(state.since, now) >= state.plan.gates.hold_s
            if not held or not state.plan.gates.max_p95_ratio:
                self._send(rollout, Tick(), now)
            elif measure:
                self._send(rollout, self._evidence(state, now), now)

    def _evidence(self, state: Rollout, now: Instant) -> Evidence:
        """Old and new bundle's latency on the boards of this wave."""
        members = state.wave_devices(state.wave)
        with self._database.reading() as session:
            rows = [row for d in members if (row := journal.issued(session, state.plan.id, d, "forward"))]
            old_bundles = {before.bundle for row in rows if (before := journal.before_of(row))} - {state.plan.bundle}
            began = min((row.at for row in rows), default=now.wall)
            old = journal.latency(session, app=state.plan.app, bundles=old_bundles, devices=members, since=began - EVIDENCE_SPAN_S)
            new = journal.latency(session, app=state.plan.app, bundles={state.plan.bundle}, devices=members, since=began)
        return Evidence(old, new)

    # --- the machine --------------------------------------------------------------------------------------------

    def _send(self, rollout: str, event: Event, now: Instant) -> None:
        before = self._active[rollout]
        state, effects = step(before, event, now)
        self._active[rollout] = state
        try:
            self._perform(state, effects, now)
        except Exception:
            self._active[rollout] = before  # not durable: as if the event had not come yet
            raise
        if state.phase != before.phase:
            _log.info("rollout %s: %s -> %s %s", rollout, before.phase, state.phase, state.reason)
        if state.final:
            del self._active[rollout]

    def _perform(self, state: Rollout, effects: tuple[Effect, ...], now: Instant) -> None:
        outgoing: list[tuple[str, bytes]] = []
        for effect in effects:
            if isinstance(effect, Persist):
                with self._database.session() as session:
                    journal.save_state(session, effect.state, effect.changed, now.wall)
        issues = [effect for effect in effects if isinstance(effect, (Issue, Revert))]
        for start in range(0, len(issues), 100):
            with self._database.session() as session:
                for effect in issues[start : start + 100]:
                    make = self._issue if isinstance(effect, Issue) else self._revert
                    outgoing += make(session, state.plan, effect.device, now)
        for device, envelope in outgoing:
            self._publish(device, envelope)

    def _issue(self, session: Session, plan: Plan, device: str, now: Instant) -> list[tuple[str, bytes]]:
        if journal.issued(session, plan.id, device, "forward"):
            return []  # stored by an earlier run; all that is stored is published again at each connection
        spec, keep = journal.spec_of(session, plan.id)
        current = journal.deployment_of(session, device)
        before = next((app for app in current.apps if app.app == plan.app), None) if current else None
        wanted = _renewed_app(spec, before, keep)
        deployment = self._compose(session, device, current, plan, wanted, now)
        envelope = self._store(session, deployment, now)
        journal.add_issued(session, plan.id, "forward", deployment, wanted.bundle, before, now.wall)
        return [(device, envelope)]

    def _revert(self, session: Session, plan: Plan, device: str, now: Instant) -> list[tuple[str, bytes]]:
        forward = journal.issued(session, plan.id, device, "forward")
        if forward is None or journal.issued(session, plan.id, device, "back"):
            return []
        before = journal.before_of(forward)
        current = journal.deployment_of(session, device)
        deployment = self._compose(session, device, current, plan, before, now)
        envelope = self._store(session, deployment, now)
        journal.add_issued(session, plan.id, "back", deployment, before.bundle if before else "", before, now.wall)
        return [(device, envelope)]

    def _compose(self, session: Session, device: str, current: Deployment | None, plan: Plan, app: AppSpec | None,
                 now: Instant) -> Deployment:
        """The board's next deployment: as the current one, with this app replaced (None: taken off)."""
        apps = _with_app(current.apps if current else (), plan.app, app)
        known = session.get(Device, device)
        highest = max(current.seq if current else 0, known.seq if known else 0)
        return Deployment(device, highest + 1, now.wall + DEPLOYMENT_LIFE_S, apps, plan.id, current.tags if current else {})

    def _store(self, session: Session, deployment: Deployment, now: Instant) -> bytes:
        envelope = self._sign(deployment)
        journal.save_deployment(session, deployment, envelope, now.wall)
        return envelope

    def _renew(self, now: Instant) -> None:
        """Sign again, under the next number, what would expire within a month. The boards change nothing."""
        outgoing = []
        with self._database.session() as session:
            for device, _ in journal.retained(session):
                current = journal.deployment_of(session, device)
                if current and current.expires - now.wall < RENEW_BEFORE_S:
                    fresh = msgspec.structs.replace(current, seq=current.seq + 1, expires=now.wall + DEPLOYMENT_LIFE_S)
                    outgoing.append((device, self._store(session, fresh, now)))
        for device, envelope in outgoing:
            self._publish(device, envelope)


def _check_deployable(session: Session, request: StartRequest, device: str) -> None:
    """The deployment that this board would get is one that it will accept; else InputError `rollout.deployment`."""
    current = journal.deployment_of(session, device)
    apps = current.apps if current else ()
    before = next((app for app in apps if app.app == request.plan.app), None)
    wanted = _with_app(apps, request.plan.app, _renewed_app(request.spec, before, request.keep))
    try:
        check_deployment(Deployment(device, 1, 0.0, wanted))
    except MalformedError as error:
        raise InputError("rollout.deployment", f"board {device} could not run this: {error.what}", where=error.code,
                         remedy="correct apps.toml; an app that feeds another is rolled out first") from None


def _with_app(apps: tuple[AppSpec, ...], name: str, app: AppSpec | None) -> tuple[AppSpec, ...]:
    """The apps with one replaced; taken off (None), those that it feeds go too, because they would have no input."""
    if app is not None:
        return tuple(sorted((*(a for a in apps if a.app != name), app), key=lambda a: a.app))
    gone = {name}
    while fed := {a.app for a in apps if a.input_from in gone} - gone:
        gone |= fed
    return tuple(a for a in apps if a.app not in gone)


def _devices_of(plan: Plan) -> list[str]:
    return [device for wave in plan.waves for device in wave]


def _renewed_app(spec: AppSpec, before: AppSpec | None, keep: bool) -> AppSpec:
    """The app as this board gets it: its own settings with `keep`, else the request's, with a config version that grows."""
    if before is None:
        return spec
    if keep:
        return msgspec.structs.replace(before, bundle=spec.bundle, name=spec.name, version=spec.version)
    same = msgspec.structs.replace(spec.config, version=before.config.version)
    version = before.config.version if same == before.config else before.config.version + 1
    return msgspec.structs.replace(spec, config=msgspec.structs.replace(spec.config, version=version))
