"""What became of a recipe's float stages: kept with the bundle, shown by the report."""

from __future__ import annotations

from typing import Literal

import msgspec

from .guard import Verdict
from .recipe_file import FloatStageConfig

Ending = Literal["kept", "gentler", "left-out"]


class Try(msgspec.Struct, frozen=True):
    """One setting of a stage. `error` is the code and sentence of a stage that could not run; then there is no verdict. `digest` names
    the model that came of it."""

    strength: float
    config: FloatStageConfig
    verdict: Verdict | None = None
    error: str = ""
    digest: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict is not None and self.verdict.outcome == "pass"

    @property
    def reason(self) -> str:
        return self.error or (self.verdict.reason if self.verdict else "")


class StageRecord(msgspec.Struct, frozen=True):
    """What became of one stage: `ending`, every setting that was tried, and the metric (0..1) of the model that it left behind."""

    kind: str
    ending: Ending
    tried: tuple[Try, ...]
    metric: float
    digest: str

    @property
    def reason(self) -> str:
        """Why it ended so, in one sentence."""
        if self.ending == "kept":
            return self.tried[-1].reason
        best = max((entry for entry in self.tried if entry.passed), key=lambda entry: entry.strength, default=None)
        first = f"at its own strength: {self.tried[0].reason}"
        return f"{first}; at {best.strength:.2f} of it: {best.reason}" if best else f"left out; {first}"


class FloatRun(msgspec.Struct, frozen=True):
    """All stages. `baseline`, `best` and `metric`: of the model as it came in, at its best, and as it goes out, 0..1 on `samples`
    validation samples."""

    baseline: float
    best: float
    metric: float
    samples: int
    stages: tuple[StageRecord, ...]
