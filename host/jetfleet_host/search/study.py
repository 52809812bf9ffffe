"""The sampler and its storage: Optuna, imported here and nowhere else.

A trial's random numbers follow from (seed, trial number) alone. So a search that was stopped goes on as if it had not been, and processes
that share a storage never propose the same point twice for having the same seed.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from jetfleet_contract.errors import InputError

from .space import Choices, Parameter, Value

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

BEAT_S = 5
STALE_S = 30
STARTUP_TRIALS = 8
_POLL_S = 0.5
_ABSTRACT, _REASON = "jetfleet", "reason"


class RefusedError(Exception):
    """A trial that the guard refused: it counts as pruned, with this reason."""


@dataclass(frozen=True)
class Judged:
    """What a trial came to: accuracy 0..1 (more is better), latency as a share of the original's (less is better), and facts to keep."""

    accuracy: float
    latency: float
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """A trial that ended. `judged` is None for a refused one, with the `reason`."""

    number: int
    values: Mapping[str, Value]
    judged: Judged | None
    reason: str = ""


class Search:
    """One study in a storage that others may use at the same time.

    Args:
        url: of the storage, as SQLAlchemy reads it. name: of the study; processes of one search say the same.

    Raises:
        InputError: `search.storage`; `search.other` when the study of that name is of another space, model or data.
    """

    def __init__(self, url: str, name: str, parameters: Sequence[Parameter], seed: int, identity: str) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._parameters = parameters
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                storage = optuna.storages.RDBStorage(url, heartbeat_interval=BEAT_S, grace_period=STALE_S)
                self._study = optuna.create_study(storage=storage, study_name=name, sampler=_sampler(seed), load_if_exists=True,
                                                  directions=["maximize", "minimize"])
            except Exception as error:  # noqa: BLE001 - drivers of databases raise what they like
                why = str(error).replace(url, "it").splitlines()[0][:300]  # a URL may hold a password
                raise InputError("search.storage", f"the storage of the search cannot be opened: {type(error).__name__}: {why}",
                                 remedy="give sqlite:///FILE, or postgresql+psycopg://USER@HOST/NAME of a server that runs") from None
        known = self._study.user_attrs.get(_ABSTRACT, "")
        if known and known != identity:
            raise InputError("search.other", f"the study {name!r} is a search over another space, model, data or target",
                             remedy="give another --study, or another storage")
        self._study.set_user_attr(_ABSTRACT, identity)

    def run(self, trials: int, judge: Callable[[Mapping[str, Value]], Judged], progress: Callable[[int, int], None]) -> None:
        """Go on until `trials` trials have ended, here or in other processes; a trial whose process died is done again.

        Args:
            judge: builds and measures at a point; raises `RefusedError`. Another error ends the search, and the trial counts as failed.
        """
        import optuna

        def objective(trial: Trial) -> tuple[float, float]:
            if self._before(trial.number) >= trials:
                raise _SurplusError  # another process took the last one in the same moment
            values = self._suggested(trial)
            twin = next((told for told in self.ended() if told.values == values), None)
            try:
                judged = self._as_before(twin) if twin is not None else judge(values)
            except RefusedError as refused:
                trial.set_user_attr(_REASON, str(refused))
                raise optuna.TrialPruned(str(refused)) from None
            for key, fact in judged.facts.items():
                trial.set_user_attr(key, fact)
            return judged.accuracy, judged.latency

        progress(len(self.ended()), trials)
        while len(self.ended()) < trials:
            if self.begun() >= trials:
                time.sleep(_POLL_S)  # the rest runs in other processes, or its process died and will be found out
                optuna.storages.fail_stale_trials(self._study)
                continue
            self._study.optimize(objective, n_trials=1, catch=(_SurplusError,))
            progress(min(len(self.ended()), trials), trials)

    def ended(self) -> tuple[Told, ...]:
        """Every trial that ended well or was refused, by number."""
        from optuna.trial import TrialState

        return tuple(_told(trial) for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def begun(self) -> int:
        """Trials that ended or are under way, here or elsewhere."""
        from optuna.trial import TrialState

        return sum(trial.state != TrialState.FAIL for trial in self._study.get_trials(deepcopy=False))

    def _before(self, number: int) -> int:
        from optuna.trial import TrialState

        return sum(trial.state != TrialState.FAIL and trial.number < number for trial in self._study.get_trials(deepcopy=False))

    def _as_before(self, twin: Told) -> Judged:
        if twin.judged is None:
            raise RefusedError(twin.reason)
        return twin.judged

    def _suggested(self, trial: Trial) -> dict[str, Value]:
        values: dict[str, Value] = {}
        for parameter in self._parameters:
            if not parameter.under or values.get(parameter.under):
                values[parameter.name] = _suggest(trial, parameter)
        return values


class _SurplusError(Exception):
    """One trial more than asked for."""


def _suggest(trial: Trial, parameter: Parameter) -> Value:
    domain = parameter.domain
    if isinstance(domain, Choices):
        return cast("Value", trial.suggest_categorical(parameter.name, list(domain.options)))
    if domain.whole:
        return int(trial.suggest_int(parameter.name, int(domain.low), int(domain.high), step=int(domain.step) or 1, log=domain.log))
    value = trial.suggest_float(parameter.name, domain.low, domain.high, step=domain.step or None, log=domain.log)
    return float(f"{value:.6g}")  # 0.30000000000000004 would be another recipe, and another build, than 0.3


def _told(trial: FrozenTrial) -> Told:
    values = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in trial.params.items()}
    if not trial.values:
        return Told(trial.number, values, None, str(trial.user_attrs.get(_REASON, "")))
    return Told(trial.number, values, Judged(trial.values[0], trial.values[1], dict(trial.user_attrs)))


def _sampler(seed: int) -> Any:
    from optuna.samplers import BaseSampler, TPESampler

    class SeededByNumber(BaseSampler):  # type: ignore[misc]
        """A tree-structured Parzen estimator (Bergstra et al., 2011; for several objectives Ozaki et al., 2020), anew for each trial."""

        def __init__(self) -> None:
            self._number, self._of = -1, TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)

        def _for(self, trial: FrozenTrial) -> TPESampler:
            if trial.number != self._number:
                digest = hashlib.sha256(f"{seed}:{trial.number}".encode()).digest()
                self._number = trial.number
                self._of = TPESampler(seed=int.from_bytes(digest[:4], "big"), n_startup_trials=STARTUP_TRIALS)
            return self._of

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Any:
            return self._for(trial).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Any) -> Any:
            return self._for(trial).sample_relative(study, trial, search_space)

        def sample_independent(self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
            return self._for(trial).sample_independent(study, trial, param_name, param_distribution)

        def after_trial(self, study: Study, trial: FrozenTrial, state: Any, values: Any) -> None:
            self._for(trial).after_trial(study, trial, state, values)

    return SeededByNumber()
