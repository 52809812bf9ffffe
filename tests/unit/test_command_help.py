"""Every command, those of groups too, says what it does, shows examples of itself and can answer in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from jetfleet_host.cli import app


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    if not inner or command.invoke_without_command:
        yield " ".join(path), command
    for name, part in inner.items():
        yield from commands(part, (*path, name))


EVERY = dict(commands(typer.main.get_command(app)))


def test_all_groups_are_walked() -> None:
    assert {"publish", "rollout start", "experiment start", "broker ca init", "device secret set", "sim"} <= EVERY.keys()


@pytest.mark.parametrize("name", EVERY)
def test_a_command_has_help_with_examples_and_json(name: str) -> None:
    command = EVERY[name]
    said = f"{command.help or ''}\n{command.epilog or ''}"
    options = {option for parameter in command.params for option in parameter.opts}
    assert command.help
    assert "xample" in said
    assert f"jetfleet {name}" in said
    assert "--json" in options
    assert all(parameter.help for parameter in command.params if parameter.param_type_name == "option")
