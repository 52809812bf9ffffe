"""A space of recipes: a recipe file in which any value may be a range or a choice, and any stage may be optional. Pure.

    [[stage]]
    kind = "prune"
    optional = true
    ratio = { low = 0.1, high = 0.5, step = 0.1 }
    importance = { choices = ["l1", "taylor"] }

A parameter is named after its place: ``stage1.prune.ratio``, ``training.learning_rate``; ``stage1.prune`` switches an optional stage.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from jetfleet_contract.errors import InputError
from jetfleet_host.compress.recipe_file import RecipeFile

MAX_SPACE_BYTES = 64 * 1024
Value = str | int | float | bool


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both among them; whole ones when `whole`; every `step` unless it is 0; `log`: logarithmic."""

    low: float
    high: float
    step: float = 0.0
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Choices:
    """One of these values."""

    options: tuple[Value, ...]


@dataclass(frozen=True)
class Parameter:
    """`under` is the name of the switch that must be on for it to count; empty when it always does."""

    name: str
    domain: Range | Choices
    under: str = ""


@dataclass(frozen=True)
class Space:
    """`parameters` in the order in which they are asked; `template` is the file as it was read."""

    template: Mapping[str, Any]
    parameters: tuple[Parameter, ...]

    def recipe_at(self, values: Mapping[str, Value]) -> RecipeFile:
        """The recipe at a point of the space.

        Args:
            values: of every parameter whose switch is on; those of stages that are off may be missing.

        Raises:
            InputError: `search.space` when the values make no recipe.
        """
        stages = []
        for index, stage in enumerate(self.template.get("stage", ())):
            place = f"stage{index + 1}.{stage.get('kind', '')}"
            if not stage.get("optional") or values[place]:
                stages.append({key: _at(value, f"{place}.{key}", values) for key, value in stage.items() if key != "optional"})
        rest = {key: _at(value, key, values) for key, value in self.template.items() if key != "stage"}
        try:
            return msgspec.convert({**rest, "stage": stages}, RecipeFile)
        except msgspec.ValidationError as error:
            raise InputError("search.space", f"the space holds what is no recipe: {error}",
                             remedy="jetfleet build --help says what a recipe file holds") from None


def parse_space(data: bytes, where: str) -> Space:
    """Read a space and check it at both ends of every range and at every choice.

    Raises:
        InputError: `search.space`.
    """
    if len(data) > MAX_SPACE_BYTES:
        raise _bad(f"the space has {len(data)} bytes, the limit is {MAX_SPACE_BYTES}", where)
    try:
        template = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _bad(f"the space is not TOML: {error}", where) from None
    stages = template.get("stage", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise _bad("stages are tables: [[stage]]", where)
    space = Space(template, tuple(_parameters(template, where)))
    if not space.parameters:
        raise _bad("nothing in the space may vary", where, "write a value as { low = 0.1, high = 0.5 } or { choices = [...] }")
    first = {parameter.name: _corners(parameter.domain)[0] for parameter in space.parameters}
    for parameter in space.parameters:
        for corner in _corners(parameter.domain):
            space.recipe_at({**first, parameter.name: corner, **({parameter.under: True} if parameter.under else {})})
    return space


def _parameters(template: Mapping[str, Any], where: str) -> Iterator[Parameter]:
    for key, value in template.items():
        if key != "stage":
            yield from _found(value, key, "", where)
    for index, stage in enumerate(template.get("stage", ())):
        place = f"stage{index + 1}.{stage.get('kind', '')}"
        optional = stage.get("optional", False)
        if not isinstance(optional, bool):
            raise _bad(f"{place}.optional is neither true nor false", where)
        if optional:
            yield Parameter(place, Choices((True, False)))
        for key, value in stage.items():
            if key != "optional":
                yield from _found(value, f"{place}.{key}", place if optional else "", where)


def _found(value: Any, place: str, under: str, where: str) -> Iterator[Parameter]:
    if not isinstance(value, dict):
        return
    if "choices" in value:
        options = value["choices"]
        fine = isinstance(options, list) and options and all(isinstance(one, (str, int, float, bool)) for one in options)
        if not fine or set(value) != {"choices"}:
            raise _bad(f"{place}: choices is a list of values, alone in its table", where)
        yield Parameter(place, Choices(tuple(options)), under)
    elif "low" in value or "high" in value:
        yield Parameter(place, _range(value, place, where), under)
    else:
        for key, inner in value.items():
            yield from _found(inner, f"{place}.{key}", under, where)


def _range(value: Mapping[str, Any], place: str, where: str) -> Range:
    unknown = sorted(set(value) - {"low", "high", "step", "log"})
    numbers = [value.get("low"), value.get("high"), value.get("step", 0)]
    if unknown or not all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers):
        raise _bad(f"{place}: a range is {{ low, high }} of numbers, and step or log", where)
    low, high, step = (float(number) for number in numbers)
    log, whole = bool(value.get("log", False)), all(isinstance(number, int) for number in numbers)
    if not low <= high or step < 0 or (log and (low <= 0 or step)):
        raise _bad(f"{place}: low {low:g}, high {high:g}, step {step:g} make no range", where,
                   "low is at most high; a logarithmic range begins above 0 and has no step")
    return Range(low, high, step, log, whole)


def _at(value: Any, place: str, values: Mapping[str, Value]) -> Any:
    if not isinstance(value, dict):
        return value
    if "choices" in value or "low" in value:
        return values[place]
    return {key: _at(inner, f"{place}.{key}", values) for key, inner in value.items()}


def _corners(domain: Range | Choices) -> tuple[Value, ...]:
    if isinstance(domain, Choices):
        return domain.options
    return (int(domain.low), int(domain.high)) if domain.whole else (domain.low, domain.high)


def _bad(what: str, where: str, remedy: str = "see docs/matrix.md") -> InputError:
    return InputError("search.space", what, where=where, remedy=remedy)
