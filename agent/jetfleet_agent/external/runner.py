"""Plays a pipeline process for an app that an existing program runs: the supervisor's orders become releases, hooks and health.

A release is prepared, ``current`` is switched, the hook makes the program use it, and `Running` is said with the program's first good
health message. From then on silence, bad news or the program's end are a failure of the release, told once; the supervisor starts us again,
and the slots decide when it is one failure too many. All in the main thread; hooks block it, because nothing else may happen meanwhile.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Union

import msgspec

from jetfleet_agent.ipc import Configure, Drop, Failed, Order, Run, Running, Stop, Switch, TrialResult, Try, Watch, Watched, Window
from jetfleet_agent.pipeline.shadow import quantile
from jetfleet_contract.errors import JetfleetError, MalformedError, RuntimeFailure
from jetfleet_contract.messages import Series
from jetfleet_contract.sketch import SketchRecorder
from jetfleet_contract.trials import WATCH_FRAMES, TrialNumbers, WatchNumbers

from .commands import Child, run_hook
from .health import Health, HealthSocket
from .releases import Releases
from .settings import ExternalApp

log = logging.getLogger(__name__)

PROVIDER = "external"
RECENT = 200  # frames whose latency is remembered
_STOP_S = 3.0
_TICK_S = 0.2


class ProgramEnded(msgspec.Struct, frozen=True):
    """The program that we started has ended."""

    child: Child
    code: int


Note = Union[Order, Health, MalformedError, ProgramEnded, None]


class ExternalRunner:
    """Runs until Stop, until the supervisor is gone (None in the inbox), or until the release fails.

    Args:
        inbox: orders, and None at their end; health and ends of the program come through it too.
        send: hands an event to the supervisor; never waits.
    """

    def __init__(self, app: str, settings: ExternalApp, inbox: queue.SimpleQueue[Note], send: Callable[[msgspec.Struct], None]) -> None:
        self._app = app
        self._settings = settings
        self._inbox = inbox
        self._send = send
        self._releases = Releases(Path(settings.folder))
        self._run: Run | None = None
        self._release = ""
        self._program: Child | None = None
        self._running = False
        self._limit = 0.0
        self._frames = 0
        self._latency = SketchRecorder()
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._unwatched = 0
        self._watch: Watch | None = None
        self._refused = 0
        self._began = (time.monotonic(), time.time())

    def run(self) -> int:
        """Returns the exit code: 0, or that of the error that ended the release."""
        try:
            Path(self._settings.folder).mkdir(parents=True, exist_ok=True)
            socket = HealthSocket(Path(self._settings.folder) / "health.sock", self._inbox.put)
        except (JetfleetError, OSError) as error:
            return self._fail(error if isinstance(error, JetfleetError) else RuntimeFailure("external.folder", str(error)))
        try:
            return self._serve()
        except JetfleetError as error:
            return self._fail(error)
        finally:
            if self._program is not None:
                self._program.end(_STOP_S)
            socket.close()

    def _serve(self) -> int:
        while True:
            try:
                note = self._inbox.get(timeout=_TICK_S)
            except queue.Empty:
                self._tick()
                continue
            if note is None or isinstance(note, Stop):
                self._stop()
                return 0
            self._handle(note)
            self._tick()

    def _handle(self, note: Order | Health | MalformedError | ProgramEnded) -> None:
        if isinstance(note, Run):
            self._start(note)
        elif isinstance(note, Health):
            self._heard(note)
        elif isinstance(note, ProgramEnded):
            self._ended(note)
        elif isinstance(note, MalformedError):
            self._refused += 1
            log.warning("%s: %s", self._app, note.what)
        elif isinstance(note, Configure) and self._run is not None:
            self._run = msgspec.structs.replace(self._run, config=note.config, sources=note.sources)
            self._releases.lay_out(self._run.model, note.config)
        elif isinstance(note, (Try, Switch)):
            bundle = note.model.bundle if isinstance(note, Try) else note.bundle
            self._send(TrialResult(bundle, TrialNumbers(), "external.no-trial", "an existing program cannot run two models at once"))
        elif isinstance(note, Watch):
            self._watch, self._unwatched = note, 0
        elif not isinstance(note, Drop):
            log.info("%s: %s does nothing here", self._app, type(note).__name__)

    # --- a release --------------------------------------------------------------------------------------------

    def _start(self, order: Run) -> None:
        settings, releases = self._settings, self._releases
        self._run, self._running = order, False
        self._release = releases.lay_out(order.model, order.config)
        back = self._release == releases.previous and self._release != releases.current
        if not releases.is_prepared(self._release):
            run_hook("prepare", settings.prepare, self._environment(order), settings.prepare_s)
            releases.mark_prepared(self._release)
        releases.switch(self._release)
        run_hook("rollback" if back else "switch", (settings.rollback or settings.switch) if back else settings.switch,
                 self._environment(order), settings.hook_s)
        self._start_program(order)
        releases.prune()
        self._limit = time.monotonic() + settings.healthy_s

    def _start_program(self, order: Run) -> None:
        if not self._settings.program:
            return
        if self._program is not None:
            self._program.end(_STOP_S)
        self._program = Child("program", self._settings.program, self._environment(order))
        self._program.when_ended(lambda child, code: self._inbox.put(ProgramEnded(child, code)))

    def _environment(self, order: Run) -> dict[str, str]:
        folder = Path(self._settings.folder)
        path = self._releases.path(self._release)
        weights = next((file for file in (path / "model.plan", path / "model.onnx") if file.exists()), path)
        return {"JETFLEET_APP": self._app, "JETFLEET_BUNDLE": order.model.bundle, "JETFLEET_VERSION": order.model.version,
                "JETFLEET_RELEASE": str(path), "JETFLEET_MODEL": str(weights), "JETFLEET_CURRENT": str(folder / "current"),
                "JETFLEET_HEALTH": str(folder / "health.sock")}

    def _stop(self) -> None:
        if self._run is None:
            return
        try:
            run_hook("stop", self._settings.stop, self._environment(self._run), min(self._settings.hook_s, _STOP_S))
        except RuntimeFailure as error:
            log.warning("%s: %s", self._app, error.what)

    # --- its health -------------------------------------------------------------------------------------------

    def _heard(self, health: Health) -> None:
        run = self._run
        if run is None or not run.model.bundle.startswith(health.bundle):
            return  # the last words of an older process
        if not health.ok:
            raise RuntimeFailure("external.failed", f"the program says: {health.detail or 'not ok'}")
        self._limit = time.monotonic() + self._settings.quiet_s
        self._frames += health.frames
        for value in health.latency_ms:
            self._latency.add(value)
        self._recent.extend(health.latency_ms)
        self._tell_watched(len(health.latency_ms))
        if not self._running:
            self._running = True
            self._send(Running(run.model.bundle, run.model.candidate.name, PROVIDER, health.frames))

    def _tell_watched(self, more: int) -> None:
        """While the old release may still come back, its time a frame is what the new one's is held against."""
        self._unwatched += more
        if self._watch is None or self._unwatched < WATCH_FRAMES:
            return
        self._unwatched = 0
        recent = list(self._recent)
        self._send(Watched(self._watch.bundle, WatchNumbers(len(recent), quantile(recent[-WATCH_FRAMES:], 0.5), quantile(recent, 0.99),
                                                            self._watch.old_p99_ms)))

    def _ended(self, note: ProgramEnded) -> None:
        if note.child is self._program:
            self._program = None
            raise RuntimeFailure("external.ended", f"the program ended with {note.code}; its last words: {note.child.tail or 'none'}")

    def _tick(self) -> None:
        run, now = self._run, time.monotonic()
        if run is None:
            return
        if now > self._limit:
            code, what = ("external.silent", "went silent") if self._running else ("external.unhealthy", "did not become healthy in time")
            raise RuntimeFailure(code, f"the program {what}", remedy="it must send to JETFLEET_HEALTH; see docs/external.md")
        if now - self._began[0] >= run.window_s:
            self._tell_window(run, now)

    def _tell_window(self, run: Run, now: float) -> None:
        (began, wall), self._began = self._began, (now, time.time())
        latency = self._latency.take()
        stages = {"total": latency} if latency.count else {}
        model = run.model
        series = Series(self._app, model.bundle, model.version, model.candidate.name, PROVIDER, self._frames, self._frames, {}, stages)
        self._frames = 0
        gauges = {"health_refused": float(self._refused)}
        if self._recent:
            gauges["work_p99_ms"] = quantile(self._recent, 0.99)
        self._send(Window(wall, now - began, (series,) if series.seen or stages else (), gauges))

    def _fail(self, error: JetfleetError) -> int:
        log.error("%s: %s", self._app, error.what)
        self._send(Failed(self._run.model.bundle if self._run else "", error.code, error.what))
        return error.exit_code
