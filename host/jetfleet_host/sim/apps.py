"""Drives a virtual device's slot machines: events in, the contract's `step`, the new state made durable, then the effects.

Effects are the agent's, over a virtual board: fetching is real, choosing and judging are the contract's, and only the figures that
a camera and an accelerator would give come from `inference`. Answers come after a while, as they do from processes.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Protocol

import msgspec

from jetfleet_contract.bundle import (
    EVALUATION,
    PROBE_IMAGE,
    PROBE_INDEX,
    SPEC,
    Evaluation,
    Manifest,
    ModelSpec,
    ProbeSet,
    check_contents,
    decode_manifest,
)
from jetfleet_contract.errors import JetfleetError, MalformedError, OrderError, UntrustedError
from jetfleet_contract.messages import AppState, Deployment, Instant, decode, encode
from jetfleet_contract.policy import choose, worth_measuring
from jetfleet_contract.slot_records import (
    Abandon,
    AppSlots,
    Back,
    Choose,
    Chosen,
    CollectGarbage,
    Compared,
    Configure,
    Deploy,
    DropChallenger,
    Effect,
    Event,
    Faulted,
    Fetch,
    Fetched,
    Persist,
    Probe,
    Probed,
    Progress,
    Ran,
    Resume,
    SendReport,
    Slot,
    StartPipeline,
    StopPipeline,
    Switch,
    Target,
    Tick,
    TookOver,
    Try,
    Undeploy,
    Watch,
    restore,
)
from jetfleet_contract.slots import app_state, blobs_in_use, next_tick, step

from .disk import Disk
from .inference import BoardClass, ModelTraits, measured, trial_numbers
from .transfers import Transfers
from .trust import DeviceTrust

_PREFIX = "app-"
# Seconds that a board's own work takes, drawn evenly between the two.
CHOOSE_S = (0.1, 0.5)
PROBE_S = (0.05, 0.3)
TRIAL_S = (0.2, 1.0)
START_S = (0.05, 0.3)
SWITCH_S = (0.01, 0.05)
MAX_SPEC = 512 * 1024

_log = logging.getLogger(__name__)


class Surroundings(Protocol):
    """What the machines need of their device's life."""

    disk: Disk
    board: BoardClass
    draws: random.Random
    transfers: Transfers
    trust: DeviceTrust

    def now(self) -> Instant: ...
    def later(self, seconds: float, work: Callable[[], None]) -> None: ...
    def report(self, app: str, progress: Progress) -> None: ...
    def traits(self, bundle: str) -> ModelTraits: ...
    def refuses(self, bundle: str) -> bool: ...
    def count(self, code: str) -> None: ...


class _Contents(msgspec.Struct, frozen=True):
    """A bundle without its weights."""

    manifest: Manifest
    spec: ModelSpec
    evaluation: Evaluation
    probe: ProbeSet


class _Download(msgspec.Struct):
    """What an app waits for."""

    fetch: Fetch
    missing: set[str]
    received: int
    release: int


