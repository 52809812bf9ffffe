"""The supervisor killed by SIGKILL before and after each effect of an update, and between any two disk operations of its journal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]


@cache
def table(kind: str) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, str(TESTS / "fault" / "kill_table.py"), kind], capture_output=True, timeout=170, check=False,
                          env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_whole_life_passes_every_kind_of_effect() -> None:
    whole = table("good")[0]["after"]
    assert whole["version"] == "2"
    seen = {point.split()[1] for point in whole["points"]}
    assert {"Fetch", "Choose", "Probe", "StartPipeline", "Try", "Switch", "SendReport", "CollectGarbage", "put", "link", "move"} <= seen
    assert len(whole["points"]) > 100


def test_an_update_killed_anywhere_ends_committed_after_a_restart() -> None:
    rows = table("good")[1:]
    assert all(row["died"] for row in rows), "a kill did not happen where it should"
    wrong = [row for row in rows if (row["after"].get("version"), row["after"].get("outcome"), row["after"].get("phase"))
             != ("2", "committed", "idle") or row["after"]["running"] != row["after"]["bundle"]]
    assert not wrong, wrong[:3]


def test_the_outcome_is_reported_wherever_the_kill_was() -> None:
    assert [row for row in table("good")[1:] if not row["after"]["waiting"]] == []


@pytest.mark.parametrize("kind", ["bad"])
def test_a_bad_first_model_killed_anywhere_ends_refused(kind: str) -> None:
    rows = table(kind)[1:]
    ends = ("version", "outcome", "running")
    wrong = [row for row in rows if tuple(row["after"].get(end) for end in ends) != ("", "refused", "")]
    assert not wrong, wrong[:3]
