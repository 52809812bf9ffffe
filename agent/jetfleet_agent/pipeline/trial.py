"""A challenger beside the champion: loaded in a side thread, then run on some of the same live frames, one after the other.

Both are timed over the same work (pre-processing, session, decoding) on the same frames, so heat, clocks and neighbours hit both.
How alike their answers are is `contract.predictions`' measure by task, the champion's answers taken as truth.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from jetfleet_agent.ipc import Try
from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.process_memory import is_out_of_memory, resident_mb
from jetfleet_agent.pipeline.shadow import Shadow
from jetfleet_agent.pipeline.similarity_window import SimilarityWindow
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.messages import AppConfig
from jetfleet_contract.predictions import Prediction
from jetfleet_contract.sketch import SketchRecorder
from jetfleet_contract.trials import TrialNumbers

# With no frame for this long the sources are down; a camera failure must not convict (or hold up) a model.
NO_FRAMES_S = 10.0


class Trial(Shadow):
    """One challenger. `model` is set once it is loaded; `on_end` is called once, from whichever thread ended it."""

    def __init__(self, order: Try, config: AppConfig, on_end: Callable[[Trial], None]) -> None:
        super().__init__(order.policy.share, order.policy.max_age_ms)
        self.order = order
        self.model: LoadedModel | None = None
        self.code = ""
        self.detail = ""
        self._config = config
        self._on_end = on_end
        self._ended = False
        self._started_frames = 0
        self._compared = 0
        self._alike = SimilarityWindow(max(order.policy.frames, 1))
        self._champion = SketchRecorder()
        self._challenger = SketchRecorder()
        self._memory_mb = 0.0
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
        before = resident_mb()
        try:
            model = LoadedModel(self.order.model, config)
            model.activate()
        except JetfleetError as error:
            self.fail("backend.memory" if is_out_of_memory(error) else error.code, error.what)
            return
        except Exception as error:  # noqa: BLE001  a vendor's surprise convicts the challenger, not the champion
            self.fail("backend.memory" if is_out_of_memory(error) else "backend.crash", f"{type(error).__name__}: {error}"[:300])
            return
        with self._lock:
            self._memory_mb = max(resident_mb() - before, 0.0)
            self._progress = time.monotonic()
            if not self._ended:
                self.model = model
        if self.model is None:
            model.deactivate()
        elif self._config is not config:
            self.reconfigure(self._config)

    def take_turn(self, frame: Frame, now: float) -> LoadedModel | None:
        with self._lock:
            if self.model is None or self._ended or self._started_frames >= self.order.policy.frames:
                return None
            self._progress = now
            if not self._may_run(frame, now):
                return None
            self._started_frames += 1
            return self.model

    def compare(self, champion: Prediction, shadow: Prediction, champion_ms: float, shadow_ms: float) -> None:
        with self._lock:
            self._alike.add(champion, shadow)
            self._champion.add(champion_ms)
            self._challenger.add(shadow_ms)
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
            alike = self._alike.figures
            return TrialNumbers(
                live_frames=self._compared, live_agreement=alike.agreement, mean_iou=alike.mean_iou, score_distance=alike.score_distance,
                champion_p99_ms=champion.quantile(0.99), challenger_p99_ms=challenger.quantile(0.99), skipped=dict(self._skipped),
                spent_share=self._budget.share_spent(time.monotonic()), memory_mb=self._memory_mb)
