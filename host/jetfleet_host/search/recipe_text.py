"""A recipe as the TOML file that `jetfleet build --recipe` takes: only what differs from the defaults."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from jetfleet_host.compress.recipe_file import RecipeFile, Training


def recipe_text(recipe: RecipeFile, comment: str = "") -> str:
    """The file's text; reading it gives an equal recipe.

    Args:
        comment: lines for the head of the file.
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    top = msgspec.to_builtins(recipe)
    defaults = msgspec.to_builtins(RecipeFile())
    lines += [f"{key} = {_text(value)}" for key, value in top.items() if key not in ("training", "stage") and value != defaults[key]]
    plain = msgspec.to_builtins(Training())
    training = {key: value for key, value in top["training"].items() if value != plain[key]}
    if training:
        lines += ["", "[training]", *(f"{key} = {_text(value)}" for key, value in training.items())]
    for stage, config in zip(top["stage"], recipe.stage, strict=True):
        usual = msgspec.to_builtins(type(config)())
        lines += ["", "[[stage]]", f"kind = {_text(stage['kind'])}"]
        lines += [f"{key} = {_text(value)}" for key, value in stage.items() if key != "kind" and value != usual[key]]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    """A TOML value. JSON's strings are TOML's, but for DEL and for pairs of surrogates."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
