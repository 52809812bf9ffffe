"""A second model that runs on some of the frames that the champion answers: a challenger on trial, or the old model after a switch.

Which frames: as many as its share of the time allows, none that is too old already, none while the board is slowed down for heat
or power. What was left out is counted by its reason.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable

from jetfleet_agent.pipeline.frames import Frame
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.process_memory import is_out_of_memory
from jetfleet_contract.errors import JetfleetError
from jetfleet_contract.predictions import Prediction
from jetfleet_contract.trials import ShadowBudget


class Shadow(ABC):
    """See the module. The inference thread asks for turns and runs them, the decode thread compares, the control thread ends it.

    Args:
        share: of all time that the model may take, 0..1.
        max_age_ms: a live frame that is older is left out; 0: no such bound.
    """

    def __init__(self, share: float, max_age_ms: float) -> None:
        self.running = threading.Lock()  # held while the model runs: it is not unloaded under its own feet
        self.throttled = False  # the board is slowed down
        self._lock = threading.Lock()
        self._budget = ShadowBudget(share)
        self._max_age_ms = max_age_ms
        self._skipped: Counter[str] = Counter()

    @abstractmethod
    def take_turn(self, frame: Frame, now: float) -> LoadedModel | None:
        """The model when it should also see the frame in hand; that frame then counts as started."""

    @abstractmethod
    def compare(self, champion: Prediction, shadow: Prediction, champion_ms: float, shadow_ms: float) -> None:
        """One frame, both answers, both models' whole work on it (pre-processing, session, decoding)."""

    def answered(self, model: LoadedModel, work_ms: float) -> None:  # noqa: B027 - most have no use for it
        """The champion `model` answered a frame, in so many ms of its own work."""

    @abstractmethod
    def fail(self, code: str, detail: str) -> None:
        """The model could not run."""

    def spend(self, now: float, seconds: float) -> None:
        """The model took so long for a part of its work, which has just ended."""
        with self._lock:
            self._budget.spend(now, seconds)

    def _may_run(self, frame: Frame, now: float) -> bool:
        """With the lock held. The first reason that holds counts."""
        if self.throttled:
            self._skipped["heat"] += 1
        elif frame.ordinal < 0 and self._max_age_ms and (now - frame.captured) * 1e3 > self._max_age_ms:
            self._skipped["age"] += 1
        elif not self._budget.may_run(now):
            self._skipped["share"] += 1
        else:
            return True
        return False


def blame(shadow: Shadow, error: Exception) -> None:
    """Whatever a shadow's model, task or runtime raised, as its failure."""
    if is_out_of_memory(error):
        shadow.fail("backend.memory", str(error)[:300])
    elif isinstance(error, JetfleetError):
        shadow.fail(error.code, error.what)
    else:
        shadow.fail("backend.crash", f"{type(error).__name__}: {error}"[:300])


def quantile(values: Iterable[float], q: float) -> float:
    """The smallest value that at least the share `q` of them does not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0
