"""One app's life: orders from the supervisor in, stages, sources and trials steered, events out. Runs in the main thread.

Everything that other threads have to say (a trial ended, a swap's first result is out, a model broke, a challenger is loaded) comes
through the same inbox as the orders, so there is one place that decides and no lock in it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import queue
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Union

import msgspec

from jetfleet_agent.ipc import (
    Answered,
    Back,
    Configure,
    Drop,
    Failed,
    Heat,
    Model,
    Order,
    Pace,
    Raised,
    Run,
    Running,
    SourceEvent,
    Stop,
    Switch,
    Switched,
    TrialResult,
    Try,
    Watch,
    Window,
)
from jetfleet_agent.pipeline.answers import Answers
from jetfleet_agent.pipeline.capture import Capture
from jetfleet_agent.pipeline.cascade import CascadeStep
from jetfleet_agent.pipeline.decoding import Swapped
from jetfleet_agent.pipeline.drift import DriftWatch
from jetfleet_agent.pipeline.feed import FeedReceiver, socket_path
from jetfleet_agent.pipeline.fitting import Refitted, frugality, load_fitting, refit
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.kpis import KpiStep
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.meter import Meter
from jetfleet_agent.pipeline.rhythm import AgeWatch
from jetfleet_agent.pipeline.shadows import Shadows
from jetfleet_agent.pipeline.sinks import Sinks
from jetfleet_agent.pipeline.stages import Broken, Stages
from jetfleet_agent.pipeline.tracking import TrackStep
from jetfleet_agent.pipeline.trial import Trial
from jetfleet_agent.pipeline.watchdog import Watchdog
from jetfleet_contract.errors import InputError, JetfleetError, RuntimeFailure
from jetfleet_contract.floor import after_window
from jetfleet_contract.messages import AppConfig, Source
from jetfleet_contract.trials import TrialNumbers

log = logging.getLogger(__name__)

FIRST_FRAME_S = 5.0
_TICK_S = 0.25


class TrialEnded(msgspec.Struct, frozen=True):
    trial: Trial


class Reloaded(msgspec.Struct, frozen=True):
    """The previous model was loaded again from disk (or was not: `error`)."""

    model: LoadedModel | None
    error: JetfleetError | None = None


Note = Union[Order, TrialEnded, Reloaded, Refitted, Swapped, Broken, None]


class Controller:
    """Runs until Stop, until the supervisor is gone (None in the inbox), or until the model fails.

    Args:
        send: hands an event to the supervisor; never waits.
        cascade: asks the host about what the model is not sure of.
        results_dropped: results that the link dropped since the last call.
        overlap: see `Stages`.
    """

    def __init__(self, app: str, inbox: queue.SimpleQueue[Note], send: Callable[[msgspec.Struct], None], sinks: Sinks, cascade: CascadeStep,
                 results_dropped: Callable[[], int], overlap: bool | None = None) -> None:
        self._app = app
        self._inbox = inbox
        self._send = send
        self._sinks = sinks
        self._cascade = cascade
        self._meter = Meter(app)
        self._kpis = KpiStep(app, self._meter, send)
        self._drift = DriftWatch(send, self._meter)
        self._answers = Answers((TrackStep(send), self._kpis, self._drift, cascade, sinks))
        self._results_dropped = results_dropped
        self._overlap = overlap
        self._ages = AgeWatch()
        self._run: Run | None = None
        self._stages: Stages | None = None
        self._captures: dict[str, Capture] = {}
        self._pace = Pace()
        self._fitting = False
        self._watchdog = Watchdog(send)
        self._receiver: FeedReceiver | None = None
        self._shadows = Shadows(lambda trial: self._inbox.put(TrialEnded(trial)), send)
        self._previous: LoadedModel | None = None
        self._previous_until = 0.0
        self._replaced: list[LoadedModel] = []
        self._swap_deadline = 0.0
        self._running_deadline = 0.0
        self._window_began = (time.monotonic(), time.time())

    def deliver(self, frame: Frame, model: LoadedModel) -> None:
        """Decode thread: one answered frame."""
        self._answers.take(frame, model, time.monotonic())

    def run(self) -> int:
        """Returns the process's exit code: 0, or that of the error that ended the model."""
        try:
            while True:
                try:
                    note = self._inbox.get(timeout=_TICK_S)
                except queue.Empty:
                    self._tick()
                    continue
                if note is None or isinstance(note, Stop):
                    return 0
                if isinstance(note, Broken):
                    return self._fail(RuntimeFailure(note.code, note.detail))
                self._handle(note)
                self._tick()
        except JetfleetError as error:
            return self._fail(error)
        except Exception as error:
            log.exception("pipeline of %s", self._app)
            return self._fail(RuntimeFailure("pipeline.crash", f"{type(error).__name__}: {error}"[:300]))
        finally:
            self._stop_all()
            self._answers.close()

    def _fail(self, error: JetfleetError) -> int:
        bundle = self._stages.champion.model.bundle if self._stages else self._run.model.bundle if self._run else ""
        self._send(Failed(bundle, error.code, error.what))
        return error.exit_code

    def _handle(self, note: Order | TrialEnded | Reloaded | Refitted | Swapped) -> None:
        if isinstance(note, Run):
            self._start(note)
        elif isinstance(note, TrialEnded):
            if self._stages is not None:
                self._trial_ended(self._stages, note.trial)
        elif isinstance(note, Swapped):
            self._swapped(note)
        elif isinstance(note, Reloaded):
            self._reloaded(note)
        elif isinstance(note, Refitted):
            self._refitted(note)
        elif isinstance(note, Answered):
            self._cascade.answered(note)
        elif isinstance(note, Heat):
            self._shadows.throttled(board=note.throttled)
        elif self._stages is None or self._run is None:
            log.warning("%s before run: not done", type(note).__name__)
        else:
            self._obey(self._run, self._stages, note)

    def _obey(self, run: Run, stages: Stages, order: Order) -> None:
        """An order to an app that runs."""
        if isinstance(order, Configure):
            self._configure(run, stages, order)
        elif isinstance(order, Try):
            self._shadows.begin_trial(stages, order, self._paced(run.config))
        elif isinstance(order, Switch):
            self._switch(stages, order)
        elif isinstance(order, Watch):
            self._shadows.watch_alone(stages, order)
        elif isinstance(order, Drop):
            self._shadows.drop(stages, order.bundle)
        elif isinstance(order, Back):
            self._back(stages)
        elif isinstance(order, Pace):
            self._set_pace(run, stages, order)

    # --- run, configure, stop ----------------------------------------------------------------------------------

    def _start(self, order: Run) -> None:
        self._stop_all()
        self._run = order
        self._fitting = False
        champion, config, refused = load_fitting(lambda config: LoadedModel(order.model, config), order.config)
        for error in refused:
            self._refuse(error)
        if champion.refusal is not None:
            self._send(Raised("", True, champion.refusal.code, champion.refusal.what))
        self._run = order = msgspec.structs.replace(order, config=config)
        stages = self._stages = Stages(champion, self._meter, self.deliver, self._inbox.put, self._overlap)
        self._sinks.place(order.places)
        self._answers.configure(order.config)
        self._sinks.feed_to(order.feed, order.feed_to)
        gc.collect()
        gc.freeze()  # what lives as long as the process is not looked through again: a full collection would hold up a frame
        stages.start()
        self._running_deadline = time.monotonic() + FIRST_FRAME_S
        if order.input_from:
            self._receiver = FeedReceiver(socket_path(Path(order.feed), self._app), stages.fed)
        self._set_sources(stages, order.sources)

    def _refuse(self, error: JetfleetError) -> None:
        log.error("configuration refused: %s", error)
        self._send(SourceEvent("config", False, error.code, error.what))

    def _configure(self, run: Run, stages: Stages, order: Configure) -> None:
        try:
            self._reconfigure(stages, order.config)
            self._answers.configure(order.config)
        except InputError as error:
            self._refuse(error)
            return
        self._run = msgspec.structs.replace(run, config=order.config, sources=order.sources, feed_to=order.feed_to)
        self._sinks.feed_to(run.feed, order.feed_to)
        self._set_sources(stages, order.sources)
        self._fit(stages)

    def _reconfigure(self, stages: Stages, config: AppConfig) -> None:
        """Every loaded model has these settings, as far as the pace lets it."""
        config = self._paced(config)
        stages.champion.reconfigure(config)
        if self._previous is not None:
            with contextlib.suppress(InputError):  # the old model may be of another kind, without this option
                self._previous.reconfigure(config)
        self._shadows.reconfigure(config)

    def _paced(self, config: AppConfig) -> AppConfig:
        return msgspec.structs.replace(config, tile=None) if self._pace.whole else config

    def _fit(self, stages: Stages) -> None:
        """Batches of another size, and other settings of the runtime, need another session of the same model: one at a time."""
        champion, run = stages.champion, self._run
        if run is None or self._fitting:
            return
        eco, lean = frugality(champion.model, self._pace)
        if (run.config.batching.most, eco, lean) != (champion.batching.most, champion.eco, champion.lean):
            self._fitting = True
            refit(champion, self._paced(run.config), self._inbox.put, eco=eco, lean=lean)

    def _refitted(self, note: Refitted) -> None:
        stages, run = self._stages, self._run
        if stages is None or run is None or note.old is not stages.champion:
            self._fitting = False
            if note.model is not None:
                note.model.deactivate()
            if stages is not None:
                self._fit(stages)
        elif note.error is not None:
            self._fitting = False
            self._refuse(note.error)
            self._run = msgspec.structs.replace(run, config=msgspec.structs.replace(run.config, batching=note.old.batching))
            self._pace = msgspec.structs.replace(self._pace, eco=note.old.eco, lean=note.old.lean)
        elif note.model is not None:
            note.model.reconfigure(self._paced(run.config))  # what was told while it was loaded
            self._replaced.append(note.old)
            stages.swap(note.model)

    def _set_sources(self, stages: Stages, sources: tuple[Source, ...]) -> None:
        """Start, stop or restart what differs; an unchanged source never notices."""
        wanted = {source.name: source for source in sources}
        for name, capture in list(self._captures.items()):
            if wanted.get(name) != capture.source:
                del self._captures[name]
                capture.stop()
                stages.remove(name)
        stages.set_sources(sources)
        for name, source in wanted.items():
            if name not in self._captures:
                self._capture(stages, source)

    def _capture(self, stages: Stages, source: Source) -> None:
        capture = self._captures[source.name] = Capture(source, stages, self._send, stages.pool)
        capture.set_cap(self._pace.cap(source.name))
        capture.start()

    def _set_pace(self, run: Run, stages: Stages, order: Pace) -> None:
        self._pace = order
        with contextlib.suppress(InputError):  # these settings were taken before
            self._reconfigure(stages, run.config)
        self._fit(stages)
        self._shadows.throttled(governor=order.hot)
        for name, capture in self._captures.items():
            capture.set_cap(order.cap(name))

    def _stop_all(self) -> None:
        stages = self._stages
        if stages is not None:
            self._shadows.end(stages)
            for capture in self._captures.values():
                capture.stop()
            stages.stop()
        self._captures = {}
        if self._receiver is not None:
            self._receiver.stop()
            self._receiver = None
        self._forget_previous()
        if stages is not None:
            self._tell_window()
            stages.champion.deactivate()
            self._stages = None

    # --- trial and swap ----------------------------------------------------------------------------------------

    def _trial_ended(self, stages: Stages, trial: Trial) -> None:
        result = self._shadows.end_trial(stages, trial)
        if result is not None:
            self._send(result)

    def _switch(self, stages: Stages, order: Switch) -> None:
        trial = self._shadows.take(stages, order.bundle)
        if trial is None or trial.model is None:
            self._send(TrialResult(order.bundle, TrialNumbers(), "trial.none", "no challenger of that bundle is loaded"))
            return
        old, old_p99_ms = stages.champion, max(stages.work_p99_ms, trial.numbers.champion_p99_ms)
        self._exchange(stages, trial.model, order.keep_s)
        self._shadows.watch(stages, order.bundle, trial.order.policy, old, old_p99_ms, order.keep_s)

    def _exchange(self, stages: Stages, model: LoadedModel, keep_s: float) -> None:
        old = stages.champion
        stages.swap(model)
        self._swap_deadline = time.monotonic() + FIRST_FRAME_S
        if self._previous is not None and self._previous is not model:
            self._previous.deactivate()
        self._previous = old
        self._previous_until = time.monotonic() + keep_s

    def _back(self, stages: Stages) -> None:
        self._shadows.end_watch(stages)
        previous = self._previous
        if previous is None:
            self._send(TrialResult("", TrialNumbers(), "trial.none", "there is no previous model to go back to"))
            return
        if previous.backend.lanes:
            self._exchange(stages, previous, 0.0)
            return
        config = self._paced(self._run.config) if self._run else AppConfig()
        threading.Thread(target=self._reload, args=(previous.model, config), name="reload", daemon=True).start()

    def _reload(self, model: Model, config: AppConfig) -> None:
        try:
            loaded = LoadedModel(model, config)
            loaded.activate()
        except JetfleetError as error:
            self._inbox.put(Reloaded(None, error))
            return
        self._inbox.put(Reloaded(loaded))

    def _reloaded(self, note: Reloaded) -> None:
        if note.error is not None:
            self._send(TrialResult("", TrialNumbers(), note.error.code, note.error.what))
        elif note.model is not None and self._stages is not None:
            self._exchange(self._stages, note.model, 0.0)

    def _swapped(self, note: Swapped) -> None:
        self._fitting = False
        while self._replaced:
            self._replaced.pop().deactivate()
        if self._stages is not None:
            self._fit(self._stages)
        if not self._swap_deadline:
            return
        self._swap_deadline = 0.0
        self._send(Switched(note.model.model.bundle, note.model.key[2], note.gap_ms, note.frames_lost, note.steady_p99_ms))

    def _forget_previous(self) -> None:
        while self._replaced:
            self._replaced.pop().deactivate()
        if self._previous is not None:
            self._previous.deactivate()
            self._previous = None

    # --- time --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        stages, run = self._stages, self._run
        if stages is None or run is None:
            return
        now = time.monotonic()
        if self._running_deadline and (stages.answered or now > self._running_deadline):
            self._running_deadline = 0.0
            champion = stages.champion
            self._send(Running(champion.model.bundle, champion.key[2], champion.backend.provider, stages.answered,
                               champion.overhead.floor.session_ms, champion.tuning.text, stages.answered_at, champion.backend.gpu_work))
        if self._swap_deadline and now > self._swap_deadline:
            self._swap_deadline = 0.0  # no frame came to measure with
            self._send(Switched(stages.champion.model.bundle, stages.champion.key[2], 0.0, 0, 0.0))
        self._shadows.tick(stages, now)
        if self._previous is not None and self._previous.backend.lanes and now > self._previous_until and not self._swap_deadline:
            self._previous.deactivate()
        self._watchdog.look(stages.pulses, run.stuck_s, now)
        for source in self._watchdog.hung(self._captures, run.stuck_s, now):
            self._capture(stages, source)
        if now - self._window_began[0] >= run.window_s:
            self._tell_window()

    def _tell_window(self) -> None:
        now = time.monotonic()
        began, wall = self._window_began
        self._window_began = (now, time.time())
        usage = resource.getrusage(resource.RUSAGE_SELF)
        gauges = {"rss_peak_mb": usage.ru_maxrss / 1024.0, "cpu_s": usage.ru_utime + usage.ru_stime,
                  "results_dropped": float(self._results_dropped()), "crops_dropped": float(self._sinks.take_dropped_crops()),
                  "sources_alive": float(sum(capture.is_alive for capture in self._captures.values())),
                  **self._sinks.counts(), **self._kpis.counts(), **self._drift.gauges(), **self._cascade.take_counts()}
        series = self._meter.take()
        if self._stages is not None:
            champion = self._stages.champion
            ours = [one for one in series if (one.bundle, one.version, one.candidate) == champion.key]
            champion.overhead = after_window(champion.overhead, ours)
            gauges |= champion.overhead.gauges
            for alarm in self._ages.window(series, self._stages.rhythms, now - began):
                self._send(alarm)
            gauges |= {**self._stages.gauges(), "age_high": float(self._ages.standing), "eco": float(champion.eco),
                       "lean": float(champion.lean), "tiles": float(champion.tile is not None)}
            if work_p99_ms := self._stages.work_p99_ms:
                gauges["work_p99_ms"] = work_p99_ms
        self._send(Window(wall, now - began, series, gauges))
