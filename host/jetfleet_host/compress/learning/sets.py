"""The sets of one learning: training and validation images of the replay set and of the new one, kept apart for the guard."""

from __future__ import annotations

from dataclasses import dataclass

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.dataset import DataSet
from jetfleet_host.compress.intake.splitting import Splits, joined, ranked, subset


@dataclass(frozen=True)
class LearningSets:
    """`train` mixes both; `old` and `new` validate, each alone; `calibration` of the next version's int8 scales mixes both."""

    train: DataSet
    old: DataSet
    new: DataSet
    calibration: DataSet


def learning_sets(old: Splits, new: Splits, *, replay_per_new: float, seed: int) -> LearningSets:
    """Mix the training images: all new ones, and for each of them `replay_per_new` of the replay set's, chosen by the seed.

    Raises:
        InputError: `learn.unlabelled` when one of the sets has no labels.
    """
    for name, splits in (("replay", old), ("new", new)):
        if splits.train.truth is None or splits.validation.truth is None:
            raise InputError("learn.unlabelled", f"the {name} set has no labels", where=str(splits.train.folder),
                             remedy="give class folders, or labels.json as `jetfleet harvest export` writes it")
    wanted = min(len(old.train.images), max(1, round(replay_per_new * len(new.train.images))))
    replay = subset(old.train, sorted(ranked(old.train, seed)[:wanted]), "replay")
    return LearningSets(joined((replay, new.train)), old.validation, new.validation, joined((old.calibration, new.calibration)))
