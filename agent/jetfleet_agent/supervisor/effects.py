"""Runs the effects of the slot machines over the board's ports. It decides nothing: it does, and it answers with events.

Each effect says what should be, so each may run again. An error of a port becomes a `Faulted` event about the challenger; a
champion whose files are damaged is fetched again and then started.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from jetfleet_agent import ipc
from jetfleet_contract.app_config import PreviewSink, SinkSpec
from jetfleet_contract.bundle import Evaluation, ModelSpec, ProbeSet, TaskSpec
from jetfleet_contract.conditions import Conditions
from jetfleet_contract.engines import EngineFile
from jetfleet_contract.errors import InputError, JetfleetError, MalformedError, StorageError, UntrustedError
from jetfleet_contract.evaluation import EvaluationResult
from jetfleet_contract.messages import AppConfig, Instant, Source, TrialPolicy
from jetfleet_contract.policy import Candidate, Choice
from jetfleet_contract.sink_rules import MAX_TOKEN, MIN_TOKEN, SECRET
from jetfleet_contract.slot_records import (
    Abandon,
    AppSlots,
    Back,
    Choose,
    Chosen,
    CollectGarbage,
    Configure,
    DropChallenger,
    Effect,
    Faulted,
    Fetch,
    Persist,
    Probe,
    Probed,
    Rechosen,
    SendReport,
    Setup,
    Slot,
    StartPipeline,
    StopPipeline,
    Switch,
    Try,
    Watch,
)
from jetfleet_contract.slots import live_slot
from jetfleet_contract.topics import check_name
from jetfleet_contract.trials import Need, Room, predict_memory
from jetfleet_contract.tuning import Tuning

from .bundle_reader import Blobs, BundleReader, Contents, blob_of_digest
from .downloads import Bundles, Downloads, Fetching, Reports
from .engine_ports import NoEngines
from .footing import Footing
from .inbox import AppEvent
from .sealed_secrets import NoSecrets

log = logging.getLogger(__name__)

_BOARD_FAULTS = ("evaluate.disk", "evaluate.stopped")


class Choosing(Protocol):
    """What is used of a Chooser."""

    def wanted(self, spec: ModelSpec, evaluation: Evaluation) -> tuple[Candidate, ...]: ...
    def choose(self, spec: ModelSpec, evaluation: Evaluation, paths: Mapping[str, Path], images: tuple[Path, ...],
               done: Callable[[Choice], None]) -> None: ...
    def probe_model(self, model_path: Path, candidate: Candidate, spec: ModelSpec, probe: ProbeSet, images: tuple[Path, ...],
                    done: Callable[[EvaluationResult, float], None]) -> None: ...
    def tuning(self, spec: ModelSpec, candidate: Candidate) -> Tuning: ...
    def eco(self, spec: ModelSpec, candidate: Candidate) -> Tuning | None: ...
    def chosen_under(self, name: str, version: str) -> Conditions | None: ...
    def lean(self, spec: ModelSpec, candidate: Candidate) -> Candidate | None: ...


class Running(Protocol):
    """What is used of Pipelines here."""

    @property
    def feed_folder(self) -> Path: ...
    def start(self, name: str, run: ipc.Run) -> None: ...
    def configure(self, name: str, setup: Setup, sources: ipc.Configure) -> None: ...
    def try_beside(self, name: str, model: ipc.Model, policy: TrialPolicy) -> None: ...
    def switch(self, name: str, bundle: str, keep_s: float) -> None: ...
    def watch(self, name: str, bundle: str, policy: TrialPolicy, old_p99_ms: float) -> None: ...
    def footing(self, name: str) -> Footing: ...
    def drop(self, name: str, bundle: str) -> None: ...
    def back(self, name: str, run: ipc.Run) -> None: ...
    def stop(self, name: str) -> None: ...


class Revealing(Protocol):
    """What is used of a SecretStore here."""

    def reveal(self, name: str) -> str: ...


class Compiling(Protocol):
    """What is used of Engines here."""

    def engine(self, app: str, slot: Slot, spec: ModelSpec, candidate: Candidate, tuning: Tuning, threads: int) -> EngineFile | None: ...
    def held(self, bundles: set[str]) -> set[str]: ...


class RunSettings(msgspec.Struct, frozen=True):
    """What the board's own config adds to every pipeline. `local_sources` maps the NAME of ``local:NAME`` to an address, which may be a
    ``secret:NAME`` in turn. `files` is the folder of all result files, `sockets` that of result sockets, `kernels` the agent's state
    folder, below which signed kernels lie."""

    local_sources: dict[str, str] = {}
    threads: int = 0
    window_s: float = 10.0
    files: str = ""
    files_mb: int = 1024
    sockets: str = ""
    preview_address: str = "127.0.0.1"
    stuck_s: float = 30.0
    kernels: str = ""

    def places(self, app: str) -> ipc.SinkPlaces:
        """Where this app's sinks may write and listen."""
        files = str(Path(self.files) / check_name("app", app)) if self.files else ""
        return ipc.SinkPlaces(files, self.files_mb, self.sockets, self.preview_address)


