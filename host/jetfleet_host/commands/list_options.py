"""Options that take several values in a row: ``--models a.onnx b.onnx`` says the same as ``--models a.onnx --models b.onnx``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from typer.core import TyperCommand


class ListCommand(TyperCommand):
    """A command whose options that may be repeated may also be given once with several values."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        return super().parse_args(ctx, list(spread(args, lists)))


def spread(args: Sequence[str], lists: Iterable[str]) -> Iterable[str]:
    """The arguments with each value of an option in `lists` behind an option of its own. A value never begins with a dash."""
    many, current, first = frozenset(lists), "", False
    for arg in args:
        if arg.startswith("-") and len(arg) > 1:
            current, first = (arg if arg in many else ""), True
            yield arg
        elif current and not first:
            yield current
            yield arg
        else:
            first = False
            yield arg
