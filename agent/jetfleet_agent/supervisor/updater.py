"""Drives the slot machines of all apps: takes events, steps, makes the new state durable, then has the effects run.

What could not be made durable did not happen: the event is kept and tried again, later events of that app wait behind it, and
the app goes on running what its last durable state says.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec

from jetfleet_contract import slot_records as slots
from jetfleet_contract.errors import IncompatibleError, JetfleetError, MalformedError, OrderError, StorageError
from jetfleet_contract.messages import MAX_APPS, AppSpec, AppState, Deployment, Instant
from jetfleet_contract.slots import app_state, live_slot, next_tick, step
from jetfleet_contract.topics import check_blob, check_name

from .downloads import Reports
from .effects import EffectRunner
from .inbox import AppEvent

log = logging.getLogger(__name__)

RETRY_S = 5.0
MAX_SOURCES = 64


class States(Protocol):
    """What is used of a Journal here."""

    def apps(self) -> tuple[str, ...]: ...
    def app(self, name: str) -> slots.AppSlots: ...
    def save_app(self, state: slots.AppSlots) -> None: ...


class Updater:
    """See the module. All methods belong to the control thread. `external`: apps that the board's own config has a program for."""

    def __init__(self, journal: States, runner: EffectRunner, reports: Reports, clock: Callable[[], Instant],
                 external: Collection[str] = ()) -> None:
        self._journal = journal
        self._runner = runner
        self._reports = reports
        self._clock = clock
        self._external = frozenset(external)
        self._states: dict[str, slots.AppSlots] = {}
        runner.know(self._states.values)
        self._stalled: dict[str, deque[slots.Event]] = {}
        self._retry_at = 0.0
        self.order_errors = 0
        self.storage_errors = 0
        self.changed = True

    # --- what comes in ------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Take up every app where the journal says it was."""
        self._states.update({app: self._journal.app(app) for app in self._journal.apps()})  # all, before one of them may collect garbage
        for app in list(self._states):
            self.event(app, slots.Resume())

    def deploy(self, deployment: Deployment) -> None:
        """Apply a verified deployment: each app gets its target, apps that it does not name are taken away.

        What one app cannot have (an unknown local source, an unsupported runner) is reported as its failure; the others go on.

        Raises:
            MalformedError: `deployment.bad`; nothing was applied.
        """
        check_deployment(deployment)
        for app in [spec.app for spec in deployment.apps if spec.app not in self._states]:
            self._states[app] = self._journal.app(app)  # a folder that could not be listed may have a record all the same
            if self._states[app] != slots.AppSlots(app):
                self.event(app, slots.Resume())
        for spec in deployment.apps:
            feed_to = tuple(other.app for other in deployment.apps if other.input_from == spec.app)
            release = self._runner.release(spec.bundle)
            self._deploy_app(slots.Target(deployment.seq, _as_it_can_be(spec), deployment.rollout, feed_to, release))
        named = {spec.app for spec in deployment.apps}
        for app in [known for known in self._states if known not in named]:
            self.event(app, slots.Undeploy(deployment.seq))

    def _deploy_app(self, target: slots.Target) -> None:
        spec = target.spec
        state = self._states[spec.app]
        try:
            self._check_possible(spec)
        except JetfleetError as error:
            refused = slots.Progress(target.seq, "idle", spec.bundle, spec.version, outcome="failed", code=error.code, detail=error.what,
                                     from_version=state.champion.version if state.champion else "", rollout=target.rollout)
            self._reports.add(spec.app, refused, self._clock().wall)
            return
        self.event(spec.app, slots.Deploy(target))

    def _check_possible(self, spec: AppSpec) -> None:
        self._runner.resolve(spec.sources)
        if spec.runner == "exec" and spec.app not in self._external:
            what = f"app {spec.app} wants the exec runner, and this board has no [external.{spec.app}]"
            raise IncompatibleError("runner.unsupported", what,
                                    remedy="write that table into the agent's config (docs/external.md), or use the builtin runner")

    def sources_changed(self) -> None:
        """An address that sources refer to may be another one now: running pipelines get their setup again, and no other news."""
        for app, state in self._states.items():
            slot = live_slot(state)
            if slot is not None:
                self._runner.run(app, state, slots.Configure(slot.setup))

    def answered(self, item: AppEvent) -> None:
        """The answer of work that ran elsewhere."""
        if self._runner.counts(item):
            self.event(item.app, item.event)

    def event(self, app: str, event: slots.Event) -> None:
        """Give an app one event, now or behind those that wait for the disk."""
        if app not in self._states:
            return
        if app in self._stalled:
            self._stalled[app].append(event)
            return
        self._take(app, event)

    def tick(self) -> float:
        """Let time pass. Seconds until the next call is wanted."""
        now = self._clock()
        if self._stalled and now.mono >= self._retry_at:
            self._retry()
        wait = self._retry_at - now.mono if self._stalled else 3600.0
        for app, state in list(self._states.items()):
            due = next_tick(state, now)
            if due is not None and due <= 0 and app not in self._stalled:
                self._take(app, slots.Tick())
                due = next_tick(self._states[app], now)
            if due is not None and app not in self._stalled:
                wait = min(wait, due)
        self._runner.collect()
        return max(wait, 0.0)

    # --- what is ------------------------------------------------------------------------------------------

    @property
    def states(self) -> dict[str, slots.AppSlots]:
        """The durable state of each app."""
        return dict(self._states)

    def app_states(self) -> tuple[AppState, ...]:
        """The inventory: every app that has a deployment or a model."""
        return tuple(app_state(state) for _, state in sorted(self._states.items()) if state.target or state.champion)

    # --- one step -----------------------------------------------------------------------------------------

    def _take(self, app: str, event: slots.Event) -> bool:
        """Step, persist, run. False when the state could not be made durable: then nothing else was done."""
        state = self._states[app]
        if isinstance(event, slots.Crashed):
            self._runner.doubt(state)
        try:
            after, effects = step(state, event, self._clock())
        except OrderError as error:
            self.order_errors += 1
            log.error("%s: %s", app, error.what)  # noqa: TRY400 - the sentence says it all
            return True
        for effect in effects:
            if not isinstance(effect, slots.Persist):
                self._runner.run(app, after, effect)
                continue
            try:
                self._journal.save_app(effect.state)
            except StorageError as error:
                self._stall(app, event, error)
                return False
            self._adopt(app, effect.state)
        return True

    def _adopt(self, app: str, state: slots.AppSlots) -> None:
        before = self._states[app]
        self.changed = self.changed or app_state(before) != app_state(state) or before.seq != state.seq
        if before.phase != state.phase:
            log.info("%s: %s -> %s%s", app, before.phase, state.phase, _ending(state))
        self._states[app] = state

    def _stall(self, app: str, event: slots.Event, error: StorageError) -> None:
        log.warning("%s: %s; trying again in %.0f s", app, error.what, RETRY_S)
        self.storage_errors += 1
        self._retry_at = self._clock().mono + RETRY_S
        self._stalled.setdefault(app, deque()).appendleft(event)
        state = self._states[app]
        slot = state.champion or live_slot(state)
        if slot is not None and isinstance(event, (slots.Resume, slots.Crashed)):
            self._runner.run(app, state, slots.StartPipeline(slot))

    def _retry(self) -> None:
        self._retry_at = self._clock().mono + RETRY_S
        for app in list(self._stalled):
            waiting = self._stalled.pop(app)
            while waiting and self._take(app, waiting.popleft()):
                pass
            if waiting:
                self._stalled.setdefault(app, deque()).extend(waiting)


