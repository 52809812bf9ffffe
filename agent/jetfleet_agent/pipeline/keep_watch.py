"""The new champion, watched while the old model is kept: its time a frame, and its answers beside the old one's on some frames.

The old one now shadows the new one, at a low share of the time. What is seen is told every few frames; what it means is
decided by the supervisor, which can put the old model back.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.process_memory import resident_mb
from jetfleet_agent.pipeline.shadow import Shadow, quantile
from jetfleet_agent.pipeline.similarity_window import SimilarityWindow
from jetfleet_contract.messages import TrialPolicy
from jetfleet_contract.predictions import Prediction
from jetfleet_contract.trials import WATCH_FRAMES, WATCH_P99_FRAMES, WatchNumbers

log = logging.getLogger(__name__)

RECENT = 2 * WATCH_P99_FRAMES


class KeepWatch(Shadow):
    """See the module.

    Args:
        bundle: of the new champion.
        old: the old model, loaded; None when only its time a frame is known.
        old_p99_ms: its time a frame before the switch; 0: not known.
        tell: takes the numbers, in the decode thread.
    """

    def __init__(self, bundle: str, policy: TrialPolicy, old: LoadedModel | None, old_p99_ms: float,
                 tell: Callable[[str, WatchNumbers], None]) -> None:
        super().__init__(policy.watch_share, policy.max_age_ms)
        self.bundle = bundle
        self._old = old
        self._is_fresh = old is None  # then the process's memory is the new model's
        self._old_p99_ms = old_p99_ms
        self._tell = tell
        self._answered = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._old_now: deque[float] = deque(maxlen=RECENT)
        self._alike = SimilarityWindow(WATCH_FRAMES)

    def take_turn(self, frame: Frame, now: float) -> LoadedModel | None:
        with self._lock:
            if self._old is None or frame.model is self._old or not self._may_run(frame, now):
                return None
            return self._old

    def compare(self, champion: Prediction, shadow: Prediction, champion_ms: float, shadow_ms: float) -> None:  # noqa: ARG002
        """The old model's answers are taken as truth."""
        with self._lock:
            self._alike.add(shadow, champion)
            self._old_now.append(shadow_ms)

    def answered(self, model: LoadedModel, work_ms: float) -> None:
        """Decode thread: the champion answered a frame in so many ms of its own work."""
        if model.model.bundle != self.bundle:  # a frame from before the switch
            return
        with self._lock:
            self._recent.append(work_ms)
            self._answered += 1
            if self._answered % WATCH_FRAMES:
                return
            numbers = self._numbers()
        self._tell(self.bundle, numbers)

    def fail(self, code: str, detail: str) -> None:
        """The old model cannot run any more: it convicts nobody, there is just nothing to compare with."""
        log.warning("the old model cannot be compared with any more: %s %s", code, detail)
        with self._lock:
            self._old = None

    def end(self) -> None:
        """No more turns; when this returns, the old model does not run."""
        with self._lock:
            self._old = None
        with self.running:
            pass

    def _numbers(self) -> WatchNumbers:
        recent = list(self._recent)
        # A disturbance hits both models: what the old one takes now counts as much as what it took before.
        old_now = quantile(self._old_now, 0.99) if len(self._old_now) >= WATCH_FRAMES else 0.0
        alike = self._alike.figures
        return WatchNumbers(len(recent), quantile(recent[-WATCH_FRAMES:], 0.5), quantile(recent, 0.99), max(self._old_p99_ms, old_now),
                            alike.frames, alike.agreement, alike.mean_iou, alike.score_distance, resident_mb() if self._is_fresh else 0.0)
