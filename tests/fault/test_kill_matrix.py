"""The kill matrix: SIGKILL before and after every effect and at every change of the disk, once and for ever, in every phase.

A board that is killed anywhere comes back with a model that runs, is committed and matches the signed metadata; the host is told. The
slow test goes through every point and prints how many there are; the quick one takes every so manieth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fault.kill_matrix import SCENARIOS

TESTS = Path(__file__).parents[1]
QUICK = {"update": (31, 103), "refusal": (31, 103), "rollback": (37, 113), "superseded": (61, 203), "downgrade": (41, 157),
         "undeploy": (31, 97), "one at a time": (37, 113), "repair": (4, 7), "delta": (37, 120)}
PHASES = {
    "update": {"identity", "session", "trust", "deployment", "fetching manifest", "fetching parts", "fetching weights", "choosing",
               "probing", "trial", "switch", "keeping", "commit", "acknowledgement", "upload"},
    "refusal": {"refusal", "garbage"}, "rollback": {"rollback", "garbage"}, "superseded": {"fetching weights", "commit"},
    "downgrade": {"refusal", "commit"}, "undeploy": {"garbage"}, "repair": {"repair"},
    "one at a time": {"paused", "trial", "keeping", "commit"},
    "delta": {"delta", "fetching weights"},
}
EFFECTS = {"Fetch", "Choose", "Probe", "StartPipeline", "Try", "Switch", "SendReport", "CollectGarbage"}


def matrix(scenario: str, once: int, again: int, timeout_s: float) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, str(TESTS / "fault" / "kill_matrix.py"), scenario, str(once), str(again)], capture_output=True,
                          timeout=timeout_s, check=False,
                          env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(scenario: str, rows: list[dict[str, Any]]) -> None:
    wrong = [(row["case"], row["phase"], row["what"], row["wrong"]) for row in rows if row["wrong"]]
    assert not wrong, f"{len(wrong)} of {len(rows)}: {wrong[:5]}"
    assert {phase for phase, _ in rows[0]["after"]["points"]} >= PHASES[scenario]
    assert len(rows) > 3


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_killed_here_and_there_the_board_comes_back(scenario: str) -> None:
    check(scenario, matrix(scenario, *QUICK[scenario], 170))


def test_a_life_passes_every_kind_of_point() -> None:
    points = matrix("update", 10_000, 10_000, 170)[0]["after"]["points"]
    effects = {what.split()[1] for _, what in points if what.startswith(("before", "after"))}
    changes = {what.split()[0] for _, what in points} - {"before", "after"}
    assert effects >= EFFECTS
    assert changes >= {"mkdir", "create", "reserve", "write", "sync", "rename", "link", "unlink"}
    assert len(points) > 300


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_killed_anywhere_the_board_comes_back(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = matrix(scenario, 1, 4, 1400)
    check(scenario, rows)
    with capsys.disabled():
        print(summary(scenario, rows[1:]))


def summary(scenario: str, rows: list[dict[str, Any]]) -> str:
    """Cases by phase, and how the boards that were killed again and again came out."""
    phases = Counter(row["phase"] for row in rows)
    cases = Counter(row["case"] for row in rows)
    ends = Counter(f"{row['after']['outcome']} {row['after']['code']}".strip() for row in rows)
    kinds = ", ".join(f"{count} {case}" for case, count in cases.items())
    kills = sum(row["kills"] for row in rows)
    lines = [f"kill matrix, {scenario}: {len(rows)} cases ({kinds}), {kills} SIGKILLs, 0 boards lost",
             "  by phase: " + ", ".join(f"{phase} {count}" for phase, count in phases.items()),
             "  ended:    " + ", ".join(f"{end} {count}" for end, count in ends.items())]
    return "\n".join(["", *lines])
