"""Gentler settings of a stage that lost too much, found by bisection. Strength 1 is the recipe's own setting, 0 does nothing.

Every try is one more training, so there are few; the strongest setting that the guard passed is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from .guard import Outcome
from .recipe_file import Distil, FloatStageConfig, Prune, Qat, Separate, Sparsify, Tune

MAX_TRIES = 4
# Strengths closer than this are not worth another training.
_CLOSE = 0.1


class Tried(msgspec.Struct, frozen=True):
    """One setting and what came of it."""

    strength: float
    outcome: Outcome


def at_strength(config: FloatStageConfig, strength: float, learning_rate: float = 1e-3) -> FloatStageConfig | None:
    """The stage at a share (0..1) of its own strength; None when this kind has no gentler form.

    Less is removed by a stage that removes, in as many more steps of tuning as before; a stage that trains moves less far from what it was
    given. `learning_rate` is the recipe's, for a `Tune` that names none.
    """
    if strength >= 1.0:
        return config
    match config:
        case Prune() if config.ratio:
            return msgspec.structs.replace(config, ratio=round(config.ratio * strength, 4))
        case Sparsify(pattern="unstructured") if config.ratio:
            return msgspec.structs.replace(config, ratio=round(config.ratio * strength, 4))
        case Separate() if config.share:
            return msgspec.structs.replace(config, share=round(config.share * strength, 4))
        case Tune() | Qat() if config.epochs:
            return msgspec.structs.replace(config, learning_rate=(config.learning_rate or learning_rate) * strength)
        case Distil(student="") if config.epochs:
            return msgspec.structs.replace(config, alpha=round(config.alpha * strength, 4))
    return None


def next_strength(tried: Sequence[Tried]) -> float | None:
    """The strength to try next; None when enough was tried or what is left to find is too close.

    Between the strongest that passed (0 before any did: the previous stage's model always passes) and the weakest that did not.
    """
    if not tried:
        return 1.0
    passed = max((entry.strength for entry in tried if entry.outcome == "pass"), default=0.0)
    refused = min((entry.strength for entry in tried if entry.outcome != "pass"), default=0.0)
    if not refused or len(tried) >= MAX_TRIES or refused - passed <= _CLOSE:
        return None
    return (passed + refused) / 2.0
