"""The methods of the matrix: what each makes of a model, and which of the resulting candidates stand for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from jetfleet_contract.bundle import EvaluationRow
from jetfleet_contract.errors import InputError
from jetfleet_contract.messages import Message
from jetfleet_host.compress.calibration import Calibrator
from jetfleet_host.compress.recipe_file import RecipeFile
from jetfleet_host.compress.recipe_shelf import names, read_recipe


class Method(Message, frozen=True):
    """One method: how the build is asked, and which candidates count. `variants` and `precisions` are those that stand for it in a cell;
    empty: all. `recipe`: the stages of a recipe, which then says alone what is made."""

    name: str
    makes: tuple[Literal["fp16", "int8"], ...]
    variants: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    calibrator: Calibrator = "percentile"
    recipe: RecipeFile | None = None

    def counts(self, variant: str, precision: str) -> bool:
        """Whether a candidate stands for this method."""
        return (not self.variants or variant in self.variants) and (not self.precisions or precision in self.precisions)

    def rows(self, rows: tuple[EvaluationRow, ...]) -> tuple[EvaluationRow, ...]:
        """Those of a bundle's rows that stand for this method."""
        return tuple(row for row in rows if self.counts(row.variant, row.precision))


_INT8 = ("int8", "uint8")
NAMED = {method.name: method for method in (
    Method("fp32", (), ("fp32",), ("fp32",)),
    Method("bf16", (), ("fp32",), ("bf16",)),
    Method("fp16", ("fp16",), ("fp16",)),
    Method("int8", ("int8",), _INT8),
    *(Method(f"ptq-{calibrator}", ("int8",), _INT8, calibrator=calibrator) for calibrator in get_args(Calibrator)),
)}


def method_of(text: str) -> Method:
    """The method that an option names: one of `NAMED`, a recipe that comes with jetfleet, or a recipe file ``NAME.toml``.

    Raises:
        InputError: `matrix.method`; `recipe.unreadable`, `recipe.bad` for a file.
    """
    if text in NAMED:
        return NAMED[text]
    if text in names() or text.endswith(".toml"):
        return Method(Path(text).name.removesuffix(".toml"), (), recipe=read_recipe(text))
    raise InputError("matrix.method", f"there is no method {text[:60]!r}",
                     remedy=f"use one of {', '.join((*NAMED, *names()))}, or a recipe file NAME.toml")
