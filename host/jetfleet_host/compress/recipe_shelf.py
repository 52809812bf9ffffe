"""Recipes by name, that come with jetfleet, and recipe files of the user's own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import msgspec

from jetfleet_contract.errors import InputError

from .recipe_file import RecipeFile

MAX_BYTES = 1 << 20
SPACES = "spaces"


def names() -> tuple[str, ...]:
    """Of the recipes that come with jetfleet, sorted."""
    return _on(_shelf())


def space_names() -> tuple[str, ...]:
    """Of the spaces for `jetfleet search` that come with jetfleet, sorted."""
    return _on(_shelf() / SPACES)


def text_of(name: str) -> str:
    """The TOML of a recipe or a space that comes with jetfleet. InputError `recipe.unknown`."""
    if name in space_names():
        return (_shelf() / SPACES / f"{name}.toml").read_text("utf-8")
    if name not in names():
        raise InputError("recipe.unknown", f"there is no recipe {name[:60]!r}",
                         remedy=f"one of {', '.join((*names(), *space_names()))}, or a file NAME.toml")
    return (_shelf() / f"{name}.toml").read_text("utf-8")


def read_recipe(given: str) -> RecipeFile:
    """A recipe by name, or from a TOML file.

    Raises:
        InputError: `recipe.unknown`; `recipe.space` for a space, which is many recipes;
            `recipe.unreadable`; `recipe.bad` with the key or value that is wrong.
    """
    path = Path(given)
    if given in space_names():
        raise InputError("recipe.space", f"{given!r} is a space of recipes, of which a search finds the best", where=given,
                         remedy=f"run jetfleet search MODEL --space {given}, then build with the recipe that it writes")
    if not given.endswith(".toml"):
        return _decoded(text_of(given), given)
    try:
        data = path.read_bytes()[:MAX_BYTES + 1]
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("recipe.unreadable", f"the recipe {path} cannot be read: {error}", where=given,
                         remedy="give a TOML file; `jetfleet recipes show ptq` prints one to begin with") from None
    if len(data) > MAX_BYTES:
        raise InputError("recipe.unreadable", f"the recipe {path} is larger than {MAX_BYTES} bytes", where=given, remedy="give a recipe")
    return _decoded(text, given)


def _decoded(text: str, where: str) -> RecipeFile:
    try:
        return msgspec.toml.decode(text, type=RecipeFile)
    except msgspec.MsgspecError as error:
        raise InputError("recipe.bad", f"the recipe says something that cannot be: {error}", where=where,
                         remedy="`jetfleet recipes show ptq` prints one that is right; docs/builder.md has every key") from None
    except ValueError as error:
        raise InputError("recipe.bad", f"the recipe is no TOML: {error}", where=where, remedy="correct that line") from None


def _on(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.stem for entry in folder.iterdir() if entry.suffix == ".toml"))


def _shelf() -> Path:
    return Path(str(files("jetfleet_host.compress") / "recipes"))
