"""A challenger beside the champion: loaded in a side thread, then run on the same live frames, one after the other.

Both are timed over the same work (pre-processing, session, decoding) on the same frames, so heat, clocks and neighbours hit both.
Agreement is `contract.predictions`' F1 of the challenger's answers against the champion's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from jetfleet_agent.ipc import Try
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.policy import TrialNumbers
from jetfleet_contract.predictions import MatchCount, Prediction, match_frame
from jetfleet_contract.sketch import SketchRecorder

# With no frame for this long the sources are down; a camera failure must not convict (or hold up) a model.
NO_FRAMES_S = 10.0


class Trial:
    """One challenger. `model` is set once it is loaded; `on_end` is called once, from whichever thread ended it."""

    def __init__(self, order: Try, config: AppConfig, on_end: Callable[[Trial], None]) -> None:
        self.order = order
        self.model: LoadedModel | None = None
        self.code = ""
        self.detail = ""
        self._config = config
        self._on_end = on_end
        self.running = threading.Lock()  # held while the challenger runs: it is not unloaded under its own feet
        self._lock = threading.Lock()
        self._ended = False
        self._started_frames = 0
        self._compared = 0
        self._matches = MatchCount()
        self._champion = SketchRecorder()
        self._challenger = SketchRecorder()
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._load, name="challenger", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def reconfigure(self, config: AppConfig) -> None:
        """New options, whether the challenger is loaded yet or not; options it does not have end its trial."""
        with self._lock:
            self._config = config
            model = self.model
        if model is None:
            return
        try:
            model.reconfigure(config)
        except JetfleetError as error:
            self.fail(error.code, error.what)

    def _load(self) -> None:
        config = self._config
        try:
            model = LoadedModel(self.order.model, config)
            model.activate()
        except JetfleetError as error:
            self.fail(error.code, error.what)
            return
        except Exception as error:  # noqa: BLE001  a vendor's surprise convicts the challenger, not the champion
            self.fail("backend.crash", f"{type(error).__name__}: {error}"[:300])
            return
        with self._lock:
            self._progress = time.monotonic()
            if not self._ended:
                self.model = model
        if self.model is None:
            model.deactivate()
        elif self._config is not config:
            self.reconfigure(self._config)

    def take_turn(self) -> LoadedModel | None:
        """The challenger when it should also see the frame in hand; counts that frame as started."""
        with self._lock:
            if self.model is None or self._ended or self._started_frames >= self.order.policy.frames:
                return None
            self._started_frames += 1
            return self.model

    def compare(self, champion: Prediction, challenger: Prediction, champion_ms: float, challenger_ms: float) -> None:
        """One frame, both answers."""
        with self._lock:
            self._matches = self._matches.plus(match_frame(champion, challenger))
            self._champion.add(champion_ms)
            self._challenger.add(challenger_ms)
            self._compared += 1
            self._progress = time.monotonic()
            done = self._compared >= self.order.policy.frames
        if done:
            self._end()

    def fail(self, code: str, detail: str) -> None:
        """The challenger could not be loaded or run."""
        self.code, self.detail = code, detail
        self._end()

    def tick(self, now: float) -> None:
        """End a trial that sees no frames: with what it has."""
        with self._lock:
            stalled = self.model is not None and not self._ended and now - self._progress > NO_FRAMES_S
        if stalled:
            self._end()

    def drop(self) -> None:
        """Unload; no end is told."""
        with self._lock:
            self._ended = True
            model, self.model = self.model, None
        if model is not None:
            with self.running:
                model.deactivate()

    def _end(self) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._on_end(self)

    @property
    def numbers(self) -> TrialNumbers:
        """`probe_agreement` is not ours: the probe set ran in a process of its own before."""
        with self._lock:
            champion, challenger = self._champion.peek(), self._challenger.peek()
            return TrialNumbers(live_frames=self._compared, live_agreement=self._matches.f1,
                                champion_p99_ms=champion.quantile(0.99), challenger_p99_ms=challenger.quantile(0.99))
