"""The float half of a recipe: stage after stage, each judged by the guard, each a checkpoint that a killed build goes on from.

Every stage is tried at its own strength first. When the guard does not pass it, it begins again from the last good artefact, which is read
back byte for byte, at gentler settings found by bisection; the strongest that passed stays. When none did, the stage is left out, with the
reason written down. The limit is on what all stages together may lose, so each is compared with the best model so far: the one that came
in, or what a stage made better of it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from jetfleet_contract.errors import InputError, JetfleetError, StorageError

from .checkpoints import Checkpoints
from .float_stage import FloatStage, Workshop
from .gentler import Tried, at_strength, next_strength
from .guard import Scores, judge_paired, least_samples
from .handles import ModelHandle
from .recipe_file import FloatStageConfig
from .stage_records import Ending, FloatRun, StageRecord, Try

if TYPE_CHECKING:
    from torch.nn import Module

@dataclass(frozen=True)
class _Artefact:
    """A model that the guard let stay: its bytes on disk and its scores."""

    handle: ModelHandle
    scores: Scores


class StageDriver:
    """Runs a recipe's float stages over one module.

    Args:
        stage_for: the stage that a configuration tells of.
        workshop: one for the stage of that number; `folder` is its own there.
        max_drop: points of the metric that all stages together may lose.
        announce: number of the stage, how many there are, its kind and strength.
    """

    def __init__(self, checkpoints: Checkpoints, stage_for: Callable[[FloatStageConfig], FloatStage[FloatStageConfig]],
                 workshop: Callable[[int], Workshop], max_drop: float, announce: Callable[[int, int, str, float], None]) -> None:
        self._checkpoints, self._stage_for, self._workshop = checkpoints, stage_for, workshop
        self._max_drop, self._announce = max_drop, announce

    def run(self, module: Module, stages: Sequence[FloatStageConfig]) -> tuple[Module, FloatRun]:
        """The module after all stages, and what became of each.

        Raises:
            StorageError: `build.cache`. InputError: what a stage says of the user's model or data; any other error of a stage is a reason
                to leave it out.
        """
        start = self._kept(self._checkpoints.key("float-start", _weights_key(module), self._facts(0)), lambda: module, 0)
        best, present, records = start, start, []
        for index, config in enumerate(stages):
            record, present = self._stage(index, len(stages), config, best, present)
            records.append(record)
            best = max(best, present, key=_mean)  # the earlier of two equals
        return _read(present.handle), FloatRun(_mean(start), _mean(best), _mean(present), int(start.scores.size), tuple(records))

    def _stage(self, index: int, of: int, config: FloatStageConfig, best: _Artefact,
               before: _Artefact) -> tuple[StageRecord, _Artefact]:
        tried: list[Try] = []
        found: dict[float, _Artefact] = {}
        strength = next_strength([])
        while strength is not None:
            gentler = at_strength(config, strength, self._workshop(index).training.learning_rate)
            if gentler is None:
                break
            self._announce(index, of, _kind(config), strength)
            entry, artefact = self._try(index, gentler, strength, best, before)
            tried.append(entry)
            if artefact is not None:
                found[strength] = artefact
            if entry.verdict is not None and entry.verdict.outcome == "undecided" and entry.verdict.samples < least_samples(self._max_drop):
                break  # too few samples to pass anything but a gain: gentler settings would train in vain
            strength = next_strength([Tried(one.strength, one.verdict.outcome if one.verdict else "fail") for one in tried])
        passed = [entry.strength for entry in tried if entry.passed]
        after = found[max(passed)] if passed else before
        ending: Ending = "left-out" if not passed else "kept" if max(passed) >= 1.0 else "gentler"
        return StageRecord(_kind(config), ending, tuple(tried), _mean(after), after.handle.digest), after

    def _try(self, index: int, config: FloatStageConfig, strength: float, best: _Artefact,
             before: _Artefact) -> tuple[Try, _Artefact | None]:
        """One setting, from the last good artefact. A stage's own failure is an answer; an error in the user's input is raised."""
        facts = ("float-stage", _kind(config), config, before.handle.digest, self._facts(index))
        key, failed = self._checkpoints.key(*facts), self._checkpoints.key("failed", *facts)
        known = self._checkpoints.value(failed, str)
        if known is not None:
            return Try(strength, config, error=known), None
        try:
            artefact = self._kept(key, lambda: self._stage_for(config)(_read(before.handle), config, self._workshop(index)), index)
        except (InputError, StorageError):
            raise
        except JetfleetError as error:
            said = f"{error.code}: {error.what}"
            self._checkpoints.keep_value(failed, said)
            return Try(strength, config, error=said), None
        verdict = judge_paired(best.scores, artefact.scores, self._max_drop)
        return Try(strength, config, verdict, digest=artefact.handle.digest), artefact

    def _kept(self, key: str, make: Callable[[], Module], index: int) -> _Artefact:
        """The artefact under `key`, made when it is not there. Its scores are kept beside it."""
        handle = self._checkpoints.model(key)
        if handle is None:
            handle = self._checkpoints.keep_model(key, _written(make()))
        known = self._checkpoints.value(self._checkpoints.key("float-scores", handle.digest, self._facts(index)), list[float])
        if known is None:
            workshop = self._workshop(index)
            known = [float(value) for value in workshop.score(_read(handle), workshop.validation)]
            self._checkpoints.keep_value(self._checkpoints.key("float-scores", handle.digest, self._facts(index)), known)
        return _Artefact(handle, np.asarray(known, np.float64))

    def _facts(self, index: int) -> list[object]:
        """What a stage's result depends on besides its configuration and the model."""
        workshop = self._workshop(index)
        return [_trainers(), index, workshop.seed, workshop.train.digest, workshop.validation.digest, list(workshop.shape),
                msgspec.to_builtins(workshop.training), workshop.task]


@cache
def _trainers() -> dict[str, str]:
    """The versions of what trains, beside those that `Checkpoints.key` has."""
    return {name: version(name) for name in ("torch", "torch-pruning", "lightning-fabric") if _installed(name)}


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _mean(artefact: _Artefact) -> float:
    return float(artefact.scores.mean())


def _kind(config: FloatStageConfig) -> str:
    return str(type(config).__struct_config__.tag)


def _weights_key(module: Module) -> str:
    """Names the module as it came in: structure and weights."""
    digest = hashlib.sha256(str(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _written(module: Module) -> bytes:
    """The whole module, structure included: pruning changes it."""
    import torch

    buffer = io.BytesIO()
    torch.save(module.cpu().eval(), buffer)
    return buffer.getvalue()


def _read(handle: ModelHandle) -> Module:
    """A module that this build wrote into its own cache; `Checkpoints` has just compared its digest."""
    import torch

    module: Module = torch.load(io.BytesIO(handle.path.read_bytes()), map_location="cpu", weights_only=False)
    return module.eval()