def check_deployment(deployment: Deployment) -> None:
    """Names and references of a deployment, before any of it is used. It was signed, but a signature does not make a name a file name.

    Raises:
        MalformedError: `deployment.bad`, `name.bad`, `blob.bad`.
    """
    names = [check_name("app", spec.app) for spec in deployment.apps]
    if len(names) > MAX_APPS or len(set(names)) != len(names):
        raise MalformedError("deployment.bad", f"{len(names)} apps: more than {MAX_APPS}, or two of one name")
    for spec in deployment.apps:
        check_blob(spec.bundle)
        check_name("version", spec.version)
        sources = [check_name("source", source.name) for source in spec.sources]
        if len(sources) > MAX_SOURCES or len(set(sources)) != len(sources):
            raise MalformedError("deployment.bad", f"app {spec.app} has {len(sources)} sources: too many, or two of one name")
        if spec.input_from and (spec.input_from not in names or spec.input_from == spec.app):
            raise MalformedError("deployment.bad", f"app {spec.app} is fed by {spec.input_from[:63]!r}, which is not another app of it")


def _ending(state: slots.AppSlots) -> str:
    if state.phase != "idle" or state.last is None:
        return ""
    return f" ({state.last.outcome}{': ' + state.last.code if state.last.code else ''} {state.last.detail})"


def _as_it_can_be(spec: AppSpec) -> AppSpec:
    """An existing program cannot run two models beside each other: its trials are always stop-start."""
    if spec.runner != "exec":
        return spec
    return msgspec.structs.replace(spec, trial=msgspec.structs.replace(spec.trial, mode="stop-start"))