class Apps:
    """All apps of one device in one life. `running` is what each pipeline answers with."""

    def __init__(self, life: Surroundings) -> None:
        self._life = life
        self._states: dict[str, AppSlots] = {}
        self._downloads: dict[str, _Download] = {}
        self._awaiting: dict[str, Fetch] = {}
        self._turns: dict[str, int] = {}
        self._garbage = False
        self.running: dict[str, Slot] = {}
        self.changed = True

    # --- what comes in ----------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Take up every app where the disk says it was."""
        for name in self._life.disk.names(_PREFIX):
            app = name.removeprefix(_PREFIX)
            self._states[app] = restore(app, self._life.disk.get(name))
            self.event(app, Resume())

    def deploy(self, deployment: Deployment) -> None:
        """Each app gets its target; apps that are not named are taken away."""
        for spec in deployment.apps:
            self._states.setdefault(spec.app, AppSlots(spec.app))
            feed_to = tuple(other.app for other in deployment.apps if other.input_from == spec.app)
            self.event(spec.app, Deploy(Target(deployment.seq, spec, deployment.rollout, feed_to, self._release(spec.bundle))))
        named = {spec.app for spec in deployment.apps}
        for app in [known for known in self._states if known not in named]:
            self.event(app, Undeploy(deployment.seq))

    def event(self, app: str, event: Event) -> None:
        """One step of one app: persist first, then the effects in their order."""
        try:
            after, effects = step(self._states[app], event, self._life.now())
        except OrderError as error:
            self._life.count(error.code)
            _log.warning("%s: %s", app, error.what)
            return
        for effect in effects:
            if isinstance(effect, Persist):
                self._life.disk.put(f"{_PREFIX}{app}", encode(effect.state))
                before, self._states[app] = self._states[app], effect.state
                self.changed = self.changed or app_state(before) != app_state(effect.state)
                continue
            try:
                self._run(app, effect)
            except JetfleetError as error:
                self._fault(app, after, error)

    def tick(self) -> float:
        """Let time pass; seconds until the next tick is due."""
        wait = 3600.0
        for app, state in list(self._states.items()):
            due = next_tick(state, self._life.now())
            if due is not None and due <= 0:
                self.event(app, Tick())
                due = next_tick(self._states[app], self._life.now())
            wait = wait if due is None else min(wait, due)
        self._collect()
        return wait

    def blob_done(self, blob: str) -> None:
        for app, download in list(self._downloads.items()):
            download.missing.discard(blob)
            if not download.missing:
                self._complete(app)

    def blob_failed(self, blob: str, error: JetfleetError) -> None:
        for app, download in list(self._downloads.items()):
            if blob in download.missing:
                del self._downloads[app]
                self._fault(app, self._states[app], error)

    def try_again(self) -> None:
        """New metadata may vouch for what was waited for."""
        awaiting, self._awaiting = self._awaiting, {}
        for app, fetch in awaiting.items():
            self._fetch(app, fetch)

    # --- what is ----------------------------------------------------------------------------------------------

    @property
    def states(self) -> dict[str, AppSlots]:
        return dict(self._states)

    def inventory(self) -> tuple[AppState, ...]:
        return tuple(app_state(state) for _, state in sorted(self._states.items()) if state.target or state.champion)

    # --- effects ----------------------------------------------------------------------------------------------

    def _run(self, app: str, effect: Effect) -> None:
        if isinstance(effect, Fetch):
            self._fetch(app, effect)
        elif isinstance(effect, Choose):
            self._answer(app, CHOOSE_S, lambda: self._choose(effect.bundle))
        elif isinstance(effect, Probe):
            self._answer(app, PROBE_S, lambda: self._probe(effect.slot.bundle))
        elif isinstance(effect, Try):
            self._answer(app, TRIAL_S, lambda: self._try(app, effect))
        elif isinstance(effect, (StartPipeline, Back)):
            self._start(app, effect.slot)
        elif isinstance(effect, Switch):
            self._switch(app, effect.bundle)
        elif isinstance(effect, StopPipeline):
            self.running.pop(app, None)
        elif isinstance(effect, Abandon):
            self._abandon(app)
        elif isinstance(effect, SendReport):
            self._life.report(app, effect.progress)
        elif isinstance(effect, CollectGarbage):
            self._garbage = True
        else:
            assert isinstance(effect, (Configure, DropChallenger, Watch)), effect  # noqa: S101 - a virtual camera has nothing to set or unload

    def _fault(self, app: str, state: AppSlots, error: JetfleetError) -> None:
        self._life.count(error.code)
        if state.challenger is not None:
            model = isinstance(error, (MalformedError, UntrustedError))
            bundle = state.challenger.bundle
            self._life.later(0.0, lambda: self.event(app, Faulted(bundle, error.code, error.what, model)))

    def _answer(self, app: str, seconds: tuple[float, float], make: Callable[[], Event]) -> None:
        """Work that takes a while; its answer counts unless other work of the app was begun since, or it was given up."""
        self._turns[app] = turn = self._turns.get(app, 0) + 1

        def done() -> None:
            if self._turns[app] == turn:
                self.event(app, make())

        self._life.later(self._life.draws.uniform(*seconds), done)

    def _abandon(self, app: str) -> None:
        self._turns[app] = self._turns.get(app, 0) + 1
        self._downloads.pop(app, None)
        self._awaiting.pop(app, None)
        self._life.transfers.cancel_except({blob for download in self._downloads.values() for blob in download.missing})

    def _release(self, bundle: str) -> int:
        """The bundle's place among the publications of its model, 0 while no signed target tells."""
        try:
            return self._life.trust.bundle(bundle).release
        except UntrustedError:
            return 0

    # --- fetching ---------------------------------------------------------------------------------------------

    def _fetch(self, app: str, fetch: Fetch) -> None:
        try:
            target = self._life.trust.bundle(fetch.bundle)
        except UntrustedError:
            self._awaiting[app] = fetch  # the metadata that vouches for it comes later
            return
        infos = target.every()
        missing = {blob for blob in fetch.blobs if blob not in self._life.disk.blobs}
        strange = missing - infos.keys()
        if strange:
            raise UntrustedError("bundle.unsigned", f"blob {min(strange)} of the bundle is not in its signed target")
        self._downloads[app] = _Download(fetch, missing, sum(infos[blob].size for blob in missing), target.release)
        if not missing:
            self._complete(app)
        for blob in sorted(missing):
            self._life.transfers.want(blob, infos[blob])

    def _complete(self, app: str) -> None:
        download = self._downloads.pop(app)
        fetch = download.fetch
        try:
            following = self._following(fetch)
        except JetfleetError as error:
            self._fault(app, self._states[app], error)
            return
        news = Fetched(fetch.bundle, fetch.step, following, download.received, download.release)
        self._life.later(0.0, lambda: self.event(app, news))

    def _following(self, fetch: Fetch) -> tuple[str, ...]:
        """The blobs of the next step, as the content of this one says."""
        if fetch.step == "manifest":
            manifest = decode_manifest(self._life.disk.blobs[fetch.bundle])
            named = [manifest.only(kind) for kind in (SPEC, EVALUATION, PROBE_INDEX)]
            return tuple(layer.blob for layer in (*named, *(one for one in manifest.layers if one.media_type == PROBE_IMAGE)))
        if fetch.step == "parts":
            contents = self._contents(fetch.bundle)
            wanted = worth_measuring(contents.spec, contents.evaluation, self._life.board.capability)
            return tuple(dict.fromkeys(contents.spec.variant(one.variant).digest[7:] for one in wanted))
        return ()

    def _contents(self, bundle: str) -> _Contents:
        blobs = self._life.disk.blobs
        manifest = decode_manifest(blobs[bundle])
        spec = decode(blobs[manifest.only(SPEC).blob], ModelSpec, limit=MAX_SPEC)
        evaluation = decode(blobs[manifest.only(EVALUATION).blob], Evaluation, limit=MAX_SPEC)
        probe = decode(blobs[manifest.only(PROBE_INDEX).blob], ProbeSet, limit=MAX_SPEC)
        check_contents(manifest, spec, evaluation, probe)
        return _Contents(manifest, spec, evaluation, probe)

    def _collect(self) -> None:
        """Drop blobs that no slot holds, when nothing is being fetched."""
        if not self._garbage or self._downloads or self._life.transfers.busy:
            return
        self._garbage = False
        keep = {blob for state in self._states.values() for blob in blobs_in_use(state)}
        for blob in [one for one in self._life.disk.blobs if one not in keep]:
            del self._life.disk.blobs[blob]
        for blob in [one for one in self._life.disk.parts if one not in keep]:
            self._life.disk.discard(blob)

    # --- the virtual camera and accelerator -------------------------------------------------------------------

    def _choose(self, bundle: str) -> Event:
        contents, life = self._contents(bundle), self._life
        able = worth_measuring(contents.spec, contents.evaluation, life.board.capability)
        figures = {one.name: measured(life.board, life.traits(bundle), one, life.draws) for one in able}
        choice = choose(contents.spec, contents.evaluation, life.board.capability, figures)
        if choice.chosen is None:
            return Chosen(bundle, None, reason="; ".join(f"{row.candidate.name}: {row.reason}" for row in choice.rows[:8]))
        return Chosen(bundle, choice.chosen, contents.spec.variant(choice.chosen.variant).digest[7:], choice.rows[0].reason)

    def _probe(self, bundle: str) -> Event:
        bound = self._contents(bundle).probe.min_agreement
        agreement = 0.4 + 0.2 * self._life.draws.random() if self._life.refuses(bundle) else 0.97 + 0.03 * self._life.draws.random()
        return Probed(bundle, agreement, bound=bound)

    def _try(self, app: str, effect: Try) -> Event:
        champion = self._states[app].champion
        old = self._life.traits(champion.bundle) if champion else ModelTraits()
        numbers = trial_numbers(self._life.board, old, self._life.traits(effect.slot.bundle), effect.policy.frames, self._life.draws)
        return Compared(effect.slot.bundle, numbers)

    def _start(self, app: str, slot: Slot) -> None:
        if slot.weights not in self._life.disk.blobs:
            raise MalformedError("store.missing", f"{app}: the weights of {slot.version} are not on this board")
        self.running[app] = slot

        def ran() -> None:
            if self.running.get(app) == slot:
                self.event(app, Ran(slot.bundle))

        self._life.later(self._life.draws.uniform(*START_S), ran)

    def _switch(self, app: str, bundle: str) -> None:
        def switched() -> None:
            challenger = self._states[app].challenger
            if challenger is not None and challenger.bundle == bundle:
                self.running[app] = challenger
                self.event(app, TookOver(bundle, gap_ms=self._life.draws.uniform(5.0, 40.0)))

        self._life.later(self._life.draws.uniform(*SWITCH_S), switched)
