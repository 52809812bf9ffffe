"""jetfleet boards: lists and shows what the files hold, and nothing that they do not."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from jetfleet_contract.errors import InputError
from jetfleet_host.boards import board_names, load_board
from jetfleet_host.cli import app


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["boards", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_list_names_every_board_and_where_the_agent_runs() -> None:
    lines = {line.split()[0]: line for line in run().splitlines()[1:]}
    assert tuple(lines) == board_names()
    assert " planned " in lines["xavier-nx"]
    assert " yes " in lines["agx-orin-64"]
    assert [board["board"] for board in json.loads(run("list", "--json"))] == list(board_names())


@pytest.mark.parametrize("name", board_names())
def test_every_board_can_be_shown_with_all_its_sources(name: str) -> None:
    board, said = load_board(name), run("show", name)
    assert board.title in said
    assert all(text in said for text in (*board.sources.values(), *board.notes, board.why_not))
    assert all(target.config in said for target in board.flash)
    assert "None" not in said
    assert json.loads(run("show", name, "--json")) == json.loads(json.dumps(board.to_tree()))


def test_what_is_not_known_has_no_line() -> None:
    said = run("show", "cpu-x86")
    assert "GPU" not in said.split("source of")[0]
    assert "memory:" not in said
    assert "power mode 10W: 10 W\n" in run("show", "orin-nx-16")  # neither its clock nor its peak is known


def test_an_unknown_board_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        CliRunner().invoke(app, ["boards", "show", "orin-nx"], catch_exceptions=False)
    assert caught.value.code == "board.unknown"
    assert "orin-nx-16" in caught.value.remedy
