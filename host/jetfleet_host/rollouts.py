"""The driver of rollouts: database <-> the contract's machine. Composes, signs and publishes deployments.

Order of every step: persist the new state, then make what it asks for durable (deployment signed and stored), then publish.
A kill between any two is repaired by `restore`: the machine repeats its effects, and the key of table `issued` makes
each of them happen once, so that no board ever gets a second deployment for the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import msgspec

from jetfleet_contract.errors import InputError, JetfleetError
from jetfleet_contract.messages import Deployment, Instant, Report
from jetfleet_contract.rollout import elapsed_s, planned, step
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.rollout_records import (
    Abort,
    Effect,
    Event,
    Evidence,
    Issue,
    Joined,
    Outcome,
    Pause,
    Persist,
    Restored,
    Resume,
    Revert,
    Rollout,
    Spent,
    Start,
    Tick,
)
from jetfleet_contract.rollout_rules import due_look

from .deployments import Deployments, Outgoing, ReleaseOf, app_of, check_deployable, check_releases
from .experiments import check_no_experiment
from .store import accounting, evidence, journal, tags
from .store.database import Transactions
from .store.journal import ControlRequest, Request, StartRequest
from .store.models import Device

RENEW_EVERY_S = 3600.0
EVIDENCE_EVERY_S = 1.0
EVIDENCE_BOARDS_A_S = 50
"""Every window of a held wave is read for crashes and heat: large waves less often, because this thread also paces chunks."""
COUNT_EVERY_S = 5.0

_log = logging.getLogger(__name__)


class RolloutDriver:
    """Runs all rollouts that are not over. Used by one thread.

    Args:
        database: its writing transactions are fenced, where several `serve` may run. sign: gives the envelope of a deployment.
        publish: `(device, envelope)`, retained. known: whether the signed targets vouch for this bundle (manifest's hex digest).
        release_of: the model and release of a bundle.
    """

    def __init__(self, database: Transactions, sign: Callable[[Deployment], bytes], publish: Callable[[str, bytes], None],
                 known: Callable[[str], bool], release_of: ReleaseOf = lambda _bundle: ("", 0),
                 seal_to: Callable[[], str] = lambda: "") -> None:
        self._database = database
        self._deployments = Deployments(sign, seal_to)
        self._publish = publish
        self._known = known
        self._release_of = release_of
        self._active: dict[str, Rollout] = {}
        self._next_evidence = self._next_count = 0.0
        self._next_renewal = 0.0

    def restore(self, now: Instant) -> None:
        """Load what is under way and repeat what the last process may not have come to: effects, and stored answers.

        Also right after a database error, when memory and journal may differ.
        """
        with self._database.reading() as session:
            states, over = journal.active(session), journal.owing(session)
        self._active = {state.plan.id: state for state in states}
        for state in states:
            # `planned` is persisted before it is started, so a kill between the two leaves it to be started here.
            self._send(state.plan.id, Start() if state.phase == "planned" else Restored(), now)
            with self._database.reading() as session:
                told = journal.outcomes_of(session, state)
            self.on_reports(told, now)
        for state in over:
            with self._database.reading() as session:
                told = journal.outcomes_of(session, state)
            for report in told:
                self._on_late(report, now)

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
            check_no_experiment(session, plan)
            for device in _devices_of(plan):
                check_deployable(session, request, device)
            check_releases(session, request, self._release_of)
            state = planned(plan)
            journal.add_rollout(session, state, request.spec, request.keep, now.wall, request.overrides)
        self._active[plan.id] = state
        self._send(plan.id, Start(), now)

    def _check_free(self, plan: Plan) -> None:
        busy = self._other_with(plan, set(_devices_of(plan)))
        if busy is not None:
            raise InputError("rollout.busy", f"rollout {busy[0]} still brings app {plan.app} to {busy[1]}",
                             remedy=f"wait for it, or: jetfleet rollout abort {busy[0]}")

    def _other_with(self, plan: Plan, devices: set[str]) -> tuple[str, str] | None:
        """Another rollout of this app that has one of these boards, and the first such board."""
        for other in self._active.values():
            shared = devices & set(other.devices)
            if other.plan.id != plan.id and other.plan.app == plan.app and shared:
                return other.plan.id, min(shared)
        return None

    def _control(self, rollout: str, request: ControlRequest, now: Instant) -> None:
        if rollout not in self._active:
            raise InputError("rollout.over", f"rollout {rollout} is over, or was never started", remedy="jetfleet rollout status")
        events: dict[str, Event] = {"pause": Pause(), "resume": Resume(request.accept, request.by),
                                    "abort": Abort(request.rollback)}
        self._send(rollout, events[request.op], now)

    # --- news ---------------------------------------------------------------------------------------------------

    def on_reports(self, reports: Iterable[Report], now: Instant) -> None:
        """Pass verified outcomes to the rollouts that they answer."""
        for report in reports:
            if report.outcome:
                self._on_outcome(report, now)

    def _on_outcome(self, report: Report, now: Instant) -> None:
        taken = False
        for state in list(self._active.values()):
            if state.plan.app != report.app or report.device not in state.devices:
                continue
            back = self._answers(state, report)
            if back is not None and report.outcome:
                taken = True
                self._send(state.plan.id, Outcome(report.device, report.outcome, report.code, report.detail[:500], back), now)
        if not taken:
            self._on_late(report, now)

    def _on_late(self, report: Report, now: Instant) -> None:
        """The answer of a board that was off until its rollout was over: noted there."""
        with self._database.reading() as session:
            state = journal.answered_late(session, report)
        back = self._answers(state, report) if state else None
        if state is None or back is None or not report.outcome:
            return
        after, effects = step(state, Outcome(report.device, report.outcome, report.code, report.detail[:500], back), now)
        self._perform(after, effects, now)

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
        """Let time pass for every rollout, give held waves their evidence, count bytes, let boards join, renew what will expire."""
        if now.wall >= self._next_renewal:
            self._next_renewal = now.wall + RENEW_EVERY_S
            with self._database.session() as session:
                outgoing = self._deployments.renew(session, now)
            self._publish_all(outgoing)
        measure, count = now.mono >= self._next_evidence, now.mono >= self._next_count
        if measure:
            held = max((len(state.wave_devices(state.wave)) for state in self._active.values() if state.phase == "holding"), default=0)
            self._next_evidence = now.mono + max(EVIDENCE_EVERY_S, held / EVIDENCE_BOARDS_A_S)
        if count:
            self._next_count = now.mono + COUNT_EVERY_S
        for rollout, state in list(self._active.items()):
            if count and state.phase not in ("planned", "reverting"):
                self._count(state, now)
            self._let_pass(rollout, now, measure)

    def _let_pass(self, rollout: str, now: Instant, measure: bool) -> None:
        state = self._active.get(rollout)
        if state is None or state.phase in ("planned", "paused"):
            return
        if state.phase != "holding" or not state.plan.gates.need_evidence or state.wave <= state.accepted:
            self._send(rollout, Tick(), now)
        elif measure:
            self._send(rollout, self._evidence(state, now), now)

    def _evidence(self, state: Rollout, now: Instant) -> Evidence:
        """What the boards of the wave have shown; their latencies are read only when a look is due."""
        due = due_look(state, elapsed_s(state.since, now) - state.plan.hold_s(state.wave)) is not None
        members = [device for device in state.wave_devices(state.wave) if state.devices[device].status == "committed"]
        with self._database.reading() as session:
            return Evidence(evidence.of_boards(session, state.plan.id, state.plan.app, members, sketches=due,
                                               kpis=tuple(state.plan.gates.kpis)))

    def _count(self, state: Rollout, now: Instant) -> None:
        """Bytes for the budget, and boards that have come since."""
        plan = state.plan
        if plan.budget.max_bytes or plan.budget.max_bytes_per_day:
            with self._database.reading() as session:
                spent = accounting.spending(session, plan.id, plan.app, now.wall)
            self._send(plan.id, Spent(spent), now)
        if plan.follow:
            newcomers = self._newcomers(state)
            if newcomers:
                self._send(plan.id, Joined(newcomers), now)

    def _newcomers(self, state: Rollout) -> dict[str, str]:
        """Boards that the plan means, that it does not know yet, and that can take it; with the version that each runs."""
        plan, found = state.plan, {}
        with self._database.reading() as session:
            request = journal.request_of(session, state)
            for device in tags.selected(session, plan.select):
                if device.device in state.devices or self._other_with(plan, {device.device}) is not None:
                    continue
                before = app_of(journal.deployment_of(session, device.device), plan.app)
                if before is None and request.keep:
                    continue  # nobody has said what its sources are
                try:
                    joining = msgspec.structs.replace(plan, waves=((device.device,),))
                    check_deployable(session, request, device.device)
                    check_releases(session, msgspec.structs.replace(request, plan=joining), self._release_of)
                except InputError as error:
                    _log.warning("board %s cannot join rollout %s: %s", device.device, plan.id, error.what)
                    continue
                found[device.device] = before.version if before else ""
        return found

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
        outgoing: Outgoing = []
        for effect in effects:
            if isinstance(effect, Persist):
                with self._database.session() as session:
                    journal.save_state(session, effect.state, effect.changed, now.wall)
        issues = [effect for effect in effects if isinstance(effect, (Issue, Revert))]
        for start in range(0, len(issues), 100):
            with self._database.session() as session:
                request = journal.request_of(session, state)
                for effect in issues[start : start + 100]:
                    outgoing += (self._deployments.issue(session, request, effect.device, now) if isinstance(effect, Issue)
                                 else self._deployments.revert(session, state.plan, effect.device, now))
        self._publish_all(outgoing)

    def _publish_all(self, outgoing: Outgoing) -> None:
        for device, envelope in outgoing:
            self._publish(device, envelope)


def _devices_of(plan: Plan) -> list[str]:
    return [device for wave in plan.waves for device in wave]
