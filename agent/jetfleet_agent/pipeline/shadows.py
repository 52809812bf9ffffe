"""The second model of an app, of which there is one at most: a challenger on trial, or the old model that watches the one that took over.

Used by the control thread only; what runs where is the stages' business.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from jetfleet_agent.ipc import TrialResult, Try, Watch, Watched
from jetfleet_agent.pipeline.keep_watch import KeepWatch
from jetfleet_agent.pipeline.loaded import LoadedModel
from jetfleet_agent.pipeline.stages import Stages
from jetfleet_agent.pipeline.trial import Trial
from jetfleet_contract.messages import AppConfig, TrialPolicy
from jetfleet_contract.trials import WatchNumbers


class Shadows:
    """See the module.

    Args:
        ended: told of a trial that ended, from any thread.
        watched: takes what the watch sees, from any thread.
    """

    def __init__(self, ended: Callable[[Trial], None], watched: Callable[[Watched], None]) -> None:
        self._ended = ended
        self._watched = watched
        self._trial: Trial | None = None
        self._watch: KeepWatch | None = None
        self._watch_until = 0.0
        self._throttled = self._hot = False

    # --- a challenger -----------------------------------------------------------------------------------------

    def begin_trial(self, stages: Stages, order: Try, config: AppConfig) -> None:
        """Load the challenger and try it; whatever was there before is given up."""
        self.end(stages)
        self._trial = Trial(order, config, self._ended)
        self._cool()
        stages.set_shadow(self._trial)
        self._trial.start()

    def end_trial(self, stages: Stages, trial: Trial) -> TrialResult | None:
        """What to tell of a trial that ended, None when it was given up meanwhile. A challenger that did not fail stays loaded."""
        if trial is not self._trial:
            return None
        stages.set_shadow(None)
        if trial.code:
            self._trial = None
            trial.drop()
        return TrialResult(trial.order.model.bundle, trial.numbers, trial.code, trial.detail)

    def drop(self, stages: Stages, bundle: str) -> None:
        """Unload that challenger."""
        if self._trial is not None and self._trial.order.model.bundle == bundle:
            self._end_trial(stages)

    def take(self, stages: Stages, bundle: str) -> Trial | None:
        """That challenger, loaded, to become the champion: it is no shadow any more."""
        trial = self._trial
        if trial is None or trial.model is None or trial.order.model.bundle != bundle:
            return None
        stages.set_shadow(None)
        self._trial = None
        return trial

    def reconfigure(self, config: AppConfig) -> None:
        """New settings for a challenger too: else it would answer by the old ones once it takes over."""
        if self._trial is not None:
            self._trial.reconfigure(config)

    # --- the watch --------------------------------------------------------------------------------------------

    def watch(self, stages: Stages, bundle: str, policy: TrialPolicy, old: LoadedModel, old_p99_ms: float, keep_s: float) -> None:
        """The old model watches the one that took its place, for so long."""
        self._begin_watch(stages, KeepWatch(bundle, policy, old, old_p99_ms, self._tell), keep_s)

    def watch_alone(self, stages: Stages, order: Watch) -> None:
        """Watch a model that this process was started with: the old one is known by its figures only."""
        if stages.champion.model.bundle == order.bundle and self._trial is None:
            self._begin_watch(stages, KeepWatch(order.bundle, order.policy, None, order.old_p99_ms, self._tell), order.policy.keep_s)

    def end_watch(self, stages: Stages) -> None:
        """When this returns, the old model does not run as a shadow."""
        if self._watch is not None:
            stages.set_shadow(None)
            self._watch.end()
            self._watch = None

    def _begin_watch(self, stages: Stages, watch: KeepWatch, keep_s: float) -> None:
        self.end_watch(stages)
        self._watch, self._watch_until = watch, time.monotonic() + keep_s
        self._cool()
        stages.set_shadow(watch)

    def _tell(self, bundle: str, numbers: WatchNumbers) -> None:
        self._watched(Watched(bundle, numbers))

    # --- heat, time, the end ----------------------------------------------------------------------------------

    def throttled(self, *, board: bool | None = None, governor: bool | None = None) -> None:
        """Nothing is shadowed while the kernel slows the board down, or while the governor says that nothing may run that can wait."""
        self._throttled = self._throttled if board is None else board
        self._hot = self._hot if governor is None else governor
        self._cool()

    def _cool(self) -> None:
        for shadow in (self._trial, self._watch):
            if shadow is not None:
                shadow.throttled = self._throttled or self._hot

    def tick(self, stages: Stages, now: float) -> None:
        """Let time pass."""
        if self._trial is not None:
            self._trial.tick(now)
        if self._watch is not None and now > self._watch_until:
            self.end_watch(stages)

    def _end_trial(self, stages: Stages) -> None:
        if self._trial is not None:
            stages.set_shadow(None)
            self._trial.drop()
            self._trial = None

    def end(self, stages: Stages) -> None:
        """No second model any more."""
        self._end_trial(stages)
        self.end_watch(stages)
