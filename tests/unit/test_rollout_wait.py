"""`rollout start --wait` follows a rollout, also before it knows how many boards there are."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import typer

from jetfleet_contract.messages import AppSpec
from jetfleet_contract.rollout import planned
from jetfleet_contract.rollout_plan import Plan
from jetfleet_contract.rollout_records import Phase
from jetfleet_host.commands.rollout import _wait
from jetfleet_host.store import journal
from jetfleet_host.store.database import Database


def finished(tmp_path: Path, phase: Phase) -> Database:
    database = Database.open(f"sqlite:///{tmp_path / 'fleet.db'}")
    bundle = "a" * 64
    state = msgspec.structs.replace(planned(Plan("r1", "text", bundle, "text", "1", (("cam-01",),))), phase=phase)
    with database.session() as session:
        journal.add_rollout(session, state, AppSpec("text", bundle, "text", "1"), False, 1.0)
    return database


def test_a_rollout_that_got_through_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _wait(finished(tmp_path, "done"), "r1", True)
    assert json.loads(capsys.readouterr().out)["phase"] == "done"


def test_a_rollout_that_was_stopped_ends_with_one(tmp_path: Path) -> None:
    with pytest.raises(typer.Exit) as caught:
        _wait(finished(tmp_path, "reverted"), "r1", False)
    assert caught.value.exit_code == 1