class EffectRunner:
    """See the module. All methods belong to the control thread.

    Args:
        post: takes `AppEvent`s, from any thread.
        clock: for the time of reports.
        free_mb: memory that new work may take now, MB; 0: nobody knows.
    """

    def __init__(self, bundles: Bundles, store: Blobs, fetcher: Fetching, chooser: Choosing, pipelines: Running, reports: Reports,
                 post: Callable[[AppEvent], None], clock: Callable[[], Instant], settings: RunSettings,
                 secrets: Revealing | None = None, free_mb: Callable[[], float] = lambda: 0.0,
                 engines: Compiling | None = None) -> None:
        self._engines: Compiling = engines or NoEngines()
        self._free_mb = free_mb
        self._store = store
        self._reader = BundleReader(store)
        self._chooser = chooser
        self._pipelines = pipelines
        self._reports = reports
        self._post = post
        self._clock = clock
        self._settings = settings
        self._secrets = secrets or NoSecrets()
        self._turns: dict[str, int] = {}
        self._bundles = bundles
        self._downloads = Downloads(bundles, store, fetcher, reports, chooser.wanted, self._start, post, clock,
                                    self._engines.held)
        self.choices: dict[str, Choice] = {}

    def know(self, states: Callable[[], Iterable[AppSlots]]) -> None:
        """Where to ask for the durable state of every app; before that nothing may run."""
        self._downloads.know(states)

    def counts(self, item: AppEvent) -> bool:
        """False for an answer of work that was given up since."""
        return item.turn in (0, self._turns.get(item.app, 0))

    def run(self, app: str, state: AppSlots, effect: Effect) -> None:
        """Run one effect of an app whose new state is `state`; never raises a JetfleetError."""
        try:
            self._run(app, state, effect)
        except JetfleetError as error:
            log.warning("%s: %s", app, error.what)
            self._failed(app, state, effect, error)

    def _run(self, app: str, state: AppSlots, effect: Effect) -> None:  # noqa: C901 - one line an effect
        match effect:
            case Fetch():
                self._downloads.fetch(app, state, effect)
            case Choose():
                self._choose(app, effect.bundle)
            case Probe():
                self._probe(app, effect.slot)
            case StartPipeline():
                self._start(app, effect.slot)
            case Configure():
                self._pipelines.configure(app, effect.setup, self._configure_of(effect.setup))
            case Try():
                self._pipelines.try_beside(app, self._model(app, effect.slot), effect.policy)
            case Switch():
                self._pipelines.switch(app, effect.bundle, effect.keep_s)
            case Watch():
                self._pipelines.watch(app, effect.bundle, effect.policy, effect.old_p99_ms)
            case DropChallenger():
                self._pipelines.drop(app, effect.bundle)
            case Back():
                self._pipelines.back(app, self._run_of(app, effect.slot))
            case StopPipeline():
                self._pipelines.stop(app)
            case Abandon():
                self._abandon(app)
            case SendReport():
                self._reports.add(app, effect.progress, self._clock().wall)
            case CollectGarbage():
                self._downloads.ask_for_collection()
            case Persist():
                raise AssertionError("Persist is the updater's")

    def _failed(self, app: str, state: AppSlots, effect: Effect, error: JetfleetError) -> None:
        champion = state.champion
        if champion and isinstance(effect, (StartPipeline, Back)) and effect.slot.bundle == champion.bundle:
            self._downloads.damaged(app, state, champion, error)
        elif state.challenger is not None:
            self._downloads.fault(app, state.challenger.bundle, error)

    # --- downloads ------------------------------------------------------------------------------------------

    def release(self, bundle: str) -> int:
        """The bundle's place among the publications of its model, 0 while no signed target tells."""
        try:
            return self._bundles.bundle(bundle).release
        except UntrustedError:
            return 0

    def blob_done(self, blob: str) -> None:
        """A blob is in the store."""
        self._downloads.blob_done(blob)

    def blob_failed(self, blob: str, error: JetfleetError) -> None:
        """A blob cannot be had."""
        self._downloads.blob_failed(blob, error)

    def try_again(self) -> None:
        """New signed metadata, or the broker is back."""
        self._downloads.try_again()

    def collect(self) -> None:
        """Drop unused blobs, if an effect asked for it."""
        self._downloads.collect()

    def doubt(self, state: AppSlots) -> None:
        """Read the app's models again before they are started next: a pipeline crashed, which a damaged file explains too."""
        for slot in (state.champion, state.challenger):
            if slot is not None and slot.weights:
                self._store.doubt(slot.weights)

    def _abandon(self, app: str) -> None:
        self._turns[app] = self._turns.get(app, 0) + 1
        self._downloads.abandon(app)

    # --- the board's own programs ---------------------------------------------------------------------------

    def _choose(self, app: str, bundle: str) -> None:
        contents = self._reader.contents(bundle)
        turn = self._next_turn(app)

        def done(choice: Choice) -> None:
            self.choices[app] = choice
            self._post(AppEvent(app, _chosen(bundle, choice, contents.spec), turn))

        self._chooser.choose(contents.spec, contents.evaluation, self._weights(contents), contents.images, done)

    def choose_again(self, app: str, slot: Slot, why: str) -> None:
        """Measure the champion's candidates once more; another one that wins, and passes the signed probe set, becomes the way it runs.

        Raises:
            StorageError, MalformedError, UntrustedError: the bundle cannot be read.
        """
        contents = self._reader.contents(slot.bundle)
        paths = self._weights(contents)
        turn = self._next_turn(app)

        def done(choice: Choice) -> None:
            self.choices[app] = choice
            best = choice.chosen
            if best is None or best == slot.candidate:
                log.info("%s stays as it is: %s", app, why)
                return
            self._chooser.probe_model(paths[best.variant], best, contents.spec, contents.probe, contents.images,
                                      lambda result, agreement: probed(best, result, agreement))

        def probed(best: Candidate, result: EvaluationResult, agreement: float) -> None:
            if result.error or agreement < contents.probe.min_agreement:
                log.warning("%s stays as it is: %s does not pass the probe set here (%s, agreement %.3f)", app, best.name,
                            result.error or "answers differ", agreement)
                return
            weights = blob_of_digest(contents.spec.variant(best.variant).digest)
            self._post(AppEvent(app, Rechosen(slot.bundle, best, weights, f"chosen anew: {why}"), turn))

        self._chooser.choose(contents.spec, contents.evaluation, paths, contents.images, done)

    def _weights(self, contents: Contents) -> dict[str, Path]:
        blobs = {variant.name: blob_of_digest(variant.digest) for variant in contents.spec.variants}
        return {name: self._store.verified(blob) for name, blob in blobs.items() if self._store.has(blob)}

    def _probe(self, app: str, slot: Slot) -> None:
        contents = self._reader.contents(slot.bundle)
        if slot.candidate is None:
            raise MalformedError("slots.candidate", f"{app} has no candidate to probe")
        turn = self._next_turn(app)
        weights = self._store.verified(slot.weights)

        def done(result: EvaluationResult, agreement: float) -> None:
            footing = self._pipelines.footing(app)
            room = Room(_need(result, weights.stat().st_size, contents.spec.task), self._free_mb(), footing.memory_mb)
            answer = _probed(slot.bundle, result, agreement, contents.probe.min_agreement)
            if isinstance(answer, Probed):
                answer = msgspec.structs.replace(answer, room=room, champion_p99_ms=footing.work_p99_ms)
            self._post(AppEvent(app, answer, turn))

        self._chooser.probe_model(weights, slot.candidate, contents.spec, contents.probe, contents.images, done)

    def _next_turn(self, app: str) -> int:
        self._turns[app] = self._turns.get(app, 0) + 1
        return self._turns[app]

    # --- pipelines ------------------------------------------------------------------------------------------

    def _start(self, app: str, slot: Slot) -> None:
        self._pipelines.start(app, self._run_of(app, slot))

    def load_anew(self, app: str, state: AppSlots | None) -> None:
        """The app's process has ended: its next start loads what is to be loaded now, which may be another engine or none."""
        live = live_slot(state) if state is not None else None
        if live is not None:
            self._start(app, live)

    def _model(self, app: str, slot: Slot) -> ipc.Model:
        if slot.candidate is None:
            raise StorageError("slots.candidate", f"no candidate is stored for {slot.name} {slot.version}")
        spec = self._reader.spec(slot.bundle)
        path = str(self._store.verified(slot.weights))
        tuning = self._chooser.tuning(spec, slot.candidate)
        eco = self._chooser.eco(spec, slot.candidate)
        lean = self._lean(slot, spec, slot.candidate)
        engine = self._engines.engine(app, slot, spec, slot.candidate, tuning, self._settings.threads)
        return ipc.Model(slot.bundle, slot.version, slot.candidate, path, spec, self._settings.threads, tuning, eco, engine, lean,
                         self._settings.kernels)

    def _lean(self, slot: Slot, spec: ModelSpec, chosen: Candidate) -> ipc.Way | None:
        """The cheaper way, when its weights are sound and this slot keeps them."""
        lean = self._chooser.lean(spec, chosen)
        blob = blob_of_digest(spec.variant(lean.variant).digest) if lean is not None else ""
        if lean is None or blob not in (slot.weights, *slot.blobs) or not self._store.has(blob):
            return None
        with contextlib.suppress(StorageError, MalformedError):  # what serves a hot day must not keep the app from running today
            return ipc.Way(lean, str(self._store.verified(blob)), self._chooser.tuning(spec, lean), self._chooser.eco(spec, lean))
        return None

    def _run_of(self, app: str, slot: Slot) -> ipc.Run:
        setup = slot.setup
        return ipc.Run(self._model(app, slot), self._opened_config(setup.config), self.resolve(setup.sources), setup.input_from,
                       setup.feed_to, str(self._pipelines.feed_folder), self._settings.window_s, self._settings.places(app),
                       self._settings.stuck_s, setup.runner)

    def _configure_of(self, setup: Setup) -> ipc.Configure:
        return ipc.Configure(self._opened_config(setup.config), self.resolve(setup.sources), setup.feed_to)

    def _opened_config(self, config: AppConfig) -> AppConfig:
        """A new object, with the tokens of previews opened. One that is not known, or does not fit, stays closed: the pipeline then leaves
        that preview out, and says so. Addresses of webhooks stay closed: the pipeline has no network."""
        sinks = tuple(self._opened_sink(spec) for spec in config.sinks)
        return msgspec.structs.replace(config, sinks=sinks)

    def _opened_sink(self, spec: SinkSpec) -> SinkSpec:
        if not isinstance(spec, PreviewSink) or not spec.token.startswith(SECRET):
            return spec
        try:
            token = self._secrets.reveal(spec.token.removeprefix(SECRET))
        except JetfleetError as error:
            log.warning("a preview's token is not known: %s [%s]", error.what, error.code)
            return spec
        return msgspec.structs.replace(spec, token=token) if MIN_TOKEN <= len(token) <= MAX_TOKEN else spec

    def resolve(self, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        """The sources with ``local:NAME`` looked up in this board's config, and ``secret:NAME`` opened. What comes out may hold a password:
        it goes to the pipeline, never into a log, a report or the journal.

        Raises:
            InputError: `source.unknown`, `source.not-here` (a GStreamer pipeline from elsewhere: it may write files and load code, so only
            this board's config may name one), `secret.unknown`, `secret.address` (a secret that is no network address).
            UntrustedError: `secret.sealed`.
        """
        return tuple(self._opened(self._resolved(source)) for source in sources)

    def _opened(self, source: Source) -> Source:
        if not source.uri.startswith("secret:"):
            return source
        name = source.uri.removeprefix("secret:")
        address = self._secrets.reveal(name)
        if "://" not in address or _is_pipeline(address):  # what reads it redacts addresses only; anything else might be quoted in an error
            raise InputError("secret.address", f"secret {name[:63]!r} is no address of a camera",
                             remedy="set it to the whole address, as rtsp://user:password@host/path")
        return msgspec.structs.replace(source, uri=address)

    def _resolved(self, source: Source) -> Source:
        if _is_pipeline(source.uri):
            raise InputError("source.not-here",
                             f"source {source.name[:63]!r}: a GStreamer pipeline is taken from the board's own config only",
                             remedy='name it under [local_sources] of the agent\'s config, and write local:NAME in the deployment')
        if not source.uri.startswith("local:"):
            return source
        name = source.uri.removeprefix("local:")
        address = self._settings.local_sources.get(name)
        if address is None:
            known = ", ".join(self._settings.local_sources)
            raise InputError("source.unknown", f"this board has no local source {name[:63]!r}; it has: {known or 'none'}",
                             remedy="name it under [local_sources] of the agent's config")
        return msgspec.structs.replace(source, uri=address)


def _is_pipeline(uri: str) -> bool:
    return uri.strip().lower().startswith("gst:")


def _chosen(bundle: str, choice: Choice, spec: ModelSpec) -> Chosen:
    best = choice.chosen
    if best is None:
        reasons = "; ".join(f"{row.candidate.name}: {row.reason}" for row in choice.rows[:8])
        return Chosen(bundle, None, reason=f"no variant runs on this board: {reasons}")
    reason = next((row.reason for row in choice.rows if row.verdict == "chosen"), "")
    return Chosen(bundle, best, blob_of_digest(spec.variant(best.variant).digest), reason)


def _probed(bundle: str, result: EvaluationResult, agreement: float, bound: float) -> Probed | Faulted:
    if result.error in _BOARD_FAULTS:
        return Faulted(bundle, result.error, result.detail)
    return Probed(bundle, agreement, result.error, result.detail, bound, unstarted=result.predicted_mb > 0)


def _need(result: EvaluationResult, weights: int, task: TaskSpec) -> Need:
    """What the trial will take, from the process that has just probed the model; its own prediction when that was not started."""
    if result.predicted_mb:
        return Need(result.predicted_mb, result.predicted_mb)
    return predict_memory(weights, task.input.width * task.input.height, peak_mb=result.peak_rss_mb, empty_mb=result.empty_rss_mb)
