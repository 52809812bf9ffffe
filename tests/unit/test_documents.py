"""Commands in README and docs exist with the options that are shown: a page that lies is worse than none."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from jetfleet_host.cli import app

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/updates.md")
_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(jetfleet [^`]+)`")


def commands(page: str) -> list[str]:
    """Every `jetfleet ...` line of the page's code blocks and inline code: lines joined, comments and pipes cut, diagrams left out."""
    text = (ROOT / page).read_text("utf-8")
    blocks = [block.replace("\\\n", " ") for block in _FENCE.findall(text) if "-->" not in block]
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    shown = [part.strip() for line in lines for part in re.split(r"&&|\|\|?|>|&", line.split(" # ")[0].split("  #")[0])]
    return [line for line in (*shown, *_INLINE.findall(text)) if re.match(r"jetfleet [a-z-]", line)]


def problem(line: str) -> str:
    """What is wrong with a command line: an unknown command or option; empty when nothing is."""
    at: Any = typer.main.get_command(app)
    for word in shlex.split(line)[1:]:
        if word.startswith("-"):
            known = {name for parameter in at.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "-h"}
            if word.split("=")[0] not in known:
                return f"{word} is no option of {at.name}"
        elif hasattr(at, "commands") and not re.search(r"[/|]", word):
            if word not in at.commands:
                return f"{word} is no command of {at.name}"
            at = at.commands[word]
    return ""


@pytest.mark.parametrize("page", PAGES)
def test_every_command_shown_exists(page: str) -> None:
    found = commands(page)
    assert len(found) > 10
    wrong = {line: problem(line) for line in found if problem(line)}
    assert wrong == {}


def test_a_wrong_command_is_found() -> None:
    assert problem("jetfleet rollout start --app reader --no-such-thing")
    assert problem("jetfleet rollouts start")
    assert not problem("jetfleet rollout start --app reader --model text:1 --all --wait")
