"""Keeps one pipeline process an app the way the slots want it: started, restarted with back-off, killed when it is stuck.

It holds what *should* run and works towards it, so that every call may be repeated. Children die with the supervisor
(PR_SET_PDEATHSIG, and their socket ends). All methods belong to the control thread, which also is the one that starts children:
the kernel ties their death signal to the starting thread.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from jetfleet_agent import ipc
from jetfleet_agent.child_processes import death_signal, wait_or_kill
from jetfleet_contract.governor import Means
from jetfleet_contract.messages import AppConfig, TrialPolicy
from jetfleet_contract.policy import backoff
from jetfleet_contract.slot_records import Crashed, Setup

from .app_process import STOP_S, AppProcess
from .footing import Footing, resident_mb
from .inbox import PipelineEnded, PipelineSaid
from .pipeline_link import PipelineLink

log = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-m", "jetfleet_agent.pipeline")
START_S = 180.0
QUIET_S = 30.0
HEALTHY_S = 60.0
RESTART_BASE_S = 0.25
RESTART_CAP_S = 30.0


class Pipelines:
    """See the module.

    Args:
        link: watches the processes; its posts come back through `said` and `ended`.
        clock: monotonic seconds.
        unit: random numbers in 0..1 for the back-off.
        program: the pipeline's command, to which ``--app`` and ``--socket`` are appended.
        external: the same of the `exec` runner.
        external_start_s: within how many seconds an app of the `exec` runner must run, by app.
        quiet_s: a running process that says nothing for so long is stuck; its windows come more often.
    """

    def __init__(self, link: PipelineLink, clock: Callable[[], float], unit: Callable[[], float], *,
                 program: Sequence[str] = PROGRAM, quiet_s: float = QUIET_S, external: Sequence[str] = (),
                 external_start_s: Mapping[str, float] | None = None) -> None:
        self._link = link
        self._clock = clock
        self._unit = unit
        self._programs = {"builtin": tuple(program), "exec": tuple(external)}
        self._start_s = dict(external_start_s or {})
        self._quiet_s = quiet_s
        self._apps: dict[str, AppProcess] = {}
        self._stopped: dict[str, float] = {}
        self._throttled = False
        self._die_with_me = death_signal(os.getpid())

    @property
    def feed_folder(self) -> Path:
        """Where chained apps have their sockets."""
        return self._link.path.parent / "feed"

    @property
    def result_folder(self) -> Path:
        """Where result sockets are, unless the board's config says otherwise."""
        return self._link.path.parent / "results"

    def config(self, name: str) -> AppConfig | None:
        """The settings of an app that should run; a new object whenever they, or a secret that they name, may have changed."""
        app = self._apps.get(name)
        return None if app is None or app.gone else app.run.config

    def configs(self) -> dict[str, AppConfig]:
        """The settings of each app that should run."""
        return {name: app.run.config for name, app in self._apps.items() if not app.gone}

    def means(self, name: str) -> Means:
        """What the app can give up besides frames. A cheaper candidate with which its process crashed is none any more."""
        app = self._apps.get(name)
        if app is None:
            return Means()
        model = app.run.model
        return Means(model.eco is not None, app.run.config.tile is not None, model.lean is not None and model.lean not in app.crashed_ways)

    def pids(self) -> dict[str, int]:
        """Process id by app, of those that run."""
        return {name: app.process.pid for name, app in self._apps.items() if app.process is not None}

    def crashes(self) -> dict[str, int]:
        """Unexpected ends by app since this supervisor started."""
        return {name: app.crashes for name, app in self._apps.items()}

    def begin(self) -> None:
        """Listen for pipelines."""
        self._link.start()

    def finish(self) -> None:
        """End every pipeline and the listening."""
        self.stop_all()
        self._link.stop()

    # --- what should be -----------------------------------------------------------------------------------

    def start(self, name: str, run: ipc.Run) -> None:
        """The app runs this model, from nothing, unless it already does; a mere change of setup is told to it."""
        app = self._apps.get(name)
        if app is None or app.gone:
            fresh = AppProcess(run)
            if app is not None:  # the old process is still ending
                fresh.process, fresh.ending = app.process, True
            self._apps[name] = fresh
            return
        old = app.run
        app.run = run
        if app.process is None or app.ending:
            return
        if old.model != run.model and app.live:  # one model in place of another: what it has in hand it still answers
            self._stop_politely(name, app)
            return
        if (old.model, old.input_from, old.runner) != (run.model, run.input_from, run.runner):
            app.end(self._clock())
            return
        self._tell_setup(app, old)

    def configure(self, name: str, setup: Setup, sources: ipc.Configure) -> None:
        """The app has this setup; `sources` is it with the board's own sources looked up."""
        app = self._apps.get(name)
        if app is None:
            return
        old = app.run
        app.run = msgspec.structs.replace(old, config=sources.config, sources=sources.sources, feed_to=setup.feed_to)
        self._tell_setup(app, old)

    def try_beside(self, name: str, model: ipc.Model, policy: TrialPolicy) -> None:
        """The app compares this model with its own, as soon as that runs."""
        app = self._apps.get(name)
        if app is None:
            return
        app.trying = ipc.Try(model, policy)
        app.try_sent = False
        if app.live:
            self._send_try(app)

    def switch(self, name: str, bundle: str, keep_s: float) -> None:
        """The app answers with the model under trial; a restart from now on starts that one."""
        app = self._apps.get(name)
        if app is None or app.trying is None or app.trying.model.bundle != bundle:
            return
        app.run = msgspec.structs.replace(app.run, model=app.trying.model)
        app.trying = None
        app.deadline = self._clock() + START_S
        self._send(app, ipc.Switch(bundle, keep_s))

    def watch(self, name: str, bundle: str, policy: TrialPolicy, old_p99_ms: float) -> None:
        """The process that was started with this bundle tells how it does."""
        app = self._apps.get(name)
        if app is not None and app.live == bundle:
            self._send(app, ipc.Watch(bundle, policy, old_p99_ms))

    def heat(self, throttled: bool) -> None:
        """Tell every process, now and when it starts, whether the board is slowed down."""
        self._throttled = throttled
        for app in self._apps.values():
            self._send(app, ipc.Heat(throttled))

    def drop(self, name: str, bundle: str) -> None:
        """No model is under trial."""
        app = self._apps.get(name)
        if app is None or app.trying is None:
            return
        app.trying = None
        if app.try_sent:
            app.try_sent = False
            self._send(app, ipc.Drop(bundle))

    def back(self, name: str, run: ipc.Run) -> None:
        """The app answers with `run`'s model again: from memory if its process began with it, else started anew."""
        app = self._apps.get(name)
        if app is None or app.process is None or app.ending or app.started_with != run.model.bundle:
            self.start(name, run)
            return
        old = app.run
        app.run = run
        app.trying = None
        if old.model.bundle != run.model.bundle:
            app.deadline = self._clock() + START_S
            app.live = "" if app.live != run.model.bundle else app.live
            self._send(app, ipc.Back())
        self._tell_setup(app, old)

    def tell(self, name: str, order: ipc.Order) -> None:
        """An order that changes nothing of what should be; lost when the app's process cannot take it now."""
        app = self._apps.get(name)
        if app is not None:
            self._send(app, order)

    def stop(self, name: str) -> None:
        """The app has no pipeline."""
        app = self._apps.get(name)
        if app is None:
            return
        app.gone = True
        if app.process is None:
            del self._apps[name]
            return
        if not app.ending:
            self._stop_politely(name, app)

    def pace(self, name: str, pace: ipc.Pace) -> None:
        """The app obeys these caps, also after a restart."""
        app = self._apps.get(name)
        if app is not None and app.run.model.lean in app.crashed_ways:
            pace = msgspec.structs.replace(pace, lean=False)
        if app is None or app.pace == pace:
            return
        app.pace = pace
        self._send(app, pace)

    def restart(self, name: str) -> bool:
        """End the app's process; it is started again at once. False when there is none."""
        app = self._apps.get(name)
        if app is None or app.process is None:
            return False
        app.end(self._clock())
        return True

    def stop_all(self) -> None:
        """End every process, politely first, and wait for them."""
        processes = [app.process for app in self._apps.values() if app.process is not None]
        for name in list(self._apps):
            self.stop(name)
        limit = self._clock() + STOP_S
        for process in processes:
            wait_or_kill(process, max(limit - self._clock(), 0.01))

    # --- what is ------------------------------------------------------------------------------------------

    def footing(self, name: str) -> Footing:
        """What the app's process takes, and how fast its model has been in its last window."""
        app = self._apps.get(name)
        if app is None or app.process is None:
            return Footing()
        return Footing(resident_mb(app.process.pid), app.work_p99_ms)

    def gap_ms(self, name: str, at: float) -> float:
        """Time from telling the app's last process to stop until `at`, when the next one answered; 0 when none was told. Asked once."""
        stopped = self._stopped.pop(name, None)
        return (at - stopped) * 1e3 if stopped is not None and at > stopped else 0.0

    def said(self, item: PipelineSaid) -> bool:
        """Note a line of a pipeline. False when it ends here: from a process that does not count any more, or asking for a restart."""
        app = self._apps.get(item.app)
        if app is None or app.process is None or app.process.pid != item.pid or app.ending:
            return False
        app.heard = self._clock()
        event = item.event
        if isinstance(event, ipc.Hello):
            self._greet(app, item.pid)
        elif isinstance(event, (ipc.Running, ipc.Switched)):
            app.live = event.bundle
            if isinstance(event, ipc.Running):
                log.info("pipeline %s runs %s on %s, settings: %s; its session alone takes %.2f ms", item.app, event.candidate,
                         event.provider or "?", event.tuning or "?", event.floor_ms)
                if event.gpu_work:
                    log.info("pipeline %s, %s", item.app, event.gpu_work)
            if app.trying is not None:
                self._send_try(app)
            elif app.live == app.run.model.bundle:
                app.try_sent = False  # one model is in charge again: it is to blame from now on
        elif isinstance(event, ipc.Window):
            app.work_p99_ms = event.gauges.get("work_p99_ms", app.work_p99_ms)
        elif isinstance(event, ipc.Failed):
            app.failed = event
        elif isinstance(event, ipc.Stuck) and event.fatal:
            app.cause, app.detail = event.code, f"{event.part} has been in one call for {event.seconds:.0f} s"
            log.warning("pipeline %s is restarted: %s [%s]", item.app, app.detail, event.code)
            app.end(self._clock())
            return False
        elif isinstance(event, ipc.TrialResult) and event.code and event.bundle in ("", app.run.model.bundle):
            log.warning("pipeline %s cannot exchange models in memory (%s) and is restarted", item.app, event.code)
            app.end(self._clock())
            return False
        return True

    def ended(self, item: PipelineEnded) -> Crashed | None:
        """Note the end of a process. The crash that the slots must hear of, or None when it was meant to end."""
        app = self._apps.get(item.app)
        if app is None or app.process is None or app.process.pid != item.pid:
            return None
        app.process = None
        now = self._clock()
        if app.gone:
            del self._apps[item.app]
            return None
        if app.ending and not app.cause:
            app.not_before = now
            return None
        app.failures = 1 if now - app.began > HEALTHY_S else app.failures + 1
        app.crashes += 1
        if app.pace.lean and app.run.model.lean is not None:  # whatever it was, the next process begins with the model that was chosen
            app.crashed_ways.append(app.run.model.lean)
            app.pace = msgspec.structs.replace(app.pace, lean=False)
        app.not_before = now + backoff(app.failures - 1, self._unit(), base_s=RESTART_BASE_S, cap_s=RESTART_CAP_S)
        return app.crash(item)

    def tick(self) -> float:
        """Start what is due, kill what is stuck.

        Returns:
            Seconds until the next call is wanted.
        """
        now = self._clock()
        wait = 3600.0
        for name, app in list(self._apps.items()):
            if app.process is None:
                if now >= app.not_before:
                    self._spawn(name, app, now)
                else:
                    wait = min(wait, app.not_before - now)
            if app.process is not None:
                wait = min(wait, self._check(name, app, now))
        return max(wait, 0.0)

    # --- parts --------------------------------------------------------------------------------------------

    def _spawn(self, name: str, app: AppProcess, now: float) -> None:
        self.feed_folder.mkdir(mode=0o700, exist_ok=True)
        command = (*self._programs[app.run.runner], "--app", name, "--socket", str(self._link.path))
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                       preexec_fn=self._die_with_me, bufsize=0)  # noqa: PLW1509 - prctl only, bound before the fork
        except OSError as error:
            log.warning("pipeline %s cannot be started: %s", name, error)
            app.failures += 1
            app.not_before = now + backoff(app.failures, self._unit(), base_s=RESTART_BASE_S, cap_s=RESTART_CAP_S)
            return
        app.new_process(process, now, self._start_s.get(name, START_S) if app.run.runner == "exec" else START_S)
        self._link.watch(name, process)

    def _check(self, name: str, app: AppProcess, now: float) -> float:
        """Kill the process when it is past its time; else seconds until it would be."""
        process = app.process
        if process is None:
            return 3600.0
        if app.ending:
            if now >= app.deadline:
                process.kill()
                app.deadline = now + STOP_S
            return app.deadline - now
        settled = app.live == app.run.model.bundle
        limit = app.heard + max(self._quiet_s, 3 * app.run.window_s) if settled else app.deadline
        if now < limit:
            return limit - now
        log.warning("pipeline %s does nothing and is ended", name)
        app.cause = "pipeline.silent" if settled else "pipeline.start"
        app.end(self._clock())
        return STOP_S

    def _greet(self, app: AppProcess, pid: int) -> None:
        app.connected = True
        self._link.send(pid, app.run)
        if app.pace != ipc.Pace():
            self._link.send(pid, app.pace)
        if self._throttled:
            self._link.send(pid, ipc.Heat(throttled=True))
        app.started_with = app.run.model.bundle

    def _stop_politely(self, name: str, app: AppProcess) -> None:
        if app.live:
            self._stopped[name] = self._clock()
        self._send(app, ipc.Stop())
        app.end(self._clock(), STOP_S if app.connected else 0.0)  # one that is still starting has nothing to finish

    def _send_try(self, app: AppProcess) -> None:
        if app.trying is not None and not app.try_sent:
            app.try_sent = True
            self._send(app, app.trying)

    def _tell_setup(self, app: AppProcess, old: ipc.Run) -> None:
        run = app.run
        if (run.config, run.sources, run.feed_to) != (old.config, old.sources, old.feed_to):
            self._send(app, ipc.Configure(run.config, run.sources, run.feed_to))

    def _send(self, app: AppProcess, order: ipc.Order) -> None:
        if app.process is not None and app.connected and not app.ending:
            self._link.send(app.process.pid, order)
