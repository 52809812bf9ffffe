"""Commands `recipes list/show`."""

from __future__ import annotations

import json

import typer

_NAME = typer.Argument(..., metavar="NAME", help="A recipe's name.")
_JSON = typer.Option(False, "--json", help="Print JSON.")

_HELP = """Recipes for `jetfleet build --recipe`: which stages a model goes through. Without a command: the list.

Examples:

    jetfleet recipes

    jetfleet recipes show prune-ptq > mine.toml
"""


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    group = typer.Typer(name="recipes", help=_HELP, invoke_without_command=True)
    group.callback()(_default)
    group.command("list")(list_recipes)
    group.command("show")(show)
    app.add_typer(group)


def _default(context: typer.Context, as_json: bool = _JSON) -> None:
    if context.invoked_subcommand is None:
        list_recipes(as_json)


def list_recipes(as_json: bool = _JSON) -> None:
    """The recipes that come with jetfleet, and their stages.

    Example:

        jetfleet recipes list --json
    """
    from jetfleet_host.compress.recipe_shelf import names, read_recipe, space_names

    found = {name: [str(type(stage).__struct_config__.tag) for stage in read_recipe(name).stage] for name in names()}
    if as_json:
        print(json.dumps({**found, **{name: ["search"] for name in space_names()}}, indent=2))
        return
    for name, stages in found.items():
        print(f"{name:<16} {', '.join(stages)}")
    for name in space_names():
        print(f"{name:<16} a space: jetfleet search MODEL --space {name}")


def show(name: str = _NAME, as_json: bool = _JSON) -> None:
    """Print a recipe or a space as TOML, to use as it is or to change; a recipe with --json has every key that it leaves at its default.

    Example:

        jetfleet recipes show qat
    """
    from msgspec import to_builtins, toml

    from jetfleet_host.compress.recipe_shelf import read_recipe, space_names, text_of

    if not as_json:
        print(text_of(name).rstrip())
        return
    print(json.dumps(toml.decode(text_of(name)) if name in space_names() else to_builtins(read_recipe(name)), indent=2))
